"""The exported classifier as files: written in up to seven formats, and loaded again behind one callable.

Every format is self-contained: uint8 RGB pixels in, probabilities out, and class names, image size and resizing rule inside the
file, where the format has room for them:

    model.keras    members graft.json and labels.txt of the archive that it is
    *.tflite       the same of an archive that is appended to it, as TFLite's own metadata tools do: `unzip model.tflite` works
    model.h5       data set "graft"
    saved_model    assets.extra/graft.json and labels.txt
    model.onnx     metadata_props "graft"

All but Keras' own two formats are made from one frozen graph (variables as constants): MobileNetV2 takes 0.8 s to TFLite that
way and 5 s by `from_keras_model`, 0.3 s to a SavedModel and 6 s by `model.export`. Such a SavedModel serves; it cannot be
trained on.
"""

import importlib.util
import io
import json
import os
import re
import shutil
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from stages.common import runtimes
from stages.console import GraftError, silence

FILES = {
    "keras": "model.keras",
    "h5": "model.h5",
    "saved_model": "saved_model",
    "tflite": "model.tflite",
    "tflite_fp16": "model_fp16.tflite",
    "tflite_int8": "model_int8.tflite",
    "onnx": "model.onnx",
}
LABELS = "labels.txt"
ABOUT = "graft.json"  # name of the metadata inside the files
NEEDS = {"onnx": ("onnx", "tf2onnx", "onnxruntime")}  # packages to write and check a format, beside TensorFlow
NEEDS_TO_LOAD = {"onnx": ("onnxruntime",)}
CHUNK = 32  # images per call
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip archive can hold


@dataclass(frozen=True)
class Metadata:
    """What one must know to use the model, as `graft.json` holds it.

    classes: name of each output. image_size: side S in pixels. resize: how a photo becomes S x S.
    temperature: T of softmax(logits / T), already applied; 1.0 = none. version: of this description.
    """

    classes: tuple
    image_size: int
    resize: str
    temperature: float = 1.0
    backbone: str = ""
    alpha: float = 1.0
    input: str = "uint8 RGB pixels (n, image_size, image_size, 3), 0..255; the model scales them itself"
    output: str = "float32 probabilities (n, classes)"
    version: int = 1

    @classmethod
    def of(cls, spec, temperature=1.0):
        """From a classifier's description (`classes`, `image_size`, `resize`, `backbone`, `alpha`)."""
        return cls(tuple(spec.classes), spec.image_size, spec.resize, float(temperature), spec.backbone, spec.alpha)

    def json(self):
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def labels(self):
        """One class name per line, in the order of the outputs; a line break in a name becomes a space."""
        return "".join(" ".join(name.splitlines()) + "\n" for name in self.classes)

    @classmethod
    def parse(cls, text, where):
        try:
            tree = json.loads(text)
            known = {key: tree[key] for key in cls.__dataclass_fields__ if key in tree}
            return cls(**{**known, "classes": tuple(tree["classes"])})
        except (ValueError, TypeError, KeyError):
            raise GraftError(f"{where}: its {ABOUT} is damaged; export the model again") from None


def missing(format, needs=NEEDS_TO_LOAD):
    """Names of the packages that `format` needs and that are not installed."""
    return [name for name in needs.get(format, ()) if importlib.util.find_spec(name) is None]


def check_available(formats, needs=NEEDS):
    """Raise GraftError, before any work, where a package that one of `formats` needs is not installed."""
    for format in formats:
        if names := " and ".join(missing(format, needs)):
            raise GraftError(f"{format} needs {names}; pip install 'graft[onnx]', or drop it from export.formats")


def self_contained(model, temperature=1.0):
    """`model` with its softmax at `temperature`: probabilities softmax(z / T) of the logits z.

    The last layer's kernel and bias are divided by T, which is softmax(z / T) exactly and adds no layer that a format might not
    know. `model` ends in a Dense softmax; its other layers are shared with the result, the last is copied; it is not changed.
    """
    import keras

    if temperature == 1.0:
        return model
    last = model.layers[-1]
    config = last.get_config()
    if not isinstance(last, keras.layers.Dense) or config["activation"] != "softmax":
        raise ValueError("the model does not end in a Dense layer with softmax")
    copy = keras.layers.Dense.from_config(config)
    result = keras.Model(model.input, copy(last.input), name=model.name)
    copy.set_weights([weight / np.float32(temperature) for weight in last.get_weights()])
    return result


