from pathlib import Path

import numpy as np
import pytest

from stages import console

console.quiet_tensorflow()

BUNDLED = str(Path(__file__).parents[2] / "data" / "backbones" / "mobilenet_v2_0.35_96.weights.h5")


class Pixels:
    """`activations.Images` over an array, that counts what is read of it."""

    def __init__(self, array, name="set"):
        self.array, self.size, self.resize, self.reads = array, array.shape[1], "none", 0
        self.sha256 = [f"{name}-{i}" for i in range(len(array))]

    def __len__(self):
        return len(self.array)

    def read(self, indices):
        indices = np.asarray(indices, int)
        for start in range(0, len(indices), 7):
            chosen = indices[start : start + 7]
            self.reads += len(chosen)
            yield self.array[chosen]


@pytest.fixture
def pixels():
    def make(n, *, size=32, seed=0, name="set"):
        """n blurry colour pictures, uint8 (n, size, size, 3)."""
        small = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
        return Pixels(small.repeat(size // 4, 1).repeat(size // 4, 2), name)

    return make


@pytest.fixture(scope="session")
def spec():
    from stages.network.classifier import ClassifierSpec

    return ClassifierSpec("mobilenet_v2", 0.35, 32, ("a", "b c", "ä"), 0, 0.2, "none")


@pytest.fixture(scope="session")
def bundled():
    """Path of the weights that ship: at 32 px a network of random weights passes next to nothing on to its top."""
    return BUNDLED
