import numpy as np
import pytest

from graft.figures import grad_cam


def red_and_green(keras, *, bias=0.0):
    """Class 0 is red, class 1 is green: two feature maps that are the two channels, averaged, then
    scored one to one."""
    image = keras.Input((8, 8, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255, name="scaling")(image)
    x = keras.layers.Conv2D(2, 1, use_bias=False, name="features")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
    x = keras.layers.Dropout(0.5, name="dropout")(x)
    x = keras.layers.Dense(2, activation="softmax", name="probabilities")(x)
    model = keras.Model(image, x)
    model.get_layer("features").set_weights([np.array([[[[1, 0], [0, 1], [0, 0]]]], np.float32)])
    model.get_layer("probabilities").set_weights(
        [100 * np.eye(2, dtype=np.float32), np.array([bias, 0], np.float32)]
    )
    return model


# With the bias the softmax is saturated and its own gradient would be 0.
@pytest.mark.parametrize("bias", [0.0, 1e4])
def test_grad_cam_finds_where_the_class_is(bias):
    keras = pytest.importorskip("keras")
    photo = np.zeros((8, 8, 3), np.uint8)
    photo[:, :4, 0] = 255
    photo[6:, 4:, 1] = 128
    heat = grad_cam.grad_cam(
        red_and_green(keras, bias=bias), np.stack([photo] * 3), [0, 1, 0], batch_size=2
    )
    red, green = np.zeros((8, 8)), np.zeros((8, 8))
    red[:, :4], green[6:, 4:] = 1, 1
    assert heat.dtype == np.float32
    assert heat == pytest.approx(np.stack([red, green, red]), abs=1e-6)


def test_grad_cam_is_zero_where_nothing_speaks_for_the_class():
    keras = pytest.importorskip("keras")
    assert not grad_cam.grad_cam(red_and_green(keras), np.zeros((1, 8, 8, 3), np.uint8), [0]).any()


def test_overlay_is_grey_where_cold_and_bright_where_hot():
    photo = np.full((16, 16, 3), (200, 40, 60), np.uint8)
    heat = np.zeros((2, 2))
    heat[0, 0] = 1
    seen = grad_cam.overlay(photo, heat).astype(int)
    assert seen.shape == (16, 16, 3)
    assert np.ptp(seen[-1, -1]) <= 2  # grey, up to the resizing of the heat
    assert seen[0, 0, 0] - seen[0, 0, 2] > 50  # yellow
