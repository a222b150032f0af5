import collections
import io
import pickle
import struct
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest

from graft.network import efficientnet_lite

DATASETS = Path(__file__).parents[3] / "shared" / "datasets"


def rebuild(storage, offset, shape, strides, *rest):
    """Stands for PyTorch's function of another name: only its name gets into the file."""


def write(path, tensors, *, magic=efficientnet_lite.MAGIC, extra=None):
    """A file as PyTorch wrote it before 1.6. tensors: name -> (storage key, values, offset, shape,
    strides)."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    class FloatStorage:
        pass

    FloatStorage.__module__, FloatStorage.__qualname__ = "torch", "FloatStorage"
    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    torch.FloatStorage, utils._rebuild_tensor_v2 = FloatStorage, rebuild

    class Storage:
        def __init__(self, key, size):
            self.key, self.size = key, size

    class Tensor:
        def __init__(self, *arguments):
            self.arguments = arguments

        def __reduce__(self):
            return rebuild, self.arguments

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return (
                ("storage", FloatStorage, value.key, "cpu", value.size)
                if isinstance(value, Storage)
                else None
            )

    state = collections.OrderedDict(
        (
            name,
            Tensor(
                Storage(key, len(values)), offset, shape, strides, False, collections.OrderedDict()
            ),
        )
        for name, (key, values, offset, shape, strides) in tensors.items()
    )
    if extra is not None:
        state["extra"] = extra
    saved = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules |= {"torch": torch, "torch._utils": utils}
    try:
        with path.open("wb") as file:
            for part in (magic, 1001, {"little_endian": True}):
                pickle.dump(part, file, protocol=2)
            Pickler(file, protocol=2).dump(state)
            pickle.dump([key for key, *_ in tensors.values()], file, protocol=2)
            for _, values, *_ in tensors.values():
                file.write(struct.pack("<q", len(values)) + np.asarray(values, "<f4").tobytes())
    finally:
        for name, module in saved.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})


def test_tensors_are_strided_views_of_their_storage(tmp_path):
    values = np.arange(12, dtype=np.float32)
    write(
        tmp_path / "x.pth",
        {"plain": ("0", values, 0, (3, 4), (4, 1)), "turned": ("1", values, 1, (2, 3), (1, 4))},
    )
    found = efficientnet_lite.read_pytorch(tmp_path / "x.pth")
    assert np.array_equal(found["plain"], values.reshape(3, 4))
    assert np.array_equal(found["turned"], [[1, 5, 9], [2, 6, 10]])


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path):
    write(tmp_path / "x.pth", {"w": ("0", np.zeros(4), 0, (3, 2), (2, 1))})
    with pytest.raises(ValueError, match="w: reaches beyond its storage"):
        efficientnet_lite.read_pytorch(tmp_path / "x.pth")


def test_nothing_in_the_file_is_executed(tmp_path):
    write(tmp_path / "x.pth", {}, extra=print)
    with pytest.raises(pickle.UnpicklingError, match=r"print has no place"):
        efficientnet_lite.read_pytorch(tmp_path / "x.pth")


def test_another_format_is_refused(tmp_path):
    write(tmp_path / "x.pth", {}, magic=7)
    with pytest.raises(ValueError, match="not a file of PyTorch's old format"):
        efficientnet_lite.read_pytorch(tmp_path / "x.pth")


def features(size):
    import keras

    image = keras.Input((size, size, 3))
    model = keras.Model(image, efficientnet_lite.build("lite0", image))
    efficientnet_lite.load_packaged(model, "lite0")
    return model


def test_every_tensor_of_the_package_finds_its_layer():
    model = features(32)
    entries = efficientnet_lite.read_pytorch(efficientnet_lite.packaged_file("lite0"))
    used = sum(weight.size for weight in model.get_weights())
    held = sum(
        value.size
        for name, value in entries.items()
        if "num_batches" not in name and not name.startswith("_fc")
    )
    assert used == held
    assert [
        layer.output.shape[1:3]
        for layer in model.layers
        if layer.name in ("block_10_add", "head_relu")
    ] == [
        (2, 2),
        (1, 1),
    ]


@pytest.mark.skipif(
    not (DATASETS / "tf_flowers_224.tar").exists(),
    reason="needs photos that are not in the repository",
)
@pytest.mark.parametrize(
    ("archive", "folder", "imagenet_class"),
    [("tf_flowers_224.tar", "/daisy/", 985), ("alpaca.tar", "/alpaca/", 355)],
)
def test_the_packaged_weights_know_what_photos_show(archive, folder, imagenet_class):
    """The package's own classifier over the features: a wrong stride or scale has the right shape
    and says nonsense."""
    from PIL import Image

    images = []
    with tarfile.open(DATASETS / archive) as file:
        for member in file:
            if folder in f"/{member.name}" and member.isfile() and len(images) < 16:
                image = Image.open(io.BytesIO(file.extractfile(member).read())).convert("RGB")
                images.append(
                    np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR), np.float32)
                )
    pooled = features(224).predict((np.stack(images) - 127) / 128, verbose=0).mean(axis=(1, 2))
    entries = efficientnet_lite.read_pytorch(efficientnet_lite.packaged_file("lite0"))
    said = (pooled @ entries["_fc.weight"].T + entries["_fc.bias"]).argmax(axis=1)
    assert (said == imagenet_class).mean() >= 0.6
