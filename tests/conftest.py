"""Shared fixtures: images in memory, simulated predictions, curves, a small residual model."""

import os

import numpy as np
import pytest

from graft.scoring.history import History
from graft.scoring.predictions import Predictions
from graft.system.environment import set_tensorflow_environment

# Before any test imports Keras: rows of a batch are the same bits in any company with oneDNN only.
set_tensorflow_environment()


@pytest.fixture(autouse=True)
def environment_as_it_was():
    """MLflow writes its address into the environment; the next test has one of its own."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


class Pixels:
    """Images in memory, with all that an ImageSet of three classes has; `reads` counts what is read
    of them."""

    def __init__(self, array, name):
        n = len(array)
        self.array, self.size, self.resize, self.reads = array, array.shape[1], "none", 0
        self.paths = self.groups = tuple(f"{name}/{i}.png" for i in range(n))
        self.sha256 = tuple(f"{i:04x}".rjust(64, name[0]) for i in range(n))
        self.labels, self.classes = np.arange(n) % 3, ("a", "b c", "ä")

    def __len__(self):
        return len(self.array)

    def read(self, indices):
        indices = np.asarray(indices, int)
        for start in range(0, len(indices), 7):
            chosen = indices[start : start + 7]
            self.reads += len(chosen)
            yield self.array[chosen]

    def select(self, indices):
        return Part(self, indices)


class Part:
    """Some images of a Pixels, whose `reads` count them."""

    def __init__(self, whole, indices):
        self.whole, self.indices = whole, np.asarray(indices, int)
        self.size, self.resize = whole.size, whole.resize
        self.paths, self.sha256 = (
            [of[i] for i in self.indices] for of in (whole.paths, whole.sha256)
        )

    def __len__(self):
        return len(self.indices)

    def read(self, indices):
        return self.whole.read(self.indices[np.asarray(indices, int)])


@pytest.fixture
def ray(monkeypatch):
    """Ray, for a cluster of this machine; what it reads of the environment when it is imported is
    set."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def pixels():
    def make(n, *, size=32, seed=0, name="set"):
        """n images of few coloured squares, uint8 (n, size, size, 3)."""
        small = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
        return Pixels(small.repeat(size // 4, 1).repeat(size // 4, 2), name)

    return make


@pytest.fixture(scope="session")
def simulate():
    def simulated(n, n_classes, *, seed=0, signal=2.5, sharpness=1.0, groups=(), classes=None):
        """Predictions with labels drawn evenly, logits normal with `signal` on the true class;
        `sharpness` 1 is calibrated enough.
        """
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, n_classes, n)
        z = rng.normal(size=(n, n_classes))
        z[np.arange(n), labels] += signal
        p = np.exp(sharpness * (z - z.max(axis=1, keepdims=True)))
        classes = classes or [f"class {k}" for k in range(n_classes)]
        paths = [f"{classes[k]}/photo {i}.jpg" for i, k in enumerate(labels)]
        return Predictions(
            paths, labels, (p / p.sum(axis=1, keepdims=True)).astype(np.float32), classes, groups
        )

    return simulated


@pytest.fixture(scope="session")
def history():
    """Three epochs of a head and two of fine-tuning, whose first begins a warm-up at rate 0."""
    rows = [
        (0, 1e-3, 1.5, 0.40, 1.4, 0.45),
        (1, 8e-4, 1.0, 0.60, 1.1, 0.58),
        (2, 2e-4, 0.8, 0.70, 1.2, 0.61),
        (3, 0.0, 0.6, 0.78, 0.9, 0.70),
        (4, 1e-4, 0.4, 0.85, 0.8, 0.74),
    ]
    keys = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
    return History(tuple(dict(zip(keys, row)) for row in rows), unfrozen_at=3)


@pytest.fixture(scope="session")
def residual_model():
    """A small classifier of the pipeline's shape: uint8 (16, 16, 3), a residual block, "pooling", 3
    classes; the block is trained.
    """
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(1)
    image = keras.Input((16, 16, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1, name="scaling")(image)
    x = stem = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="Conv1", trainable=False)(
        x
    )
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="block_1_expand")(x)
    x = keras.layers.Conv2D(4, 1, name="block_1_project")(x)
    x = keras.layers.Add(name="block_1_add")([stem, x])
    x = keras.layers.Conv2D(
        8, 3, strides=2, padding="same", activation="relu", name="Conv_1", trainable=False
    )(x)
    x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
    x = keras.layers.Dropout(0.2, name="dropout")(x)
    x = keras.layers.Dense(3, activation="softmax", name="probabilities")(x)
    return keras.Model(image, x)
