"""Prediction on a cluster: the rows that one process gives, in their order, computed without
TensorFlow."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graft import runtimes
from graft.description import FILES
from graft.serving import distributed, readers
from graft.serving.distributed import PredictionJob, predict_on_cluster
from graft.serving.predict import open_model, predict
from graft.system.console import GraftError
from tests.serving.conftest import make_images, write_all


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    write_all(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    for i, image in enumerate(make_images(30)):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    (tmp_path / "07.png").write_bytes(b"no picture")
    return sorted(tmp_path.glob("*.png"))


def told(rows):
    return [
        (
            row.path,
            row.predicted,
            None if row.probabilities is None else row.probabilities.tobytes(),
            row.problem,
        )
        for row in rows
    ]


def job(path):
    model = open_model(path)
    return model, PredictionJob(
        path.read_bytes(), path.suffix, model.description.image_size, model.description.resize
    )


@pytest.mark.parametrize("name", ["tflite", "onnx"])
def test_a_block_is_what_predict_gives_of_its_photos(exported, photos, name):
    model, made = job(exported / FILES[name])
    start = pickle.loads(pickle.dumps(made)).start()
    assert told(start(photos[:10])) == told(predict(model, photos[:10]))
    assert made.identity()[0] == {"tflite": "litert", "onnx": "onnx"}[name]


def test_a_worker_is_told_apart_by_runtime_and_decoder(monkeypatch):
    made = PredictionJob(b"", ".tflite", 16, "crop")
    before = made.identity()
    monkeypatch.setattr(
        "graft.pixels.probe", lambda size, resize: np.zeros((size, size, 3), np.uint8)
    )
    assert made.identity() != before
    monkeypatch.setattr(runtimes, "version", lambda package: "0.0")
    assert "0.0" in made.identity()


def test_what_a_worker_imports_is_no_tensorflow(exported, photos):
    code = (
        "import sys, pickle; from pathlib import Path; from graft.serving.distributed import "
        "PredictionJob\n"
        f"made = PredictionJob(Path({str(exported / FILES['tflite'])!r}).read_bytes(), '.tflite', "
        "32, 'squash')\n"
        f"made.identity(); made.start()([Path({str(photos[0])!r})])\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_model_that_needs_tensorflow_is_refused(exported, photos):
    with pytest.raises(
        GraftError,
        match=r"--executor ray: .*model\.keras: workers run model\.tflite or model\.onnx",
    ):
        list(predict_on_cluster(readers.load_file(exported / FILES["keras"]), photos))


@pytest.mark.slow
def test_two_workers_give_the_rows_of_one_process_in_their_order(
    ray, exported, photos, monkeypatch
):
    monkeypatch.setattr(distributed, "ROWS", 4)
    monkeypatch.chdir(photos[0].parent)
    model = open_model(exported / FILES["tflite"])
    files = [Path(path.name) for path in reversed(photos)]
    assert told(predict_on_cluster(model, iter(files))) == told(predict(model, files, batch_size=4))
