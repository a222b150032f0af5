"""The classifier: scaling, backbone, pooling, [dense], dropout, softmax, as one flat graph; its unfreezing, its cut, its files.

Flat, because a backbone nested as one layer hides its layers from `trainable`, from the cut and from Grad-CAM.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from stages.console import GraftError
from stages.network import backbones

WEIGHTS, DESCRIPTION = "model.weights.h5", "model.json"
NEAR = 6  # layers; an inverted residual block has 8 or 9


@dataclass(frozen=True)
class ClassifierSpec:
    """All it takes to rebuild the classifier around its weights, and to use it correctly.

    image_size: side in pixels of the square input. resize: how a photo becomes that square.
    hidden_units: of the dense layer before the softmax, 0 for none. dropout: rate in [0, 1).
    trainable_layers: how many of the backbone's top layers were trained; 0 means the head alone.
    temperature: T of softmax(logits / T) that was fitted on the validation images; the weights themselves are not scaled by it.
    """

    backbone: str
    alpha: float
    image_size: int
    classes: tuple[str, ...]
    hidden_units: int
    dropout: float
    resize: str
    trainable_layers: int = 0
    temperature: float = 1.0

    def with_(self, **changes):
        return replace(self, **changes)


def build(spec, *, weights="none"):
    """A fresh classifier: `weights` on the backbone (see `backbones.build`), a new head on top, the backbone frozen.

    Returns a Keras model from "image", uint8 (n, S, S, 3) RGB, to "probabilities", float32 (n, C) with rows that sum to 1.
    The head's initial values depend on Keras' global seed alone.
    """
    import keras

    size = spec.image_size
    image = keras.Input((size, size, 3), dtype="uint8", name="image")
    features, _backbone = backbones.build(spec.backbone, spec.alpha, image, weights=weights)
    x = keras.layers.GlobalAveragePooling2D(name="pooling")(features)
    if spec.hidden_units:
        x = keras.layers.Dense(spec.hidden_units, activation="relu", name="hidden")(x)
    x = keras.layers.Dropout(spec.dropout, name="dropout")(x)
    # Softmax in float32 also under mixed precision: half precision loses small probabilities.
    x = keras.layers.Dense(len(spec.classes), activation="softmax", name="probabilities", dtype="float32")(x)
    model = keras.Model(image, x, name="classifier")
    unfreeze(model, 0)
    return model


def backbone_layers(model):
    """The layers between scaling and pooling, bottom first, as `keras.applications` counts them but for its input layer."""
    names = [layer.name for layer in model.layers]
    return model.layers[names.index("scaling") + 1 : names.index("pooling")]


def unfreeze(model, layers):
    """Make the head and the top `layers` layers of the backbone trainable, and nothing else; compile after this, not before.

    BatchNorm stays frozen at every depth: under `fit` its moving statistics drift even where the backbone was called with
    training=False, and on small data the drift costs more accuracy than the unfreezing gains (keras#20285).
    Returns the number of backbone layers that are trained: `layers`, or all there are.
    """
    import keras

    base = backbone_layers(model)
    layers = min(layers, len(base))
    for layer in model.layers:
        layer.trainable = True
    for layer in base[: len(base) - layers]:
        layer.trainable = False
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    return layers


def find_cut(model, layers):
    """The deepest tensor that everything trained, with the top `layers` of the backbone unfrozen, depends on alone.

    Below it nothing is trained and nothing is random: its value for an image never changes during training, so it can be
    remembered. One retreat is allowed: inside a block MobileNetV2 widens its tensor six times with a cheap 1 x 1 convolution,
    and to remember the wide one would cost more than to widen again; so a tensor of at most half the size, up to NEAR layers
    further down, is taken instead. Returns a Keras tensor: an output of a backbone layer or of "pooling", or the model's input
    where the unfreezing reaches down so far that only scaling is left to remember.
    """
    order = {layer.name: i for i, layer in enumerate(model.layers)}
    base = backbone_layers(model)
    unfrozen = {layer.name for layer in base[len(base) - min(layers, len(base)) :]}
    head_starts = order["pooling"] + 1
    boundary = next(
        i for i, layer in enumerate(model.layers) if i >= head_starts or (layer.name in unfrozen and _learns(layer))
    )
    # One pass upwards: `reach` is the furthest layer that anything seen so far feeds. Where nothing below i feeds past i,
    # layer i's output is all that the layers above it see.
    reach, cuts = 0, []
    consumers = _consumers(model, order)
    for i, _ in enumerate(model.layers[:boundary]):
        if reach <= i:
            cuts.append(i)
        reach = max([reach, *consumers[i]])
    sizes = {i: math.prod(model.layers[i].output.shape[1:]) for i in cuts}
    deepest = cuts[-1]
    cut = min((i for i in cuts if i >= deepest - NEAR), key=lambda i: (sizes[i], -i))
    if sizes[cut] > sizes[deepest] / 2 or deepest == order["pooling"]:
        cut = deepest
    return model.input if cut <= order["scaling"] else model.layers[cut].output


def _learns(layer):
    import keras

    return bool(layer.weights) and not isinstance(layer, keras.layers.BatchNormalization)


def _consumers(model, order):
    """For each layer by position, the positions of the layers that take its output."""
    consumers = [[] for _ in model.layers]
    for layer in model.layers:
        for node in layer._inbound_nodes:
            for parent in node.parent_nodes:
                if parent.operation.name in order:
                    consumers[order[parent.operation.name]].append(order[layer.name])
    return consumers


def split_at(model, cut, *, name="tail"):
    """(trunk, tail) of `model` at the tensor `cut`; both share its layers. The trunk is None where the cut is the input."""
    import keras

    trunk = None if cut is model.input else keras.Model(model.input, cut, name="trunk")
    return trunk, keras.Model(cut, model.output, name=name)


def save(model, spec, folder):
    """Write `model.weights.h5` and `model.json` into `folder`; the same model gives the same bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_weights(folder / WEIGHTS)
    text = json.dumps(asdict(spec), indent=2, ensure_ascii=False) + "\n"
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")


def load_spec(folder):
    path = Path(folder) / DESCRIPTION
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return ClassifierSpec(**{**tree, "classes": tuple(tree["classes"])})
    except FileNotFoundError:
        raise GraftError(f"{path}: no such file; run the stage that makes it (dvc repro)") from None
    except (ValueError, TypeError, KeyError) as error:
        raise GraftError(f"{path}: not a classifier's description: {error}") from None


def load(folder):
    """(model, spec) that `save` wrote, its layers unfrozen as they were trained."""
    spec = load_spec(folder)
    model = build(spec)
    backbones.load_weights(model, Path(folder) / WEIGHTS)
    unfreeze(model, spec.trainable_layers)
    return model, spec


def digest(folder):
    """SHA-256 of the two files that make the classifier in `folder`: its identity everywhere."""
    folder = Path(folder)
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in (WEIGHTS, DESCRIPTION))).hexdigest()