def write(formats, model, metadata, folder, *, calibration=None, min_agreement=0.98, wrote=lambda format, how: None):
    """Write `model` (see `self_contained`) into `folder` in each of `formats`, under its name in FILES, and labels.txt.

    calibration: uint8 (n, S, S, 3), training images that set the ranges of tflite_int8; no other format needs it.
    min_agreement: share of them on which tflite_int8 with 8-bit activations must agree with the model, see `_int8`.
    wrote: called with each format as it is done, and a few words on how it came out, mostly none.
    The same model gives the same bytes, in every format.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES.values():  # what an earlier export wrote in formats that are not wanted any more
        _remove(folder / name)
    (folder / LABELS).write_text(metadata.labels(), encoding="utf-8", newline="\n")
    if "tflite_int8" in formats and (calibration is None or not len(calibration)):
        raise ValueError("tflite_int8 needs calibration images")
    frozen = None if set(formats) <= {"keras", "h5"} else runtimes.freeze(model)
    for format in formats:
        path, how = folder / FILES[format], ""
        with silence():
            if format == "keras":
                write_keras(model, metadata, path)
            elif format == "h5":
                _write_h5(model, metadata, path)
            elif format == "saved_model":
                _write_saved_model(frozen, metadata, path)
            elif format == "onnx":
                _write_onnx(frozen, metadata, path)
            else:
                if format == "tflite_int8":
                    blob, how = _int8(frozen, calibration, min_agreement)
                else:
                    blob = _tflite(frozen, format)
                path.write_bytes(blob)
                with zipfile.ZipFile(path, "a") as archive:
                    _add_about(archive, metadata)
        wrote(format, how)


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# --- Keras ---


def write_keras(model, metadata, path):
    """A `.keras` archive without what differs from save to save (keras#15948): times, the date, addresses of shared objects."""
    import keras

    buffer = io.BytesIO()
    part = Path(path).with_name(f".{os.getpid()}.part.keras")
    try:
        keras.saving.save_model(model, part)
        with zipfile.ZipFile(part) as source, zipfile.ZipFile(buffer, "w") as target:
            for name in sorted(source.namelist()):
                data = source.read(name)
                if name == "metadata.json":
                    tree = json.loads(data)
                    tree.pop("date_saved", None)
                    data = json.dumps(tree, sort_keys=True).encode()
                if name == "config.json":
                    data = json.dumps(_renumbered(json.loads(data), {})).encode()
                _add(target, name, data)
            _add_about(target, metadata)
    finally:
        part.unlink(missing_ok=True)
    Path(path).write_bytes(buffer.getvalue())


def _renumbered(tree, numbers):
    """`tree` with each "shared_object_id", a memory address, replaced by 0, 1, 2, … in the order of appearance."""
    if isinstance(tree, list):
        return [_renumbered(value, numbers) for value in tree]
    if not isinstance(tree, dict):
        return tree
    return {
        key: numbers.setdefault(value, len(numbers)) if key == "shared_object_id" else _renumbered(value, numbers)
        for key, value in tree.items()
    }


def _add(archive, name, data):
    info = zipfile.ZipInfo(name, EPOCH)
    info.create_system, info.external_attr = 3, 0o644 << 16  # the same on every system
    archive.writestr(info, data)


def _add_about(archive, metadata):
    _add(archive, ABOUT, metadata.json().encode())
    _add(archive, LABELS, metadata.labels().encode())


def _write_h5(model, metadata, path):
    import h5py
    import keras

    keras.saving.save_model(model, path, include_optimizer=False)  # Keras 3 calls the format legacy; much still reads it
    with h5py.File(path, "r+") as file:
        # A data set, since an attribute holds 64 kB at most.
        file.create_dataset("graft", data=metadata.json(), dtype=h5py.string_dtype())


# --- SavedModel, TFLite, ONNX: from the frozen graph ---


def _write_saved_model(frozen, metadata, path):
    import tensorflow as tf

    module = tf.Module()
    spec = tf.TensorSpec(frozen.inputs[0].shape, "uint8", name="image")
    module.serve = tf.function(lambda image: {"probabilities": frozen(image)[0]}, input_signature=[spec])
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})
    (path / "fingerprint.pb").unlink(missing_ok=True)  # optional, and holds a random number
    _sort_functions(path / "saved_model.pb")
    extra = path / "assets.extra"
    extra.mkdir()
    (extra / ABOUT).write_text(metadata.json(), encoding="utf-8", newline="\n")
    (extra / LABELS).write_text(metadata.labels(), encoding="utf-8", newline="\n")


