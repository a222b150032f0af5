"""Augmentation as a fixed pool: view v of an image is one random flip, rotation, zoom, translation
and contrast, drawn once.

A pool that never changes can be computed once and kept; training takes an image's views in turn.
View 0 is the image itself. What an image gets depends on the seed, the view and the image's own
SHA-256, so that another photo more redraws nothing.

The four geometric changes are one affine map and one bilinear interpolation, with the ranges and
the conventions (a fraction of a full turn; a fraction of the side; pixels beyond the edge
reflected) of Keras' RandomFlip, RandomRotation, RandomZoom, RandomTranslation and RandomContrast.
Before them, with `resizers: mixed`, the photo comes out of one of Pillow's and six other resizers
(`graft.resizers`). Only Pillow and NumPy are needed.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from graft.resizers import RESIZERS


@dataclass(frozen=True)
class Change:
    """One drawn change: `matrix` (a, b, c, d, e, f) maps output pixel (x, y) to input pixel (a x +
    b y + e S, c x + d y + f S) about the centre of an image of side S; `contrast` is the factor
    about the mean."""

    matrix: tuple[float, float, float, float, float, float]
    contrast: float


@dataclass(frozen=True)
class Augmentation:
    """Ranges as in the `augment` block of params.yaml, and the seed."""

    flip: str
    rotation: float
    zoom: float
    translation: float
    contrast: float
    seed: int
    resizers: str = "own"

    @property
    def is_mixed(self) -> bool:
        return self.resizers == "mixed"

    @property
    def is_identity(self) -> bool:
        return not (
            self.flip != "none"
            or self.rotation
            or self.zoom
            or self.translation
            or self.contrast
            or self.is_mixed
        )

    def resizer(self, sha256: str, view: int) -> str | None:
        """Which of RESIZERS makes view `view`, >= 1, of the image with this SHA-256 small; None:
        Pillow, as everywhere else."""
        if not self.is_mixed:
            return None
        digest = hashlib.sha256(f"{self.seed}:{sha256}:{view}:resizer".encode()).digest()
        kinds = (None, *RESIZERS)
        return kinds[int.from_bytes(digest[:8], "big") % len(kinds)]

    def probe(self, image: np.ndarray) -> bytes:
        """What this library's versions make of `image`, uint8 (S, S, 3): bytes that change where
        the pixels of views do."""
        shape = (max(1, len(image) // 3), len(image) // 2 + 1)
        kernels = RESIZERS.values() if self.is_mixed else ()
        small = (kernel(image, shape).tobytes() for kernel in kernels)
        return self.view(image, "probe", 1).tobytes() + b"".join(small)

    def draw(self, sha256: str, view: int) -> Change:
        """The change of view `view`, >= 1, of the image with this SHA-256."""
        digest = hashlib.sha256(f"{self.seed}:{sha256}:{view}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
        # All numbers are drawn whatever is switched on, so that one switch does not change what the
        # others give.
        turn, zoom, contrast, right, down = rng.uniform(-1, 1, 5)
        flip_x, flip_y = (rng.integers(0, 2, 2) * 2 - 1).tolist()
        mirror_x = flip_x if self.flip in ("horizontal", "both") else 1
        mirror_y = flip_y if self.flip in ("vertical", "both") else 1
        angle, scale = turn * self.rotation * 2 * math.pi, 1 + zoom * self.zoom
        cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
        moves = right * self.translation, down * self.translation
        matrix = (
            cos * mirror_x,
            -sin * mirror_y,
            sin * mirror_x,
            cos * mirror_y,
            float(moves[0]),
            float(moves[1]),
        )
        return Change(matrix, float(1 + contrast * self.contrast))

    def view(self, image: np.ndarray, sha256: str, view: int) -> np.ndarray:
        """View `view` of `image`, uint8 (S, S, 3), whose file has this SHA-256; uint8 (S, S, 3)."""
        if view == 0 or self.is_identity:
            return image
        return transform(image, self.draw(sha256, view))


def transform(image: np.ndarray, change: Change) -> np.ndarray:
    """`image`, uint8 (S, S, 3), after `change`: uint8 (S, S, 3), rounded to the nearest level."""
    side = image.shape[0]
    a, b, c, d, e, f = change.matrix
    # Pillow counts from the corner of a pixel, so that the centre of the image lies here.
    centre = side / 2
    right, down = centre * (1 - a - b) + e * side, centre * (1 - c - d) + f * side
    if (a, b, c, d) in MIRRORS and not (e or f):
        moved = image[:: int(d), :: int(a)]
    else:
        pad = _overhang(side, (a, b, right), (c, d, down))
        # "symmetric" repeats the edge pixel, as reflection does in Keras' layers.
        source = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="symmetric").astype(
            np.float32
        )
        matrix = (a, b, right + pad, c, d, down + pad)
        moved = np.stack([_interpolated(source[..., k], side, matrix) for k in range(3)], axis=-1)
    if change.contrast != 1:
        mean = moved.mean(axis=(0, 1), dtype=np.float64)
        moved = (moved - mean) * change.contrast + mean
    return moved if moved.dtype == np.uint8 else np.clip(np.rint(moved), 0, 255).astype(np.uint8)


def _interpolated(channel, side, matrix):
    """One channel, float32 (h, w), sampled by the map. Pillow cuts 8-bit results off instead of
    rounding them: float it is."""
    plane = Image.fromarray(channel)
    return np.asarray(
        plane.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    )


MIRRORS = {(x, 0.0, 0.0, y) for x in (1.0, -1.0) for y in (1.0, -1.0)}  # exact: no interpolation


def _overhang(side, *rows):
    """How many pixels beyond the edges the map reaches: whole, at least 1 for the neighbour of the
    last pixel."""
    corners = [
        row[0] * x + row[1] * y + row[2] for row in rows for x in (0, side) for y in (0, side)
    ]
    return max(0, math.ceil(max(0 - min(corners), max(corners) - side))) + 2
