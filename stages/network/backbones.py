"""The backbones: one table of what `keras.applications` offers for transfer, and how each is built and given its weights."""

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from stages import paths
from stages.console import GraftError, warn


@dataclass(frozen=True)
class Row:
    """Facts about one architecture.

    constructor: name in `keras.applications`.
    native_size: pixels at which its ImageNet weights were trained; `image_size: auto` takes it.
    smallest_size: pixels below which the constructor refuses, or the last feature map vanishes.
    scaling: how raw pixels p in 0..255 become what the network expects, as (scale, offset) of p * scale + offset, scalars or
        one value per RGB channel; None where the network holds its own scaling.
    has_alpha: whether the architecture comes in several widths.
    engine: what runs its frozen layers fastest on a CPU (see `engines`).
    """

    constructor: str
    native_size: int
    smallest_size: int = 32
    scaling: tuple | None = (1 / 127.5, -1.0)
    has_alpha: bool = False
    engine: str = "tensorflow"


_STD = (0.229, 0.224, 0.225)  # of ImageNet's channels, as are the means below: keras.applications' mode "torch"
_TORCH = (tuple(1 / (255 * s) for s in _STD), tuple(-m / s for m, s in zip((0.485, 0.456, 0.406), _STD)))

BACKBONES = {
    "mobilenet": Row("MobileNet", 224, has_alpha=True, engine="litert"),
    "mobilenet_v2": Row("MobileNetV2", 224, has_alpha=True, engine="litert"),
    "mobilenet_v3_small": Row("MobileNetV3Small", 224, scaling=None, has_alpha=True, engine="litert"),
    "mobilenet_v3_large": Row("MobileNetV3Large", 224, scaling=None, has_alpha=True, engine="litert"),
    "inception_v3": Row("InceptionV3", 299, 75),
    "inception_resnet_v2": Row("InceptionResNetV2", 299, 75),
    "xception": Row("Xception", 299, 71),
    "resnet50_v2": Row("ResNet50V2", 224),
    "resnet101_v2": Row("ResNet101V2", 224),
    "densenet121": Row("DenseNet121", 224, scaling=_TORCH),
    "efficientnet_b0": Row("EfficientNetB0", 224, scaling=None),
    "efficientnet_v2_b0": Row("EfficientNetV2B0", 224, scaling=None),
    "efficientnet_v2_b3": Row("EfficientNetV2B3", 300, scaling=None),
    "efficientnet_v2_s": Row("EfficientNetV2S", 384, scaling=None),
}

BUNDLED = {("mobilenet_v2", 0.35): "mobilenet_v2_0.35_96.weights.h5"}
SHA256 = {  # of weights files that are known; a file of one of these names must be that file
    "mobilenet_v2_0.35_96.weights.h5": "ae70649dd61aef6ae525ffb98ea7ef0dd0c2a2e2e5e70dfd05c2c2912daff5ba",
}


def row(name):
    """The table's row. Raises GraftError, naming the known backbones, for any other name."""
    if name not in BACKBONES:
        raise GraftError(f"params.yaml: backbone.name must be one of {', '.join(BACKBONES)}, not {name!r}")
    return BACKBONES[name]


def resolve_size(name, image_size):
    """Image side in pixels: `image_size`, or the native size for "auto". Raises GraftError below the smallest size."""
    facts = row(name)
    size = facts.native_size if image_size == "auto" else image_size
    if size < facts.smallest_size:
        raise GraftError(f"params.yaml: image_size must be at least {facts.smallest_size} for {name}, not {size}")
    return size


def check(params):
    """Refuse a backbone block that cannot work, before any work is done. Needs no TensorFlow."""
    backbone = params.backbone
    resolve_size(backbone.name, params.image_size)
    if backbone.weights not in ("imagenet", "none"):
        weights_file(backbone.name, backbone.alpha, backbone.weights)


