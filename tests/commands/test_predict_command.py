"""`graft predict` with a model that needs no network: its classes are the brightness of the photo,
and two odd names."""

import argparse
import csv
import io
import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graft.commands import predict as command
from graft.description import Description
from graft.scoring.predictions import Predictions
from graft.serving import readers, table
from graft.system import files
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

    def open_model(name, **_):
        return readers.Loaded(
            name, Description("x", 1.0, 4, CLASSES, 0, 0.0, "squash"), probabilities, identity=name
        )

    monkeypatch.setattr(command, "open_model", open_model)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)

    def called(*words, status=0):
        words = words if "--model" in words else (*words, "--model", "m")
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
    assert header == [
        "path",
        "predicted",
        "confidence",
        "problem",
        "dark",
        "class:path",
        "class:class:x",
    ]
    assert good == [
        (photos / "0.png").as_posix(),
        "dark",
        "0.700000",
        "",
        "0.700000",
        "0.200000",
        "0.100000",
    ]
    assert [row[0] for row in bad] == [
        (photos / name).as_posix() for name in ("cut.png", "empty.jpg")
    ]
    assert bad[0][3].startswith("truncated")
    assert bad[0][1:3] + bad[0][4:] == [""] * 5
    said = capsys.readouterr()
    summary = (
        "predict: 1 image predicted by m, 2 could not be read, 1 other files skipped; written to "
        f"{output}\n"
    )
    assert said.out.endswith(summary)
    assert said.err.count("warning: ") == 2


def test_what_pillow_warns_of_is_not_said(run, photos, recwarn):
    # A text of a megabyte, in a file of a few bytes.
    tag = struct.pack("<HHHII", 1, 270, 2, 10**6, 8)
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
    interrupted(monkeypatch, after=1)
    with pytest.raises(KeyboardInterrupt):
        run(photos, "--output", output)
    assert output.read_text() == "what was there"


def interrupted(monkeypatch, after):
    """Ctrl-C in place of row `after`."""
    real = command.predict_files

    def predict(model, paths, **options):
        rows = real(model, paths, **options)
        for _ in range(after):
            yield next(rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "predict_files", predict)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_interrupted_table_is_gone_on_with(run, photos, tmp_path, monkeypatch, capsys, kind):
    outputs = [tmp_path / f"{name}.{kind}" for name in ("whole", "parts")]
    run(photos, "--output", outputs[0], status=2)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupted(patched, after=2)
        run(photos, "--output", outputs[1])
    capsys.readouterr()
    run(photos, "--output", outputs[1], status=2)
    said = capsys.readouterr()
    assert "predict: goes on after 2 rows of an interrupted run" in said.out
    assert (
        "1 image predicted by m, 2 could not be read" in said.out
        and said.err.count("warning: ") == 1
    )
    assert outputs[1].read_bytes() == outputs[0].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == sorted(
        output.name for output in outputs
    )


@pytest.mark.parametrize("change", ["model", "columns", "photos"])
def test_a_half_finished_table_of_something_else_is_begun_anew(
    run, photos, tmp_path, monkeypatch, capsys, change
):
    output = tmp_path / "out.csv"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupted(patched, after=2)
        run(photos, "--output", output)
    if change == "photos":
        (photos / "00.png").write_bytes((photos / "0.png").read_bytes())
    more = {"model": ["--model", "other"], "columns": ["--top", 2], "photos": []}[change]
    run(photos, "--output", output, *more, status=2)
    assert "begun anew" in capsys.readouterr().out
    names = ["0.png", *["00.png"] * (change == "photos"), "cut.png", "empty.jpg"]
    assert [Path(row["path"]).name for row in files.read_csv(output)] == names


def test_standard_input_with_other_photos_is_refused_and_the_table_kept(
    run, photos, tmp_path, monkeypatch
):
    output, names = tmp_path / "out.csv", ["0.png", "cut.png", "empty.jpg"]

    def stdin(names):
        monkeypatch.setattr(
            sys,
            "stdin",
            io.TextIOWrapper(io.BytesIO("".join(f"{photos / n}\n" for n in names).encode())),
        )

    stdin(names)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupted(patched, after=2)
        run("-", "--output", output)
    stdin(names[1:])
    with pytest.raises(GraftError, match="standard input begins with other photos than"):
        run("-", "--output", output)
    stdin(names)
    run("-", "--output", output, status=2)
    assert [Path(row["path"]).name for row in files.read_csv(output)] == names


KILLED = """
import sys, time
sys.path[:0] = [{root!r}]
import numpy as np
from pathlib import Path
from graft.description import Description
from graft.serving import predict, readers, table
table.CHECKPOINT_SECONDS = 0.01
model = readers.Loaded("m", Description("x", 1.0, 4, ("a", "b"), 0, 0.0, "squash"),
    lambda batch: time.sleep(0.002) or np.full((len(batch), 2), 0.5, np.float32))
with table.open_table(Path({output!r}), table.Columns(("a", "b")), "m") as written:
    for row in predict.predict(model, written.rest(predict.Sources([{listed!r}])), batch_size=7):
        written.put(row)
"""


