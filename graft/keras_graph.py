"""The one walk over the graph of a Functional Keras model, and what an image costs in it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


def parents(model: keras.Model) -> dict[str, list[str]]:
    """{name: names of the operations that feed it}, every operation of `model` after all that feed
    it.

    Operations are layers and, between the layers of some backbones, bare ones such as an addition,
    which `model.layers` leaves out. The input has no parents. The order is that of
    `model.operations`, and so the same in every model that is built alike.
    """
    feeding: dict[str, list[str]] = {operation.name: [] for operation in model.operations}
    # An operation's own list has other models' nodes too.
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            sources = [parent.operation.name for parent in node.parent_nodes]
            feeding[node.operation.name] += sources
    return {
        name: [source for source in dict.fromkeys(sources) if source in feeding]
        for name, sources in feeding.items()
    }


def consumers(model: keras.Model) -> dict[str, list[str]]:
    """{name: names of the operations that take its output}, both in the order of `parents`."""
    feeding = parents(model)
    return {name: [taker for taker in feeding if name in feeding[taker]] for name in feeding}


def multiply_adds(model: keras.Model) -> int:
    """Of one image: those of the kernels, which are nearly all."""
    kernels = [
        (layer.output.shape[1:-1], weight.shape)
        for layer in model.layers
        for weight in layer.weights
    ]
    return sum(math.prod(places) * math.prod(shape) for places, shape in kernels if len(shape) > 1)
