"""deploy/: the server of the container answers as the exported model does, and needs nothing that
the container lacks."""

import ast
import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from graft.serving import readers, writers
from tests.serving.conftest import CLASSES, encode, make_classifier, make_images

ROOT = Path(__file__).parents[1]
CONTAINER = (ROOT / "deploy" / "Containerfile").read_text(encoding="utf-8")


def copied():
    (files,) = re.findall(r"^COPY (.+) \./$", CONTAINER, flags=re.MULTILINE)
    return files.split()


def test_the_container_has_what_its_files_import():
    installed = {name: name for name in re.findall(r'"([a-z]+)>=', CONTAINER)} | {"pillow": "PIL"}
    own = {Path(file).stem for file in copied()}
    asked = set()
    for file in copied()[:2]:
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                asked |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                asked.add(node.module.split(".")[0])
    missing = asked - set(sys.stdlib_module_names) - set(installed.values()) - own
    assert missing == {"pillow_heif"}  # an extra, which says so when it is lacking


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, folder with the model) of the files of the container, alone in a folder."""
    folder = tmp_path_factory.mktemp("deploy")
    writers.write(("keras", "onnx"), *writers.self_contained(*make_classifier()), folder)
    for file in copied()[:2]:
        shutil.copy(ROOT / file, folder)
    process = subprocess.Popen(
        [sys.executable, "serve.py", "--port", "0"], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    try:
        yield re.search(r"http://\S+", process.stdout.readline())[0], folder
    finally:
        process.terminate()
        process.wait()


def ask(address, body):
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, body, {"Content-Type": "image/png"}), timeout=60
        ) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_photo_gets_the_models_answer(served):
    address, folder = served
    assert address.startswith("http://127.0.0.1:")
    image = make_images(1)[0]
    status, found = ask(address, encode(image))
    expected = readers.load("onnx", folder)(image[None])[0]
    (row,) = found["predictions"]
    assert (status, list(row["probabilities"])) == (200, list(CLASSES))
    np.testing.assert_allclose(list(row["probabilities"].values()), expected, atol=1e-6)
    assert (row["label"], row["confidence"]) == (
        CLASSES[expected.argmax()],
        max(row["probabilities"].values()),
    )
    assert ask(address.replace("invocations", "ping"), None) == (200, {})


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("invocations", b"no photo", "image 0: undecodable"),
        ("invocations", b"", "POST an image"),
        ("other", b"x", "POST an image"),
    ],
)
def test_anything_else_is_refused_with_a_line(path, body, said, served):
    status, found = ask(served[0].replace("invocations", path), body)
    assert status == 400 and found["error"].startswith(said)
