"""Exported files loaded again, each behind one callable: uint8 pixels in, float32 probabilities
out."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from graft import known, runtimes
from graft.description import EMBEDDED, FILES, Description
from graft.serving import any_size
from graft.system.console import GraftError
from graft.system.environment import missing, silence
from graft.system.prefetch import processors

if TYPE_CHECKING:
    import keras

LANES = 4  # interpreters at a time: each holds the weights
# Packages to load a format, beside TensorFlow.
NEEDS = {"onnx": ("onnxruntime",), "onnx_any_size": ("onnxruntime",), "openvino": ("openvino",)}


@dataclass(frozen=True)
class Loaded:
    """A model that graft made, ready: call it with uint8 (n, S, S, 3) RGB pixels, it returns
    float32 (n, C) probabilities.

    name: where it came from, a path or MLflow's URI. format: one of FILES, "" for a model that is
    no exported file. run: what computes up to `chunk` images at once. identity: of a model that is
    no exported file, what tells it from others. network: the keras.Model behind it, None for
    formats that are none. judged: as `run`, with the p-values of `graft.known` beside it, float
    (n,); None where it has none.
    """

    name: str
    description: Description
    run: Callable[[np.ndarray], np.ndarray]
    format: str = ""
    chunk: int = runtimes.BATCH
    identity: str = ""
    network: keras.Model | None = None
    judged: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Raises ValueError for pixels of another type or shape."""
        images, size = np.ascontiguousarray(images), self.description.image_size
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images must be uint8 (n, {size}, {size}, 3), not {images.dtype} {images.shape}"
            )
        parts = [self.run(images[i : i + self.chunk]) for i in range(0, len(images), self.chunk)]
        return (
            np.concatenate(parts)
            if parts
            else np.empty((0, len(self.description.classes)), np.float32)
        )


def load(format: str, folder: Path) -> Loaded:
    """The model that `writers.write` left in `folder` in `format`. Raises GraftError where it is
    missing or damaged."""
    return load_file(folder / FILES[format], format)


def load_file(path: Path, format: str | None = None) -> Loaded:
    """An exported model by its path; `format` by its name: model.keras, .h5, .tflite, .onnx, or a
    SavedModel's folder."""
    if not path.exists():
        raise GraftError(f"{path}: no such model; run `dvc repro export` first")
    format = format or _format_of(path)
    if format == "coreml":
        raise GraftError(
            f"{path}: Core ML is run by Apple's systems alone; take another format of the same "
            "export"
        )
    if lacking := missing(NEEDS.get(format, ())):
        names, extra = " and ".join(lacking), format.partition("_")[0]
        raise GraftError(f"{path}: {format} needs {names}; pip install 'graft-vision[{extra}]'")
    description = read_description(path, format)
    try:
        with silence():
            network = _load_keras(path) if format in KERAS else None
            run = (
                keras_call(network) if format in KERAS else LOADERS.get(format, _load_tflite)(path)
            )
    except Exception as error:  # whatever the four libraries raise on a damaged file
        raise GraftError(
            f"{path}: cannot be loaded as {format}: {' '.join(str(error).split())[:200]}"
        ) from error
    chunk = runtimes.CHUNK if format == "onnx" or format.startswith("tflite") else runtimes.BATCH
    return Loaded(str(path), description, run, format, chunk, network=network)


def lanes(model: Loaded) -> int:
    """How many calls of `lane` are worth making at a time."""
    return min(LANES, processors()) if model.format.startswith("tflite") else 1


