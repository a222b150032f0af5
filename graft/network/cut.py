"""Where a classifier is parted into what stays frozen, computed once per image, and what is
trained."""

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
    """tensors: Keras tensors, usually one, that all above depends on. name: of the operation that
    makes the last of them. position: of that operation in the graph. digest: SHA-256 of all that
    computes them. shapes: of the tensors, without the batch."""

    tensors: tuple
    name: str
    position: int
    digest: str
    shapes: tuple[tuple[int, ...], ...]


def find_cut(model: keras.Model, layers: int) -> Cut:
    """The deepest tensor that everything trained, with the top `layers` of the backbone unfrozen,
    depends on alone.

    Below it nothing is trained and nothing is random: its value for an image never changes during
    training, so it can be computed once. A block ends in a narrow tensor and begins by widening it
    in a cheap 1 x 1 convolution, and to keep the wide one would cost more than to widen again; so a
    tensor of at most half the size, up to NEAR operations further down, is taken instead. It is an
    output of the backbone or the pooled features, or the model's input where the unfreezing reaches
    down so far that only scaling is left to compute.
    """
    operations, taking = _operations(model), keras_graph.consumers(model)
    order = {name: i for i, name in enumerate(operations)}
    base, pooled = backbone_layers(model), head_input(model)
    trained = [layer.name for layer in base[len(base) - min(layers, len(base)) :] if _learns(layer)]
    # One pass upwards: `reach` is the furthest operation that anything seen so far feeds. Where
    # nothing below i feeds past i, the output of operation i is all that those above it see.
    reach, sizes = 0, {}
    for name in list(operations)[: min([order[pooled] + 1, *(order[name] for name in trained)])]:
        if reach <= order[name]:
            sizes[order[name]] = math.prod(operations[name].output.shape[1:])
        reach = max([reach, *(order[taker] for taker in taking[name])])
    deepest = max(sizes)
    cut = min((i for i in sizes if i >= deepest - NEAR), key=lambda i: (sizes[i], -i))
    if sizes[cut] > sizes[deepest] / 2 or deepest == order[pooled]:
        cut = deepest
    return cut_at(model, order["image"] if cut <= order["scaling"] else cut)


def cut_at(model: keras.Model, position: int) -> Cut:
    """The cut above the operation at `position`, as `find_cut` gave it for this model or for
    another that is built alike.

    By position, not by name: Keras counts names up from model to model (add_6, add_18).
    """
    below = list(_operations(model).values())[: position + 1]
    tensor = below[-1].output
    return Cut(
        (tensor,), below[-1].name, position, _digest(model, below), (tuple(tensor.shape[1:]),)
    )


def split_at(
    model: keras.Model, cut: Cut, *, name: str = "top"
) -> tuple[keras.Model | None, keras.Model]:
    """(frozen part, trainable part) of `model`; both share its layers. The first is None where the
    cut is the input."""
    import keras

    (tensor,) = cut.tensors
    frozen = None if tensor is model.input else keras.Model(model.input, tensor, name="frozen")
    return frozen, keras.Model(tensor, model.output, name=name)


def _operations(model):
    """{name: operation}, every one after all that feed it."""
    named = {operation.name: operation for operation in model.operations}
    return {name: named[name] for name in keras_graph.parents(model)}


def _learns(layer):
    import keras

    return bool(layer.weights) and not isinstance(layer, keras.layers.BatchNormalization)


def _digest(model, operations):
    """SHA-256 of topology, settings and weights of `operations`, in order; their names play no
    part."""
    feeding, digest = keras_graph.parents(model), hashlib.sha256()
    position = {operation.name: i for i, operation in enumerate(operations)}
    for operation in operations:
        settings = {
            k: v
            for k, v in operation.get_config().items()
            if k not in ("name", "trainable", "dtype")
        }
        sources = [position[source] for source in feeding[operation.name]]
        digest.update(
            json.dumps(
                [type(operation).__name__, sources, settings], sort_keys=True, default=str
            ).encode()
        )
        for weight in getattr(operation, "weights", ()):
            digest.update(np.ascontiguousarray(weight.numpy()).data)
    return digest.hexdigest()