def test_rows_are_neither_doubled_nor_lost_by_sigkill(photos, tmp_path):
    """Killed again and again, at whatever moment, until it is done."""
    listed, output = tmp_path / "list.txt", tmp_path / "out.csv"
    paths = [f"{photos.as_posix()}/{'0.png' if k % 5 else f'gone {k},.png'}" for k in range(2000)]
    listed.write_text("\n".join(paths))
    code = KILLED.format(
        root=str(Path(__file__).parents[2]), output=str(output), listed=f"@{listed}"
    )
    kills = 0
    while not output.exists():
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
        state, part = tmp_path / ".out.csv.part.json", tmp_path / ".out.csv.part"
        before = state.read_text() if state.exists() else ""
        while (
            process.poll() is None
            and kills < 3
            and (not state.exists() or state.read_text() == before)
        ):
            time.sleep(0.005)
        if process.poll() is None and kills < 3:
            process.kill()
            process.wait()
            kills += 1
            # What a run writes after its last note, cut off within a row.
            with part.open("ab") as file:
                file.write(b"/photos/half a r")
        assert process.wait() in (0, -9)
    assert kills == 3
    assert [row["path"] for row in files.read_csv(output)] == paths


def test_two_runs_into_one_table_at_once_are_refused(run, photos, tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        table.open_table(tmp_path / "out.csv", table.Columns(CLASSES), "m") as first,
    ):
        with pytest.raises(GraftError, match="another `graft predict` writes it now"):
            run(photos, "--output", tmp_path / "out.csv")
        assert first.done.rows == 0
        raise KeyboardInterrupt
    run(photos, "--output", tmp_path / "out.csv", status=2)


def test_parquet_has_typed_columns_and_null_where_nothing_is(run, photos, tmp_path):
    from pyarrow import parquet

    odd = photos / 'a "quoted", \r\n name.png'
    odd.write_bytes((photos / "0.png").read_bytes())
    run(photos, "--output", tmp_path / "out.parquet", status=2)
    found = parquet.read_table(tmp_path / "out.parquet")
    assert [str(field.type) for field in found.schema] == [
        "string",
        "string",
        "double",
        "string",
        *["double"] * 3,
    ]
    rows = {Path(row["path"]).name: row for row in found.to_pylist()}
    assert (rows["0.png"]["confidence"], rows["0.png"]["problem"]) == (0.7, None)
    assert (rows["cut.png"]["predicted"], rows["cut.png"]["dark"]) == (None, None)
    assert rows[odd.name]["path"] == odd.as_posix()


def test_parquet_without_its_package_is_one_line(run, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(GraftError, match="Parquet needs pyarrow: pip install pyarrow"):
        run(photos, "--output", tmp_path / "out.parquet")


def test_top_gives_the_likeliest_classes_in_their_order(run, photos, tmp_path, capsys):
    run(photos / "0.png", "--top", 2)
    assert capsys.readouterr().out.splitlines()[0].endswith("0.png  (20.0% path)")
    run(photos, "--top", 2, "--output", tmp_path / "out.csv", status=2)
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        header, good, *_ = csv.reader(file)
    assert header == ["path", "predicted", "confidence", "problem", "predicted_2", "confidence_2"]
    assert good[1:] == ["dark", "0.700000", "", "path", "0.200000"]
    run(photos / "0.png", "--top", 9, "--output", tmp_path / "out.jsonl")
    (row,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert list(row["probabilities"].items()) == [("dark", 0.7), ("path", 0.2), ("class:x", 0.1)]
    with pytest.raises(GraftError, match="--top 0: at least 1"):
        run(photos, "--top", 0)


def test_an_output_that_cannot_be_written_is_one_line(run, photos):
    with pytest.raises(GraftError, match=r"--output .*out.csv: cannot be written: "):
        run(photos, "--output", photos / "notes.txt" / "out.csv")


def test_output_of_an_unknown_kind_is_refused_before_any_work(run):
    with pytest.raises(
        GraftError, match=r"--output out.xlsx: must end in .csv, .jsonl or .parquet"
    ):
        run("no photo", "--output", "out.xlsx")


@pytest.mark.parametrize(
    ("names", "status"), [(["0.png"], 0), (["0.png", "cut.png"], 2), (["cut.png", "empty.jpg"], 1)]
)
def test_the_exit_status_says_whether_files_could_be_read(run, photos, tmp_path, names, status):
    sources = [photos / name for name in names]
    run(*sources, status=status)
    run(*sources, "--output", tmp_path / "out.csv", status=status)
    assert len((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()) == 1 + len(names)


ODD = ("path", "problem", "confidence", "predicted", "label", "group", "class:x")


def test_columns_are_those_of_evaluates_table(photos, tmp_path, monkeypatch):
    """Whatever a class is called, a column comes once, and under the same name in both."""
    model = readers.Loaded(
        "m",
        Description("x", 1.0, 4, ODD, 0, 0.0, "squash"),
        lambda batch: np.full((len(batch), 7), 1 / 7),
        identity="m",
    )
    monkeypatch.setattr(command, "open_model", lambda name, **_: model)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.predict(
        parser.parse_args([str(photos / "0.png"), "--output", str(tmp_path / "out.csv")])
    )
    Predictions(("a",), [0], np.full((1, 7), 1 / 7), ODD).write(tmp_path / "evaluate.csv")
    headers = [
        next(csv.reader((tmp_path / name).open(encoding="utf-8")))
        for name in ("out.csv", "evaluate.csv")
    ]
    assert all(len(set(header)) == len(header) for header in headers)
    columns = [f"class:{name}" for name in ODD]
    assert [[name for name in header if name.startswith("class:")] for header in headers] == [
        columns,
        columns,
    ]
    assert [name for name in headers[1] if name in headers[0] and name not in columns] == [
        "path",
        "predicted",
        "confidence",
    ]
