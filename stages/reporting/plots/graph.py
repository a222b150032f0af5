"""The model as a column of blocks, drawn with matplotlib alone."""

import math
import re
from dataclasses import dataclass

import numpy as np

from stages.reporting.plots import style

# The names that keras.applications give the layers of one block: block_3_expand, conv2_block1_out, block2a_dwconv,
# expanded_conv_3/add.
BLOCK = re.compile(r"^(.*?block_?\d+[a-z]?|expanded_conv(?:_\d+)?)[_/]|^conv_(?:pad|dw|pw)_(\d+)")
OWN_ROW = ("image", "scaling", "pooling", "hidden", "dropout", "probabilities")
ROWS_UP_TO = 34


@dataclass(frozen=True)
class Block:
    """Consecutive layers: the `shape` that leaves them (without the batch), their `parameters`, how many of these are
    `trained`.
    """

    name: str
    layers: int
    shape: tuple
    parameters: int
    trained: int
    joins: str = ""  # "add" or "concatenate" where branches meet inside


def blocks(model, *, trainable=None):
    """The blocks of a Functional keras.Model from input to output.

    Found from the graph: the layers between two tensors which everything passes through belong together, and so do
    neighbours whose names say so. More than 34 blocks are merged where the picture size is the same. `trainable`: names
    of the trained layers, None: by `layer.trainable`.
    """
    found, operations = [], {operation.name: operation for operation in model.operations}
    parents = _parents(model)
    for key, names in _named(_segments(parents), lambda name: _parameters(operations[name])):
        layers = [operations[name] for name in names]
        branched = [layer for layer in layers if len(parents[layer.name]) > 1]
        joins = [kind for layer in branched if (kind := type(layer).__name__.lower()) in ("add", "concatenate")]
        found.append(
            Block(
                name=key,
                layers=len(layers),
                shape=_shape(layers[-1]),
                parameters=sum(map(_parameters, layers)),
                trained=sum(_trained(layer, trainable) for layer in layers),
                joins=joins[-1] if joins else "",
            )
        )
    return found if len(found) <= ROWS_UP_TO else _merged(found)


def _parameters(layer):
    """0 for a bare operation: between the layers of some backbones stands an addition that is no layer."""
    return layer.count_params() if hasattr(layer, "count_params") else 0


def _trained(layer, trainable):
    if trainable is None:
        return sum(math.prod(weight.shape) for weight in getattr(layer, "trainable_weights", ()))
    return _parameters(layer) if layer.name in trainable else 0


def _shape(layer):
    try:
        return tuple(layer.output.shape[1:])
    except (AttributeError, ValueError):  # a layer used more than once has no single output
        return ()


def _parents(model):
    """{layer: names of the layers that feed it}, from input to output, read from the model's public configuration."""

    def sources(content):
        if isinstance(content, dict):
            if content.get("class_name") == "__keras_tensor__":
                yield content["config"]["keras_history"][0]
            else:
                for value in content.values():
                    yield from sources(value)
        elif isinstance(content, (list, tuple)):
            for value in content:
                yield from sources(value)

    config = model.get_config()["layers"]
    names = {layer["config"]["name"] if "name" in layer["config"] else layer["name"] for layer in config}
    left = {layer["name"]: [s for s in dict.fromkeys(sources(layer["inbound_nodes"])) if s in names] for layer in config}
    ordered = {}
    while left:
        ready = [name for name, feeding in left.items() if all(s in ordered for s in feeding)]
        for name in ready or list(left):
            ordered[name] = left.pop(name)
    return ordered


def _segments(parents):
    """Lists of layers, cut wherever one tensor is all that goes on."""
    last_use = {}
    order = {name: k for k, name in enumerate(parents)}
    for name, feeding in parents.items():
        for source in feeding:
            last_use[source] = max(last_use.get(source, 0), order[name])
    segment, reach = [], 0
    for name in parents:
        segment.append(name)
        if reach <= order[name]:  # what came before is used up, only this layer's output goes on
            yield segment
            segment = []
        reach = max(reach, last_use.get(name, 0))


