import numpy as np
import pytest


def simulated(n, n_classes, *, seed=0, signal=2.5, sharpness=1.0):
    """(y, probabilities): labels drawn evenly, logits normal with `signal` on the true class; `sharpness` 1 is calibrated
    enough.
    """
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n)
    z = rng.normal(size=(n, n_classes))
    z[np.arange(n), y] += signal
    z = np.exp(sharpness * (z - z.max(axis=1, keepdims=True)))
    return y, (z / z.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def simulate():
    return simulated


@pytest.fixture(scope="session")
def curves():
    head = [(0, 1.5, 0.40, 1.4, 0.45), (1, 1.0, 0.60, 1.1, 0.58), (2, 0.8, 0.70, 1.2, 0.61)]
    tuned = [(3, 0.6, 0.78, 0.9, 0.70), (4, 0.4, 0.85, 0.8, 0.74)]
    keys = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
    return [dict(zip(keys, row), lr=1e-3 if row[0] < 3 else 1e-4, seconds=9.87654321) for row in [*head, *tuned]]


@pytest.fixture(scope="session")
def model():
    """A small classifier of the pipeline's shape: uint8 (16, 16, 3), a residual block, "pooling", 3 classes; the block is
    trained.
    """
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(1)
    image = keras.Input((16, 16, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1, name="scaling")(image)
    x = stem = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="Conv1", trainable=False)(x)
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="block_1_expand")(x)
    x = keras.layers.Conv2D(4, 1, name="block_1_project")(x)
    x = keras.layers.Add(name="block_1_add")([stem, x])
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="Conv_1", trainable=False)(x)
    x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
    x = keras.layers.Dropout(0.2, name="dropout")(x)
    x = keras.layers.Dense(3, activation="softmax", name="probabilities")(x)
    return keras.Model(image, x)
