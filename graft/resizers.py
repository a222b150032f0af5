"""How phones, browsers and other libraries make a photo small, rebuilt in NumPy: what a model meets
where it is used.

A classifier is measured on photos that Pillow made small, bilinear with antialiasing
(`graft.pixels`). Elsewhere the same photo gives other pixels: export asks for the class that each
of these gives it, `augment.resizers: mixed` trains with all of them. Each function takes uint8
(h, w, 3) and (height, width), returns uint8 (height, width, 3).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from graft import pixels

Kernel = Callable[[np.ndarray, "tuple[int, int]"], np.ndarray]
GREY = 127  # as `pixels.fit` pads
QUALITY = 75  # of JPEG: what messengers and uploads make of a photo
SKIA_STEPS = 16  # per pixel, of Skia's bilinear filter


def bilinear(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bilinear between pixel centres, without antialiasing: `tf.image.resize`, PyTorch's
    `interpolate`, Android's Bitmap."""
    (y0, y1, v), (x0, x1, u) = (_between(n, size) for n, size in zip(image.shape, shape))
    rows = image[y0] + (image[y1] - image[y0].astype(np.float32)) * v[:, None, None]
    return _levels(rows[:, x0] + (rows[:, x1] - rows[:, x0]) * u[:, None])


def opencv_linear(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """OpenCV's INTER_LINEAR, its default: as `bilinear` in fixed point of 11 bits
    (modules/imgproc/src/resize.cpp)."""
    if image.shape[:2] == (2 * shape[0], 2 * shape[1]):
        return opencv_area(image, shape)
    return _fixed_point(image, *(_between(n, size) for n, size in zip(image.shape, shape)))


def opencv_area(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """OpenCV's INTER_AREA: the mean of the pixels that a new one covers; enlarged, bilinear in
    narrow seams."""
    if shape[0] > image.shape[0] or shape[1] > image.shape[1]:
        return _fixed_point(image, *(_seams(n, size) for n, size in zip(image.shape, shape)))
    down, across = (_covered(n, size) for n, size in zip(image.shape, shape))
    rows = np.tensordot(down, image.astype(np.float32), 1)
    values = np.moveaxis(np.tensordot(across, rows, (1, 1)), 0, 1)
    # Halved exactly, it rounds a half up and not to the even one.
    return _levels(values + 1e-3 if image.shape[:2] == (2 * shape[0], 2 * shape[1]) else values)


def nearest(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The pixel in which the new one's centre lies."""
    y, x = (
        np.floor((np.arange(size) + 0.5) * (n / size)).astype(int)
        for n, size in zip(image.shape, shape)
    )
    return image[y][:, x]


def canvas(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """`drawImage` of a browser's canvas as Chromium paints it on the processor,
    `imageSmoothingQuality` as it comes.

    The photo is halved as long as both sides stay at least as long as wanted, then bilinear in
    steps of 1/16 pixel, cut off instead of rounded (Skia's SkMipmap and SkBitmapProcState).
    """
    times = 0
    while all(math.ceil(n / 2 ** (times + 1)) >= size for n, size in zip(image.shape, shape)):
        times += 1
    halved = tuple(math.ceil(n / 2**times) for n in image.shape[:2])
    even = all(n == size * 2**times for n, size in zip(image.shape, halved))
    for _ in range(times if even else times - 1):
        image = _halved(image)
    return _skia(_skia(image, halved), shape)


def jpeg(image: np.ndarray, quality: int = QUALITY) -> np.ndarray:
    """`image` after JPEG at this quality, colours at half the resolution: uint8 of the same
    shape."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _jpeg_first(image, shape):
    return np.asarray(
        Image.fromarray(jpeg(image)).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    )


RESIZERS: dict[str, Kernel] = {
    "bilinear": bilinear,
    "opencv_linear": opencv_linear,
    "opencv_area": opencv_area,
    "nearest": nearest,
    "canvas": canvas,
    "jpeg_75": _jpeg_first,
}


def fit(image: np.ndarray, size: int, resize: str, kernel: Kernel) -> np.ndarray:
    """uint8 (h, w, 3) as uint8 (size, size, 3) by one of `pixels.RESIZE`, with another kernel than
    `pixels.fit` has."""
    high, wide = image.shape[:2]
    if resize == "crop":
        side = min(high, wide)
        top, left = (high - side) // 2, (wide - side) // 2
        image = image[top : top + side, left : left + side]
    if resize != "pad" or high == wide:
        return kernel(image, (size, size))
    scale = size / max(high, wide)
    inner = kernel(image, (max(1, round(high * scale)), max(1, round(wide * scale))))
    sheet = np.full((size, size, 3), GREY, np.uint8)
    top, left = ((size - n) // 2 for n in inner.shape[:2])
    sheet[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return sheet


def load(
    source: pixels.Source, size: int, resize: str, resizer: str | None, *, white: int = 0
) -> np.ndarray:
    """One photo as uint8 (size, size, 3) by one of RESIZERS, or None: as `pixels.load` gives it.

    white: as of `pixels.open_rgb`. Raises as that does.
    """
    if resizer is None:
        return pixels.load(source, size, resize=resize, max_megapixels=None, white=white)
    whole = np.asarray(pixels.open_rgb(source, max_megapixels=None, white=white))
    return fit(whole, size, resize, RESIZERS[resizer])


def each(
    source: pixels.Source, size: int, resize: str, *, white: int = 0
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, uint8 (size, size, 3)) of one photo, by each of RESIZERS. white: as of
    `pixels.open_rgb`."""
    whole = np.asarray(pixels.open_rgb(source, max_megapixels=None, white=white))
    for name, kernel in RESIZERS.items():
        yield name, fit(whole, size, resize, kernel)


def _levels(values):
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _between(n, size):
    """(index of the pixel before, of the one after, distance from the first in [0, 1)) of each new
    pixel's centre."""
    place = ((np.arange(size) + 0.5) * (n / size) - 0.5).clip(0, n - 1).astype(np.float32)
    before = np.floor(place).astype(int)
    return before, np.minimum(before + 1, n - 1), place - before


def _seams(n, size):
    """As `_between`, where each pixel fills its place and only the new pixel on the seam of two has
    some of both."""
    before = np.floor(np.arange(size) * (n / size)).astype(int)
    part = (np.arange(size) + 1) - (before + 1) * (size / n)
    part = np.where(part <= 0, 0, part - np.floor(part)).astype(np.float32)
    return (
        np.minimum(before, n - 1),
        np.minimum(before + 1, n - 1),
        np.where(before < n - 1, part, 0),
    )


def _fixed_point(image, rows, columns):
    (y0, y1, v), (x0, x1, u) = rows, columns
    (v0, v1), (u0, u1) = (
        np.rint(np.stack([1 - part, part]) * 2048).astype(np.int32) for part in (v, u)
    )
    above, below = (
        (image[y][:, x0] * u0[:, None] + image[y][:, x1] * u1[:, None]) >> 4 for y in (y0, y1)
    )
    return (
        (((above * v0[:, None, None]) >> 16) + ((below * v1[:, None, None]) >> 16) + 2) >> 2
    ).astype(np.uint8)


def _covered(n, size):
    """float32 (size, n): which share of each new pixel every old one covers."""
    first = np.arange(size)[:, None] * (n / size)
    covered = (
        np.minimum(np.arange(n) + 1, first + n / size) - np.maximum(np.arange(n), first)
    ).clip(0)
    return (covered / covered.sum(1, keepdims=True)).astype(np.float32)


def _halved(image):
    """Both sides halved, rounded down: the mean of 2 pixels, of 3 weighted 1 2 1 along an odd
    side."""
    total = image.astype(np.int32)
    for axis in (0, 1):
        n, at = total.shape[axis], np.arange(total.shape[axis] // 2) * 2
        first, second = total.take(at, axis), total.take(at + 1, axis)
        total = first + 2 * second + total.take(at + 2, axis) if n % 2 else 2 * (first + second)
    return (total >> 4).astype(np.uint8)


def _skia(image, shape):
    if image.shape[:2] == tuple(shape):
        return image
    lines = []
    for n, size in zip(image.shape, shape):
        place = np.floor(((np.arange(size) + 0.5) * (n / size) - 0.5) * SKIA_STEPS + 1e-6).astype(
            int
        )
        before = place // SKIA_STEPS
        lines.append((before.clip(0, n - 1), (before + 1).clip(0, n - 1), place % SKIA_STEPS))
    (y0, y1, v), (x0, x1, u) = lines
    above, below = (
        image[y][:, x0] * (SKIA_STEPS - u)[:, None] + image[y][:, x1] * u[:, None] for y in (y0, y1)
    )
    return (
        (above * (SKIA_STEPS - v)[:, None, None] + below * v[:, None, None]) // SKIA_STEPS**2
    ).astype(np.uint8)
