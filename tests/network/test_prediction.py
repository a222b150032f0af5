import keras
import numpy as np
import pytest
from scipy.special import softmax

from graft.network import backbones, classifier
from graft.network.prediction import look_inside, predict, predict_pair


def twin_of(model):
    """The same network, its layers called otherwise where Keras counts names up."""
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    return twin


def test_two_classifiers_in_one_pass_are_each_what_they_are_alone(model, pixels):
    other = twin_of(model)
    other.layers[-1].bias.assign([1.0, -1.0, 0.5])
    images = pixels(9)
    for layers in (0, 50, 200):
        *both, inside = predict_pair(model, other, layers, images, runtime="litert")
        for probabilities, which in zip(both, (model, other)):
            expected = np.asarray(which(images.array, training=False))
            assert probabilities.dtype == np.float64
            assert np.abs(probabilities - expected).max() < 1e-5
            assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-12)
        alone = look_inside(model, images.read(range(9)), runtime="litert")
        assert np.allclose(alone.features, inside.features, atol=1e-4)
        assert np.allclose(softmax(inside.logits, axis=1), both[0], atol=1e-5)
    assert np.allclose(
        predict(model, images.read(range(9)), runtime="tensorflow"), both[0], atol=1e-5
    )


@pytest.mark.parametrize("runtime", ["tensorflow", "litert"])
def test_two_equal_classifiers_are_no_special_case_to_the_caller(model, pixels, runtime):
    """Fine-tuning that helps nowhere leaves the head's weights."""
    images = pixels(5)
    one, two, inside = predict_pair(model, twin_of(model), 50, images, runtime=runtime)
    assert np.allclose(softmax(inside.logits, axis=1), one, atol=1e-5)
    assert np.array_equal(one, two)
    assert np.allclose(one, np.asarray(model(images.array, training=False)), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("mobilenet_v3_small", 999),
        *(
            pytest.param(name, layers, marks=pytest.mark.slow)
            for name, layers in [
                ("xception", 50),
                ("xception", 999),
                ("efficientnet_v2_b0", 999),
                ("mobilenet_v3_large", 999),
                ("efficientnet_b0", 999),
                ("densenet121", 999),
            ]
        ),
    ],
)
def test_what_they_share_is_found_by_place_not_by_name(description, pixels, name, layers):
    row = backbones.row(name)
    size = -(-row.smallest_size // 4) * 4
    wanted = description.replace(backbone=name, alpha=1.0, image_size=size)
    keras.utils.set_random_seed(0)
    model, other = classifier.build(wanted), classifier.build(wanted)
    other.set_weights(model.get_weights())
    other.layers[-1].bias.assign([1.0, -1.0, 0.5])
    images = pixels(3, size=size)
    for probabilities, which in zip(
        predict_pair(model, other, layers, images, runtime=row.runtime), (model, other)
    ):
        assert np.abs(probabilities - np.asarray(which(images.array, training=False))).max() < 1e-5
