"""Where a classifier is parted into what stays frozen, computed once per image, and what is trained."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graft import keras_graph
from graft.network.classifier import backbone_layers, head_input

if TYPE_CHECKING:
    import keras

NEAR = 6  # operations; an inverted residual block has 8 or 9


@dataclass(frozen=True)
class Cut:
    """tensors: Keras tensors, usually one, that all above depends on. name: of the operation that makes the last of them.
    position: of that operation in the graph; -1 where the cut is the input. digest: SHA-256 of all that computes them.
    shapes: of the tensors, without the batch."""

    tensors: tuple
    name: str
    position: int
    digest: str
    shapes: tuple[tuple[int, ...], ...]


def find_cut(model: keras.Model, layers: int) -> Cut:
    """The deepest tensor that everything trained, with the top `layers` of the backbone unfrozen, depends on alone.

    Below it nothing is trained and nothing is random: its value for an image never changes during training, so it can be
    computed once. A block ends in a narrow tensor and begins by widening it in a cheap 1 x 1 convolution, and to keep
    the wide one would cost more than to widen again; so a tensor of at most half the size, up to NEAR operations
    further down, is taken instead. It is an output of the backbone or the pooled features, or the model's input where the
    unfreezing reaches down so far that only scaling is left to compute.
    """
    operations = {operation.name: operation for operation in model.operations}
    order = {name: i for i, name in enumerate(keras_graph.parents(model))}
    named, pooled = list(order), head_input(model)
    base = backbone_layers(model)
    trained = {layer.name for layer in base[len(base) - min(layers, len(base)) :] if _learns(layer)}
    boundary = min([order[pooled] + 1, *(order[name] for name in trained)])
    # One pass upwards: `reach` is the furthest operation that anything seen so far feeds. Where nothing below i feeds past i,
    # the output of operation i is all that those above it see.
    reach, cuts, taking = 0, [], keras_graph.consumers(model)
    for i in range(boundary):
        if reach <= i:
            cuts.append(i)
        reach = max([reach, *(order[name] for name in taking[named[i]])])
    sizes = {i: math.prod(operations[named[i]].output.shape[1:]) for i in cuts}
    deepest = cuts[-1]
    cut = min((i for i in cuts if i >= deepest - NEAR), key=lambda i: (sizes[i], -i))
    if sizes[cut] > sizes[deepest] / 2 or deepest == order[pooled]:
        cut = deepest
    if cut <= order["scaling"]:
        return _cut(model, model.input, "image", -1, named[: order["image"] + 1])
    return _cut(model, operations[named[cut]].output, named[cut], cut, named[: cut + 1])


def same_cut(model: keras.Model, cut: Cut) -> Cut:
    """`cut` of a model built alike, in `model`. By position: Keras counts names up from model to model (add_6, add_18)."""
    if cut.position < 0:
        return _cut(model, model.input, "image", -1, ["image"])
    named = list(keras_graph.parents(model))
    tensor = next(operation.output for operation in model.operations if operation.name == named[cut.position])
    return _cut(model, tensor, named[cut.position], cut.position, named[: cut.position + 1])


def split_at(model: keras.Model, cut: Cut, *, name: str = "top") -> tuple[keras.Model | None, keras.Model]:
    """(frozen part, trainable part) of `model`; both share its layers. The first is None where the cut is the input."""
    import keras

    (tensor,) = cut.tensors
    frozen = None if cut.position < 0 else keras.Model(model.input, tensor, name="frozen")
    return frozen, keras.Model(tensor, model.output, name=name)


def _cut(model, tensor, name, position, below):
    return Cut((tensor,), name, position, _digest(model, below), (tuple(tensor.shape[1:]),))


def _learns(layer):
    import keras

    return bool(layer.weights) and not isinstance(layer, keras.layers.BatchNormalization)


def _digest(model, names):
    """SHA-256 of topology, settings and weights of the operations `names`, in order; their names play no part."""
    operations = {operation.name: operation for operation in model.operations}
    feeding = keras_graph.parents(model)
    position = {name: i for i, name in enumerate(names)}
    digest = hashlib.sha256()
    for name in names:
        operation = operations[name]
        settings = {k: v for k, v in operation.get_config().items() if k not in ("name", "trainable", "dtype")}
        sources = [position[source] for source in feeding[name]]
        digest.update(json.dumps([type(operation).__name__, sources, settings], sort_keys=True, default=str).encode())
        for weight in getattr(operation, "weights", ()):
            digest.update(np.ascontiguousarray(weight.numpy()).data)
    return digest.hexdigest()
