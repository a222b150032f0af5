"""The model as a column of blocks, drawn with matplotlib alone."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graft import keras_graph
from graft.figures import style

if TYPE_CHECKING:
    import keras
    from matplotlib.axes import Axes

# The names that keras.applications give the layers of one block: block_3_expand, conv2_block1_out,
# block2a_dwconv, expanded_conv_3/add.
BLOCK = re.compile(r"^(.*?block_?\d+[a-z]?|expanded_conv(?:_\d+)?)[_/]|^conv_(?:pad|dw|pw)_(\d+)")
OWN_ROW = ("image", "scaling", "pooling", "hidden", "dropout", "probabilities")
ROWS_UP_TO = 34


@dataclass(frozen=True)
class Block:
    """Consecutive layers: the `shape` that leaves them (without the batch), their `parameters`, how
    many are `trained`."""

    name: str
    layers: int
    shape: tuple
    parameters: int
    trained: int
    joins: str = ""  # "add" or "concatenate" where branches meet inside


def blocks(model: keras.Model) -> list[Block]:
    """The blocks of a Functional keras.Model from input to output; trained is what
    `layer.trainable` says.

    Found from the graph: the layers between two tensors which everything passes through belong
    together, and so do neighbours whose names say so. More than 34 blocks are merged where the
    image size is the same.
    """
    operations, parents = (
        {operation.name: operation for operation in model.operations},
        keras_graph.parents(model),
    )
    found = []
    for key, names in _named(_segments(parents), lambda name: _size(operations[name], "weights")):
        layers = [operations[name] for name in names]
        kinds = [type(layer).__name__.lower() for layer in layers if len(parents[layer.name]) > 1]
        found.append(
            Block(
                name=key,
                layers=len(layers),
                shape=tuple(layers[-1].output.shape[1:]),
                parameters=sum(_size(layer, "weights") for layer in layers),
                trained=sum(_size(layer, "trainable_weights") for layer in layers),
                joins=next(
                    (kind for kind in reversed(kinds) if kind in ("add", "concatenate")), ""
                ),
            )
        )
    return found if len(found) <= ROWS_UP_TO else _merged(found)


def _size(layer, weights):
    """Numbers in the `weights` or `trainable_weights` of a layer; 0 for a bare operation, such as
    the addition that stands between the layers of some backbones.
    """
    return sum(math.prod(weight.shape) for weight in getattr(layer, weights, ()))


def _segments(parents):
    """Lists of layers, cut wherever one tensor is all that goes on."""
    order = {name: k for k, name in enumerate(parents)}
    last_use = {source: order[name] for name, feeding in parents.items() for source in feeding}
    segment, reach = [], 0
    for name in parents:
        segment.append(name)
        if reach <= order[name]:  # what came before is used up, only this layer's output goes on
            yield segment
            segment = []
        reach = max(reach, last_use.get(name, 0))


def _named(segments, weigh):
    """[(name, layers)]: segments under the name of their block; what has none belongs to `stem`,
    `top`, or to its neighbour.

    `weigh`: name of a layer -> its parameters. Names that Keras made up (add_9) count up from model
    to model: the last resort.
    """
    rows = []
    for layers in segments:
        matches = [match[1] or f"conv_{match[2]}" for match in map(BLOCK.match, layers) if match]
        key = (
            layers[-1]
            if layers[-1] in OWN_ROW
            else matches[-1]
            if matches
            else layers[-1]
            if len(layers) > 1
            else None
        )
        follows = rows and rows[-1][0] not in (None, *OWN_ROW)
        nameless = not matches and key not in OWN_ROW and not sum(map(weigh, layers))
        if rows and (rows[-1][0] == key or (follows and nameless)):
            rows[-1][1].extend(layers)
        else:
            rows.append((key, list(layers)))
    first = next((k for k, (key, _) in enumerate(rows) if key not in (None, *OWN_ROW)), len(rows))
    keys = [key for key, _ in rows] + [None]
    return [
        (key or ("stem" if k < first else "top" if keys[k + 1] == "pooling" else layers[0]), layers)
        for k, (key, layers) in enumerate(rows)
    ]


def _merged(found):
    """Neighbours with the same image size as one block, named from the first to the last."""

    def kind(block):
        alone = block.name in OWN_ROW or len(block.shape) != 3
        return block.name if alone else (block.shape[:2], block.trained > 0)

    return [_joined(list(run)) for _, run in itertools.groupby(found, key=kind)]


def _joined(run):
    layers, parameters, trained = (
        sum(getattr(b, key) for b in run) for key in ("layers", "parameters", "trained")
    )
    name = " … ".join(dict.fromkeys((run[0].name, run[-1].name)))
    return Block(name, layers, run[-1].shape, parameters, trained, run[-1].joins)


class ModelGraphDisplay(style.Display):
    """Blocks from input to output with the shape that leaves them and their parameters; what was
    trained is blue and marked ●.
    """

    def __init__(self, blocks: list[Block], *, title: str = "Model"):
        self.blocks, self.title = list(blocks), title

    @classmethod
    def from_model(cls, model: keras.Model, *, title: str = "Model") -> ModelGraphDisplay:
        return cls(blocks(model), title=title)

    def axes(self) -> Axes:
        count = len(self.blocks)
        height = 0.3 + 0.27 * count
        fig = style.figure(style.WIDTH, height)
        fig.set_layout_engine("none")
        return fig.add_axes((0.01, 0, 0.98, 0.27 * count / height))

    def draw(self, ax: Axes) -> None:
        from matplotlib.patches import FancyBboxPatch, PathPatch
        from matplotlib.path import Path

        count = len(self.blocks)
        total, trained = sum(b.parameters for b in self.blocks), sum(b.trained for b in self.blocks)
        ax.set_title(
            f"{self.title}: {total:,} parameters, {trained:,} trained  ●", fontsize=9, pad=3
        )
        for row, block in enumerate(self.blocks):
            fill = (
                (style.RIGHT, 0.22) if block.trained else style.SOFT if block.parameters else "none"
            )
            edge = style.RIGHT if block.trained else style.RULE
            box = FancyBboxPatch(
                (0.07, row + 0.1), 0.92, 0.74, boxstyle="round,pad=0,rounding_size=0.02"
            )
            box.set(linewidth=0.8, facecolor=fill, edgecolor=edge)
            ax.add_patch(box)
            shape, parameters = (
                " × ".join(map(str, block.shape)),
                f"{block.parameters:,}" if block.parameters else "–",
            )
            text: dict[str, Any] = {"va": "center", "fontsize": 8}
            ax.text(0.09, row + 0.48, style.short(block.name, 30), **text)
            ax.text(0.62, row + 0.48, shape, ha="center", color=style.MUTED, **text)
            ax.text(
                0.975, row + 0.48, parameters + ("  ●" if block.trained else ""), ha="right", **text
            )
            if block.joins == "add":
                # The way round a residual block: from the output of the block above to this one's.
                points = [
                    (0.07, row + 0.02),
                    (0.005, row + 0.02),
                    (0.005, row + 0.92),
                    (0.07, row + 0.92),
                ]
                way = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
                ax.add_patch(PathPatch(way, facecolor="none", edgecolor=style.MUTED, linewidth=0.9))
            elif block.joins:
                ax.text(0.035, row + 0.48, "∥", ha="center", color=style.MUTED, **text)
        between = np.arange(count - 1)
        ax.vlines(
            np.full(count - 1, 0.62),
            between + 0.84,
            between + 1.1,
            color=style.MUTED,
            linewidth=0.9,
        )
        ax.set(xlim=(0, 1), ylim=(count, 0))
        ax.set_axis_off()
