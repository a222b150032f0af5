"""Probabilities of whole classifiers, what two of them share computed once."""

import numpy as np

from stages.console import Progress
from stages.network import engines
from stages.network.classifier import find_cut, split_at


def together(model, other, layers, images, *, engine):
    """Probabilities of two classifiers that differ in the top `layers` of the backbone and the head alone, in one pass.

    images: `activations.Images`. Returns two arrays, float64 (n, C) with rows that sum to 1, of `model` and of `other`.
    """
    import keras

    if all(np.array_equal(a, b) for a, b in zip(model.get_weights(), other.get_weights())):
        # Fine-tuning that helped nowhere: converters merge two equal tails into one and lose the name of the second output.
        same = alone(model, images.read(range(len(images))), engine=engine)
        return [same, same]
    cut = find_cut(model, layers)
    trunk, tail = split_at(model, cut)
    same = other.input if trunk is None else other.get_layer(cut._keras_history.operation.name).output
    shared = model.input if trunk is None else trunk.output
    outputs = [tail(shared), split_at(other, same, name="other")[1](shared)]
    run = engines.start(keras.Model(model.input, outputs), outputs, engine)
    parts = []
    with Progress("predicting", len(images)) as progress:
        for batch in images.read(range(len(images))):
            parts.append(run(batch))
            progress.advance(len(batch))
    return [_normalised(np.concatenate(batches)) for batches in zip(*parts)]


def alone(model, images, *, engine):
    """Probabilities of one classifier, float64 (n, C). images: iterable of batches uint8 (b, S, S, 3)."""
    run = engines.start(model, [model.output], engine)
    return _normalised(np.concatenate([run(batch)[0] for batch in images]))


def _normalised(probabilities):
    probabilities = probabilities.astype(np.float64)
    return probabilities / probabilities.sum(axis=1, keepdims=True)
