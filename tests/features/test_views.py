"""The views: what is drawn for an image, and what the change does to its pixels."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from graft.features.views import Augmentation, Change, transform
from graft.resizers import RESIZERS

FULL = Augmentation(flip="both", rotation=0.1, zoom=0.2, translation=0.1, contrast=0.3, seed=7)
STILL = Augmentation("none", 0, 0, 0, 0, seed=7)


def views(augmentation, images, view):
    return np.stack(
        [augmentation.view(image, name, view) for image, name in zip(images.array, images.sha256)]
    )


def test_view_0_is_the_image_itself(pixels):
    images = pixels(5)
    assert np.array_equal(views(FULL, images, 0), images.array)


def test_what_an_image_gets_depends_on_seed_view_and_its_own_bytes_alone(pixels):
    images = pixels(6)
    made = views(FULL, images, 2)
    assert made.dtype == np.uint8
    assert made.shape == images.array.shape
    for i in (5, 0, 3):
        assert np.array_equal(made[i], FULL.view(images.array[i], images.sha256[i], 2))
    assert len({FULL.draw(name, 2) for name in images.sha256}) == 6
    assert FULL.draw(images.sha256[0], 1) != FULL.draw(images.sha256[0], 2)
    assert replace(FULL, seed=8).draw(images.sha256[0], 2) != FULL.draw(images.sha256[0], 2)


def test_one_switch_does_not_change_what_the_others_give(pixels):
    name = pixels(1).sha256[0]
    assert replace(FULL, contrast=0).draw(name, 1).matrix == FULL.draw(name, 1).matrix
    assert replace(FULL, translation=0).draw(name, 1).matrix[:4] == FULL.draw(name, 1).matrix[:4]


def test_resizers_are_drawn_evenly_and_change_nothing_else():
    mixed = replace(FULL, resizers="mixed")
    names = [f"{i:064x}" for i in range(7000)]
    drawn = Counter(mixed.resizer(name, 1) for name in names)
    assert set(drawn) == {None, *RESIZERS}
    assert all(850 < count < 1150 for count in drawn.values())
    assert mixed.draw(names[0], 1) == FULL.draw(names[0], 1)
    assert {FULL.resizer(name, 1) for name in names[:50]} == {None}
    others = (mixed.resizer(names[3], view) for view in range(1, 30))
    assert len(set(others)) > 3  # another view, another draw
    assert replace(STILL, resizers="mixed").is_identity is False


def test_the_bytes_of_a_probe_change_with_a_resizer(monkeypatch):
    image, mixed = (
        np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3),
        replace(FULL, resizers="mixed"),
    )
    own, before = FULL.probe(image), mixed.probe(image)
    monkeypatch.setitem(RESIZERS, "nearest", lambda image, shape: np.zeros((*shape, 3), np.uint8))
    assert mixed.probe(image) != before and FULL.probe(image) == own


@pytest.mark.parametrize(
    ("flip", "axes"), [("horizontal", [(1,)]), ("vertical", [(0,)]), ("both", [(0,), (1,), (0, 1)])]
)
def test_a_flip_alone_mirrors_and_nothing_else(pixels, flip, axes):
    images = pixels(40)
    seen = set()
    for before, after in zip(images.array, views(replace(STILL, flip=flip), images, 1)):
        kind = next(
            (axis for axis in [(), *axes] if np.array_equal(after, np.flip(before, axis))), None
        )
        assert kind is not None
        seen.add(kind)
    assert seen == {(), *axes}


def test_a_quarter_turn_moves_every_pixel_where_a_quarter_turn_moves_it(pixels):
    image = pixels(1).array[0]
    # Cos 90°, -sin, sin, cos.
    assert np.array_equal(transform(image, Change((0, -1, 1, 0, 0, 0), 1.0)), np.rot90(image))


def test_a_translation_moves_every_pixel_alike_and_reflects_what_comes_in(pixels):
    image = pixels(1).array[0]
    side = len(image)
    moved = transform(image, Change((1, 0, 0, 1, 3 / side, -2 / side), 1.0))
    assert np.array_equal(
        moved, np.pad(image, ((2, 0), (0, 3), (0, 0)), mode="symmetric")[:side, 3:]
    )


def test_between_pixels_is_interpolated_and_rounded_to_the_nearest_level():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 255
    moved = transform(image, Change((1, 0, 0, 1, 0.25 / 8, 0), 1.0))
    assert moved[0, :, 0].tolist() == [0, 0, 0, 64, 255, 255, 255, 255]  # 63.75


def test_the_ranges_are_those_of_the_parameters():
    drawn = [
        Augmentation("none", 0.05, 0.1, 0.15, 0.2, seed=3).draw(f"{i:064x}", 1) for i in range(5000)
    ]
    maps, contrast = (
        np.array([change.matrix for change in drawn]),
        np.array([change.contrast for change in drawn]),
    )
    zoom = np.hypot(maps[:, 0], maps[:, 2])
    angle = np.arctan2(maps[:, 2], maps[:, 0]) / (2 * np.pi)
    for values, centre, reach in (
        (zoom, 1, 0.1),
        (angle, 0, 0.05),
        (contrast, 1, 0.2),
        (maps[:, 4:], 0, 0.15),
    ):
        assert np.abs(values - centre).max() <= reach + 1e-6
        assert np.abs(values - centre).max() > 0.99 * reach
        assert abs(values.mean() - centre) < 0.05 * reach
    assert np.allclose(np.linalg.det(maps[:, :4].reshape(-1, 2, 2)), zoom**2, rtol=1e-5)  # no shear


def test_contrast_keeps_the_mean_and_scales_about_it():
    image = np.full((8, 8, 3), 100, np.uint8)
    image[:4] = 120
    assert set(transform(image, Change((1, 0, 0, 1, 0, 0), 0.5)).ravel().tolist()) == {105, 115}


def test_nothing_switched_on_is_the_identity(pixels):
    assert STILL.is_identity
    assert not FULL.is_identity
    images = pixels(3)
    assert np.array_equal(views(STILL, images, 2), images.array)


def test_a_worker_without_tensorflow_can_make_views():
    code = (
        "import sys, graft.features.views; print(sorted({'tensorflow', 'keras'} & "
        "set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
