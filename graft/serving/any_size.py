"""Resizing inside the graph: one photo of any size goes in, and is made small there as it was in
training (`graft.pixels.fit`).

Pillow's bilinear filter with antialiasing, a pass along each axis, each rounded to whole levels.
TensorFlow's has the same weights, and gives each level within 1. ONNX Runtime's follows Pillow's
code; but what was cropped away it cannot see, of which Pillow's outermost pixels hold a little.
Decoding stays outside, and so does turning a photo upright.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graft.resizers import GREY

if TYPE_CHECKING:
    import onnx
    import tensorflow as tf

OPSET = 18  # of ONNX: the first whose Resize knows antialiasing
INPUT = "photo"

CROPPED = """
    side = ReduceMin(sides)
    spare = Sub(sides, side)
    first = Div(spare, two)
    last = Add(first, side)
    wanted = Slice(photo, first, last)
"""
WHOLE = "wanted = Identity(photo)"
SQUARE = """
    inner = Expand(S, two)
"""
PROPORTIONAL = """
    S_double = Cast <to = 11> (S)
    sides_double = Cast <to = 11> (sides)
    longest = ReduceMax(sides_double)
    scale = Div(S_double, longest)
    scaled = Mul(sides_double, scale)
    rounded = Round(scaled)
    whole = Cast <to = 7> (rounded)
    inner = Max(whole, one)
"""
GRAPH = """
front (uint8[height, width, 3] photo) => (uint8[1, {size}, {size}, 3] image)
<int64[1] S = {{{size}}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] zero = {{0}},
 int64[2] zeros = {{0, 0}}, int64[2] lead = {{1, 3}}, uint8 grey = {{{grey}}}>
{{
    sides = Shape <start = 0, end = 2> (photo)
    {cut}
    {inner}
    colours = Transpose <perm = [2, 0, 1]> (wanted)
    batch = Unsqueeze(colours, zero)
    sizes = Concat <axis = 0> (lead, inner)
    small = Resize <mode = "linear", antialias = 1, exclude_outside = 1> (batch, , , sizes)
    missing = Sub(S, inner)
    before = Div(missing, two)
    after = Sub(missing, before)
    pads = Concat <axis = 0> (zeros, before, zeros, after)
    sheet = Pad(small, pads, grey)
    image = Transpose <perm = [0, 2, 3, 1]> (sheet)
}}
"""


def tensorflow(photo: tf.Tensor, size: int, resize: str) -> tf.Tensor:
    """uint8 (height, width, 3) -> uint8 (size, size, 3), as `graft.pixels.fit` by the rule
    `resize`."""
    import tensorflow as tf

    sides = tf.shape(photo)[:2]
    exact = tf.cast(sides, tf.float64)
    scale, first, inner = size / exact, tf.zeros(2, tf.int32), tf.constant([size, size])
    if resize == "crop":
        scale, first = size / tf.reduce_min(exact), (sides - tf.reduce_min(sides)) // 2
    elif resize == "pad":
        inner = tf.maximum(tf.cast(tf.round(exact * (size / tf.reduce_max(exact))), tf.int32), 1)
        scale = tf.cast(inner, tf.float64) / exact
    scale = tf.cast(scale * tf.ones(2, tf.float64), tf.float32)
    start = -tf.cast(first, tf.float32) * scale
    small = tf.cast(photo, tf.float32)[None]
    # Along the rows first.
    for shape, axis in ((tf.stack([sides[0], inner[1]]), [0.0, 1.0]), (inner, [1.0, 0.0])):
        factor = tf.where(tf.constant(axis) > 0, scale, 1.0)
        small = tf.raw_ops.ScaleAndTranslate(
            images=small,
            size=shape,
            scale=factor,
            translation=start * axis,
            kernel_type="triangle",
            antialias=True,
        )
        small = tf.floor(small + 0.5)
    before = (size - inner) // 2
    pads = tf.stack([before, size - inner - before], axis=1)
    sheet = tf.pad(
        tf.cast(small[0], tf.uint8), tf.concat([pads, [[0, 0]]], 0), constant_values=GREY
    )
    return tf.ensure_shape(sheet, (size, size, 3))


def onnx_front(model: onnx.ModelProto, size: int, resize: str) -> None:
    """Put the same before a model of one input "image", which it gets from "photo" then; of OPSET.
    Changes `model`."""
    import onnx

    cut, inner = CROPPED if resize == "crop" else WHOLE, PROPORTIONAL if resize == "pad" else SQUARE
    front = onnx.parser.parse_graph(GRAPH.format(size=size, grey=GREY, cut=cut, inner=inner))
    nodes = [*front.node, *model.graph.node]
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend(nodes)
    model.graph.input.extend(front.input)
    model.graph.initializer.extend(front.initializer)
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
