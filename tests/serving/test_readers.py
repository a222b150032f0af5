import importlib.util

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from graft.description import FILES, Description
from graft.serving import readers
from graft.serving.parity import EXACT
from graft.system.console import GraftError

from .conftest import CLASSES, SIZE, every_format


@pytest.mark.parametrize("format", every_format())
def test_a_format_loads_again_as_the_classifier_it_was_made_from(
    format, exported, images, expected
):
    loaded = readers.load(format, exported)
    assert loaded.description == Description(
        "mobilenet_v2", 0.35, SIZE, CLASSES, 0, 0.2, "squash", 0, 2.0, True
    )
    assert (loaded.format, loaded.name) == (format, str(exported / FILES[format]))
    found = loaded(images)
    assert (found.dtype, found.shape) == (np.float32, (24, 3))
    # Steps of 1/256.
    np.testing.assert_allclose(found.sum(1), 1, atol=0.01 if format == "tflite_int8" else 1e-3)
    # Eight bits say little of random weights; what counts is that steps become probabilities.
    if format == "tflite_int8":
        runner = Interpreter(model_path=str(exported / FILES[format])).get_signature_runner()
        (steps,) = runner(**dict.fromkeys(runner.get_input_details(), images[:1])).values()
        assert steps.dtype == np.uint8
        np.testing.assert_array_equal(found[:1], steps.astype(np.float32) / 256)
    else:
        np.testing.assert_allclose(
            found,
            expected,
            atol=2e-5 if format in EXACT else 0.05 if format == "tflite_fp16" else 0.3,
        )
    np.testing.assert_allclose(loaded(images[:1]), found[:1], atol=1e-5)  # alone or among others
    assert loaded(images[:0]).shape == (0, 3)


def test_the_images_tell_a_right_model_from_a_wrong_one(expected):
    assert set(expected.argmax(1)) == {0, 1, 2}
    assert expected.max(1).std() > 0.05


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, SIZE, SIZE, 3), np.float32),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((SIZE, SIZE, 3), np.uint8),
    ],
)
def test_wrong_pixels_are_refused(images, exported):
    with pytest.raises(ValueError, match=r"images must be uint8 \(n, 32, 32, 3\), not "):
        readers.load("tflite", exported)(images)


@pytest.mark.parametrize("format", every_format())
def test_missing_and_damaged_files_give_one_line(format, exported, tmp_path):
    with pytest.raises(GraftError, match="no such model; run `dvc repro export` first"):
        readers.load(format, tmp_path)
    path = tmp_path / FILES[format]
    if (exported / path.name).is_dir():
        path.mkdir()
        (path / ("model.xml" if format == "openvino" else "saved_model.pb")).write_bytes(b"damaged")
    else:
        path.write_bytes((exported / path.name).read_bytes()[:5000])
    with pytest.raises(GraftError) as refused:
        readers.load(format, tmp_path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_package_is_named(exported, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        GraftError, match=r"model.onnx: onnx needs onnxruntime; pip install 'graft-vision\[onnx\]'$"
    ):
        readers.load("onnx", exported)
