import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages.console import GraftError
from stages.dataset import images
from stages.serving import formats, predict, pyfunc

from .conftest import CLASSES, SIZE, encode, make_classifier

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def photos(tmp_path, pictures):
    """Three photos, one of them under a wrong name, one damaged, one empty; a text and a hidden photo that do not count."""
    folder = tmp_path / "photos ü"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "0.png").write_bytes(encode(pictures[0]))
    (folder / "deep" / "er" / "1.JPG").write_bytes(encode(pictures[1]))  # a PNG in truth
    (folder / "deep" / "no suffix").write_bytes(encode(pictures[2]))
    (folder / "cut.png").write_bytes(encode(pictures[3])[:90])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden" / "4.png").write_bytes(encode(pictures[4]))
    (folder / ".5.png").write_bytes(encode(pictures[5]))
    return folder


@pytest.fixture(scope="module")
def right(exported, tmp_path_factory):
    """An export folder whose resizing rule is the one that `images.load` follows."""
    model, _ = make_classifier()
    folder = tmp_path_factory.mktemp("right")
    about = formats.Metadata(CLASSES, SIZE, images.RESIZE, 2.0)
    formats.write(["keras", "tflite"], formats.self_contained(model, 2.0), about, folder)
    return folder


ORDER = ["0.png", "cut.png", "empty.jpg", "deep/no suffix", "deep/er/1.JPG"]


def test_find_looks_at_content_and_passes_over_the_rest(photos):
    files, skipped = predict.find([photos])
    assert [f.relative_to(photos).as_posix() for f in files] == ORDER
    assert skipped == 1


def test_find_takes_files_patterns_and_nothing_twice(photos):
    named = [photos / "notes.txt", str(photos / "*.png"), str(photos / "**" / "*.JPG"), photos / "0.png"]
    files, skipped = predict.find(named)
    assert [f.name for f in files] == ["notes.txt", "0.png", "cut.png", "1.JPG"]
    assert skipped == 0
    odd = photos / "a[1].png"
    odd.write_bytes((photos / "0.png").read_bytes())
    assert predict.find([odd])[0] == [odd]  # a name with brackets is a name before it is a pattern


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.png"])
def test_a_source_that_is_not_there(source, tmp_path):
    with pytest.raises(GraftError, match="no such file, folder or pattern with a match"):
        predict.find([tmp_path / source])


def test_a_folder_without_pictures(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(GraftError, match=r"no image there \(1 other files\)"):
        predict.find([tmp_path])


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_damaged_files_are_listed_at_their_place(batch_size, right, photos, expected):
    files, _ = predict.find([photos])
    rows = list(predict.predict(predict.open_model(right / "model.tflite"), files, batch_size=batch_size))
    assert [row.path for row in rows] == [(photos / name).as_posix() for name in ORDER]
    assert [row.problem.partition(":")[0] for row in rows] == ["", "truncated", "empty", "", ""]
    good = [row for row in rows if not row.problem]
    for row, want in zip(good, expected[[0, 2, 1]]):
        assert row.predicted == CLASSES[want.argmax()]
        np.testing.assert_allclose(row.probabilities, want, atol=2e-5)
        assert row.confidence == row.probabilities.max()
    assert all(row.probabilities is None and row.predicted == "" for row in rows if row.problem)


def test_csv(right, photos, expected, tmp_path, capsys):
    output = tmp_path / "new folder" / "out.csv"
    assert predict.command(str(right), [str(photos)], output=str(output)) == (3, 2)
    assert b"\r" not in output.read_bytes()
    with output.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "predicted", "confidence", "problem", *CLASSES]
    assert [float(rows[0][name]) for name in CLASSES] == pytest.approx(expected[0].tolist(), abs=2e-5)
    assert float(rows[0]["confidence"]) == pytest.approx(expected[0].max(), abs=2e-5)
    assert rows[1]["problem"].startswith("truncated")
    assert (rows[1]["predicted"], rows[1]["confidence"], rows[1]["a"]) == ("", "", "")
    said = capsys.readouterr()
    assert f"predict: 3 images predicted by {right / 'model.keras'}, 2 could not be read, 1 other files skipped" in said.out
    assert said.err.count("warning: ") == 2


