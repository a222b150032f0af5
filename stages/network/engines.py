"""What runs the frozen trunk. It is never trained, so it need not run in the framework that trains.

MobileNetV2 to block_12_add at 160 px on 2 cores, images/s: `model.predict` 198, tf.function 393, frozen graph 545, ONNX Runtime
774, LiteRT with XNNPACK 950. Networks of dense convolutions (InceptionV3, ResNet) gain nothing from LiteRT: the table of
backbones says which is which. A race at run time would make the choice, and with it the low bits of the values, depend on the
machine's load.
"""

import os

import numpy as np

from stages.console import GraftError, silence
from stages.network import backbones

CHUNK = 8  # images per call of LiteRT and ONNX Runtime: intermediate values stay in the processor's cache; 32 is a fifth slower


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
    frozen = _freeze(keras.Model(model.input, computed))
    compute = ENGINES[engine](frozen)

    def run(images):
        values = iter(compute(np.ascontiguousarray(images)))
        return [images if tensor is model.input else next(values) for tensor in outputs]

    return run


def _freeze(model):
    """`model` as a concrete function of constants, of any batch size; Grappler then folds BatchNorm into the convolutions."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = tf.TensorSpec((None, *model.input_shape[1:]), "uint8", name="image")
    call = tf.function(lambda image: model(image, training=False), input_signature=[spec])
    with silence():
        return convert_variables_to_constants_v2(call.get_concrete_function())


def _tensorflow(frozen):
    import tensorflow as tf

    return lambda images: [np.asarray(values, dtype=np.float32) for values in frozen(tf.constant(images))]


def _litert(frozen):
    import tensorflow as tf

    with silence():
        # No second argument: with the Keras model beside it the converter loses the weights, and every value is NaN.
        converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
        interpreter = tf.lite.Interpreter(model_content=converter.convert(), num_threads=os.cpu_count())
        interpreter.allocate_tensors()  # says so on stderr, once
    source = interpreter.get_input_details()[0]["index"]
    named = {detail["name"]: detail["index"] for detail in interpreter.get_output_details()}
    targets = [named[tensor.op.name] for tensor in frozen.outputs]  # LiteRT may order outputs as it likes
    size = 1

    def call(images):
        nonlocal size
        if len(images) != size:
            size = len(images)
            interpreter.resize_tensor_input(source, images.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(source, images)
        interpreter.invoke()
        return [interpreter.get_tensor(target) for target in targets]

    return _chunked(call)


def _onnx(frozen):
    try:
        import onnxruntime
        import tf2onnx
    except ImportError as error:
        raise GraftError(f"trunk.engine: onnx needs the package {error.name}: pip install 'graft[onnx]'") from None

    with silence():
        graph, _ = tf2onnx.convert.from_graph_def(
            frozen.graph.as_graph_def(add_shapes=True),
            input_names=[tensor.name for tensor in frozen.inputs],
            output_names=[tensor.name for tensor in frozen.outputs],
            opset=17,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = [tensor.name for tensor in frozen.outputs]
    return _chunked(lambda images: session.run(outputs, {frozen.inputs[0].name: images}))


def _chunked(call):
    def compute(images):
        parts = [call(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
        return [np.concatenate(values) for values in zip(*parts)]

    return compute


ENGINES = {"tensorflow": _tensorflow, "litert": _litert, "onnx": _onnx}
