import io
from pathlib import Path

import numpy as np
import pytest

from stages import console

console.quiet_tensorflow()

SIZE = 32
BUNDLED = str(Path(__file__).parents[2] / "data" / "backbones" / "mobilenet_v2_0.35_96.weights.h5")
CLASSES = ("a", "b c", "ä")


def make_pictures(n, seed=0):
    """n pictures of few coloured squares, uint8 (n, SIZE, SIZE, 3)."""
    small = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return small.repeat(SIZE // 4, 1).repeat(SIZE // 4, 2)


def make_classifier(hidden=0):
    """(small classifier whose probabilities vary from picture to picture, its spec with temperature 2)."""
    import keras

    from stages.network import classifier

    spec = classifier.ClassifierSpec("mobilenet_v2", 0.35, SIZE, CLASSES, hidden, 0.2, "squash", 0, 2.0)
    keras.utils.set_random_seed(3)
    model = classifier.build(spec, weights=BUNDLED)  # random weights would pass next to nothing on to the top
    head = model.layers[-1]
    features = keras.Model(model.input, head.input)(make_pictures(64, seed=9), training=False).numpy()
    kernel = np.random.default_rng(1).normal(size=(features.shape[1], 3))
    kernel *= 2 / (features @ kernel).std(0)
    head.set_weights([kernel, -(features @ kernel).mean(0)])
    return model, spec


def encode(pixels, format="PNG"):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def pictures():
    return make_pictures(24)


@pytest.fixture(scope="session")
def trained():
    return make_classifier()


@pytest.fixture(scope="session")
def expected(trained, pictures):
    """softmax(log p / 2) of the classifier itself."""
    model, _ = trained
    p = model(pictures, training=False).numpy().astype(np.float64)
    return p**0.5 / (p**0.5).sum(1, keepdims=True)


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    """A folder with all seven formats; do not change it."""
    from stages.serving import formats

    model, spec = trained
    folder = tmp_path_factory.mktemp("export")
    about = formats.Metadata.of(spec, 2.0)
    formats.write(formats.FILES, formats.self_contained(model, 2.0), about, folder, calibration=make_pictures(16, 5))
    return folder
