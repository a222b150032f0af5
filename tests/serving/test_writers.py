import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from graft import params as parameters
from graft.description import FILES, Description
from graft.serving import readers, writers
from graft.system.console import GraftError

from .conftest import CLASSES, SIZE, make_classifier, make_images

ROOT = Path(__file__).parents[2]
LABELS = "a\nb c\nä\n".encode()


@pytest.mark.parametrize("hidden", [0, 8])
def test_self_contained_applies_the_temperature_exactly_and_leaves_the_model_alone(hidden):
    model, description = make_classifier(hidden)
    images = make_images(5)
    before = model(images, training=False).numpy()
    for temperature in (0.5, 1.0, 3.0):
        p = before.astype(np.float64) ** (1 / temperature)
        found, described = writers.self_contained(model, description.replace(temperature=temperature))
        np.testing.assert_allclose(found(images, training=False).numpy(), p / p.sum(1, keepdims=True), atol=1e-6)
        assert described == description.replace(temperature=temperature, calibrated=temperature != 1.0)
        assert writers.self_contained(found, described) == (found, described)  # not a second time
    np.testing.assert_array_equal(model(images, training=False).numpy(), before)


@pytest.mark.slow
def test_bytes_are_the_same_in_another_process(exported, tmp_path):
    """In processes that do the same; in one that traced other functions before, TensorFlow numbers a SavedModel's otherwise."""
    script = "import sys; from pathlib import Path; from tests.serving import conftest; conftest.write_all(Path(sys.argv[1]))"
    for seed in ("1", "7"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", script, tmp_path / seed]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert len(run.stdout.splitlines()) == len(FILES)  # a line per format, and nothing else

    def digests(folder):
        files = (p for p in folder.rglob("*") if p.is_file())
        return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    one, two, here = digests(tmp_path / "1"), digests(tmp_path / "7"), digests(exported)
    assert len(one) == 12
    assert one == two
    assert {name for name in one if one[name] != here[name]} <= {"saved_model/saved_model.pb"}


def test_onnx_reshapes_nothing_to_the_shape_it_has(exported):
    """At 32 px the last maps are 1 x 1; tf2onnx then left nine or ten such nodes, another number at every second start."""
    import onnx

    operations = [node.op_type for node in onnx.load(exported / "model.onnx").graph.node]
    assert "Reshape" not in operations
    assert operations.count("Conv") == 52


def test_class_names_travel_beside_and_inside(exported):
    assert (exported / "labels.txt").read_bytes() == LABELS
    for name in ("model.keras", "model.tflite", "model_fp16.tflite", "model_int8.tflite"):
        assert zipfile.ZipFile(exported / name).read("labels.txt") == LABELS
    assert (exported / "saved_model" / "assets.extra" / "labels.txt").read_bytes() == LABELS


def test_what_is_embedded_is_the_description_with_its_temperature_applied(exported):
    text = zipfile.ZipFile(exported / "model.keras").read("graft.json").decode()
    assert text == Description("mobilenet_v2", 0.35, SIZE, CLASSES, 0, 0.2, "squash", 0, 2.0, True).to_json()
    assert (exported / "saved_model" / "assets.extra" / "graft.json").read_text(encoding="utf-8") == text


def test_sizes_shrink_with_precision(exported):
    full, half, eighth = (
        (exported / name).stat().st_size for name in ("model.tflite", "model_fp16.tflite", "model_int8.tflite")
    )
    assert half < 0.6 * full
    assert eighth < 0.5 * full


def test_only_wanted_formats_stay_and_a_line_is_said_of_each(trained, tmp_path, capfd):
    writers.write(["keras", "h5", "tflite"], *trained, tmp_path)
    said = [f"export: {tmp_path / name}" for name in ("model.keras", "model.h5", "model.tflite")]
    assert capfd.readouterr() == ("\n".join(said) + "\n", "")  # nothing of what converters have to say
    writers.write(["keras", "onnx"], *trained, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.txt", "model.keras", "model.onnx"]


def test_int8_falls_back_to_8_bit_weights_where_8_bit_activations_disagree(trained, tmp_path, images, expected, capsys):
    model = writers.self_contained(*trained)
    writers.write(["tflite_int8"], *model, tmp_path, representative=images, min_agreement=1.01)
    assert "model_int8.tflite (8-bit weights only: with 8-bit activations it agreed on " in capsys.readouterr().out
    np.testing.assert_allclose(readers.load("tflite_int8", tmp_path)(images), expected, atol=0.2)


def test_int8_needs_representative_images(trained, tmp_path):
    with pytest.raises(ValueError, match="needs representative images"):
        writers.write(["tflite_int8"], *trained, tmp_path, representative=make_images(0))


def test_a_missing_package_is_named_before_any_work(monkeypatch):
    params = parameters.load(ROOT / "params.yaml")
    real = readers.importlib.util.find_spec
    monkeypatch.setattr(readers.importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else real(name))
    without = params.model_copy(update={"export": params.export.model_copy(update={"formats": ("keras", "tflite")})})
    writers.check_available(without)
    assert readers.missing(readers.NEEDS["onnx"]) == []  # loading takes less than writing
    with pytest.raises(GraftError, match=r"^onnx needs tf2onnx; pip install 'graft-vision\[onnx\]', or drop it from "):
        writers.check_available(params)
