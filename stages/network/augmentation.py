"""Augmentation as a fixed pool: view v of an image is one random flip, rotation, zoom, translation and contrast, drawn once
from the seed.

A pool that never changes can be computed once and remembered; training takes an image's views in turn. View 0 is the image
itself.

The four geometric changes are one affine map and one bilinear interpolation, with the ranges, the conventions (a fraction of
a full turn; a fraction of the picture; pixels beyond the edge reflected) of Keras' RandomFlip, RandomRotation, RandomZoom,
RandomTranslation and RandomContrast. A chain of those layers would interpolate twice, and would draw by position in a batch;
here what an image gets depends on the seed, the view and its own position in the data set, so that any batch can be made
again at any time.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Augmentation:
    """Ranges as in the `augment` block of params.yaml, and the seed."""

    flip: str
    rotation: float
    zoom: float
    translation: float
    contrast: float
    seed: int

    @property
    def is_identity(self):
        return self.flip == "none" and not (self.rotation or self.zoom or self.translation or self.contrast)


def draw(augmentation, view, n):
    """The random numbers of one view of n images.

    Returns (maps, contrast): maps float32 (n, 6), rows [a b c d e f] of the affine map about the image's centre from output
    pixel (x, y) to input pixel (a x + b y + e S, c x + d y + f S), S the side; contrast float32 (n,), the factor about the
    mean.
    """
    rng = np.random.default_rng([augmentation.seed, view])
    # All numbers are drawn whatever is switched on, so that one switch does not change what the others give.
    angle = rng.uniform(-1, 1, n) * augmentation.rotation * 2 * np.pi
    zoom = 1 + rng.uniform(-1, 1, n) * augmentation.zoom
    flips = rng.integers(0, 2, (n, 2)) * 2 - 1
    contrast = 1 + rng.uniform(-1, 1, n) * augmentation.contrast
    moves = rng.uniform(-1, 1, (n, 2)) * augmentation.translation
    mirror_x = flips[:, 0] if augmentation.flip in ("horizontal", "both") else np.ones(n)
    mirror_y = flips[:, 1] if augmentation.flip in ("vertical", "both") else np.ones(n)
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    maps = np.stack([cos * mirror_x, -sin * mirror_y, sin * mirror_x, cos * mirror_y, *moves.T], axis=1)
    return maps.astype(np.float32), contrast.astype(np.float32)


class Views:
    """Makes any view of any of n images; the numbers of a view are drawn when it is first asked for."""

    def __init__(self, augmentation, n):
        self.augmentation, self.n = augmentation, n
        self._drawn = {}

    def make(self, images, indices, view):
        """View `view` of `images`, uint8 (b, S, S, 3), the images at `indices`, int (b,). Returns uint8 (b, S, S, 3)."""
        if view == 0 or self.augmentation.is_identity:
            return images
        if view not in self._drawn:
            self._drawn[view] = draw(self.augmentation, view, self.n)
        maps, contrast = (numbers[indices] for numbers in self._drawn[view])
        return _transform(images, maps, contrast)


def _transform(images, maps, contrast):
    import tensorflow as tf

    side = images.shape[1]
    centre = (side - 1) / 2
    a, b, c, d, e, f = maps.T
    # ImageProjectiveTransform counts from the corner; shift the centred map there.
    shift_x, shift_y = centre * (1 - a - b) + e * side, centre * (1 - c - d) + f * side
    zero = np.zeros_like(a)
    transforms = np.stack([a, b, shift_x, c, d, shift_y, zero, zero], axis=1).astype(np.float32)
    with tf.device("/cpu:0"):
        moved = tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.cast(images, tf.float32),
            transforms=transforms,
            output_shape=[side, side],
            fill_value=0.0,
            interpolation="BILINEAR",
            fill_mode="REFLECT",
        )
        if np.any(contrast != 1):
            mean = tf.reduce_mean(moved, axis=(1, 2), keepdims=True)
            moved = (moved - mean) * contrast[:, None, None, None] + mean
        return tf.cast(tf.clip_by_value(tf.round(moved), 0, 255), tf.uint8).numpy()
