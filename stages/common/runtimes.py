"""A Keras model as a graph of constants, and the runtimes that run such a graph: TensorFlow, LiteRT, ONNX Runtime."""

from stages.common.parallel import processors
from stages.console import silence

OPSET = 17  # of ONNX: the first with everything that Keras' image classifiers need, understood by runtimes since 2022
CHUNK = 8  # images per call of LiteRT and ONNX Runtime: intermediate values stay in the processor's cache; 32 is a fifth slower


def freeze(model):
    """A concrete TensorFlow function from "image", uint8 (n, S, S, 3), n free, to the model's outputs; no variables.

    Grappler then folds BatchNorm into the convolutions.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = tf.TensorSpec((None, *model.input_shape[1:]), "uint8", name="image")
    call = tf.function(lambda image: model(image, training=False), input_signature=[spec])
    with silence():
        return convert_variables_to_constants_v2(call.get_concrete_function())


def litert_converter(frozen):
    """A TFLiteConverter of what `freeze` gave."""
    import tensorflow as tf

    # The converter of graphs: that of functions would freeze the frozen once more, 1.0 s of 1.5 for MobileNetV2 (and beside a
    # Keras model it loses the weights, and every value is NaN).
    return tf.compat.v1.lite.TFLiteConverter(frozen.graph.as_graph_def(), frozen.inputs, frozen.outputs)


def litert(*, names=None, **source):
    """run(images): uint8 (n, S, S, 3) -> list of arrays (n, …), the outputs called `names`, in that order; by default all.

    source: model_content=bytes or model_path=str. LiteRT may order outputs as it likes, which is why they can be named.
    """
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(**source, num_threads=processors())
    interpreter.allocate_tensors()
    pixels = interpreter.get_input_details()[0]["index"]
    outputs = {detail["name"]: detail["index"] for detail in interpreter.get_output_details()}
    targets = list(outputs.values()) if names is None else [outputs[name] for name in names]
    size = 1

    def run(images):
        nonlocal size
        if len(images) != size:
            interpreter.resize_tensor_input(pixels, images.shape)
            interpreter.allocate_tensors()
            size = len(images)
        interpreter.set_tensor(pixels, images)
        interpreter.invoke()
        return [interpreter.get_tensor(target) for target in targets]

    return run


def onnx_model(frozen):
    """What `freeze` gave as an ONNX ModelProto, inputs and outputs named alike. Raises ImportError without tf2onnx."""
    import tf2onnx

    with silence():
        model, _ = tf2onnx.convert.from_graph_def(
            frozen.graph.as_graph_def(add_shapes=True),
            input_names=[tensor.name for tensor in frozen.inputs],
            output_names=[tensor.name for tensor in frozen.outputs],
            opset=OPSET,
        )
    return model


def onnx_session(source):
    """An InferenceSession on the CPU. source: a path, or the bytes of a model. Raises ImportError without onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = processors()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
