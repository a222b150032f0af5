import io

import numpy as np
import pytest

from graft.description import FILES, Description
from graft.run import EXTRAS
from graft.serving import parity
from graft.system import environment
from tests import random_networks

environment.quiet_tensorflow()

# What can be written and read here.
WRITABLE = [name for name in FILES if not environment.missing(EXTRAS.get(name, ((), ""))[0])]
INSTALLED = [name for name in WRITABLE if name not in parity.UNCHECKED]
SIZE = 32
CLASSES = ("a", "b c", "ä")


def every_format():
    """All of FILES, as a parameter; those whose package is missing are skipped."""
    return [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                name not in INSTALLED, reason=f"{name}: its package is not installed"
            ),
        )
        for name in FILES
        if name not in parity.UNCHECKED
    ]


def make_images(n, seed=0):
    """n images of few coloured squares, uint8 (n, SIZE, SIZE, 3)."""
    small = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return small.repeat(SIZE // 4, 1).repeat(SIZE // 4, 2)


def make_classifier(hidden=0, classes=CLASSES):
    """(small classifier of three classes whose probabilities vary from image to image, its
    Description with temperature 2)."""
    import keras

    description = Description("mobilenet_v2", 0.35, SIZE, classes, hidden, 0.2, "squash", 0, 2.0)
    model = random_networks.build(description, seed=3)
    head = model.layers[-1]
    features = keras.Model(model.input, head.input)(make_images(64, seed=9), training=False).numpy()
    kernel = np.random.default_rng(4).normal(size=(features.shape[1], 3))
    kernel *= 2 / (features @ kernel).std(0)
    head.set_weights([kernel, -(features @ kernel).mean(0)])
    return model, description


def write_all(folder):
    """All formats of `make_classifier` into `folder`, of those whose packages are installed."""
    from graft.serving import writers

    writers.write(
        WRITABLE,
        *writers.self_contained(*make_classifier()),
        folder,
        representative=make_images(16, 5),
    )


def encode(pixels, format="PNG"):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def images():
    return make_images(24)


@pytest.fixture(scope="session")
def trained():
    return make_classifier()


@pytest.fixture(scope="session")
def expected(trained, images):
    """softmax(log p / 2) of the classifier itself."""
    model, _ = trained
    p = model(images, training=False).numpy().astype(np.float64)
    return p**0.5 / (p**0.5).sum(1, keepdims=True)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A folder with all formats; do not change it."""
    folder = tmp_path_factory.mktemp("export")
    write_all(folder)
    return folder