def test_json_lines(right, photos, expected, tmp_path):
    output = tmp_path / "out.jsonl"
    predict.command(str(right / "model.tflite"), [str(photos)], output=output)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert list(rows[0]["probabilities"]) == list(CLASSES)
    assert list(rows[0]["probabilities"].values()) == pytest.approx(expected[0].tolist(), abs=2e-5)
    assert set(rows[1]) == {"path", "problem"}
    assert len(rows) == 5


def test_lines_on_the_terminal(right, photos, expected, capsys):
    predict.command(str(right / "model.tflite"), [str(photos / "0.png"), str(photos / "cut.png")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{expected[0].max():6.1%}  {CLASSES[expected[0].argmax()]:3}  {(photos / '0.png').as_posix()}"
    assert lines[1].startswith(f"     -  -    {(photos / 'cut.png').as_posix()}  (truncated: ")
    assert lines[2].startswith("predict: 1 image predicted by ")


def test_output_appears_whole_or_not_at_all(right, photos, tmp_path, monkeypatch):
    output = tmp_path / "out.csv"
    output.write_text("what was there")

    def fail(*_):
        yield predict.Prediction("x", problem="y")
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "predict", fail)
    with pytest.raises(KeyboardInterrupt):
        predict.command(str(right / "model.tflite"), [str(photos)], output=output)
    assert output.read_text() == "what was there"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "photos ü"]


def test_output_of_an_unknown_kind_is_refused_before_any_work(tmp_path):
    with pytest.raises(GraftError, match=r"--output out.xlsx: must end in .csv or .jsonl"):
        predict.command("no model", ["no photo"], output="out.xlsx")


def test_every_kind_of_model(exported, trained, right, pictures, expected, tmp_path, capsys):
    model, spec = trained
    pyfunc.save(tmp_path / "registered", model, spec)
    for source in (exported, exported / "model.keras", exported / "saved_model", tmp_path / "registered"):
        opened = predict.open_model(source)
        assert (opened.classes, opened.size) == (CLASSES, SIZE)
        np.testing.assert_allclose(opened.run(pictures), expected, atol=2e-5)
        assert "was trained on photos resized otherwise (squash)" in capsys.readouterr().err
    assert predict.open_model(exported).name == str(exported / "model.onnx")
    assert predict.open_model(right).name == str(right / "model.keras")


def test_onnx_is_passed_over_where_its_runtime_is_missing(exported, monkeypatch):
    real = formats.importlib.util.find_spec
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    assert predict.open_model(exported).name == str(exported / "model.keras")


def test_an_onnx_model_needs_no_tensorflow(exported, photos):
    code = (
        "import sys; from stages.serving import predict\n"
        "print(predict.command(sys.argv[1], [sys.argv[2]]), 'tensorflow' in sys.modules, 'mlflow' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, exported, photos / "0.png"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[-1] == "(1, 0) False False"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "no exported model in it; run `dvc repro export` first"),
        ("model.txt", "not an exported model: neither a SavedModel's folder nor one of .keras"),
        ("other.keras", "no such model"),
    ],
)
def test_no_model_there(name, message, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(GraftError, match=message):
        predict.open_model(tmp_path / name)


def test_a_store_that_is_not_there_is_not_made(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for given in ({}, {"tracking_uri": f"sqlite:///{tmp_path}/mlruns/mlflow.db"}):
        with pytest.raises(
            GraftError, match=r"^models:/graft@champion: no MLflow store at .*mlflow\.db; run `dvc repro` first"
        ):
            predict.open_model("models:/graft@champion", **given)
    assert list(tmp_path.iterdir()) == []
