import dataclasses
import json

import keras
import numpy as np
import pytest

from stages.console import GraftError
from stages.network import classifier
from stages.network.classifier import ClassifierSpec


@pytest.fixture(scope="module")
def model(spec):
    keras.utils.set_random_seed(0)
    return classifier.build(spec)


def test_raw_pixels_in_probabilities_out(model, pixels):
    images = pixels(3).array
    out = np.asarray(model(images, training=False))
    assert model.input.dtype == "uint8"
    assert out.shape == (3, 3)
    assert out.dtype == np.float32
    assert np.allclose(out.sum(axis=1), 1, atol=1e-6)
    # Scaling travels with the model: it sees p / 127.5 - 1.
    base = keras.Model(model.get_layer("scaling").output, model.output)
    assert np.allclose(base(images.astype(np.float32) / 127.5 - 1), out, atol=1e-5)


def test_the_head_has_the_layers_that_the_params_ask_for(spec):
    model = classifier.build(dataclasses.replace(spec, hidden_units=128, dropout=0.3))
    names = [layer.name for layer in model.layers]
    assert names[-4:] == ["pooling", "hidden", "dropout", "probabilities"]
    assert model.get_layer("hidden").units == 128
    assert model.get_layer("hidden").activation.__name__ == "relu"
    assert model.get_layer("dropout").rate == 0.3


@pytest.mark.parametrize(("layers", "kernels"), [(0, 2), (1, 2), (50, 19), (153, 54), (999, 54)])
def test_unfreezing_frees_the_top_layers_and_no_batch_norm(model, layers, kernels):
    unfrozen = classifier.unfreeze(model, layers)
    assert unfrozen == min(layers, 153)
    assert len(model.trainable_variables) == kernels
    base = classifier.backbone_layers(model)
    assert len(base) == 153
    for i, layer in enumerate(base):
        wanted = i >= len(base) - unfrozen and not isinstance(layer, keras.layers.BatchNormalization)
        assert layer.trainable == wanted, layer.name


@pytest.mark.parametrize(
    ("name", "layers", "cut"),
    [
        ("mobilenet_v2", 0, "pooling"),
        ("mobilenet_v2", 1, "pooling"),  # a relu learns nothing, so nothing below pooling is trained
        ("mobilenet_v2", 20, "block_14_add"),
        ("mobilenet_v2", 34, "block_12_add"),
        ("mobilenet_v2", 50, "block_10_project_BN"),
        ("mobilenet_v2", 200, "image"),
        ("inception_v3", 0, "pooling"),
        ("inception_v3", 50, "mixed8"),
        ("inception_v3", 100, "mixed6"),
        ("densenet121", 50, "conv5_block9_concat"),
        ("efficientnet_v2_b0", 50, "block6e_add"),
    ],
)
def test_the_cut_is_the_deepest_tensor_that_all_training_depends_on_alone(spec, name, layers, cut):
    model = classifier.build(dataclasses.replace(spec, backbone=name, alpha=1.0, image_size=96))
    found = classifier.find_cut(model, layers)
    assert found._keras_history.operation.name == cut
    classifier.unfreeze(model, layers)
    trunk, tail = classifier.split_at(model, found)
    assert trunk is None or not trunk.trainable_variables
    assert len(tail.trainable_variables) == len(model.trainable_variables)


@pytest.mark.parametrize("layers", [0, 50, 200])
def test_trunk_and_tail_make_the_whole(model, pixels, layers):
    images = pixels(4).array
    trunk, tail = classifier.split_at(model, classifier.find_cut(model, layers))
    middle = images if trunk is None else trunk(images, training=False)
    assert np.array_equal(tail(middle, training=False), model(images, training=False))


def test_saved_and_loaded_it_is_the_same_and_so_are_the_bytes(model, spec, pixels, tmp_path):
    spec = spec.with_(temperature=1.25, trainable_layers=20)
    classifier.save(model, spec, tmp_path / "one")
    again, loaded = classifier.load(tmp_path / "one")
    assert loaded == spec
    assert len(again.trainable_variables) == 9
    images = pixels(4).array
    assert np.array_equal(again(images, training=False), model(images, training=False))
    classifier.save(again, loaded, tmp_path / "two")
    for name in ("model.weights.h5", "model.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert classifier.digest(tmp_path / "one") == classifier.digest(tmp_path / "two")
    assert json.loads((tmp_path / "one" / "model.json").read_text(encoding="utf-8"))["classes"] == ["a", "b c", "ä"]


@pytest.mark.parametrize(
    ("text", "words"), [(None, "no such file"), ("{", "not a classifier"), ('{"backbone": 1}', "not a classifier")]
)
def test_a_missing_or_damaged_description_is_one_clear_line(tmp_path, text, words):
    if text is not None:
        (tmp_path / "model.json").write_text(text)
    with pytest.raises(GraftError, match=words) as error:
        classifier.load_spec(tmp_path)
    assert "model.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_spec_is_a_value():
    assert ClassifierSpec("a", 1.0, 32, ("x",), 0, 0.1, "r") == ClassifierSpec("a", 1.0, 32, ("x",), 0, 0.1, "r")
