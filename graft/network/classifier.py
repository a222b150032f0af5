"""The classifier: scaling, backbone, pooling, [dense], dropout, softmax, as one flat graph; its
unfreezing and its files.

Flat, because a backbone nested as one layer hides its layers from `trainable`, from the cut and
from Grad-CAM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graft import keras_graph
from graft.description import Description
from graft.network import backbones
from graft.system import files
from graft.system.console import GraftError

if TYPE_CHECKING:
    import keras

# Enlargement from which on more layers are trained: pictures of 32 px are given 128, hand signs of
# 100 px 224, photos their own size or less.
DEEPER = 2
MODEL_FILES = WEIGHTS, DESCRIPTION = "model.weights.h5", "model.json"


def build(description: Description, *, weights: str = "none") -> keras.Model:
    """A fresh classifier: `weights` on the backbone (see `backbones.build`), a new head on top, the
    backbone frozen.

    Returns a Keras model from "image", uint8 (n, S, S, 3) RGB, to "probabilities", float32 (n, C)
    with rows that sum to 1. The head's initial values depend on Keras' global seed alone.
    """
    import keras

    size = description.image_size
    image = keras.Input((size, size, 3), dtype="uint8", name="image")
    features, backbone = backbones.build(
        description.backbone, description.alpha, image, weights=weights
    )
    x = _pooled(backbone, backbones.row(description.backbone).depths, features)
    if description.hidden_units:
        x = keras.layers.Dense(description.hidden_units, activation="relu", name="hidden")(x)
    x = keras.layers.Dropout(description.dropout, name="dropout")(x)
    # Softmax in float32 also under mixed precision: half precision loses small probabilities.
    x = keras.layers.Dense(
        len(description.classes), activation="softmax", name="probabilities", dtype="float32"
    )(x)
    model = keras.Model(image, x, name="classifier")
    unfreeze(model, 0)
    return model


def _pooled(backbone, depths, features):
    """The global averages that the head sees: of the last feature map, and of those at the ends of
    some stages below it.

    Several depths tell more than the last one alone (Head2Toe, Evci et al. 2022, in its cheapest
    form): handsigns 0.939 -> 0.957.
    """
    import keras

    averages = [
        keras.layers.GlobalAveragePooling2D(name=f"pooling_{k}")(backbone.get_layer(name).output)
        for k, name in enumerate(depths)
    ]
    last = keras.layers.GlobalAveragePooling2D(name="pooling")(features)
    return keras.layers.Concatenate(name="pooled")([*averages, last]) if averages else last


def head_input(model: keras.Model) -> str:
    """Name of the layer that gives the pooled features: what the head alone sees."""
    return "pooled" if any(layer.name == "pooled" for layer in model.layers) else "pooling"


def shallow_width(model: keras.Model) -> int:
    """How many of the pooled features, the first, are of the shallowest depth; 0 where all are of
    one."""
    return model.get_layer("pooling_0").output.shape[-1] if head_input(model) == "pooled" else 0


def backbone_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers between scaling and pooling, bottom first, as `keras.applications` counts them but
    for its input layer."""
    names = [layer.name for layer in model.layers]
    inside = model.layers[names.index("scaling") + 1 : names.index(head_input(model))]
    return [layer for layer in inside if not layer.name.startswith("pooling")]


def enlargement(image_size: int, shorter_sides: Sequence[int]) -> float:
    """How many times their size images of these shorter sides, pixels, are made, in the median."""
    return float(image_size / np.median(shorter_sides))


def top_layers(model: keras.Model, setting: int | str, shorter_sides: Sequence[int]) -> int:
    """How many of the backbone's top layers are trained: `setting`, or for "auto" what suits
    network and images.

    shorter_sides: of the images, pixels. "auto" is what lies above the lowest depth that the head
    sees, or 30% of the layers where it sees the last one alone; 70% where images are enlarged by
    DEEPER or more, since the lower layers never saw such smooth ones (see benchmarks/README.md).
    """
    if setting != "auto":
        return int(setting)
    base = [layer.name for layer in backbone_layers(model)]
    if enlargement(model.input.shape[1], shorter_sides) >= DEEPER:
        return round(0.7 * len(base))
    if head_input(model) == "pooled":
        (lowest,) = keras_graph.parents(model)["pooling_0"]
        return len(base) - 1 - base.index(lowest)
    return round(0.3 * len(base))


def unfreeze(model: keras.Model, layers: int) -> int:
    """Make the head and the top `layers` layers of the backbone trainable, and nothing else;
    compile after this, not before.

    BatchNorm stays frozen at every depth: under `fit` its moving statistics drift even where the
    backbone was called with training=False, and on small data the drift costs more accuracy than
    the unfreezing gains (keras#20285). Returns the number of backbone layers that are trained:
    `layers`, or all there are.
    """
    import keras

    base = backbone_layers(model)
    layers = min(layers, len(base))
    frozen = {layer.name for layer in base[: len(base) - layers]}
    for layer in model.layers:
        layer.trainable = layer.name not in frozen and not isinstance(
            layer, keras.layers.BatchNormalization
        )
    return layers


def save(model: keras.Model, description: Description, folder: Path) -> None:
    """Write `model.weights.h5` and `model.json` into `folder`; the same model gives the same
    bytes."""
    files.need_room(Path(folder), 4 * model.count_params() + files.OF_HDF5)
    with files.whole(Path(folder) / WEIGHTS) as part:
        model.save_weights(part)
    files.write_text(Path(folder) / DESCRIPTION, description.to_json())


def load_description(folder: Path) -> Description:
    """What `model.json` in `folder` says. Raises GraftError where it is missing or damaged."""
    path = Path(folder) / DESCRIPTION
    try:
        return Description.from_json(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        raise GraftError(f"{path}: no such file; run the stage that makes it (dvc repro)") from None


def load(folder: Path) -> tuple[keras.Model, Description]:
    """(model, description) that `save` wrote, its layers unfrozen as they were trained."""
    description = load_description(folder)
    model = build(description)
    backbones.load_weights(model, Path(folder) / WEIGHTS)
    unfreeze(model, description.trainable_layers)
    return model, description


def digest(folder: Path) -> str:
    """SHA-256 of the two files that make the classifier in `folder`: its identity everywhere."""
    return files.sha256_of(*(Path(folder) / name for name in MODEL_FILES))
