import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from stages.console import GraftError
from stages.serving import formats

from .conftest import CLASSES, SIZE, make_classifier, make_pictures

REPOSITORY = Path(__file__).parents[2]
EXACT = ["keras", "h5", "saved_model", "tflite", "onnx"]


@pytest.mark.parametrize("format", formats.FILES)
def test_a_format_loads_again_as_the_classifier_it_was_made_from(format, exported, pictures, expected):
    loaded = formats.load(format, exported)
    assert loaded.metadata == formats.Metadata(CLASSES, SIZE, "squash", 2.0, "mobilenet_v2", 0.35)
    found = loaded(pictures)
    assert (found.dtype, found.shape) == (np.float32, (24, 3))
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-3)
    np.testing.assert_allclose(found, expected, atol=2e-5 if format in EXACT else 0.02 if format == "tflite_fp16" else 0.3)
    np.testing.assert_allclose(loaded(pictures[:1]), found[:1], atol=2e-6)  # alone or among others
    assert loaded(pictures[:0]).shape == (0, 3)


def test_the_pictures_tell_a_right_model_from_a_wrong_one(expected):
    assert set(expected.argmax(1)) == {0, 1, 2}
    assert expected.max(1).std() > 0.05


@pytest.mark.parametrize("hidden", [0, 8])
def test_temperature_is_exact_and_leaves_the_model_alone(hidden):
    model, _ = make_classifier(hidden)
    images = make_pictures(5)
    before = model(images, training=False).numpy()
    for temperature in (0.5, 1.0, 3.0):
        p = before.astype(np.float64) ** (1 / temperature)
        found = formats.self_contained(model, temperature)(images, training=False).numpy()
        np.testing.assert_allclose(found, p / p.sum(1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(model(images, training=False).numpy(), before)


def test_bytes_are_the_same_in_another_process(exported, tmp_path):
    """In processes that do the same; in one that traced other functions before, TensorFlow numbers a SavedModel's otherwise."""
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.serving import conftest as c; from stages.serving import formats as f\n"
        "model, spec = c.make_classifier()\n"
        "f.write(f.FILES, f.self_contained(model, 2.0), f.Metadata.of(spec, 2.0), Path(sys.argv[1]), "
        "calibration=c.make_pictures(16, 5))"
    )
    for seed in ("1", "7"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-c", script, tmp_path / seed]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert run.stdout == ""

    def digests(folder):
        files = (p for p in folder.rglob("*") if p.is_file())
        return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    one, two, here = digests(tmp_path / "1"), digests(tmp_path / "7"), digests(exported)
    assert len(one) == 12
    assert one == two
    assert {name for name in one if one[name] != here[name]} <= {"saved_model/saved_model.pb"}


def test_class_names_travel_beside_and_inside(exported):
    assert (exported / "labels.txt").read_bytes() == "a\nb c\nä\n".encode()
    for name in ("model.keras", "model.tflite", "model_fp16.tflite", "model_int8.tflite"):
        assert zipfile.ZipFile(exported / name).read("labels.txt") == "a\nb c\nä\n".encode()
    assert (exported / "saved_model" / "assets.extra" / "labels.txt").read_bytes() == "a\nb c\nä\n".encode()
    assert formats.Metadata(("x\ny", "z"), 8, "").labels() == "x y\nz\n"  # still one line per class


def test_sizes_shrink_with_precision(exported):
    full, half, eighth = (
        (exported / name).stat().st_size for name in ("model.tflite", "model_fp16.tflite", "model_int8.tflite")
    )
    assert half < 0.6 * full
    assert eighth < 0.5 * full


def test_only_wanted_formats_stay_and_nothing_is_printed(trained, tmp_path, capfd):
    model, spec = trained
    about = formats.Metadata.of(spec)
    told = []
    formats.write(["keras", "h5", "tflite"], model, about, tmp_path, wrote=lambda *said: told.append(said))
    formats.write(["keras", "onnx"], model, about, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.txt", "model.keras", "model.onnx"]
    assert told == [("keras", ""), ("h5", ""), ("tflite", "")]
    assert capfd.readouterr() == ("", "")


def test_int8_falls_back_to_8_bit_weights_where_8_bit_activations_disagree(trained, tmp_path, pictures, expected):
    model, spec = trained
    told = []
    formats.write(
        ["tflite_int8"], formats.self_contained(model, 2.0), formats.Metadata.of(spec), tmp_path,
        calibration=pictures, min_agreement=1.01, wrote=lambda *said: told.append(said),
    )  # fmt: skip
    assert told[0][1].startswith("(8-bit weights only: with 8-bit activations it agreed on ")
    np.testing.assert_allclose(formats.load("tflite_int8", tmp_path)(pictures), expected, atol=0.1)


@pytest.mark.parametrize(
    "images", [np.zeros((1, SIZE, SIZE, 3), np.float32), np.zeros((1, 8, 8, 3), np.uint8), np.zeros((SIZE, SIZE, 3), np.uint8)]
)
def test_wrong_pixels_are_refused(images, exported):
    with pytest.raises(ValueError, match=r"images must be uint8 \(n, 32, 32, 3\), not "):
        formats.load("tflite", exported)(images)


@pytest.mark.parametrize("format", formats.FILES)
def test_missing_and_damaged_files_give_one_line(format, exported, tmp_path):
    with pytest.raises(GraftError, match="no such model; run `dvc repro export` first"):
        formats.load(format, tmp_path)
    path = tmp_path / formats.FILES[format]
    if format == "saved_model":
        path.mkdir()
        (path / "saved_model.pb").write_bytes(b"damaged")
    else:
        path.write_bytes((exported / path.name).read_bytes()[:5000])
    with pytest.raises(GraftError) as refused:
        formats.load(format, tmp_path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_package_is_named_before_any_work(monkeypatch):
    real = formats.importlib.util.find_spec
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else real(name))
    formats.check_available(["keras", "tflite"])
    assert formats.missing("onnx") == []  # loading takes less than writing
    with pytest.raises(GraftError, match=r"^onnx needs tf2onnx; pip install 'graft\[onnx\]'"):
        formats.check_available(["keras", "onnx"])
