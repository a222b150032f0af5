import keras
import numpy as np
import pytest

from stages.network import backbones, classifier, engines, inference


@pytest.fixture(scope="module")
def model(spec):
    keras.utils.set_random_seed(0)
    return classifier.build(spec)


@pytest.mark.parametrize("engine", ["tensorflow", "litert", "onnx"])
def test_every_engine_gives_what_keras_gives_in_the_order_asked(model, pixels, engine):
    if engine == "onnx":
        pytest.importorskip("tf2onnx", reason="needs the onnx extra")
    images = pixels(19).array  # two chunks and a rest
    cuts = [classifier.find_cut(model, 0), model.input, classifier.find_cut(model, 50)]
    pooled, same, deep = engines.start(model, cuts, engine)(images)
    assert np.array_equal(same, images)
    for got, cut in ((pooled, cuts[0]), (deep, cuts[2])):
        expected = np.asarray(keras.Model(model.input, cut)(images, training=False))
        assert got.dtype == np.float32
        assert np.abs(got - expected).max() <= 1e-4
    # Neither the company in a batch nor the other outputs change a bit.
    assert np.array_equal(engines.start(model, cuts[:1], engine)(images[3:5])[0], pooled[3:5])


@pytest.mark.parametrize(
    ("asked", "backbone", "chosen"),
    [
        ("auto", "mobilenet_v2", "litert"),
        ("auto", "inception_v3", "tensorflow"),
        ("onnx", "mobilenet_v2", "onnx"),
        ("tensorflow", "mobilenet_v2", "tensorflow"),
    ],
)
def test_auto_takes_what_the_table_says(asked, backbone, chosen):
    assert engines.choose(asked, backbone) == chosen
    assert engines.identity(chosen)[0] == chosen
    assert backbones.row(backbone).engine in engines.ENGINES


def test_two_classifiers_in_one_pass_are_each_what_they_are_alone(model, spec, pixels):
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    other.layers[-1].bias.assign([1.0, -1.0, 0.5])
    images = pixels(9)
    for layers in (0, 50, 200):
        both = inference.together(model, other, layers, images, engine="litert")
        for probabilities, which in zip(both, (model, other)):
            expected = np.asarray(which(images.array, training=False))
            assert probabilities.dtype == np.float64
            assert np.abs(probabilities - expected).max() < 1e-5
            assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    assert np.allclose(inference.alone(model, images.read(range(9)), engine="tensorflow"), both[0], atol=1e-5)


@pytest.mark.parametrize("engine", ["tensorflow", "litert"])
def test_two_equal_classifiers_are_no_special_case_to_the_caller(model, pixels, engine):
    """Fine-tuning that helps nowhere leaves the head's weights."""
    images = pixels(5)
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    one, two = inference.together(model, twin, 50, images, engine=engine)
    assert np.array_equal(one, two)
    assert np.allclose(one, np.asarray(model(images.array, training=False)), atol=1e-5)