def _named(segments, weigh):
    """[(name, layers)]: segments under the name of their block; what has none belongs to `stem`, `top`, or to its neighbour.

    `weigh`: name of a layer -> its parameters. Names that Keras made up (add_9) count up from model to model: the last resort.
    """
    rows = []
    for layers in segments:
        matches = [match[1] or f"conv_{match[2]}" for match in map(BLOCK.match, layers) if match]
        key = layers[-1] if layers[-1] in OWN_ROW else matches[-1] if matches else layers[-1] if len(layers) > 1 else None
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
    """Neighbours with the same picture size as one block, named from the first to the last."""
    runs = []
    for block in found:
        size = (block.shape[:2] if len(block.shape) == 3 else block.name, block.trained > 0)
        if runs and runs[-1][0] == size and block.name not in OWN_ROW and runs[-1][1][0].name not in OWN_ROW:
            runs[-1][1].append(block)
        else:
            runs.append((size, [block]))
    return [
        run[0] if len(run) == 1 else Block(
            name=f"{run[0].name} … {run[-1].name}", layers=sum(b.layers for b in run), shape=run[-1].shape,
            parameters=sum(b.parameters for b in run), trained=sum(b.trained for b in run), joins=run[-1].joins,
        )
        for _, run in runs
    ]  # fmt: skip


class ModelGraphDisplay:
    """Blocks from input to output with the shape that leaves them and their parameters; what was trained is blue and
    marked ●.
    """

    def __init__(self, blocks, *, title="Model"):
        self.blocks, self.title = list(blocks), title

    @classmethod
    def from_model(cls, model, *, trainable=None, title="Model"):
        return cls(blocks(model, trainable=trainable), title=title)

    def plot(self, *, ax=None):
        from matplotlib.patches import FancyBboxPatch

        count = len(self.blocks)
        with style.applied():
            if ax is None:
                height = 0.3 + 0.27 * count
                fig = style.figure(style.WIDTH, height)
                fig.set_layout_engine("none")
                ax = fig.add_axes((0.01, 0, 0.98, 0.27 * count / height))
            total, trained = sum(b.parameters for b in self.blocks), sum(b.trained for b in self.blocks)
            ax.set_title(f"{self.title}: {total:,} parameters, {trained:,} trained  ●", fontsize=9, pad=3)
            for row, block in enumerate(self.blocks):
                fill = style.mix(style.RIGHT, 0.22) if block.trained else style.SOFT if block.parameters else "none"
                edge = style.RIGHT if block.trained else style.RULE
                look = {"boxstyle": "round,pad=0,rounding_size=0.02", "linewidth": 0.8, "facecolor": fill, "edgecolor": edge}
                ax.add_patch(FancyBboxPatch((0.07, row + 0.1), 0.92, 0.74, **look))
                shape, parameters = " × ".join(map(str, block.shape)), f"{block.parameters:,}" if block.parameters else "–"
                text = {"va": "center", "fontsize": 8}
                ax.text(0.09, row + 0.48, style.short(block.name, 30), **text)
                ax.text(0.62, row + 0.48, shape, ha="center", color=style.MUTED, **text)
                ax.text(0.975, row + 0.48, parameters + ("  ●" if block.trained else ""), ha="right", **text)
                if block.joins == "add":
                    self._bypass(ax, row)
                elif block.joins:
                    ax.text(0.035, row + 0.48, "∥", ha="center", color=style.MUTED, **text)
            between = np.arange(count - 1)
            ax.vlines(np.full(count - 1, 0.62), between + 0.84, between + 1.1, color=style.MUTED, linewidth=0.9)
            ax.set(xlim=(0, 1), ylim=(count, 0))
            ax.set_axis_off()
        self.ax_, self.figure_ = ax, ax.figure
        return self

    @staticmethod
    def _bypass(ax, row):
        """The way round a residual block: from the output of the block above to this one's."""
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path

        curve = [(0.07, row + 0.02), (0.005, row + 0.02), (0.005, row + 0.92), (0.07, row + 0.92)]
        path = Path(curve, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
        ax.add_patch(PathPatch(path, facecolor="none", edgecolor=style.MUTED, linewidth=0.9))
