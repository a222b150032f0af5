import dataclasses

import numpy as np
import pytest
from PIL import Image

from graft import resizers
from graft.dataset.images import ImageSet
from graft.dataset.manifest import Manifest, ManifestRow
from graft.description import Description
from graft.serving import parity, photo_parity, readers

SIZE = 16
DESCRIPTION = Description("mobilenet_v2", 0.35, SIZE, ("even", "rough"), 0, 0.2, "squash")
CHECK = photo_parity.PhotoCheck("canvas", 50, 0.98, 0.9)


@pytest.fixture
def photos(tmp_path):
    """Four photos of one colour, one with a stripe in each second pixel of the small one, one with
    a stripe where no centre falls, all at four times the size, and one that needs no resizing."""
    rows = []
    for i, label in enumerate(["even"] * 4 + ["rough"] * 2 + ["even"]):
        side = SIZE if i == 6 else 4 * SIZE
        image = np.full((side, side, 3), 40 * i, np.uint8)
        if label == "rough":
            image[2::8] = 255 if i == 4 else image[2::8]
            image[::4] = 255 if i == 5 else image[::4]
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        rows.append(ManifestRow(f"{i}.png", label, "test", "", side, side))
    return ImageSet(Manifest(tuple(rows), ("even", "rough")), tmp_path, SIZE)


@pytest.fixture
def asked():
    return []


@pytest.fixture
def model(asked):
    """Calls rough what is not of one colour; with antialiasing the stripes are gone."""

    def run(images):
        asked.append(len(images))
        rough = images.reshape(len(images), -1).std(1) > 1
        return np.stack([~rough, rough], 1).astype(np.float32)

    return readers.Loaded("model.tflite", DESCRIPTION, run, "tflite", chunk=1000)


def reference(photos):
    images = np.stack([np.full((SIZE, SIZE, 3), 40 * i, np.uint8) for i in range(7)])
    return parity.Reference(images, photos.labels, np.tile([0.9, 0.1], (7, 1)))


def test_a_resizer_that_changes_answers_is_found(photos, model, asked):
    found = {c.resizer: c for c in photo_parity.check(model, reference(photos), photos)}
    assert list(found) == list(resizers.RESIZERS)
    assert {c.n for c in found.values()} == {7}
    for name in ("nearest", "bilinear"):  # one photo is called otherwise, and rightly so
        assert (found[name].agreement, found[name].accuracy) == (
            pytest.approx(6 / 7),
            pytest.approx(6 / 7),
        )
    turned = dataclasses.replace(reference(photos), probabilities=np.tile([0.1, 0.9], (7, 1)))
    again = {c.resizer: c for c in photo_parity.check(model, turned, photos)}
    # Where the pixels are those that training had, the answer is the original's, whatever it is:
    # not so for the means.
    assert (again["nearest"].agreement, again["opencv_area"].agreement) == (1, pytest.approx(6 / 7))
    assert max(asked) < 7 * len(resizers.RESIZERS)


def test_large_photos_are_fewer(photos, model, monkeypatch):
    monkeypatch.setattr(photo_parity, "MEGAPIXELS", 3 * (4 * SIZE) ** 2 / 1e6)
    assert {c.n for c in photo_parity.check(model, reference(photos), photos)} == {3}
    monkeypatch.setattr(photo_parity, "MEGAPIXELS", 0)
    assert {c.n for c in photo_parity.check(model, reference(photos), photos)} == {1}


def test_what_falls_below_is_warned_of_and_tagged(capsys):
    checks = [CHECK, dataclasses.replace(CHECK, resizer="nearest", agreement=0.96)]
    photo_parity.warn_below(checks, 0.98)
    (said,) = capsys.readouterr().err.splitlines()
    assert (
        "export: photos resized by nearest keep their class on 0.9600 of 50, below 0.98 "
        "(export.min_agreement);" in said
    )
    told = {"keras": {}, "onnx": {}, "from_photos": photo_parity.figures(checks)}
    formats = {"formats": "keras, onnx"}
    assert photo_parity.version_tags(told, 0.98) == formats | {
        "warning": "other classes for photos resized by nearest"
    }
    assert (
        photo_parity.version_tags(told, 0.96)
        == photo_parity.version_tags({"keras": {}, "onnx": {}}, 0.98)
        == formats
    )


def test_figures_and_table():
    assert photo_parity.figures([CHECK]) == {
        "canvas": {"n": 50, "agreement": 0.98, "accuracy": 0.9}
    }
    assert photo_parity.table([CHECK]).splitlines()[1].split() == [
        "canvas",
        "50",
        "0.9800",
        "0.9000",
    ]
