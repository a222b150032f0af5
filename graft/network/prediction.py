"""Probabilities of whole classifiers, what two of them share computed once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from graft import runtimes
from graft.network.cut import cut_at, find_cut, split_at
from graft.scoring.predictions import normalise
from graft.system.console import Progress

if TYPE_CHECKING:
    import keras

    from graft.features.extractor import Images


def predict_pair(model: keras.Model, other: keras.Model, layers: int, images: Images, *, runtime: str) -> list[np.ndarray]:
    """Probabilities of two classifiers that differ in the top `layers` of the backbone and the head alone, in one pass.

    images: as `features.extractor.Images`. Returns two arrays, float64 (n, C) with rows that sum to 1, of `model` and
    of `other`.
    """
    import keras

    batches = _with_progress(images)
    if all(np.array_equal(a, b) for a, b in zip(model.get_weights(), other.get_weights())):
        # Fine-tuning that helped nowhere: converters merge two equal tops into one and lose the name of the second output.
        same = predict(model, batches, runtime=runtime)
        return [same, same]
    cut = find_cut(model, layers)
    frozen, top = split_at(model, cut)
    shared = model.input if frozen is None else frozen.output
    outputs = [top(shared), split_at(other, cut_at(other, cut.position), name="other")[1](shared)]
    run = runtimes.start(keras.Model(model.input, outputs), outputs, runtime)
    parts = [run(batch) for batch in batches]
    return [normalise(np.concatenate(values)) for values in zip(*parts)]


def predict(model: keras.Model, batches: Iterable[np.ndarray], *, runtime: str) -> np.ndarray:
    """Probabilities of one classifier, float64 (n, C). batches: uint8 (b, S, S, 3)."""
    run = runtimes.start(model, [model.output], runtime)
    return normalise(np.concatenate([run(batch)[0] for batch in batches]))


def _with_progress(images):
    with Progress("predicting", len(images)) as progress:
        for batch in images.read(range(len(images))):
            yield batch
            progress.advance(len(batch))
