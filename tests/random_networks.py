"""Networks of random weights that still pass something on to their top."""

import numpy as np


def build(description, *, seed=0):
    """The classifier of `description`, its weights drawn from `seed`, the backbone's the same for
    every seed.

    Each BatchNorm holds the statistics of random images: as Keras makes them, with mean 0 and
    variance 1, small images come out of the last layers as next to nothing.
    """
    import keras

    from graft.network import classifier

    size = description.image_size
    small = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3), dtype=np.uint8)
    images = small.repeat(size // 4, 1).repeat(size // 4, 2)
    keras.utils.set_random_seed(0)
    backbone = classifier.backbone_layers(source := classifier.build(description))
    norms = [layer for layer in backbone if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:
        layer.trainable, layer.momentum = True, 0.0  # what it sees next is all that it remembers
    source(images, training=True)
    keras.utils.set_random_seed(seed)
    model = classifier.build(description)
    for layer, filled in zip(classifier.backbone_layers(model), backbone):
        layer.set_weights(filled.get_weights())
    return model
