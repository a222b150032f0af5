"""A Keras model as a graph of constants, and the runtimes that run such a graph: TensorFlow,
LiteRT, ONNX Runtime.

Frozen layers are never trained, so they need not run in the framework that trains. MobileNetV2 to
block_12_add at 160 px on 2 cores, images/s: `model.predict` 198, tf.function 393, frozen graph 545,
ONNX Runtime 774, LiteRT with XNNPACK 950. Networks of dense convolutions (InceptionV3, ResNet) gain
nothing from LiteRT: the table of backbones says which is which. A race at run time would make the
choice, and with it the low bits of the values, depend on the machine's load.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graft.system.console import GraftError
from graft.system.environment import silence
from graft.system.prefetch import processors

if TYPE_CHECKING:
    import keras
    import onnx
    import onnxruntime
    import tensorflow as tf

# uint8 images (n, S, S, 3) -> arrays (n, …), one per output.
Run = Callable[[np.ndarray], list[np.ndarray]]
# A function of TensorFlow's, of a class that is not public, with `graph`, `inputs` and `outputs`.
Frozen = Any

# What numeric libraries choose their kernels by, and so the low bits of what they compute.
KERNEL_FLAGS = (
    "avx", "fma", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile",
    "avx_vnni"
)  # fmt: skip
# Of ONNX: the first with everything that Keras' image classifiers need, understood by runtimes
# since 2022.
OPSET = 17
BATCH = 32  # images per call of TensorFlow
# Images per call of LiteRT and ONNX Runtime: intermediate values stay in the processor's cache; 32
# is a fifth slower.
CHUNK = 8


def rate(run: Run, size: int, repeats: int = 2) -> float:
    """Images/s of `run` on images of this side, in pixels: the best of a few batches after the
    first, which prepares."""
    batch, times = np.zeros((BATCH, size, size, 3), np.uint8), []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - started)
    return BATCH / min(times[1:])


def freeze(model: keras.Model) -> Frozen:
    """A concrete TensorFlow function from "image", uint8 (n, S, S, 3), n free, to the model's
    outputs; no variables.

    Grappler then folds BatchNorm into the convolutions.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = tf.TensorSpec((None, *model.input_shape[1:]), "uint8", name="image")
    call = tf.function(lambda image: model(image, training=False), input_signature=[spec])
    with silence():
        return convert_variables_to_constants_v2(call.get_concrete_function())


def litert_converter(frozen: Frozen) -> tf.lite.TFLiteConverter:
    """A TFLiteConverter of what `freeze` gave."""
    import tensorflow as tf

    # The converter of graphs: that of functions would freeze the frozen once more, 1.0 s of 1.5 for
    # MobileNetV2 (and beside a Keras model it loses the weights, and every value is NaN).
    return tf.compat.v1.lite.TFLiteConverter(
        frozen.graph.as_graph_def(), frozen.inputs, frozen.outputs
    )


def with_float_input(frozen: Frozen) -> tuple[Any, list[str], list[str]]:
    """(GraphDef, inputs, outputs) of what `freeze` gave, its input float32 0..255: a converter then
    chooses its type.

    The cast that a uint8 input begins with would stay in an integer model, in float.
    """
    import tensorflow as tf

    graph_def, name = frozen.graph.as_graph_def(), frozen.inputs[0].op.name
    for node in graph_def.node:
        if node.name == name:
            node.attr["dtype"].type = tf.float32.as_datatype_enum
        elif node.op == "Cast" and node.input[0].partition(":")[0] == name:
            node.op = "Identity"
            node.attr["T"].type = tf.float32.as_datatype_enum
            for key in ("SrcT", "DstT", "Truncate"):
                node.attr.pop(key, None)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    tensors = (
        [graph.get_tensor_by_name(tensor.name) for tensor in kind]
        for kind in (frozen.inputs, frozen.outputs)
    )
    return graph_def, *tensors


def litert(
    *, names: Sequence[str] | None = None, threads: int | None = None, **source: str | bytes
) -> Run:
    """run(images): uint8 (n, S, S, 3) -> list of arrays (n, …), the outputs called `names`, in that
    order; by default all.

    source: model_content=bytes or model_path=str. LiteRT may order outputs as it likes, which is
    why they can be named. Outputs in 8 bits come back as the float32 numbers that they stand for.
    threads: by default as many as there are processors; they change no bit.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(**source, num_threads=threads or processors())
    interpreter.allocate_tensors()
    pixels = interpreter.get_input_details()[0]["index"]
    details = interpreter.get_output_details()
    # (0.0, 0) where it is float.
    scales = {detail["index"]: detail["quantization"] for detail in details}
    outputs = {detail["name"]: detail["index"] for detail in details}
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
        return [_dequantised(interpreter.get_tensor(target), *scales[target]) for target in targets]

    return run


def _dequantised(values, scale, zero):
    return (values.astype(np.float32) - zero) * np.float32(scale) if scale else values


def onnx_model(frozen: Frozen, opset: int = OPSET) -> onnx.ModelProto:
    """What `freeze` gave as an ONNX ModelProto, inputs and outputs named alike. Raises ImportError
    without tf2onnx."""
    # Else the graph is copied before each of 36 passes, for half of the time.
    os.environ["TF2ONNX_CATCH_ERRORS"] = "FALSE"
    import tf2onnx

    with silence():
        model, _ = tf2onnx.convert.from_graph_def(
            frozen.graph.as_graph_def(add_shapes=True),
            input_names=[tensor.name for tensor in frozen.inputs],
            output_names=[tensor.name for tensor in frozen.outputs],
            opset=opset,
        )
    return model


def onnx_session(source: str | Path | bytes) -> onnxruntime.InferenceSession:
    """An InferenceSession on the CPU. source: a path, or the bytes of a model. Raises ImportError
    without onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = processors()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def identity(runtime: str) -> list[str]:
    """Name and versions of a runtime, and the processor or GPU that it computes with: what its
    values depend on."""
    name, *rest = computer(runtime)
    return [name, version("tensorflow"), version("keras"), *rest]


