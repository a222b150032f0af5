"""TFLite Metadata, as its readers see it."""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from graft.description import FILES
from graft.serving import readers, tflite_metadata

from .conftest import CLASSES, make_images

# MediaPipe is no dependency: it may live in an environment of its own.
PYTHON = os.environ.get("MEDIAPIPE_PYTHON", sys.executable)
CLASSIFY = """
import json, os, sys
import mediapipe, numpy
from mediapipe.tasks.python import vision
from mediapipe.tasks.python.core.base_options import BaseOptions

base = BaseOptions(model_asset_path=sys.argv[1])
options = vision.ImageClassifierOptions(base_options=base, max_results=-1)
model = vision.ImageClassifier.create_from_options(options)
for pixels in numpy.load(sys.argv[2]):
    data = numpy.ascontiguousarray(pixels)
    seen = model.classify(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=data))
    found = {each.category_name: each.score for each in seen.classifications[0].categories}
    print(json.dumps(found), flush=True)
model.close()
os._exit(0)  # its threads outlive the interpreter otherwise
"""
TFLITE = [name for name in FILES if name.startswith("tflite")]


def embedded(path):
    """The buffer TFLITE_METADATA of a model."""
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(path.read_bytes(), 0))
    (place,) = [
        entry.buffer for entry in model.metadata if bytes(entry.name) == tflite_metadata.METADATA
    ]
    return bytes(model.buffers[place].data)


@pytest.mark.parametrize("format", TFLITE)
def test_every_file_has_metadata_that_names_its_classes(format, exported, trained):
    found = embedded(exported / FILES[format])
    assert found == tflite_metadata.metadata(trained[1], in_bytes=format == "tflite_int8")
    assert found[4:8] == b"M001"  # file identifier of metadata_schema.fbs
    for text in (b"labels.txt", b"image", b"probabilities", b"1.0.0"):
        assert text in found


@pytest.mark.parametrize("format", TFLITE)
def test_what_a_file_says_of_its_tensors_is_what_they_are(format, exported):
    from ai_edge_litert.interpreter import Interpreter

    path = exported / FILES[format]
    said = json.loads(zipfile.ZipFile(path).read("graft.json"))
    interpreter = Interpreter(model_path=str(path))
    (pixels,), (scores,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (said["input"].split()[0], said["output"].split()[0]) == tuple(
        np.dtype(t["dtype"]).name for t in (pixels, scores)
    )
    assert ("256 times the probability" in said["output"]) == (scores["quantization"][0] == 1 / 256)
    assert (b"in steps of 1/256" in embedded(path)) == (scores["dtype"] == np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("format", TFLITE)
def test_mediapipe_classifies_twenty_photos_as_graft_does(format, exported, tmp_path):
    if subprocess.run([PYTHON, "-c", "import mediapipe"], capture_output=True).returncode:
        pytest.skip(
            "MediaPipe is not installed; MEDIAPIPE_PYTHON may name an interpreter that has it"
        )
    images = make_images(20, seed=8)
    np.save(tmp_path / "images.npy", images)
    command = [PYTHON, "-c", CLASSIFY, str(exported / FILES[format]), str(tmp_path / "images.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = [[seen[name] for name in CLASSES] for seen in map(json.loads, done.stdout.splitlines())]
    np.testing.assert_allclose(found, readers.load(format, exported)(images), atol=1e-4)
