import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest

from stages import params as parameters
from stages.console import GraftError
from stages.network import backbones

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "data" / "backbones" / "mobilenet_v2_0.35_96.weights.h5"
SHARED = ROOT.parent / "shared" / "weights"


def features(name, alpha, size, weights, pixels):
    image = keras.Input((size, size, 3), dtype="uint8")
    out, model = backbones.build(name, alpha, image, weights=weights)
    return np.asarray(keras.Model(model.input, out)(pixels(2, size=size).array, training=False))


@pytest.mark.parametrize("name", sorted(backbones.BACKBONES))
def test_the_table_names_what_keras_has_and_smallest_is_no_larger_than_native(name):
    row = backbones.BACKBONES[name]
    assert callable(getattr(keras.applications, row.constructor))
    assert row.smallest_size <= row.native_size
    assert row.engine in ("tensorflow", "litert")


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("mobilenet_v2", "mobilenet_v2"),
        ("inception_v3", "inception_v3"),
        ("densenet121", "densenet"),
        ("resnet50_v2", "resnet_v2"),
        ("efficientnet_v2_b0", "efficientnet_v2"),
        ("mobilenet_v3_small", "mobilenet_v3"),
        ("xception", "xception"),
    ],
)
def test_scaling_is_the_architectures_own(name, module, pixels):
    size = max(backbones.BACKBONES[name].smallest_size, 32) // 4 * 4 + 4
    image = keras.Input((size, size, 3), dtype="uint8")
    model = backbones.build(name, 1.0, image)[1]
    ours = keras.Model(model.input, model.get_layer("scaling").output)(pixels(2, size=size).array)
    theirs = getattr(keras.applications, module).preprocess_input(pixels(2, size=size).array.astype(np.float32))
    assert np.allclose(ours, theirs, atol=2e-6)


def test_bundled_weights_are_the_file_that_ships_and_fit(pixels):
    reference = keras.applications.MobileNetV2(alpha=0.35, include_top=False, weights=None, input_shape=(96, 96, 3))
    reference.load_weights(BUNDLED)
    scaled = pixels(2, size=96).array.astype(np.float32) / 127.5 - 1
    assert np.allclose(features("mobilenet_v2", 0.35, 96, "bundled", pixels), reference(scaled, training=False), atol=1e-4)


def test_weights_by_path_in_each_format_give_the_same_features(pixels, tmp_path):
    keras.utils.set_random_seed(1)
    source = keras.applications.MobileNetV2(alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3))
    source.save_weights(tmp_path / "a.weights.h5")
    source.save(tmp_path / "b.keras")
    with np.errstate(all="ignore"):
        source.save(tmp_path / "c.h5")
    expected = source(pixels(2).array.astype(np.float32) / 127.5 - 1, training=False)
    for file in ("a.weights.h5", "b.keras", "c.h5"):
        assert np.allclose(features("mobilenet_v2", 0.35, 32, str(tmp_path / file), pixels), expected, atol=1e-4), file


@pytest.mark.skipif(not SHARED.exists(), reason="needs the ImageNet weights beside the project")
def test_weights_as_keras_publishes_them_load(pixels):
    path = SHARED / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"
    reference = keras.applications.MobileNetV2(alpha=0.35, include_top=False, weights=str(path), input_shape=(32, 32, 3))
    expected = reference(pixels(2).array.astype(np.float32) / 127.5 - 1, training=False)
    assert np.allclose(features("mobilenet_v2", 0.35, 32, str(path), pixels), expected, atol=1e-4)


def params(tmp_path, **changes):
    given = parameters.load(ROOT / "params.yaml")
    size = changes.pop("image_size", given.image_size)
    return dataclasses.replace(given, image_size=size, backbone=dataclasses.replace(given.backbone, **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "alexnet"}, "backbone.name must be one of"),
        ({"alpha": 0.5}, "bundled is there for mobilenet_v2 with backbone.alpha: 0.35 only"),
        ({"name": "inception_v3"}, "bundled is there for"),
        (
            {"name": "inception_v3", "weights": "none", "image_size": 64},
            "image_size must be at least 75 for inception_v3, not 64",
        ),
        ({"weights": "nowhere.h5"}, "no such file: nowhere.h5"),
        ({"weights": "imagenett"}, "backbone.weights must be bundled, imagenet, none or a path"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work_with_the_key(tmp_path, changes, words):
    with pytest.raises(GraftError, match=words) as error:
        backbones.check(params(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_a_damaged_bundled_file_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "backbones"
    folder.mkdir(parents=True)
    blob = bytearray(BUNDLED.read_bytes())
    blob[5000] ^= 1
    (folder / BUNDLED.name).write_bytes(blob)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GraftError, match="SHA-256"):
        backbones.weights_file("mobilenet_v2", 0.35, "bundled")


def test_weights_of_another_architecture_do_not_fit(tmp_path, pixels):
    with pytest.raises(GraftError, match=r"does not fit mobilenet_v2 \(check backbone.name and backbone.alpha\)"):
        features("mobilenet_v2", 0.5, 32, str(BUNDLED), pixels)


def test_offline_imagenet_names_the_file_and_the_place(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise Exception("URL fetch failure on https://host/x/mobilenet_v2_1.0_96_no_top.h5: None -- Name or service not known")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(keras.applications, "MobileNetV2", offline)
    with pytest.raises(GraftError) as error:
        backbones.build("mobilenet_v2", 1.0, keras.Input((96, 96, 3), dtype="uint8"), weights="imagenet")
    assert "https://host/x/mobilenet_v2_1.0_96_no_top.h5" in str(error.value)
    assert str(tmp_path / "models" / "mobilenet_v2_1.0_96_no_top.h5") in str(error.value)


@pytest.mark.parametrize(
    ("name", "size", "resolved"), [("mobilenet_v2", "auto", 224), ("inception_v3", "auto", 299), ("inception_v3", 96, 96)]
)
def test_auto_is_the_native_size(name, size, resolved):
    assert backbones.resolve_size(name, size) == resolved
