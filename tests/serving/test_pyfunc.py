import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages.serving import formats, pyfunc

from .conftest import CLASSES, SIZE, encode

ALONE = """
import json, sys
from pathlib import Path
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
found = model.predict([Path(name).read_bytes() for name in sys.argv[2:]])
assert not any(name == "stages" or name.startswith("stages.") for name in sys.modules), "the project was imported"
print(json.dumps(found.to_dict("list")))
"""


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    model, spec = trained
    place = tmp_path_factory.mktemp("registered") / "model"
    pyfunc.save(place, model, spec)
    return place


@pytest.fixture(scope="module")
def loaded(folder):
    return pyfunc.load(str(folder))


def figures(found):
    return np.array([list(row.values()) for row in found["probabilities"]])


def test_loads_in_a_fresh_process_without_the_project(folder, tmp_path, pictures, expected):
    moved = tmp_path / "somewhere else"
    shutil.copytree(folder, moved)
    files = []
    for i in range(3):
        files.append(tmp_path / f"{i}.png")
        files[-1].write_bytes(encode(pictures[i]))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", ALONE, moved, *files], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["label"] == [CLASSES[k] for k in expected[:3].argmax(1)]
    np.testing.assert_allclose(found["confidence"], expected[:3].max(1), atol=1e-5)
    assert [list(row) for row in found["probabilities"]] == [list(CLASSES)] * 3


def kinds():
    import pandas as pd

    def text(pixels):
        return base64.b64encode(encode(pixels)).decode()

    return {
        "bytes": (1, lambda p, d: encode(p[0])),
        "list of bytes": (2, lambda p, d: [encode(p[0]), encode(p[1])]),
        "base64": (1, lambda p, d: text(p[0])),
        "base64 in lines": (1, lambda p, d: "\n".join([text(p[0])[:40], text(p[0])[40:]])),
        "data url": (1, lambda p, d: ["data:image/png;base64," + text(p[0])]),
        "array of one": (1, lambda p, d: p[0]),
        "array of all": (24, lambda p, d: p),
        "array of int64": (2, lambda p, d: p[:2].astype(np.int64)),
        "array of whole floats": (2, lambda p, d: p[:2].astype(np.float32)),
        "nested lists, one": (1, lambda p, d: p[0].tolist()),
        "nested lists, two": (2, lambda p, d: p[:2].tolist()),
        "list of arrays": (2, lambda p, d: [p[0], p[1]]),
        "path": (1, lambda p, d: d / "0.png"),
        "mixed": (3, lambda p, d: [encode(p[0]), text(p[1]), p[2]]),
        "data frame": (2, lambda p, d: pd.DataFrame({"image": [encode(p[0]), text(p[1])]})),
        "series": (2, lambda p, d: pd.Series([encode(p[0]), text(p[1])])),
        "dict": (2, lambda p, d: {"image": [text(p[0]), text(p[1])]}),
        "array of texts": (2, lambda p, d: np.array([text(p[0]), text(p[1])])),
        "nothing": (0, lambda p, d: []),
    }


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_of_input(kind, loaded, pictures, expected, tmp_path):
    (tmp_path / "0.png").write_bytes(encode(pictures[0]))
    n, make = kinds()[kind]
    found = loaded.predict(make(pictures, tmp_path))
    assert found.columns.tolist() == ["label", "confidence", "probabilities"]
    assert len(found) == n
    assert found["label"].tolist() == [CLASSES[k] for k in expected[:n].argmax(1)]
    np.testing.assert_allclose(figures(found).reshape(n, 3), expected[:n], atol=1e-5)


def test_other_sizes_are_resized_as_in_training(loaded):
    from stages.dataset import images

    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    squashed = images.load(encode(pixels), SIZE)
    found = loaded.predict([pixels, encode(pixels), squashed, pixels[:20]])
    np.testing.assert_array_equal(figures(found)[0], figures(found)[1])
    np.testing.assert_array_equal(figures(found)[0], figures(found)[2])
    assert (figures(found)[0] != figures(found)[3]).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: [encode(p[0]), encode(p[1])[:100]], "image 1: truncated: "),
        (lambda p: [b""], "image 0: empty: "),
        (lambda p: [b"no picture"], "image 0: undecodable: "),
        (
            lambda p: "/etc/hostname",
            "image 0: a str must hold the bytes of an image file in base64; give a path as pathlib.Path",
        ),
        (lambda p: [Path("/nowhere/x.png")], "image 0: .*No such file"),
        (lambda p: p[:1] / 255, "image 0: pixels must be whole numbers 0..255, not scaled"),
        (lambda p: p[:1].astype(int) - 300, "image 0: pixels must be whole numbers 0..255"),
        (lambda p: p[0, :, :, 0], "image 0: neither an image file's bytes, nor base64, nor RGB pixels"),
        (lambda p: np.zeros((1, 4, 4, 4), np.uint8), "image 0: neither an image file's bytes"),
        (lambda p: [None], "image 0: neither an image file's bytes"),
        (lambda p: {"a": [], "b": []}, "a dict of images must have one key, not 2"),
    ],
)
def test_unusable_input_is_named(make, message, loaded, pictures):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=message) as refused:
        loaded.predict(make(pictures))
    assert refused.value.get_http_status_code() == 400


def test_what_the_model_says_of_itself(folder, loaded):
    about = loaded.metadata
    assert about.metadata == {"classes": list(CLASSES), "image_size": SIZE, "resize": "squash"}
    assert about.get_output_schema().input_names() == ["label", "confidence", "probabilities"]
    assert about.get_input_schema() is not None
    required = (folder / "requirements.txt").read_text().split()
    assert [line.split("==")[0] for line in required] == ["mlflow", "tensorflow", "keras", "numpy", "pandas", "pillow"]
    assert all(line.split("==")[1] for line in required)


def test_input_example_is_a_request(folder, loaded):
    request = json.loads((folder / "serving_input_example.json").read_text())
    assert list(request) == ["inputs"]
    assert loaded.predict(request["inputs"])["label"][0] in CLASSES


def test_no_pickle_and_no_path_of_this_machine(folder):
    assert not [p for p in folder.rglob("*") if p.suffix in (".pkl", ".pickle")]
    text = (folder / "MLmodel").read_text()
    assert str(Path(pyfunc.__file__).parent) not in text
    assert str(Path.home()) not in text


def test_temperature_of_the_model(trained, tmp_path, pictures, expected):
    model, spec = trained
    pyfunc.save(tmp_path / "plain", model, spec, temperature=1.0)
    found = pyfunc.load(str(tmp_path / "plain")).predict(pictures[:4])
    np.testing.assert_allclose(figures(found), model(pictures[:4], training=False), atol=1e-5)


def test_exported_file_is_registered_as_it_is(exported, tmp_path):
    pyfunc.save_exported(tmp_path / "model", exported / "model.keras")
    assert list(tmp_path.rglob("*.pyc")) == []
    copy = tmp_path / "model" / "artifacts" / "model.keras"
    assert copy.read_bytes() == (exported / "model.keras").read_bytes()
    assert formats.read_metadata(copy).classes == CLASSES
