"""Probabilities of whole classifiers, what two of them share computed once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graft import runtimes
from graft.network.classifier import head_input
from graft.network.cut import cut_at, find_cut, split_at
from graft.scoring.predictions import normalise
from graft.system.console import Progress

if TYPE_CHECKING:
    import keras

    from graft.features.blocks import Images


@dataclass(frozen=True, eq=False)
class Inside:
    """What a classifier makes of n images before it decides: float32, pooled `features` (n, d) and
    `logits` (n, C)."""

    features: np.ndarray
    logits: np.ndarray

    @classmethod
    def of(cls, model: keras.Model, values: np.ndarray) -> Inside:
        """values: (n, d + k), of the tensor that `inner` gives."""
        kernel, bias = model.layers[-1].get_weights()
        width = values.shape[1] - len(kernel)
        return cls(values[:, :width], values[:, width:] @ kernel + bias)


def predict_pair(
    model: keras.Model, other: keras.Model, layers: int, images: Images, *, runtime: str
) -> tuple[np.ndarray, np.ndarray, Inside]:
    """Probabilities of two classifiers that differ in the top `layers` of the backbone and the head
    alone, in one pass.

    images: as `features.extractor.Images`. Returns two arrays, float64 (n, C) with rows that sum to
    1, of `model` and of `other`, and the Inside of `model`.
    """
    import keras

    batches = _with_progress(images)
    if all(np.array_equal(a, b) for a, b in zip(model.get_weights(), other.get_weights())):
        # Fine-tuning that helped nowhere: converters merge two equal tops into one and lose the
        # name of the second output.
        same, values = _run(model, [model.output, inner(model)], batches, runtime)
        return normalise(same), normalise(same), Inside.of(model, values)
    cut = find_cut(model, layers)
    (shared,) = cut.tensors
    others = split_at(other, cut_at(other, cut.position), name="other")[1](shared)
    outputs = [*keras.Model(shared, [model.output, inner(model)], name="top")(shared), others]
    tuned, values, untuned = _run(keras.Model(model.input, outputs), outputs, batches, runtime)
    return normalise(tuned), normalise(untuned), Inside.of(model, values)


def look_inside(model: keras.Model, batches: Iterable[np.ndarray], *, runtime: str) -> Inside:
    """batches: uint8 (b, S, S, 3)."""
    import keras

    values = inner(model)
    return Inside.of(model, *_run(keras.Model(model.input, values), [values], batches, runtime))


def inner(model: keras.Model) -> keras.KerasTensor:
    """Keras tensor (n, d + k): the pooled features, and what the last layer sees. As one, as Keras
    makes no model of which an output is the input, as pooled features are above the deepest cut."""
    import keras

    return keras.layers.Concatenate(name="inner")(
        [model.get_layer(head_input(model)).output, model.layers[-1].input]
    )


def _run(model, outputs, batches, runtime):
    """One array per output, the images of all batches one after the other."""
    run = runtimes.start(model, outputs, runtime)
    return [np.concatenate(values) for values in zip(*(run(batch) for batch in batches))]


def predict(model: keras.Model, batches: Iterable[np.ndarray], *, runtime: str) -> np.ndarray:
    """Probabilities of one classifier, float64 (n, C). batches: uint8 (b, S, S, 3)."""
    run = runtimes.start(model, [model.output], runtime)
    return normalise(np.concatenate([run(batch)[0] for batch in batches]))


def _with_progress(images):
    with Progress("predicting", len(images)) as progress:
        for batch in images.read(range(len(images))):
            yield batch
            progress.advance(len(batch))