def weights_file(name, alpha, weights):
    """Path of the weights file that `weights` (bundled, or a path) names, its SHA-256 checked where it is known."""
    if weights == "bundled":
        if (name, alpha) not in BUNDLED:
            known = ", ".join(f"{n} with backbone.alpha: {a}" for n, a in BUNDLED)
            raise GraftError(
                f"params.yaml: backbone.weights: bundled is there for {known} only, not for {name}"
                + (f" with backbone.alpha: {alpha}" if row(name).has_alpha else "") + "; use imagenet, none or a path"
            )  # fmt: skip
        path = paths.BACKBONES / BUNDLED[name, alpha]
    else:
        path = Path(weights).expanduser()
        if path.suffix not in (".h5", ".keras"):
            raise GraftError(
                "params.yaml: backbone.weights must be bundled, imagenet, none or a path to .h5, .keras or .weights.h5, "
                f"not {weights!r}"
            )
    if not path.is_file():
        raise GraftError(f"params.yaml: backbone.weights: no such file: {path}")
    if path.name in SHA256 and sha256(path) != SHA256[path.name]:
        raise GraftError(
            f"{path}: damaged or not the file of that name: SHA-256 is not {SHA256[path.name]}; "
            f"fetch it again (git checkout -- {path})"
        )
    return path


def sha256(path):
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file):  # Python 3.10 has no file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def build(name, alpha, inputs, *, weights="none"):
    """The backbone on top of `inputs`, without its classifier.

    inputs: Keras tensor (None, S, S, 3) of raw pixels, 0..255.
    weights: bundled, imagenet, none (random) or a path; "imagenet" downloads what Keras offers unless it is in Keras' cache.
    Returns (features: Keras tensor (None, h, w, channels), the Keras model from the source of `inputs` to them).
    Raises GraftError if the weights are missing or do not fit.
    """
    import keras

    facts = row(name)
    x = inputs
    if facts.scaling is not None:
        scale, offset = (list(v) if isinstance(v, tuple) else v for v in facts.scaling)
        x = keras.layers.Rescaling(scale, offset, name="scaling")(x)
    else:  # the network scales for itself, but wants floats
        x = keras.layers.Rescaling(1.0, name="scaling")(x)
    options = {"include_top": False, "input_tensor": x}
    if facts.has_alpha:
        options["alpha"] = alpha
    constructor = getattr(keras.applications, facts.constructor)
    if weights == "imagenet":
        model = _build_imagenet(constructor, options, name)
    else:
        model = constructor(weights=None, **options)
        if weights != "none":
            _load(model, weights_file(name, alpha, weights), name)
    return model.output, model


def _build_imagenet(constructor, options, name):

    try:
        return constructor(weights="imagenet", **options)
    except ValueError as error:  # an alpha for which there are no weights, say
        raise GraftError(f"params.yaml: backbone: no ImageNet weights for {name}: {' '.join(str(error).split())}") from None
    except Exception as error:
        if "URL fetch failure" not in str(error):
            raise
        url = str(error).split("URL fetch failure on ")[1].split(": ")[0]
        place = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"
        raise GraftError(
            f"backbone.weights: imagenet: could not download {url}; "
            f"fetch that file elsewhere and put it at {place / url.rsplit('/', 1)[1]}"
        ) from None


def _load(model, path, name):
    import keras

    try:
        if path.suffix == ".keras":
            source = keras.models.load_model(path, compile=False, safe_mode=True)
            named = {layer.name: layer for layer in source.layers}
            for layer in model.layers:
                if layer.weights:
                    layer.set_weights(named[layer.name].get_weights())
        else:
            load_weights(model, path)
    except Exception as error:
        raise GraftError(
            f"backbone.weights: {path} does not fit {name} (check backbone.name and backbone.alpha): "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    if any(not _finite(w) for w in model.get_weights()):
        warn(f"{path} holds values that are not finite")


def load_weights(model, path):
    """`model.load_weights`, without Keras 3.15's hundred warnings that name containers which hold no weights of their own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Skipping nested container")
        model.load_weights(str(path))


def _finite(array):
    import numpy as np

    return bool(np.isfinite(array).all())
