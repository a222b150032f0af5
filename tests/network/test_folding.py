import keras
import numpy as np
import pytest
import tensorflow as tf

from stages.network import classifier, folding, training
from stages.network.classifier import ClassifierSpec


def prepared(backbone="mobilenet_v2", size=64, layers=50):
    """(tail, folded) of a classifier whose BatchNorm is far from the identity, its top `layers` unfrozen."""
    with training.start(0):
        alpha = 0.35 if backbone == "mobilenet_v2" else 1.0
        model = classifier.build(ClassifierSpec(backbone, alpha, size, ("a", "b", "c"), 0, 0.0, "squash"))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    classifier.unfreeze(model, layers)
    tail = classifier.split_at(model, classifier.find_cut(model, layers))[1]
    return tail, folding.fold(tail)


def batch(tail, n=4):
    return np.random.default_rng(1).normal(0, 1, (n, *tail.input_shape[1:])).astype(np.float32), np.arange(n) % 3


def gradients(model, x, y, variables):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, model(x, training=True)))
    return tape.gradient(loss, [v.value for v in variables])


@pytest.mark.parametrize(("backbone", "size"), [("mobilenet_v2", 64), ("mobilenet_v2", 96), ("inception_v3", 96)])
def test_folding_changes_neither_values_nor_gradients(backbone, size):
    tail, folded = prepared(backbone, size)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers)
    x, y = batch(tail)
    np.testing.assert_allclose(folded(x), tail(x), atol=1e-5)
    variables = tail.trainable_variables
    for v, plain, quick in zip(variables, gradients(tail, x, y, variables), gradients(folded, x, y, variables)):
        np.testing.assert_allclose(quick, plain, rtol=1e-3, atol=1e-4 * float(np.abs(plain).max()), err_msg=v.path)


def test_training_the_folded_tail_trains_the_tail_itself():
    tail, folded = prepared()
    assert {id(v) for v in folded.trainable_variables} == {id(v) for v in tail.trainable_variables}
    x, y = batch(tail, 8)
    before = tail(x).numpy()
    folded.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    folded.fit(x, y, verbose=0)
    assert np.abs(tail(x) - before).max() > 1e-3
    np.testing.assert_allclose(folded(x), tail(x), atol=1e-5)


def test_biases_strides_and_norms_without_scale_or_centre_are_folded_as_they_are():
    with training.start(0):
        rng = np.random.default_rng(2)
        x = first = keras.Input((8, 8, 6))
        x = keras.layers.Conv2D(5, 1, bias_initializer="ones")(x)
        x = keras.layers.BatchNormalization(scale=False)(x)
        x = keras.layers.Conv2D(7, 1, strides=2, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(center=False)(x)
        x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", bias_initializer="ones")(x)
        x = keras.layers.BatchNormalization()(x)
        model = keras.Model(first, x)
    for layer in model.layers:
        layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    folded = folding.fold(model)
    assert len(folded.layers) == 4
    x = rng.normal(0, 1, (3, 8, 8, 6)).astype(np.float32)
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_folded_is_left_as_it_is():
    with training.start(0):
        first = keras.Input((8, 8, 6))
        shared = keras.layers.Conv2D(6, 1)(first)  # its output goes elsewhere too
        x = keras.layers.Add()([keras.layers.BatchNormalization()(shared), shared])
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(6, 3, activation="relu")(x))
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(6, 3, groups=2)(x))
        model = keras.Model(first, x)
    model.trainable = False
    assert folding.fold(model) is model
    with training.start(0):
        first = keras.Input((8, 8, 6))
        free = keras.Model(first, keras.layers.BatchNormalization()(keras.layers.Conv2D(6, 1)(first)))
    assert folding.fold(free) is free, "this BatchNorm is trained"
