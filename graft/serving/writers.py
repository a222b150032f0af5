"""The classifier written as files, in the formats of `graft.description.FILES`, each
self-contained.

uint8 RGB pixels in, probabilities out (uint8 too in tflite_int8, in steps of 1/256), and what
`Description` says inside the file, where the format has room for it:

    model.keras    members graft.json and labels.txt of the archive that it is
    *.tflite       the same of an archive that is appended to it, as TFLite's own metadata tools do:
                   `unzip model.tflite` works; signature and TFLite Metadata inside
                   (`tflite_metadata`)
    model.h5       data set "graft"
    saved_model    assets.extra/graft.json and labels.txt; so in saved_model_any_size
    model.onnx     metadata_props "graft"; so in model_any_size.onnx
    openvino       graft.json and labels.txt beside model.xml and model.bin
    coreml         user-defined metadata "graft"; the classes are the model's own

All but Keras' own two formats are made from one frozen graph (variables as constants): MobileNetV2
takes 0.8 s to TFLite that way and 5 s by `from_keras_model`, 0.3 s to a SavedModel and 6 s by
`model.export`. Such a SavedModel serves; it cannot be trained on.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graft import runtimes
from graft.description import EMBEDDED, FILES, LABELS, Description
from graft.serving import any_size, tflite_metadata
from graft.system import files
from graft.system.console import log
from graft.system.environment import silence

if TYPE_CHECKING:
    import keras

KINDS = {
    "tflite_int8": "(full integer: uint8 in and out)",
    "tflite_dynamic": "(8-bit weights, activations in float)",
    "coreml": "(run by Apple's systems alone: not compared with the original)",
}
FROM_KERAS = {"keras", "h5"}  # the others are made from the frozen graph
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip archive can hold


def self_contained(model: keras.Model, description: Description) -> tuple:
    """(model, description) with the keras.Model's softmax at the description's temperature T:
    softmax(z / T) of the logits z.

    The last layer's kernel and bias are divided by T, which is softmax(z / T) exactly and adds no
    layer that a format might not know. `model` ends in a Dense softmax; its other layers are shared
    with the result, the last is copied; it is not changed. Returned as it is where nothing is left
    to apply.
    """
    import keras

    if description.calibrated or description.temperature == 1.0:
        return model, description
    last = model.layers[-1]
    config = last.get_config()
    if not isinstance(last, keras.layers.Dense) or config["activation"] != "softmax":
        raise ValueError("the model does not end in a Dense layer with softmax")
    copy = keras.layers.Dense.from_config(config)
    result = keras.Model(model.input, copy(last.input), name=model.name)
    copy.set_weights(
        [weight / np.float32(description.temperature) for weight in last.get_weights()]
    )
    return result, description.replace(calibrated=True)


def write(
    formats: Collection[str],
    model: keras.Model,
    description: Description,
    folder: Path,
    *,
    representative: np.ndarray | None = None,
    refuse: Callable[[], str] | None = None,
) -> tuple[str, ...]:
    """Write the keras.Model (see `self_contained`) into `folder` in each of `formats`, under its
    name in FILES, and labels.txt.

    representative: uint8 (n, S, S, 3), training images that set the ranges of tflite_int8; no other
    format needs it. refuse: asked once tflite_int8 is there, why it must not be shipped, "" if it
    may; tflite_dynamic then takes its place. The same model gives the same bytes, in every format.
    Logs a line per format. Returns the formats that were written.
    """
    if "tflite_int8" in formats and (representative is None or not len(representative)):
        raise ValueError("tflite_int8 needs representative images")
    keep(folder, ())  # what an earlier export wrote in formats that are not wanted any more
    files.write_text(folder / LABELS, description.labels_text())
    frozen = None if set(formats) <= FROM_KERAS else runtimes.freeze(model)
    written = []
    for format in formats:
        _write_one(format, model, frozen, description, folder, representative)
        if format == "tflite_int8" and refuse is not None and (why := refuse()):
            _remove(folder / FILES[format])
            log(
                f"export: tflite_int8 left out: {why}; tflite_dynamic, with 8-bit weights only, "
                "takes its place"
            )
            format = "tflite_dynamic"
            _write_one(format, model, frozen, description, folder, representative)
        written.append(format)
    return tuple(dict.fromkeys(written))


def _write_one(format, model, frozen, description, folder, representative):
    path = folder / FILES[format]
    with silence():
        if format in FROM_KERAS:
            files.need_room(folder, 4 * model.count_params() + files.OF_HDF5)
        if format in WRITERS:
            WRITERS[format](model if format in FROM_KERAS else frozen, description, path)
        else:
            path.write_bytes(
                tflite_metadata.annotate(
                    _converter(frozen, format, representative).convert(), description
                )
            )
            with zipfile.ZipFile(path, "a") as archive:
                _add_description(archive, description, format)
    log(f"export: {path} {KINDS.get(format, '')}".rstrip())


def keep(folder: Path, formats: Collection[str]) -> None:
    """Remove from `folder` every exported file that is in none of `formats`."""
    for format, name in FILES.items():
        if format not in formats:
            _remove(folder / name)


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# --- Keras ---


def write_keras(model: keras.Model, description: Description, path: Path) -> None:
    """A `.keras` archive without what differs from save to save (keras#15948): times, the date,
    addresses of shared objects."""
    import keras

    keras.saving.save_model(model, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in sorted(archive.namelist())}
    about, config = json.loads(members["metadata.json"]), json.loads(members["config.json"])
    about.pop("date_saved", None)
    members["metadata.json"] = json.dumps(about, sort_keys=True).encode()
    members["config.json"] = json.dumps(_renumbered(config, {})).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            _add(archive, name, data)
        _add_description(archive, description)


def _renumbered(tree, numbers):
    """`tree` with each "shared_object_id", a memory address, replaced by 0, 1, 2, … in the order of
    appearance."""
    if isinstance(tree, list):
        return [_renumbered(value, numbers) for value in tree]
    if not isinstance(tree, dict):
        return tree
    return {
        key: numbers.setdefault(value, len(numbers))
        if key == "shared_object_id"
        else _renumbered(value, numbers)
        for key, value in tree.items()
    }


def _add(archive, name, data):
    info = zipfile.ZipInfo(name, EPOCH)
    info.create_system, info.external_attr = 3, 0o644 << 16  # the same on every system
    archive.writestr(info, data)


def _add_description(archive, description, format=""):
    _add(archive, EMBEDDED, description.to_json(format).encode())
    _add(archive, LABELS, description.labels_text().encode())


def _write_h5(model, description, path):
    import h5py
    import keras

    # Keras 3 calls the format legacy; much still reads it.
    keras.saving.save_model(model, path, include_optimizer=False)
    with h5py.File(path, "r+") as file:
        # A data set, since an attribute holds 64 kB at most.
        file.create_dataset("graft", data=description.to_json(), dtype=h5py.string_dtype())


# --- SavedModel, TFLite, ONNX: from the frozen graph ---


def _write_saved_model(frozen, description, path):
    import tensorflow as tf

    spec = tf.TensorSpec(frozen.inputs[0].shape, "uint8", name="image")
    _save_function(
        lambda image: {"probabilities": frozen(image)[0]},
        spec,
        path,
        description.to_json(),
        description,
    )


def _write_saved_model_any_size(frozen, description, path):
    import tensorflow as tf

    def serve(photo):
        return {
            "probabilities": frozen(
                any_size.tensorflow(photo, description.image_size, description.resize)[None]
            )[0]
        }

    spec = tf.TensorSpec((None, None, 3), "uint8", name=any_size.INPUT)
    _save_function(serve, spec, path, description.to_json("saved_model_any_size"), description)


def _save_function(serve, spec, path, about, description):
    import tensorflow as tf

    module = tf.Module()
    module.serve = tf.function(serve, input_signature=[spec], autograph=False)
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})
    (path / "fingerprint.pb").unlink(missing_ok=True)  # optional, and holds a random number
    _sort_functions(path / "saved_model.pb")
    files.write_text(path / "assets.extra" / EMBEDDED, about)
    files.write_text(path / "assets.extra" / LABELS, description.labels_text())


def _sort_functions(file):
    """Rewrite a SavedModel with its functions in the order of their names: TensorFlow's order is
    that of a hash table."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel.FromString(file.read_bytes())
    for graph in saved.meta_graphs:
        library = graph.graph_def.library
        library.function.sort(key=lambda function: function.signature.name)
        library.gradient.sort(key=lambda gradient: gradient.function_name)
    file.write_bytes(saved.SerializeToString(deterministic=True))


def _converter(frozen, format, representative=None):
    """A TFLiteConverter. tflite_int8: integers throughout, uint8 in and out, for processors that
    know nothing else."""
    import tensorflow as tf

    if format != "tflite_int8":
        converter = runtimes.litert_converter(frozen)
        converter.optimizations = [] if format == "tflite" else [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16] if format == "tflite_fp16" else []
        return converter
    converter = tf.compat.v1.lite.TFLiteConverter(*runtimes.with_float_input(frozen))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.representative_dataset = lambda: (
        [image[None].astype(np.float32)] for image in representative
    )
    converter.inference_input_type = converter.inference_output_type = tf.uint8
    return converter


def _write_onnx(frozen, description, path):
    _save_onnx(_onnx(frozen, runtimes.OPSET), description.to_json(), path)


def _write_onnx_any_size(frozen, description, path):
    model = _onnx(frozen, any_size.OPSET)
    any_size.onnx_front(model, description.image_size, description.resize)
    _save_onnx(model, description.to_json("onnx_any_size"), path)


def _write_openvino(frozen, description, path):
    import openvino

    # Not its convert_model, which tells its maker.
    model = openvino.Core().read_model(_onnx(frozen, runtimes.OPSET).SerializeToString())
    openvino.save_model(model, path / "model.xml", compress_to_fp16=False)
    files.write_text(path / EMBEDDED, description.to_json())
    files.write_text(path / LABELS, description.labels_text())


def _write_coreml(frozen, description, path):
    import coremltools

    graph_def, inputs, outputs = runtimes.with_float_input(frozen)
    size = description.image_size
    model = coremltools.convert(
        graph_def,
        source="tensorflow",
        inputs=[coremltools.ImageType(name=inputs[0].op.name, shape=(1, size, size, 3))],
        outputs=[coremltools.TensorType(name=outputs[0].op.name)],
        classifier_config=coremltools.ClassifierConfig(list(description.classes)),
        compute_precision=coremltools.precision.FLOAT32,
        minimum_deployment_target=coremltools.target.iOS15,
        convert_to="mlprogram",
    )
    spec = model.get_spec()
    about = spec.description.metadata
    about.userDefined["graft"] = description.to_json("coreml")
    about.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    model.save(str(path))
    inside = path / "Data" / "com.apple.CoreML"
    (inside / "model.mlmodel").write_bytes(spec.SerializeToString(deterministic=True))
    _number_members(path / "Manifest.json")


def _number_members(manifest):
    """Identifiers of a package's members by their names, in place of random ones."""
    tree = json.loads(manifest.read_text(encoding="utf-8"))
    entries = tree["itemInfoEntries"]
    new = {
        old: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])) for old, entry in entries.items()
    }
    tree["itemInfoEntries"] = {
        new[old]: entry for old, entry in sorted(entries.items(), key=lambda item: item[1]["path"])
    }
    tree["rootModelIdentifier"] = new[tree["rootModelIdentifier"]]
    files.write_json(manifest, tree)


