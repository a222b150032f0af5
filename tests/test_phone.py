"""docs/phone.md: what its snippets ask of the file is what the file has."""

import re
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from graft.description import FILES
from graft.serving import writers
from tests.serving.conftest import CLASSES, SIZE, make_classifier, make_images

PAGE = (Path(__file__).parents[1] / "docs" / "phone.md").read_text(encoding="utf-8")
KOTLIN, SWIFT = (
    re.findall(rf"^```{name}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)[0]
    for name in ("kotlin", "swift")
)
TYPES = {"uint8": np.uint8, "float32": np.float32}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phone")
    formats = ("tflite", "tflite_fp16", "tflite_int8")
    writers.write(
        formats, *writers.self_contained(*make_classifier()), folder, representative=make_images(4)
    )
    return folder


def details(file):
    """(signature, its input, its output) of the file."""
    interpreter = Interpreter(model_path=str(file))
    ((name, signature),) = interpreter.get_signature_list().items()
    interpreter.allocate_tensors()
    # `at: 0` is the one.
    assert (len(interpreter.get_input_details()), len(interpreter.get_output_details())) == (1, 1)
    runner = interpreter.get_signature_runner(name)
    return name, signature, runner.get_input_details(), runner.get_output_details()


@pytest.mark.parametrize("format", ["tflite", "tflite_fp16", "tflite_int8"])
def test_the_table_is_what_the_files_hold(format, exported):
    rows = {
        name: (shape, rest)
        for name, shape, rest in re.findall(
            r"^\| (?:in|out)put `(\w+)` \| (.+?) \| (.+) \|$", PAGE, re.M
        )
    }
    _, signature, inputs, outputs = details(exported / FILES[format])
    assert (
        (signature["inputs"], signature["outputs"])
        == (["image"], ["probabilities"])
        == tuple([key] for key in rows)
    )
    shapes = {"S": SIZE, "classes": len(CLASSES)}
    for key, detail in (("image", inputs["image"]), ("probabilities", outputs["probabilities"])):
        shape, told = rows[key]
        assert detail["shape"].tolist() == [
            int(shapes.get(each, each)) for each in shape.split(", ")
        ]
        said = "uint8" if format == "tflite_int8" else re.match(r"\w+", told)[0]
        assert detail["dtype"] == TYPES[said]
    assert f"uint8 in `{FILES['tflite_int8']}`" in rows["probabilities"][1]


def test_the_snippets_ask_for_the_files_tensors(exported):
    name, signature, inputs, outputs = details(exported / "model.tflite")
    asked = re.findall(r'FromSignature\("(\w+)", "(\w+)"\)\.shape\(\)\[1\]', KOTLIN)
    assert asked == [("image", name)] and inputs["image"]["shape"][1] == SIZE
    ((given, taken, run),) = re.findall(
        r'mapOf\("(\w+)" to image\), mapOf\("(\w+)" to probabilities\), "(\w+)"', KOTLIN
    )
    assert ([given], [taken], run) == (signature["inputs"], signature["outputs"], name)
    assert outputs["probabilities"]["dtype"] == np.float32
    # (1, classes) of float32.
    assert "arrayOf(FloatArray(labels.size))" in KOTLIN and "Float32.self" in SWIFT
    assert "allocateDirect(size * size * 3)" in KOTLIN and "* 4 + 3]" in SWIFT  # a byte per colour
    assert "shape.dimensions[1]" in SWIFT


def test_the_labels_are_read_a_line_each(exported):
    assert (exported / "labels.txt").read_text(encoding="utf-8").split("\n")[:-1] == list(CLASSES)
    assert '"labels.txt"' in KOTLIN and 'forResource: "labels", withExtension: "txt"' in SWIFT
