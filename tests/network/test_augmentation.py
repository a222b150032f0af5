from dataclasses import replace

import numpy as np
import pytest

from stages.network.augmentation import Augmentation, Views, draw

FULL = Augmentation(flip="both", rotation=0.1, zoom=0.2, translation=0.1, contrast=0.3, seed=7)


def test_view_0_is_the_image_itself(pixels):
    images = pixels(5).array
    assert np.array_equal(Views(FULL, 5).make(images, np.arange(5), 0), images)


def test_what_an_image_gets_depends_on_seed_view_and_its_position_alone(pixels):
    images, views = pixels(6).array, Views(FULL, 6)
    together = views.make(images, np.arange(6), 2)
    alone = np.concatenate([Views(FULL, 6).make(images[[i]], np.array([i]), 2) for i in (5, 0, 3)])
    assert np.array_equal(together[[5, 0, 3]], alone)
    assert not np.array_equal(together, views.make(images, np.arange(6), 1))
    other = replace(FULL, seed=8)
    assert not np.array_equal(together, Views(other, 6).make(images, np.arange(6), 2))


@pytest.mark.parametrize(("flip", "axes"), [("horizontal", [(2,)]), ("vertical", [(1,)]), ("both", [(1,), (2,), (1, 2)])])
def test_a_flip_alone_mirrors_and_nothing_else(pixels, flip, axes):
    images = pixels(40).array
    made = Views(Augmentation(flip, 0, 0, 0, 0, seed=1), 40).make(images, np.arange(40), 1)
    seen = set()
    for before, after in zip(images, made):
        possible = [(), *axes]
        kind = next((axis for axis in possible if np.array_equal(after[None], np.flip(before[None], axis))), None)
        assert kind is not None
        seen.add(kind)
    assert seen == {(), *axes}


def test_a_quarter_turn_moves_every_pixel_where_a_quarter_turn_moves_it(pixels, monkeypatch):
    images = pixels(1).array
    views = Views(Augmentation("none", 0.25, 0, 0, 0, seed=0), 1)
    quarter = np.array([[0, -1, 1, 0, 0, 0]], np.float32)  # cos 90°, -sin, sin, cos
    views._drawn[1] = (quarter, np.ones(1, np.float32))
    assert np.array_equal(views.make(images, np.array([0]), 1)[0], np.rot90(images[0]))


def test_a_translation_moves_every_pixel_alike_and_reflects_what_comes_in(pixels):
    images = pixels(1).array
    side = images.shape[1]
    views = Views(Augmentation("none", 0, 0, 0.5, 0, seed=0), 1)
    views._drawn[1] = (np.array([[1, 0, 0, 1, 3 / side, -2 / side]], np.float32), np.ones(1, np.float32))
    moved = views.make(images, np.array([0]), 1)[0]
    assert np.array_equal(moved, np.pad(images[0], ((2, 0), (0, 3), (0, 0)), mode="symmetric")[:side, 3:])


def test_the_ranges_are_those_of_the_parameters():
    maps, contrast = draw(Augmentation("none", 0.05, 0.1, 0.15, 0.2, seed=3), 1, 5000)
    zoom = np.hypot(maps[:, 0], maps[:, 2])
    angle = np.arctan2(maps[:, 2], maps[:, 0]) / (2 * np.pi)
    for values, centre, reach in ((zoom, 1, 0.1), (angle, 0, 0.05), (contrast, 1, 0.2), (maps[:, 4:], 0, 0.15)):
        assert np.abs(values - centre).max() <= reach + 1e-6
        assert np.abs(values - centre).max() > 0.99 * reach
        assert abs(values.mean() - centre) < 0.05 * reach
    assert np.allclose(np.linalg.det(maps[:, :4].reshape(-1, 2, 2)), zoom**2, rtol=1e-5)  # no shear


def test_contrast_keeps_the_mean_and_scales_about_it(pixels):
    images = np.full((1, 8, 8, 3), 100, np.uint8)
    images[:, :4] = 120
    views = Views(Augmentation("none", 0, 0, 0, 0.5, seed=0), 1)
    views._drawn[1] = (np.array([[1, 0, 0, 1, 0, 0]], np.float32), np.array([0.5], np.float32))
    assert set(views.make(images, np.array([0]), 1).ravel().tolist()) == {105, 115}


def test_nothing_switched_on_is_the_identity(pixels):
    still = Augmentation("none", 0, 0, 0, 0, seed=0)
    assert still.is_identity
    assert not FULL.is_identity
    images = pixels(3).array
    assert np.array_equal(Views(still, 3).make(images, np.arange(3), 2), images)