def lane(model: Loaded) -> Loaded:
    """`model`, to be called while other lanes are, with its share of the processors; the same bits.

    One thread for one image at a time keeps intermediate values in a processor's own cache and
    waits for nobody: EfficientNet-Lite0 at 224 px takes 10.1 ms of a processor instead of 12.1 in
    batches of 8 (`runtimes.CHUNK`).
    """
    if not model.format.startswith("tflite"):
        return model
    if lanes(model) > 1:
        run = runtimes.litert(model_path=model.name, threads=processors() // lanes(model))
        model = dataclasses.replace(model, run=lambda images: run(images)[0])
    return dataclasses.replace(model, chunk=1)


def load_knowing(folder: Path) -> Loaded:
    """model.keras of an export folder, and the p-values of the known.npz beside it. Raises
    GraftError where one is missing."""
    import keras

    if not (folder / known.FILE).exists():
        raise GraftError(
            f"{folder}: no {known.FILE} in it, without which nothing can be called unknown; run "
            "`dvc repro export`"
        )
    path = folder / FILES["keras"]
    loaded = load_file(path)
    # Which this format is.
    model, description = cast("keras.Model", loaded.network), loaded.description
    try:
        knows, last = known.Known.read(folder / known.FILE), model.layers[-1]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise GraftError(
            f"{folder / known.FILE}: not what graft exported, or damaged; run `dvc repro export`"
        ) from error
    pooled = "pooled" if any(layer.name == "pooled" for layer in model.layers) else "pooling"
    call = keras_call(
        keras.Model(model.input, [model.output, model.get_layer(pooled).output, last.input])
    )
    # `graft.known` measures before any temperature.
    scale = description.temperature if description.calibrated else 1.0
    kernel, bias = (weight * scale for weight in last.get_weights())

    def judged(images):
        probabilities, features, inner = call(images)
        return probabilities, knows.p_values(features, inner @ kernel + bias)

    return dataclasses.replace(loaded, judged=judged)


def _format_of(path):
    if path.suffix == ".mlpackage":
        return "coreml"
    if named := [format for format, name in FILES.items() if name == path.name]:
        return named[0]
    if path.is_dir():
        return "openvino" if (path / "model.xml").exists() else "saved_model"
    by_suffix = {
        ".keras": "keras",
        ".h5": "h5",
        ".hdf5": "h5",
        ".tflite": "tflite",
        ".onnx": "onnx",
    }
    if path.suffix not in by_suffix:
        raise GraftError(
            f"{path}: not an exported model: neither a SavedModel's folder nor one of "
            f"{', '.join(by_suffix)}"
        )
    return by_suffix[path.suffix]


def read_description(path: Path, format: str | None = None) -> Description:
    """The Description inside an exported model. Raises GraftError where there is none."""
    format = format or _format_of(path)
    try:
        if format.startswith("saved_model"):
            text = (path / "assets.extra" / EMBEDDED).read_text(encoding="utf-8")
        elif format == "h5":
            import h5py

            with h5py.File(path) as file:
                text = file["graft"][()].decode()
        elif format == "openvino":
            text = (path / EMBEDDED).read_text(encoding="utf-8")
        elif format.startswith("onnx"):
            text = runtimes.onnx_session(str(path)).get_modelmeta().custom_metadata_map["graft"]
        else:
            with zipfile.ZipFile(path) as archive:
                text = archive.read(EMBEDDED).decode()
    except Exception:  # four libraries, each with its own errors for a damaged file
        raise GraftError(
            f"{path}: not a model that graft exported, or damaged: it does not say what its "
            "classes are"
        ) from None
    return Description.from_json(text, path)


def keras_call(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """What runs a keras.Model as it is: no exported file and no frozen graph plays a part in what
    it says."""
    import tensorflow as tf

    # As a graph: called eagerly, the model keeps every layer's output until it is done, 1.3 GB for
    # 32 images at 160 px.
    spec = tf.TensorSpec((None, *model.input_shape[1:]), "uint8", name="image")
    call = tf.function(
        lambda image: model(image, training=False), input_signature=[spec], autograph=False
    )
    return lambda images: _arrays(call(images))


def _arrays(found):
    return [tensor.numpy() for tensor in found] if isinstance(found, list) else found.numpy()


def _load_keras(path):
    import keras

    # safe_mode, the default, refuses code in the file.
    return keras.saving.load_model(path, compile=False)


def _load_saved_model(path):
    import tensorflow as tf

    module = tf.saved_model.load(str(path))

    def run(images):
        return module.serve(tf.constant(images))["probabilities"].numpy()

    return (
        _one_by_one(run)
        if any_size.INPUT in module.signatures["serving_default"].structured_input_signature[1]
        else run
    )


def _load_tflite(path):
    run = runtimes.litert(model_path=str(path))
    return lambda images: run(images)[0]


def _load_onnx(path):
    session = runtimes.onnx_session(str(path))
    name = session.get_inputs()[0].name

    def run(images):
        return session.run(["probabilities"], {name: images})[0]

    return _one_by_one(run) if name == any_size.INPUT else run


def _load_openvino(path):
    import openvino

    how = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": processors(),
    }
    model = openvino.Core().compile_model(path / "model.xml", "CPU", how)
    return lambda images: model(images)["probabilities"].copy()


def _one_by_one(run):
    return lambda photos: np.concatenate([run(photo) for photo in photos])


KERAS = ("keras", "h5")
LOADERS = {
    "saved_model": _load_saved_model,
    "saved_model_any_size": _load_saved_model,
    "onnx": _load_onnx,
    "onnx_any_size": _load_onnx,
    "openvino": _load_openvino,
}
