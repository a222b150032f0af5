"""Where the model looks: Grad-CAM (Selvaraju et al. 2017), for any classifier whose layer "pooling"
averages the last feature map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras

POOLING = "pooling"
BATCH = 16


def grad_cam(
    model: keras.Model, images: np.ndarray, targets: np.ndarray, *, batch_size: int = BATCH
) -> np.ndarray:
    """How much each place speaks for a class: float32 (n, h, w) in [0, 1], h x w the size of the
    model's last feature map.

    `model` keras.Model with a layer "pooling" whose input is that map and, as its last layer, dense
    class scores with a softmax; `images` uint8 (n, S, S, 3), n >= 1; `targets` int (n,), the
    classes asked about. Each map is divided by its own largest value; one that speaks nowhere for
    the class is all zeros. The gradient is that of the score before the softmax, which does not
    vanish where the model is certain.
    """
    import keras
    import tensorflow as tf

    pooling = model.get_layer(POOLING)
    last = model.layers[-1]
    # A head that looks at several depths: what the others say stays as it is.
    others = [layer.output for layer in model.layers if layer.name.startswith(f"{POOLING}_")]
    below = keras.Model(model.inputs, [pooling.input, *others] if others else pooling.input)
    above = keras.Model([pooling.input, *others] if others else pooling.input, last.input)
    maps = []
    for start in range(0, len(images), batch_size):
        found = below(tf.convert_to_tensor(images[start : start + batch_size]), training=False)
        features, *rest = (tf.cast(part, tf.float32) for part in (found if others else [found]))
        with tf.GradientTape() as tape:
            tape.watch(features)
            hidden = tf.cast(
                above([features, *rest] if rest else features, training=False), tf.float32
            )
            # The bias does not move the gradient.
            scores = hidden @ tf.cast(tf.convert_to_tensor(last.kernel), tf.float32)
            asked = tf.gather(
                scores,
                np.asarray(targets[start : start + batch_size], np.int64),
                axis=1,
                batch_dims=1,
            )
        weights = tf.reduce_mean(tape.gradient(asked, features), axis=(1, 2), keepdims=True)
        maps.append(tf.nn.relu(tf.reduce_sum(weights * features, axis=-1)).numpy())
    heat = np.concatenate(maps)
    top = heat.max(axis=(1, 2), keepdims=True)
    return (heat / np.where(top > 0, top, 1)).astype(np.float32)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 (S, S, 3): `image` uint8 (S, S, 3), greyed, under `heat` float (h, w) in [0, 1] as dark
    red to bright yellow."""
    import matplotlib
    from PIL import Image

    image = np.asarray(image, np.uint8)
    size = image.shape[1], image.shape[0]
    spread = np.asarray(
        Image.fromarray(np.asarray(heat, np.float32)).resize(size, Image.Resampling.BICUBIC)
    ).clip(0, 1)
    grey = np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1)
    colour = 255 * matplotlib.colormaps["inferno"](0.25 + 0.75 * spread)[..., :3]
    share = 0.75 * spread[..., None]
    return ((1 - share) * (0.7 * grey + 30) + share * colour).round().astype(np.uint8)
