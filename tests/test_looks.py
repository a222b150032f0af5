"""What is read off a picture, and which pictures of a set stand out."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from graft import looks
from tests.dataset.pictures import scene


def seen(*images):
    return looks.measure([looks.small(image) for image in images])


def test_measures_are_those_of_the_definitions():
    half = Image.fromarray(np.repeat([[0, 200]], 32, axis=1).repeat(64, axis=0).astype(np.uint8))
    row = looks.Looks(*seen(half)[0])
    assert (row.brightness, row.contrast, row.low, row.high, row.entropy) == (100, 100, 0, 200, 1)
    x = np.asarray(half, float)
    edges = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4 * x[1:-1, 1:-1]
    assert row.sharpness == pytest.approx(np.quantile(np.abs(edges), 0.995) / np.ptp(x)) == 1


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (64, 3), (700, 33)])
def test_pictures_of_any_size_are_measured_and_one_colour_has_no_sharpness(size):
    row = looks.Looks(*seen(Image.new("RGB", size, (9, 9, 9)))[0])
    assert (row.brightness, row.low, row.high, row.contrast, row.sharpness) == (
        9,
        9,
        9,
        0,
        0,
    ) and abs(row.entropy) < 1e-5


def test_a_picture_is_measured_alike_whatever_comes_with_it():
    pictures = [scene(seed, 40 + seed, 90) for seed in range(40)] + [scene(41, 20, 20)]
    assert np.array_equal(seen(*pictures), np.concatenate([seen(picture) for picture in pictures]))


ALTERED = {
    "blurred": lambda p: p.filter(ImageFilter.GaussianBlur(5)),
    "dark": lambda p: ImageEnhance.Brightness(p).enhance(0.2),
    "bright": lambda p: Image.blend(p, Image.new("RGB", p.size, "white"), 0.9),
    "nearly_empty": lambda p: ImageEnhance.Contrast(p).enhance(0.02),
    "odd_shape": lambda p: p.resize((200, 60)),
}


@pytest.mark.parametrize("kind", ALTERED)
def test_one_that_is_altered_stands_out_in_its_kind_alone(kind):
    assert set(ALTERED) == set(looks.WORDS)
    pictures = [scene(seed, 200, 200) for seed in range(12)]
    pictures[3] = ALTERED[kind](pictures[3])
    found = looks.standing_out(seen(*pictures), np.array([picture.size for picture in pictures]))
    assert {name: where.tolist() for name, where in found.items() if len(where)} == {kind: [3]}


def test_drawings_on_black_are_not_nearly_empty_where_all_are():
    """Fashion-MNIST: a shoe takes a fifth of its picture."""
    pictures = [
        Image.fromarray(np.pad(np.asarray(scene(seed, 12, 12).convert("L")), 8))
        for seed in range(9)
    ]
    found = looks.standing_out(seen(*pictures), np.full((9, 2), 28))
    assert (seen(*pictures)[:, -1] < looks.EMPTY).any() and not len(found["nearly_empty"])


def test_nothing_is_found_in_nothing():
    assert looks.standing_out(looks.measure([]), np.zeros((0, 2))) == {}
