"""graft benchmark on a small exported model: a row per format, a page, the same figures in MLflow,
and nothing below data/."""

import dataclasses
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from graft.commands import benchmark, main
from graft.description import FILES
from graft.reporting import format_table
from graft.serving import benchmark as formats
from graft.serving import parity, photo_parity, readers
from graft.system import paths
from graft.system.console import GraftError
from graft.tracking import runs, store
from tests.serving.conftest import make_images, write_all

ROW = formats.Measured(
    "tflite",
    13_480_000,
    200,
    0.92,
    0.995,
    50,
    0.98,
    "jpeg_75",
    {"1": (10.26, 10.8), "32": (8.0, 9.5)},
    182.4,
    0.2163,
)


def test_a_row_has_what_was_measured():
    (cells,) = format_table.cells([ROW])
    assert cells[:6] == ["tflite", "13.48", "0.9200", "0.874 to 0.950", "0.9950", "0.9800 jpeg_75"]
    assert cells[6:] == ["10.3", "10.8", "8.0", "9.5", "0.22", "182"]
    lines = format_table.text([ROW, dataclasses.replace(ROW, format="tflite_dynamic")]).splitlines()
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1


def test_the_page_needs_nothing_but_itself():
    page = format_table.page([ROW], {"data": "<photos> & more"})
    assert "&lt;photos&gt; &amp; more" in page
    assert re.findall("<td>(.*?)</td>", page) == format_table.cells([ROW])[0]
    assert re.findall(r"(?:src|href|url\()", page) == []


def test_times_are_of_one_photo(monkeypatch):
    clock = iter(np.arange(0, 100, 0.016))
    monkeypatch.setattr(formats.time, "perf_counter", lambda: next(clock))
    asked = []
    found = formats.times(
        lambda batch: asked.append(len(batch)), np.zeros((32, 2, 2, 3), np.uint8), 0.1
    )
    assert found == (0.5, 0.5)  # 16 ms for 32
    assert set(asked) == {32} and len(asked) >= 4


def test_a_format_and_predict_take_turns_and_the_first_does_not_count(monkeypatch):
    # 9 s and 4 s, then 1 s and 4 s.
    turns = [(t, t + (9 if t == 0 else 1), t + 2, t + 6) for t in (0, 10, 20, 30)]
    clock = iter([0.0, *(moment for turn in turns for moment in turn), 40.0])
    monkeypatch.setattr(formats.time, "perf_counter", lambda: next(clock))
    asked = []
    network = SimpleNamespace(predict=lambda pixels, verbose: asked.append("predict"))
    assert (
        formats.beside_predict(
            lambda pixels: asked.append("format"), network, np.zeros((1, 2, 2, 3), np.uint8), 0
        )
        == 0.25
    )
    assert asked == ["format", "predict"] * 4


def test_a_format_is_measured(tmp_path, monkeypatch):
    write_all(tmp_path)
    images = make_images(24)
    expected = readers.load("onnx", tmp_path)(images)
    small = SimpleNamespace(labels=np.zeros(24, int))
    against = parity.Reference(images, expected.argmax(1), expected)
    photos = [
        photo_parity.PhotoCheck(name, 5, share, 1.0)
        for name, share in (("canvas", 1.0), ("nearest", 0.8))
    ]
    monkeypatch.setattr(
        photo_parity, "check", lambda *_, most: photos if most == 5 else pytest.fail()
    )
    found = formats.measure(
        "tflite", tmp_path, lambda description: (small, against), seconds=0.01, photos=5
    )
    assert (found.format, found.n, found.accuracy, found.agreement) == ("tflite", 24, 1.0, 1.0)
    assert (found.worst, found.photo_agreement, found.photos) == ("nearest", 0.8, 5)
    assert found.bytes == (tmp_path / "model.tflite").stat().st_size
    assert set(found.ms) == {"1", "32"} and found.memory_mb > 20 and found.of_predict > 0
    json.dumps(dataclasses.asdict(found), allow_nan=False)


@pytest.fixture
def recorded(clone, monkeypatch):
    """What goes to MLflow, of an export folder whose formats are not run."""
    kept = {}
    (clone / paths.EXPORT).mkdir(parents=True)
    for name in ("model.keras", "model.tflite"):
        (clone / paths.EXPORT / name).touch()
    monkeypatch.setattr(
        benchmark, "_in_a_process", lambda format, args: dataclasses.replace(ROW, format=format)
    )
    monkeypatch.setattr(store, "connect", lambda params: SimpleNamespace(uri="sqlite:///x"))
    keep = {"log_text": lambda text, name: kept.update({name: text}), "log_metrics": kept.update}
    run = SimpleNamespace(pipeline_name="exp", **keep)
    monkeypatch.setattr(
        runs, "find_made", lambda connection, params, stage: run if stage == "export" else None
    )
    return kept


def test_the_page_and_the_figures_are_kept(recorded, clone, capsys):
    main.main(["benchmark", "--output", str(clone / "measured")])
    page = (clone / "measured" / "benchmark.html").read_text(encoding="utf-8")
    assert recorded["benchmark.html"] == page
    assert list(json.loads((clone / "measured" / "benchmark.json").read_text())) == [
        "keras",
        "tflite",
    ]
    figures = recorded["benchmark"]["tflite"]
    assert figures["of_predict"] == 0.2163
    assert (figures["batch_32"], figures["memory_mb"]) == ({"p50_ms": 8.0, "p95_ms": 9.5}, 182.4)
    said = capsys.readouterr().out
    # Each takes half a minute.
    assert said.startswith("keras, 1 of 2: timed in a process of its own\ntflite, 2 of 2: ")
    assert "recorded with export of exp" in said
    assert sorted(p.name for p in (clone / paths.EXPORT).iterdir()) == [
        "model.keras",
        "model.tflite",
    ]


def test_nothing_is_written_below_data(recorded, clone, capsys):
    with pytest.raises(SystemExit):
        main.main(["benchmark", "--output", "data/export"])
    assert "times change from run to run" in capsys.readouterr().err
    assert recorded == {}


def test_without_an_export_there_is_nothing_to_measure(clone, capsys):
    with pytest.raises(SystemExit):
        main.main(["benchmark"])
    assert "no exported model in it" in capsys.readouterr().err


def test_a_format_that_does_not_run_is_named(clone):
    args = SimpleNamespace(seconds=0.1, photos=1)
    with pytest.raises(GraftError, match=r"^onnx cannot be measured: .*no such model"):
        benchmark._in_a_process("onnx", args)
    assert "onnx" in FILES