def _sort_functions(file):
    """Rewrite a SavedModel with its functions in the order of their names: TensorFlow's order is that of a hash table."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel.FromString(file.read_bytes())
    for graph in saved.meta_graphs:
        library = graph.graph_def.library
        functions = sorted(library.function, key=lambda function: function.signature.name)
        gradients = sorted(library.gradient, key=lambda gradient: gradient.function_name)
        del library.function[:], library.gradient[:]
        library.function.extend(functions)
        library.gradient.extend(gradients)
    file.write_bytes(saved.SerializeToString(deterministic=True))


def _converter(frozen, *, optimize):
    import tensorflow as tf

    converter = runtimes.litert_converter(frozen)
    if optimize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter


def _tflite(frozen, format):
    import tensorflow as tf

    converter = _converter(frozen, optimize=format != "tflite")
    if format == "tflite_fp16":
        converter.target_spec.supported_types = [tf.float16]
    return converter.convert()


# What stays float32 in tflite_int8, beside the first convolution: 2% of the weights of MobileNetV2. Agreement with the original
# on test and validation images, all in 8 bits against this: digits (alpha 0.35) 0.935 and 0.970, flowers (1.0) 0.961 and 0.974.
FLOAT_IN_INT8 = ["DEPTHWISE_CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED", "SOFTMAX"]


def _int8(frozen, images, min_agreement):
    """(TFLite bytes, how) with 8-bit weights: activations in 8 bits too, their ranges from `images`, if that is good enough.

    Good enough: the top class is the original's on at least `min_agreement` of `images`. Otherwise activations stay float32
    (agreement 0.998 on the digits, 0.971 on the flowers, in 10 times the time: XNNPACK does not take such layers).
    """
    import tensorflow as tf
    from tensorflow.lite.python.convert import mlir_quantize

    converter = _converter(frozen, optimize=True)
    converter.representative_dataset = lambda: ([image[None]] for image in images)
    converter._experimental_calibrate_only = True
    calibrated = converter.convert()
    interpreter = tf.lite.Interpreter(model_content=calibrated)
    names = {tensor["index"]: tensor["name"] for tensor in interpreter.get_tensor_details()}
    first = next((names[op["outputs"][0]] for op in interpreter._get_ops_details() if op["op_name"] == "CONV_2D"), None)
    blob = mlir_quantize(calibrated, denylisted_ops=FLOAT_IN_INT8, denylisted_nodes=[first] if first else None)
    run, size = runtimes.litert(model_content=blob), runtimes.CHUNK
    batches = [images[i : i + size] for i in range(0, len(images), size)]
    same = sum(int((run(b)[0].argmax(1) == frozen(tf.constant(b))[0].numpy().argmax(1)).sum()) for b in batches)
    if same >= min_agreement * len(images):
        return blob, "(8-bit weights and activations)"
    how = f"(8-bit weights only: with 8-bit activations it agreed on {same} of {len(images)} training images)"
    return _converter(frozen, optimize=True).convert(), how


def _write_onnx(frozen, metadata, path):
    model = runtimes.onnx_model(frozen)
    _canonical_names(model.graph)
    model.graph.name, model.graph.doc_string = "classifier", ""
    model.metadata_props.add(key="graft", value=metadata.json())
    path.write_bytes(model.SerializeToString(deterministic=True))


def _canonical_names(graph):
    """Name the input "image", the output "probabilities", the rest by place: tf2onnx numbers constants as its sets fall."""
    names = {graph.input[0].name: "image", graph.output[0].name: "probabilities"}
    for node in graph.node:
        stem = re.sub(r"__\d+$", "", node.name)
        node.name = _unused(stem, names)
        for place, name in enumerate(node.input):
            if name and name not in names:  # a constant: everything else has been an output by now
                names[name] = _unused(f"{stem}/input_{place}", names)
        for place, name in enumerate(node.output):
            if name not in names:
                names[name] = _unused(f"{node.name}:{place}", names)
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    constants = sorted(graph.initializer, key=lambda constant: list(names).index(constant.name))
    for constant in constants:
        constant.name = names[constant.name]
    del graph.value_info[:]
    constants = [type(constant).FromString(constant.SerializeToString()) for constant in constants]
    del graph.initializer[:]
    graph.initializer.extend(constants)
    for value in (graph.input[0], graph.output[0]):
        value.name = names[value.name]
        value.type.tensor_type.shape.dim[0].dim_param = "n"


def _unused(name, names):
    taken = names.setdefault(None, {})  # name -> how often it was asked for; None is no name of ONNX
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}_{taken[name]}"


# --- loading ---


@dataclass(frozen=True)
class Loaded:
    """An exported model, ready: call it with uint8 (n, S, S, 3) RGB pixels, it returns float32 (n, C) probabilities."""

    format: str
    metadata: Metadata
    run: object
    chunk: int

    def __call__(self, images):
        images = np.ascontiguousarray(images)
        size = self.metadata.image_size
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise ValueError(f"images must be uint8 (n, {size}, {size}, 3), not {images.dtype} {images.shape}")
        parts = [self.run(images[i : i + self.chunk]) for i in range(0, len(images), self.chunk)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.metadata.classes)), np.float32)


def load(format, folder):
    """The model that `write` left in `folder` in `format`, as a Loaded. Raises GraftError where it is missing or damaged."""
    return load_file(Path(folder) / FILES[format], format)


def load_file(path, format=None):
    """An exported model by its path; `format` by its name: model.keras, .h5, .tflite, .onnx, or a SavedModel's folder."""
    path = Path(path)
    format = format or _guess(path)
    if not path.exists():
        raise GraftError(f"{path}: no such model; run `dvc repro export` first")
    check_available([format], NEEDS_TO_LOAD)
    metadata = read_metadata(path, format)
    loaders = {"keras": _load_keras, "h5": _load_keras, "saved_model": _load_saved_model, "onnx": _load_onnx}
    try:
        with silence():
            run = loaders.get(format, _load_tflite)(path)
    except Exception as error:  # whatever the four libraries raise on a damaged file
        raise GraftError(f"{path}: cannot be loaded as {format}: {' '.join(str(error).split())[:200]}") from error
    return Loaded(format, metadata, run, runtimes.CHUNK if format == "onnx" or format.startswith("tflite") else CHUNK)