def _onnx(frozen, opset):
    model = runtimes.onnx_model(frozen, opset)
    _drop_idle_reshapes(model)
    _canonical_names(model.graph)
    model.graph.name, model.graph.doc_string = "classifier", ""
    return model


def _save_onnx(model, about, path):
    model.metadata_props.add(key="graft", value=about)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _drop_idle_reshapes(model):
    """Take out what gives a tensor the shape it has: at maps of 1 x 1 tf2onnx leaves one more or
    less, as its sets fall."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in inferred
    }
    targets = {
        c.name: onnx.numpy_helper.to_array(c).tolist()
        for c in model.graph.initializer
        if len(c.dims) == 1
    }
    same = {}
    for node in list(model.graph.node):
        node.input[:] = [same.get(name, name) for name in node.input]
        target = targets.get(node.input[1]) if node.op_type == "Reshape" else None
        known = shapes.get(node.input[0])
        if target and known and target[1:] == known[1:]:  # the first is the number of images
            same[node.output[0]] = node.input[0]
            model.graph.node.remove(node)


def _canonical_names(graph):
    """Name the input "image", the output "probabilities", the rest by place: tf2onnx numbers
    constants as its sets fall."""
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
    for constant in [constant for constant in graph.initializer if constant.name not in names]:
        graph.initializer.remove(constant)  # the shape of a Reshape that is gone
    order = list(names)
    graph.initializer.sort(key=lambda constant: order.index(constant.name))
    for constant in graph.initializer:
        constant.name = names[constant.name]
    del graph.value_info[:]
    for value in (graph.input[0], graph.output[0]):
        value.name = names[value.name]
        value.type.tensor_type.shape.dim[0].dim_param = "n"


def _unused(name, names):
    # name -> how often it was asked for; None is no name of ONNX.
    taken = names.setdefault(None, {})
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}_{taken[name]}"


WRITERS = {
    "keras": write_keras,
    "h5": _write_h5,
    "saved_model": _write_saved_model,
    "onnx": _write_onnx,
    "saved_model_any_size": _write_saved_model_any_size,
    "onnx_any_size": _write_onnx_any_size,
    "openvino": _write_openvino,
    "coreml": _write_coreml,
}
