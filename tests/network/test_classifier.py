import json

import keras
import numpy as np
import pytest

from graft.network import classifier
from graft.system.console import GraftError


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


def test_the_head_has_the_layers_that_the_params_ask_for(description):
    model = classifier.build(description.replace(hidden_units=128, dropout=0.3))
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
        wanted = i >= len(base) - unfrozen and not isinstance(
            layer, keras.layers.BatchNormalization
        )
        assert layer.trainable == wanted, layer.name


def test_what_is_trained_suits_network_and_pictures(model, description):
    """auto: all above the lowest depth that the head sees, a share where it sees one; more where
    pictures are enlarged."""
    lite = classifier.build(
        description.replace(backbone="efficientnet_lite0", alpha=1.0, image_size=64)
    )
    size = model.input.shape[1]
    assert classifier.top_layers(model, 20, [size]) == 20
    assert classifier.top_layers(model, 0, [8]) == 0
    assert classifier.top_layers(model, "auto", [size, 2 * size, 3 * size]) == 46  # 30% of 153
    assert classifier.top_layers(model, "auto", [size / 2]) == 107
    assert classifier.top_layers(lite, "auto", [8, 33, 1000]) == 46
    # Just above the end of the fifth stage.
    assert classifier.backbone_layers(lite)[-46].name == "block_11_expand"
    assert classifier.top_layers(lite, "auto", [8, 32, 1000]) == 98
    assert classifier.enlargement(96, [8, 32, 1000]) == 3


def test_saved_and_loaded_it_is_the_same_and_so_are_the_bytes(model, description, pixels, tmp_path):
    description = description.replace(temperature=1.25, trainable_layers=20)
    classifier.save(model, description, tmp_path / "one")
    again, loaded = classifier.load(tmp_path / "one")
    assert loaded == description
    assert len(again.trainable_variables) == 9
    images = pixels(4).array
    assert np.array_equal(again(images, training=False), model(images, training=False))
    classifier.save(again, loaded, tmp_path / "two")
    for name in classifier.MODEL_FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert classifier.digest(tmp_path / "one") == classifier.digest(tmp_path / "two")
    assert json.loads((tmp_path / "one" / "model.json").read_text(encoding="utf-8"))["classes"] == [
        "a",
        "b c",
        "ä",
    ]
    classifier.save(again, loaded.replace(temperature=1.5), tmp_path / "two")
    assert classifier.digest(tmp_path / "one") != classifier.digest(tmp_path / "two")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("{", "not the description"),
        ('{"backbone": 1}', "not the description"),
    ],
)
def test_a_missing_or_damaged_description_is_one_clear_line(tmp_path, text, words):
    if text is not None:
        (tmp_path / "model.json").write_text(text)
    with pytest.raises(GraftError, match=words) as error:
        classifier.load(tmp_path)
    assert "model.json" in str(error.value)
    assert "\n" not in str(error.value)
