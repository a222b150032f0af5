import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from graft.description import FILES, Description
from graft.serving import readers, writers

from .conftest import CLASSES, SIZE, WRITABLE, make_classifier, make_images

ROOT = Path(__file__).parents[2]
LABELS = "a\nb c\nä\n".encode()


@pytest.mark.parametrize("hidden", [0, 8])
def test_self_contained_applies_the_temperature_exactly_and_leaves_the_model_alone(hidden):
    model, description = make_classifier(hidden)
    images = make_images(5)
    before = model(images, training=False).numpy()
    for temperature in (0.5, 1.0, 3.0):
        p = before.astype(np.float64) ** (1 / temperature)
        found, described = writers.self_contained(
            model, description.replace(temperature=temperature)
        )
        np.testing.assert_allclose(
            found(images, training=False).numpy(), p / p.sum(1, keepdims=True), atol=1e-6
        )
        assert described == description.replace(
            temperature=temperature, calibrated=temperature != 1.0
        )
        assert writers.self_contained(found, described) == (found, described)  # not a second time
    np.testing.assert_array_equal(model(images, training=False).numpy(), before)


@pytest.mark.slow
def test_bytes_are_the_same_in_another_process(exported, tmp_path):
    """In processes that do the same; in one that traced other functions before, TensorFlow numbers
    a SavedModel's otherwise."""
    script = (
        "import sys; from pathlib import Path; from tests.serving import conftest; "
        "conftest.write_all(Path(sys.argv[1]))"
    )
    for seed in ("1", "7"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", script, tmp_path / seed]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert len(run.stdout.splitlines()) == len(WRITABLE)  # a line per format, and nothing else

    def digests(folder):
        files = (p for p in folder.rglob("*") if p.is_file())
        return {
            p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in files
        }

    one, two, here = digests(tmp_path / "1"), digests(tmp_path / "7"), digests(exported)
    assert len(one) == 19 + 4 * ("openvino" in WRITABLE) + 3 * ("coreml" in WRITABLE)
    assert one == two
    assert {name for name in one if one[name] != here[name]} <= {
        "saved_model/saved_model.pb",
        "saved_model_any_size/saved_model.pb",
    }


def test_onnx_reshapes_nothing_to_the_shape_it_has(exported):
    """At 32 px the last maps are 1 x 1; tf2onnx then left nine or ten such nodes, another number at
    every second start."""
    import onnx

    operations = [node.op_type for node in onnx.load(exported / "model.onnx").graph.node]
    assert "Reshape" not in operations
    assert operations.count("Conv") == 52


def test_class_names_travel_beside_and_inside(exported):
    assert (exported / "labels.txt").read_bytes() == LABELS
    for name in (
        "model.keras",
        "model.tflite",
        "model_fp16.tflite",
        "model_int8.tflite",
        "model_dynamic.tflite",
    ):
        assert zipfile.ZipFile(exported / name).read("labels.txt") == LABELS
    assert (exported / "saved_model" / "assets.extra" / "labels.txt").read_bytes() == LABELS


def test_what_is_embedded_is_the_description_with_its_temperature_applied(exported):
    text = zipfile.ZipFile(exported / "model.keras").read("graft.json").decode()
    assert (
        text
        == Description(
            "mobilenet_v2", 0.35, SIZE, CLASSES, 0, 0.2, "squash", 0, 2.0, True
        ).to_json()
    )
    assert (exported / "saved_model" / "assets.extra" / "graft.json").read_text(
        encoding="utf-8"
    ) == text


@pytest.mark.skipif("coreml" not in WRITABLE, reason="coremltools is not installed")
def test_core_ml_takes_an_image_and_knows_the_classes(exported, trained):
    """Which is all that can be said of it where it cannot be run."""
    import coremltools

    spec = coremltools.models.MLModel(
        str(exported / "model.mlpackage"), skip_model_load=True
    ).get_spec()
    (image,) = spec.description.input
    assert (image.name, image.type.imageType.width, image.type.imageType.height) == (
        "image",
        SIZE,
        SIZE,
    )
    assert image.type.imageType.colorSpace == image.type.imageType.ColorSpace.Value("RGB")
    assert spec.description.predictedProbabilitiesName
    assert list(spec.mlProgram.functions["main"].block_specializations) != []
    assert [name for name in CLASSES if name.encode() not in spec.SerializeToString()] == []
    about = spec.description.metadata.userDefined
    assert about["graft"] == writers.self_contained(*trained)[1].to_json() and not any(
        "date" in key for key in about
    )


def test_sizes_shrink_with_precision(exported):
    full, half, eighth = (
        (exported / name).stat().st_size
        for name in ("model.tflite", "model_fp16.tflite", "model_int8.tflite")
    )
    assert half < 0.6 * full
    assert eighth < 0.5 * full


def test_only_wanted_formats_stay_and_a_line_is_said_of_each(trained, tmp_path, capfd):
    writers.write(["keras", "h5", "tflite"], *trained, tmp_path)
    said = [f"export: {tmp_path / name}" for name in ("model.keras", "model.h5", "model.tflite")]
    # Nothing of what converters have to say.
    assert capfd.readouterr() == ("\n".join(said) + "\n", "")
    writers.write(["keras", "onnx"], *trained, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.txt", "model.keras", "model.onnx"]


def operations(path):
    """{name of the operation: types of the tensors that it reads and writes} of a TFLite model."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(
        model_path=str(path), experimental_op_resolver_type=_without_delegates()
    )
    types = {
        tensor["index"]: np.dtype(tensor["dtype"]).name
        for tensor in interpreter.get_tensor_details()
    }
    found = {}
    for op in interpreter._get_ops_details():
        used = [types[i] for i in (*op["inputs"], *op["outputs"]) if i in types]
        found.setdefault(op["op_name"], set()).update(used)
    return found


def _without_delegates():
    from ai_edge_litert.interpreter import OpResolverType

    return OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES


def test_int8_is_integer_throughout(exported, images):
    """An accelerator that knows integers only can run it: no operation reads or writes a float."""
    from ai_edge_litert.interpreter import Interpreter

    found = operations(exported / "model_int8.tflite")
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "SOFTMAX"} <= set(found)
    assert {
        name: types for name, types in found.items() if any("float" in kind for kind in types)
    } == {}
    interpreter = Interpreter(model_path=str(exported / "model_int8.tflite"))
    (pixels,), (scores,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (pixels["dtype"], pixels["quantization"]) == (np.uint8, (1.0, 0))  # pixels as they are
    assert (scores["dtype"], scores["quantization"]) == (np.uint8, (1 / 256, 0))
    given = readers.load("tflite_int8", exported)(images)
    assert given.dtype == np.float32
    np.testing.assert_allclose(given.sum(1), 1, atol=0.02)


def test_the_fallback_has_its_own_name_and_float_activations(
    trained, tmp_path, images, expected, capsys
):
    model = writers.self_contained(*trained)
    asked = []
    formats = ("keras", "tflite_int8")
    kept = writers.write(
        formats,
        *model,
        tmp_path,
        representative=images,
        refuse=lambda: asked.append(1) or "agrees on 0.9",
    )
    assert (kept, len(asked)) == (("keras", "tflite_dynamic"), 1)
    said = capsys.readouterr().out
    assert (
        "tflite_int8 left out: agrees on 0.9; tflite_dynamic, with 8-bit weights only, takes its "
        "place" in said
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "labels.txt",
        "model.keras",
        "model_dynamic.tflite",
    ]
    np.testing.assert_allclose(readers.load("tflite_dynamic", tmp_path)(images), expected, atol=0.2)
    assert (
        writers.write(formats, *model, tmp_path, representative=images, refuse=lambda: "")
        == formats
    )
    assert "model_int8.tflite (full integer: uint8 in and out)" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["tflite", "tflite_fp16", "tflite_int8", "tflite_dynamic"])
def test_a_signature_names_input_and_output(exported, format, images):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(exported / FILES[format]))
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["image"], "outputs": ["probabilities"]}
    }
    runner = interpreter.get_signature_runner()
    found = runner(image=images[:2])["probabilities"]
    scale = runner.get_output_details()["probabilities"]["quantization"][0] or 1.0
    np.testing.assert_allclose(found * scale, readers.load(format, exported)(images[:2]), atol=1e-5)


def test_int8_needs_representative_images(trained, tmp_path):
    with pytest.raises(ValueError, match="needs representative images"):
        writers.write(["tflite_int8"], *trained, tmp_path, representative=make_images(0))