def computer(runtime: str) -> list[str]:
    """`identity` without what converts models: what the values of a Program depend on, where it
    runs. Raises importlib.metadata.PackageNotFoundError where the runtime's package is missing.
    """
    if runtime != "tensorflow":
        return [
            runtime,
            version({"litert": "ai-edge-litert", "onnx": "onnxruntime"}[runtime]),
            instruction_set(),
        ]
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return [
            runtime,
            str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")),
        ]
    return [runtime, instruction_set()]


@functools.cache
def instruction_set() -> str:
    """This processor's kind and those of its instructions that matter here, e.g. "x86_64 avx2
    fma"."""
    flags: list[str] = []
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    return " ".join([platform.machine(), *(flag for flag in KERNEL_FLAGS if flag in flags)])


@dataclass(frozen=True)
class Program:
    """Frozen layers as a runtime takes them: it can be sent to another machine, where no Keras is
    needed, and TensorFlow only where it is the `runtime`. content: the graph. outputs: names of its
    outputs; None stands for the images themselves.
    """

    runtime: str
    content: bytes
    outputs: tuple[str | None, ...]

    def start(self) -> Run:
        """As `runtimes.start`."""
        names = [name for name in self.outputs if name is not None]
        if not names:
            return lambda images: [images for _ in self.outputs]
        compute = RUNTIMES[self.runtime][1](self.content, names)

        def run(images):
            values = iter(compute(np.ascontiguousarray(images)))
            return [images if name is None else next(values) for name in self.outputs]

        return run


def prepare(model: keras.Model, outputs: Sequence, runtime: str) -> Program:
    """What computes the Keras tensors `outputs` of `model` from its input in `runtime`; see
    `start`."""
    import keras

    computed = [tensor for tensor in outputs if tensor is not model.input]
    if not computed:
        return Program(runtime, b"", tuple(None for _ in outputs))
    frozen = freeze(keras.Model(model.input, computed))
    name = (lambda tensor: tensor.op.name) if runtime == "litert" else (lambda tensor: tensor.name)
    names = iter([name(tensor) for tensor in frozen.outputs])
    return Program(
        runtime,
        RUNTIMES[runtime][0](frozen),
        tuple(None if t is model.input else next(names) for t in outputs),
    )


def start(model: keras.Model, outputs: Sequence, runtime: str) -> Run:
    """Prepare `runtime` to compute the Keras tensors `outputs` of `model` from its input.

    Returns run(images): uint8 (n, S, S, 3) -> list of arrays (n, …), float32, one per output; an
    output that is the model's input gives the images themselves. What an image gets depends on no
    other image and no other output. Raises GraftError where a package of the runtime is missing.
    """
    return prepare(model, outputs, runtime).start()


def _to_graph(frozen):
    return frozen.graph.as_graph_def().SerializeToString()


def _start_graph(content, names):
    import tensorflow as tf

    graph_def = tf.compat.v1.GraphDef.FromString(content)
    wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph_def, name=""), [])
    call = wrapped.prune("image:0", names)
    return _batched(
        lambda images: [
            np.asarray(values, dtype=np.float32) for values in call(tf.constant(images))
        ],
        BATCH,
    )


def _to_litert(frozen):
    with silence():  # LiteRT speaks once, on stderr
        return litert_converter(frozen).convert()


def _start_litert(content, names):
    with silence():
        return _batched(litert(model_content=content, names=names), CHUNK)


def _to_onnx(frozen):
    try:
        return onnx_model(frozen).SerializeToString()
    except ImportError as error:
        raise _lacks(error) from None


def _start_onnx(content, names):
    try:
        session = onnx_session(content)
    except ImportError as error:
        raise _lacks(error) from None
    pixels = session.get_inputs()[0].name
    return _batched(lambda images: session.run(names, {pixels: images}), CHUNK)


def _lacks(error):
    return GraftError(
        f"features.runtime: onnx needs the package {error.name}: pip install 'graft-vision[onnx]'"
    )


def _batched(call, size):
    """`call` in batches of one size, the last one padded: what an image gets must not depend on its
    company."""

    def compute(images):
        parts = []
        for first in range(0, max(len(images), 1), size):
            part = images[first : first + size]
            padded = np.concatenate(
                [part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)]
            )
            parts.append([values[: len(part)] for values in call(padded)])
        return [np.concatenate(values) for values in zip(*parts)]

    return compute


# Name -> what makes a Program's content of a frozen graph, and what starts it.
RUNTIMES = {
    "tensorflow": (_to_graph, _start_graph),
    "litert": (_to_litert, _start_litert),
    "onnx": (_to_onnx, _start_onnx),
}
