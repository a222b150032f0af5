import numpy as np
import pytest

from graft import runtimes
from graft.network import backbones
from graft.system.console import GraftError
from graft.system.environment import quiet_tensorflow

# oneDNN as in the stages: without it, TensorFlow's last bits depend on the place in the batch.
quiet_tensorflow()

import keras  # noqa: E402

SIZE = 32


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    image = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1)(image)
    backbone = keras.applications.MobileNetV2(
        input_tensor=scaled, alpha=0.35, weights=None, include_top=False
    )
    return keras.Model(image, keras.layers.GlobalAveragePooling2D(name="pooling")(backbone.output))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (37, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("runtime", runtimes.RUNTIMES)
def test_every_runtime_gives_what_keras_gives_in_the_order_asked(model, images, runtime):
    if runtime == "onnx":
        pytest.importorskip("tf2onnx", reason="needs the onnx extra")
    deep = model.get_layer("block_12_add").output
    pooled, same, deeper = runtimes.start(model, [model.output, model.input, deep], runtime)(images)
    assert np.array_equal(same, images)
    for got, tensor in ((pooled, model.output), (deeper, deep)):
        expected = np.asarray(keras.Model(model.input, tensor)(images, training=False))
        assert got.dtype == np.float32
        assert np.abs(got - expected).max() <= 1e-4
    # Neither the company in a batch nor the other outputs change a bit.
    alone = runtimes.start(model, [model.output], runtime)
    for some in ([3, 4], [36], list(range(30, 2, -1))):
        assert np.array_equal(alone(images[some])[0], pooled[some])
    assert alone(images[:0])[0].shape == (0, pooled.shape[1])
    assert runtimes.identity(runtime)[:3:2] == [runtime, keras.__version__]


def test_what_is_the_input_needs_no_runtime(model, images):
    (same,) = runtimes.start(model, [model.input], "none such")(images)
    assert same is images


def test_a_missing_package_is_named(model, monkeypatch):
    def missing(frozen):
        raise ModuleNotFoundError("No module named 'tf2onnx'", name="tf2onnx")

    monkeypatch.setattr(runtimes, "onnx_model", missing)
    with pytest.raises(
        GraftError,
        match=r"features\.runtime: onnx needs the package tf2onnx: pip install "
        r"'graft-vision\[onnx\]'",
    ):
        runtimes.start(model, [model.output], "onnx")


def test_litert_gives_named_outputs_in_the_order_asked(model, images):
    frozen = runtimes.freeze(
        keras.Model(model.input, [model.output, model.get_layer("block_12_add").output])
    )
    content = runtimes.litert_converter(frozen).convert()
    first, second = (tensor.op.name for tensor in frozen.outputs)
    one_by_one = [
        runtimes.litert(model_content=content, names=[name])(images[:4])[0]
        for name in (second, first)
    ]
    both = runtimes.litert(model_content=content, names=[second, first])
    for size in (4, 1, 4):  # it takes batches of any size, in any order
        for got, expected in zip(both(images[:size]), one_by_one):
            assert np.abs(got - expected[:size]).max() < 1e-5
    assert len(runtimes.litert(model_content=content)(images[:1])) == 2


@pytest.mark.parametrize(
    ("setting", "backbone", "chosen"),
    [
        ("auto", "mobilenet_v2", "litert"),
        ("auto", "inception_v3", "tensorflow"),
        ("onnx", "mobilenet_v2", "onnx"),
        ("tensorflow", "mobilenet_v2", "tensorflow"),
    ],
)
def test_auto_takes_what_the_table_of_backbones_says(setting, backbone, chosen):
    assert backbones.choose_runtime(setting, backbone) == chosen
    assert backbones.row(backbone).runtime in runtimes.RUNTIMES


def test_the_rate_is_that_of_the_fastest_batch_after_the_first(monkeypatch):
    taken = iter([0, 9, 10, 14, 20, 22])  # starts and ends: 9 s to prepare, then 4 and 2 s
    monkeypatch.setattr(runtimes.time, "perf_counter", lambda: next(taken))
    assert runtimes.rate(lambda batch: [batch], 8) == runtimes.BATCH / 2
