"""Resizing inside the graph, held to what Pillow makes of the same photo."""

import numpy as np
import pytest
from PIL import Image

from graft import pixels, runtimes
from graft.serving import any_size

SIZE = 32
# Height and width.
SHAPES = [(1, 1), (32, 32), (64, 64), (100, 75), (75, 101), (300, 20), (20, 31), (257, 640)]
IDENTITY = """<ir_version: 8, opset_import: ["": 18]>
g (uint8[n, 32, 32, 3] image) => (uint8[n, 32, 32, 3] same) { same = Identity(image) }"""


@pytest.fixture(scope="module", params=pixels.RESIZE)
def rule(request):
    """(name of the rule, [photo], [what training sees of it])."""
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]
    return (
        request.param,
        photos,
        [pixels.fit(Image.fromarray(photo), SIZE, request.param).astype(int) for photo in photos],
    )


def test_tensorflow_gives_every_level_within_one(rule):
    import tensorflow as tf

    name, photos, expected = rule
    spec = tf.TensorSpec((None, None, 3), tf.uint8)
    fit = tf.function(
        lambda photo: any_size.tensorflow(photo, SIZE, name),
        input_signature=[spec],
        autograph=False,
    )
    for photo, small in zip(photos, expected):
        found = fit(photo).numpy()
        assert (found.dtype, found.shape) == (np.uint8, (SIZE, SIZE, 3))
        assert np.abs(found - small).max() <= 1, photo.shape


def test_onnx_gives_the_same_but_for_the_outermost_pixels_of_a_crop(rule):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    name, photos, expected = rule
    model = onnx.parser.parse_model(IDENTITY)
    any_size.onnx_front(model, SIZE, name)
    onnx.checker.check_model(model)
    session = runtimes.onnx_session(model.SerializeToString())
    for photo, small in zip(photos, expected):
        (found,) = session.run(None, {"photo": photo})
        assert (found.dtype, found.shape) == (np.uint8, (1, SIZE, SIZE, 3))
        edge = 2 if name == "crop" else 0
        off = np.abs(found[0] - small)[edge : SIZE - edge, edge : SIZE - edge]
        assert off.max() <= 1, photo.shape
