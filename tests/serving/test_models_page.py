"""docs/models.md: what it says to one who has the exported files and no graft."""

import re
from pathlib import Path

import numpy as np
import pytest

from graft import pixels
from graft.serving import readers

from .conftest import CLASSES, SIZE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


@pytest.fixture
def told(exported, tmp_path, monkeypatch):
    """The page's Python, run beside the files: its names."""
    from PIL import Image

    for path in exported.iterdir():
        (tmp_path / path.name).symlink_to(path)
    noise = np.random.default_rng(0).integers(0, 256, (3 * SIZE + 1, 4 * SIZE, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (block,) = [
        block
        for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
        if "litert" in block
    ]
    names = {}
    exec(block, names)
    return names


def test_its_pixels_and_probabilities_are_those_of_graft(told):
    assert np.array_equal(told["pixels"][0], pixels.fit(pixels.open_rgb("photo.jpg"), SIZE, "crop"))
    assert np.allclose(
        told["probabilities"], readers.load("tflite", Path())(told["pixels"]), atol=1e-6
    )
    assert tuple(told["about"]["classes"]) == CLASSES


@pytest.mark.parametrize("file", ["model.onnx", "model.keras", "saved_model/"])
def test_each_other_file_says_the_same_of_the_same_pixels(told, file):
    import keras
    import tensorflow as tf

    onnxruntime = pytest.importorskip("onnxruntime")
    (asked,) = re.findall(rf"^\| `{file}`.* \| `(.*)` \|$", PAGE, re.MULTILINE)
    found = eval(asked, {**told, "keras": keras, "tf": tf, "onnxruntime": onnxruntime})
    assert np.allclose(np.asarray(found), told["probabilities"], atol=1e-5)
