"""The tables of a stage."""

import numpy as np
import pytest

from graft.reporting import report
from graft.scoring import metrics
from graft.scoring.history import History
from graft.scoring.predictions import Predictions
from graft.scoring.results import TrainingResult
from graft.system.files import read_csv, read_json


def test_a_training_stage_leaves_tables_and_no_picture(simulate, history, tmp_path):
    found, shared = simulate(60, 3), {"seed": 3, "resamples": 50}
    trained = TrainingResult(history, found, temperature=1.25, epochs=2)
    summary = report.write_training(tmp_path / "a", trained, **shared)
    report.write_training(tmp_path / "b", trained, **shared)
    written = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    tables = {
        "metrics.json",
        "report.json",
        "report.txt",
        "confusion_matrix.csv",
        "curves.csv",
        "predictions.csv",
    }
    assert set(written) == tables
    assert summary == metrics.summary(found, resamples=50, seed=3)
    assert read_json(tmp_path / "a" / "report.json")["summary"] == summary
    figures = read_json(tmp_path / "a" / "metrics.json")
    expected = {
        key: summary[key]
        for key in ("n", "accuracy", "accuracy_low", "accuracy_high", "macro_f1", "loss")
    }
    assert figures == expected | {"epochs": 2, "temperature": 1.25}
    assert History.read(tmp_path / "a" / "curves.csv") == history
    assert list(read_csv(tmp_path / "a" / "predictions.csv")[0])[-2:] == ["class 2", "group"]


def test_confusion_matrix_csv_is_the_matrix(tmp_path):
    p = np.eye(3)[[0, 0, 1, 1, 1]]
    found = Predictions("vwxyz", [0, 0, 0, 1, 2], p, ["actual", 'a "b", c', "猫"])
    report.write_report(tmp_path, metrics.classification_report(found, resamples=10))
    text = (tmp_path / "confusion_matrix.csv").read_text(encoding="utf-8")
    assert text == 'actual,actual,"a ""b"", c",猫\nactual,2,1,0\n"a ""b"", c",0,1,0\n猫,0,1,0\n'


def test_report_text_is_aligned_whatever_the_script():
    p = np.full((3, 3), 0.15)
    p[[0, 1, 2], [0, 1, 1]] = 0.7
    found = Predictions("xyz", [0, 1, 2], p, ["猫", "1e3", "é" + "\u0301"])
    lines = report.report_text(metrics.classification_report(found, resamples=10)).splitlines()
    assert lines[1].startswith("猫" + " " * 17)
    assert lines[2].startswith("1e3" + " " * 16)
    assert lines[1].endswith("      1")
    assert "1.000 [0.207, 1.000]" in lines[1]
    assert "[     –      ]" in lines[3]
    assert "accuracy           0.667 [0.208, 0.939]" in lines
    assert lines[-1] == "3 images; [low, high]: 95% intervals."


@pytest.mark.parametrize(("p_value", "text"), [(0.25, "0.250"), (0.0, "0.000"), (2e-7, "2e-07")])
def test_report_text_shows_figures_that_round_to_nothing(simulate, p_value, text):
    content = metrics.classification_report(simulate(10, 2), resamples=10)
    content["summary"]["head_p_value"] = p_value
    assert f"head p value       {text}" in report.report_text(content).splitlines()
