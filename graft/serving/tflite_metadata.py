"""What a TFLite file says of itself: signature and TFLite Metadata, as LiteRT, MediaPipe and Task
Library look for them."""

from __future__ import annotations

from dataclasses import dataclass

from graft.description import LABELS, Description

SIGNATURE = "serving_default"
INPUT, OUTPUT = "image", "probabilities"
# Name of the buffer in the model, and how what it holds begins.
METADATA, IDENTIFIER = b"TFLITE_METADATA", b"M001"
IMAGE_PROPERTIES, FEATURE_PROPERTIES, RGB, AXIS_LABELS = 2, 1, 1, 2  # of metadata_schema.fbs
MIN_PARSER = "1.0.0"


@dataclass(frozen=True)
class Byte:
    """A number from 0 to 255 in a flatbuffer's table."""

    value: int


def annotate(blob: bytes, description: Description) -> bytes:
    """The TFLite model `blob`, of one input and one output, with a signature of named tensors and
    with metadata.

    What the metadata names, the list of classes, is a member of the archive that is appended to the
    file later.
    """
    import flatbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(blob, 0))
    in_bytes = (
        model.subgraphs[0].tensors[model.subgraphs[0].outputs[0]].type == schema.TensorType.UINT8
    )
    graph, signature = model.subgraphs[0], schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0
    signature.inputs = [_named(schema, graph, graph.inputs[0], INPUT)]
    signature.outputs = [_named(schema, graph, graph.outputs[0], OUTPUT)]
    model.signatureDefs = [signature]
    entry, content = schema.MetadataT(), schema.BufferT()
    entry.name, entry.buffer, content.data = (
        METADATA,
        len(model.buffers),
        metadata(description, in_bytes=in_bytes),
    )
    model.buffers.append(content)
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(len(blob) + (1 << 16))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _named(schema, graph, index, name):
    graph.tensors[index].name = name
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, int(index)
    return entry


def metadata(description: Description, *, in_bytes: bool = False) -> bytes:
    """A flatbuffer of metadata_schema.fbs, table ModelMetadata. Fields go by their place in the
    schema.

    in_bytes: the output is uint8, which the reader scales by what the tensor says of itself.
    """
    import flatbuffers

    labels = {
        0: LABELS,
        1: "classes, one per line, in the order of the output",
        2: Byte(AXIS_LABELS),
    }
    image = {
        0: INPUT,
        1: f"RGB, 0..255, {description.image_size} x {description.image_size} pixels; a photo "
        f"becomes a square by: {description.resize}",
        3: {0: Byte(IMAGE_PROPERTIES), 1: {0: Byte(RGB)}},
    }
    meaning = "probability of each class" + ", in steps of 1/256" * in_bytes
    scores = {0: OUTPUT, 1: meaning, 3: {0: Byte(FEATURE_PROPERTIES), 1: {}}, 6: [labels]}
    graph = {0: "classifier", 2: [image], 3: [scores]}
    builder = flatbuffers.Builder(1024)
    whole = {
        0: "image classifier",
        1: f"made by graft on {description.backbone}",
        3: [graph],
        7: MIN_PARSER,
    }
    builder.Finish(_build(builder, whole), IDENTIFIER)
    return bytes(builder.Output())


def _build(builder, value):
    """Write a str, a list, or a table {place of the field: value} and return where it lies."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, list):
        places = [_build(builder, each) for each in value]
        builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            builder.PrependUOffsetTRelative(place)
        return builder.EndVector()
    places = {
        field: _build(builder, each) for field, each in value.items() if not isinstance(each, Byte)
    }
    builder.StartObject(max(value, default=-1) + 1)
    for field, each in value.items():
        if isinstance(each, Byte):
            builder.PrependUint8Slot(field, each.value, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(field, places[field], 0)
    return builder.EndObject()
