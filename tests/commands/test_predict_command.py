"""`graft predict` with a model that needs no network: its classes are the brightness of the photo, and two odd names."""

import argparse
import csv
import json
import struct

import numpy as np
import pytest
from PIL import Image

from graft.commands import predict as command
from graft.description import Description
from graft.scoring.predictions import Predictions
from graft.serving import readers
from graft.serving.predict import Prediction
from graft.system.console import GraftError

CLASSES = ("dark", "path", "class:x")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos ü"
    folder.mkdir()
    Image.new("RGB", (9, 7), (51, 0, 0)).save(folder / "0.png")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:40])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def run(monkeypatch):
    """run(sources, model=…, output=…): the command, as its parser calls it."""

    def probabilities(batch):
        bright = batch[:, 0, 0, 0] / 255
        return np.stack([0.9 - bright, bright, np.full(len(batch), 0.1)], axis=1)

    def open_model(name):
        return readers.Loaded(name, Description("x", 1.0, 4, CLASSES, 0, 0.0, "squash"), probabilities)

    monkeypatch.setattr(command, "open_model", open_model)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)

    def called(*words, status=0):
        try:
            command.predict(parser.parse_args([str(word) for word in words]))
            found = 0
        except SystemExit as end:
            found = end.code
        assert found == status

    return called


def test_csv_has_every_column_once(run, photos, tmp_path, capsys):
    output = tmp_path / "new folder" / "out.csv"
    run(photos, "--model", "m", "--output", output, status=2)
    assert b"\r" not in output.read_bytes()
    with output.open(encoding="utf-8", newline="") as file:
        header, good, *bad = csv.reader(file)
    assert header == ["path", "predicted", "confidence", "problem", "dark", "class:path", "class:class:x"]
    assert good == [(photos / "0.png").as_posix(), "dark", "0.700000", "", "0.700000", "0.200000", "0.100000"]
    assert [row[0] for row in bad] == [(photos / name).as_posix() for name in ("cut.png", "empty.jpg")]
    assert bad[0][3].startswith("truncated")
    assert bad[0][1:3] + bad[0][4:] == [""] * 5
    said = capsys.readouterr()
    summary = f"predict: 1 image predicted by m, 2 could not be read, 1 other files skipped; written to {output}\n"
    assert said.out.endswith(summary)
    assert said.err.count("warning: ") == 2


def test_what_pillow_warns_of_is_not_said(run, photos, recwarn):
    tag = struct.pack("<HHHII", 1, 270, 2, 10**6, 8)  # a text of a megabyte, in a file of a few bytes
    (photos / "odd.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + tag + bytes(4))
    run(photos, "--model", "m", status=2)
    assert [str(warning.message) for warning in recwarn] == []


def test_json_lines(run, photos, tmp_path):
    output = tmp_path / "out.jsonl"
    run(photos, "--output", output, status=2)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert rows[0] == {
        "path": (photos / "0.png").as_posix(),
        "predicted": "dark",
        "confidence": 0.7,
        "probabilities": {"dark": 0.7, "path": 0.2, "class:x": 0.1},
    }
    assert set(rows[1]) == {"path", "problem"}
    assert len(rows) == 3


def test_lines_on_the_terminal(run, photos, capsys):
    run(photos / "0.png", photos / "cut.png", "--model", "m", status=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f" 70.0%  dark     {(photos / '0.png').as_posix()}"
    assert lines[1].startswith(f"     -  -        {(photos / 'cut.png').as_posix()}  (truncated: ")
    assert lines[2] == "predict: 1 image predicted by m, 1 could not be read"


def test_output_appears_whole_or_not_at_all(run, photos, tmp_path, monkeypatch):
    output = tmp_path / "out.csv"
    output.write_text("what was there")

    def fail(*_):
        yield Prediction("x", problem="y")
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "predict_files", fail)
    with pytest.raises(KeyboardInterrupt):
        run(photos, "--output", output)
    assert output.read_text() == "what was there"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "photos ü"]


def test_an_output_that_cannot_be_written_is_one_line(run, photos):
    with pytest.raises(GraftError, match=r"--output .*out.csv: cannot be written: "):
        run(photos, "--output", photos / "notes.txt" / "out.csv")


def test_output_of_an_unknown_kind_is_refused_before_any_work(run):
    with pytest.raises(GraftError, match=r"--output out.xlsx: must end in .csv or .jsonl"):
        run("no photo", "--output", "out.xlsx")


@pytest.mark.parametrize(("names", "status"), [(["0.png"], 0), (["0.png", "cut.png"], 2), (["cut.png", "empty.jpg"], 1)])
def test_the_exit_status_says_whether_files_could_be_read(run, photos, tmp_path, names, status):
    sources = [photos / name for name in names]
    run(*sources, status=status)
    run(*sources, "--output", tmp_path / "out.csv", status=status)
    assert len((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()) == 1 + len(names)


ODD = ("path", "problem", "confidence", "predicted", "label", "group", "class:x")


def test_columns_are_those_of_evaluates_table(photos, tmp_path, monkeypatch):
    """Whatever a class is called, a column comes once, and under the same name in both."""
    model = readers.Loaded("m", Description("x", 1.0, 4, ODD, 0, 0.0, "squash"), lambda batch: np.full((len(batch), 7), 1 / 7))
    monkeypatch.setattr(command, "open_model", lambda name: model)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.predict(parser.parse_args([str(photos / "0.png"), "--output", str(tmp_path / "out.csv")]))
    Predictions(("a",), [0], np.full((1, 7), 1 / 7), ODD).write(tmp_path / "evaluate.csv")
    headers = [next(csv.reader((tmp_path / name).open(encoding="utf-8"))) for name in ("out.csv", "evaluate.csv")]
    assert all(len(set(header)) == len(header) for header in headers)
    columns = [f"class:{name}" for name in ODD]
    assert [[name for name in header if name.startswith("class:")] for header in headers] == [columns, columns]
    assert [name for name in headers[1] if name in headers[0] and name not in columns] == ["path", "predicted", "confidence"]
