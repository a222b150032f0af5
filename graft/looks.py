"""What can be read off a picture whatever it shows: light, sharpness, how much there is in it; and
which pictures stand out.

The kinds, and the limits of dark, nearly empty and odd shape, are those of cleanvision 0.3.7
(Cleanlab, Apache-2.0), as is the size at which pictures are measured. Its limit of bright, 0.95,
finds no photo under a white veil, and its measure of blur takes dark and pale photos for blurred
ones. The variance of the Laplacian (Pech-Pacheco et al. 2000) takes photos of a sharp flower before
a soft ground for blurred. So sharpness is what the sharpest few pixels have of the range of grey,
and is compared with that of the other pictures of a set. `benchmarks/looks.py` measures all of
them.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

SIDE = 64  # pixels of the longer side at which a picture is measured
DARK = 0.32  # of white: of a dark picture 99 in 100 pixels are below
BRIGHT = 0.8  # of a bright one 95 in 100 are above
# Bits of entropy, of grey levels: less, and less than EMPTY_SHARE of the median of the set.
EMPTY = 3.0
EMPTY_SHARE = 0.5
BLURRED_SHARE = 0.5  # of the median sharpness of the set
SHARPEST = 0.005  # share of the pixels by which sharpness is measured
NARROW = 0.35  # shorter : longer side
WORDS = {
    "blurred": "much less sharp than the other pictures",
    "dark": f"nearly all of it is below {DARK:.0%} of white",
    "bright": f"nearly all of it is above {BRIGHT:.0%} of white",
    "nearly_empty": "hardly any two grey levels in it",
    "odd_shape": f"one side is shorter than {NARROW:.0%} of the other",
}  # the kinds, and what is said of a picture of each
LEVELS = 256
# Pictures: of 32 the arrays are so large that memory is asked for anew each time, at twice the
# cost.
AT_ONCE = 8


class Looks(NamedTuple):
    """brightness, contrast: mean and deviation of grey, 0 to 255. sharpness: what the size of the
    Laplacian exceeds in SHARPEST of the pixels, in ranges (largest less least) of grey; 0 where all
    is of one grey. low, high: grey levels that 5 and 99 in 100 pixels do not exceed, 0 to 255.
    entropy: bits, 0 to 8."""

    brightness: float
    contrast: float
    sharpness: float
    low: float
    high: float
    entropy: float


def small(image: Image.Image) -> np.ndarray:
    """uint8 (h, w), grey, h and w at most SIDE: pixels of a picture, evenly spread, not averaged,
    by which it is measured."""
    grey = np.asarray(image if image.mode == "L" else image.convert("L"))
    return grey[_spread(grey.shape[0])][:, _spread(grey.shape[1])]


@cache
def _spread(n):
    """Of n pixels in a row those that are taken."""
    return (2 * np.arange(min(n, SIDE)) + 1) * n // (2 * min(n, SIDE))


def measure(smalls: Sequence[np.ndarray]) -> np.ndarray:
    """float32 (n, 6): a row of Looks for each of what `small` gave. Many at once cost a third of
    one by one."""
    found = np.zeros((len(smalls), len(Looks._fields)), np.float32)
    shapes = np.array([image.shape for image in smalls]).reshape(-1, 2)
    for shape in np.unique(shapes, axis=0):
        same = np.flatnonzero((shapes == shape).all(axis=1))
        for where in np.split(same, range(AT_ONCE, len(same), AT_ONCE)):
            found[where] = _measured(np.stack([smalls[i] for i in where]))
    return found


def _measured(grey):
    """`measure` of uint8 (n, h, w)."""
    n, area = len(grey), grey[0].size
    counts = np.stack([np.bincount(picture.ravel(), minlength=LEVELS) for picture in grey])
    share, levels = counts / area, np.arange(LEVELS)
    mean = (share * levels).sum(axis=1)
    deviation = np.sqrt(np.maximum((share * levels**2).sum(axis=1) - mean**2, 0.0))
    below = counts.cumsum(axis=1)
    low, high = ((below < part * area).sum(axis=1) for part in (0.05, 0.99))
    entropy = -(share * np.log2(np.maximum(share, 1e-9))).sum(axis=1)
    x = grey.astype(np.int16)
    laplacian = (
        x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:] - 4 * x[:, 1:-1, 1:-1]
    )
    edges = np.abs(laplacian.reshape(n, -1))
    k = int((1 - SHARPEST) * (edges.shape[1] - 1))
    edges = np.partition(edges, k, axis=1)[:, k] if edges.size else np.zeros(n)
    span = np.ptp(grey, axis=(1, 2))
    sharpness = np.divide(edges, span, out=np.zeros(n), where=span > 0)
    return np.stack([mean, deviation, sharpness, low, high, entropy], axis=1)


def standing_out(looks: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """{kind of WORDS: positions, int (k,)} among the n pictures of a set.

    looks: float (n, 6), of each its Looks. sizes: (n, 2), width and height of the file, pixels.
    """
    if not len(looks):
        return {}
    of = Looks(*np.asarray(looks, float).T)
    middle = Looks(*np.median(looks, axis=0))
    sides = np.sort(np.asarray(sizes, float), axis=1)
    found: dict[str, Any] = {
        "blurred": of.sharpness < BLURRED_SHARE * middle.sharpness,
        "dark": of.high < DARK * 255,
        "bright": of.low > BRIGHT * 255,
        "nearly_empty": (of.entropy < EMPTY) & (of.entropy < EMPTY_SHARE * middle.entropy),
        "odd_shape": sides[:, 0] < NARROW * sides[:, 1],
    }
    return {kind: np.flatnonzero(found[kind]) for kind in WORDS}
