"""What runs the frozen trunk. It is never trained, so it need not run in the framework that trains.

MobileNetV2 to block_12_add at 160 px on 2 cores, images/s: `model.predict` 198, tf.function 393, frozen graph 545, ONNX Runtime
774, LiteRT with XNNPACK 950. Networks of dense convolutions (InceptionV3, ResNet) gain nothing from LiteRT: the table of
backbones says which is which. A race at run time would make the choice, and with it the low bits of the values, depend on the
machine's load.
"""

import numpy as np

from stages.common import runtimes
from stages.console import GraftError, silence
from stages.network import backbones


def choose(engine, backbone):
    """The engine's name for `trunk.engine: auto`: TensorFlow on a GPU, else what the backbones' table says; else `engine`."""
    import tensorflow as tf

    if engine != "auto":
        return engine
    return "tensorflow" if tf.config.list_physical_devices("GPU") else backbones.row(backbone).engine


def identity(engine):
    """Name and version of an engine, and what it computes with: a part of the memo's key."""
    import keras
    import tensorflow as tf

    name = [engine, tf.__version__, keras.__version__]
    if engine == "onnx":
        import onnxruntime

        name.append(onnxruntime.__version__)
    if engine == "tensorflow":
        name.append("gpu" if tf.config.list_physical_devices("GPU") else "cpu")
    return name


def start(model, outputs, engine):
    """Prepare `engine` to compute the Keras tensors `outputs` of `model` from its input.

    Returns run(images): uint8 (b, S, S, 3) -> list of arrays (b, …), float32, one per output; an output that is the model's
    input gives the images themselves.
    """
    import keras

    computed = [tensor for tensor in outputs if tensor is not model.input]
    if not computed:
        return lambda images: [images for _ in outputs]
    frozen = runtimes.freeze(keras.Model(model.input, computed))
    compute = ENGINES[engine](frozen)

    def run(images):
        values = iter(compute(np.ascontiguousarray(images)))
        return [images if tensor is model.input else next(values) for tensor in outputs]

    return run


def _tensorflow(frozen):
    import tensorflow as tf

    return lambda images: [np.asarray(values, dtype=np.float32) for values in frozen(tf.constant(images))]


def _litert(frozen):
    with silence():  # LiteRT speaks once, on stderr
        blob = runtimes.litert_converter(frozen).convert()
        call = runtimes.litert(model_content=blob, names=[tensor.op.name for tensor in frozen.outputs])
    return _chunked(call)


def _onnx(frozen):
    try:
        session = runtimes.onnx_session(runtimes.onnx_model(frozen).SerializeToString())
    except ImportError as error:
        raise GraftError(f"trunk.engine: onnx needs the package {error.name}: pip install 'graft[onnx]'") from None
    outputs = [tensor.name for tensor in frozen.outputs]
    return _chunked(lambda images: session.run(outputs, {frozen.inputs[0].name: images}))


def _chunked(call):
    def compute(images):
        parts = [call(images[i : i + runtimes.CHUNK]) for i in range(0, len(images), runtimes.CHUNK)]
        return [np.concatenate(values) for values in zip(*parts)]

    return compute


ENGINES = {"tensorflow": _tensorflow, "litert": _litert, "onnx": _onnx}