def _guess(path):
    if path.is_dir():
        return "saved_model"
    by_suffix = {".keras": "keras", ".h5": "h5", ".hdf5": "h5", ".tflite": "tflite", ".onnx": "onnx"}
    if path.suffix not in by_suffix:
        raise GraftError(f"{path}: not an exported model: neither a SavedModel's folder nor one of {', '.join(by_suffix)}")
    return by_suffix[path.suffix]


def read_metadata(path, format=None):
    """The Metadata inside an exported model. Raises GraftError where there is none."""
    path = Path(path)
    format = format or _guess(path)
    try:
        if format == "saved_model":
            text = (path / "assets.extra" / ABOUT).read_text(encoding="utf-8")
        elif format == "h5":
            import h5py

            with h5py.File(path) as file:
                text = file["graft"][()].decode()
        elif format == "onnx":
            text = runtimes.onnx_session(str(path)).get_modelmeta().custom_metadata_map["graft"]
        else:
            with zipfile.ZipFile(path) as archive:
                text = archive.read(ABOUT).decode()
    except Exception:  # four libraries, each with its own errors for a damaged file
        raise GraftError(f"{path}: not a model that graft exported, or damaged: it does not say what its classes are") from None
    return Metadata.parse(text, path)


def _load_keras(path):
    import keras
    import tensorflow as tf

    model = keras.saving.load_model(path, compile=False)  # safe_mode, the default, refuses code in the file
    spec = tf.TensorSpec((None, *model.input_shape[1:]), "uint8", name="image")
    call = tf.function(lambda image: model(image, training=False), input_signature=[spec])
    return lambda images: call(images).numpy()


def _load_saved_model(path):
    import tensorflow as tf

    module = tf.saved_model.load(str(path))
    return lambda images: module.serve(tf.constant(images))["probabilities"].numpy()


def _load_tflite(path):
    run = runtimes.litert(model_path=str(path))
    return lambda images: run(images)[0]


def _load_onnx(path):
    session = runtimes.onnx_session(str(path))
    return lambda images: session.run(["probabilities"], {"image": images})[0]
