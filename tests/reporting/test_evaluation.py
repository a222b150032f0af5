"""The files of `evaluate`: all that they hold follows from the arguments, and predictions.csv
proves the figures."""

import csv
import dataclasses
import warnings

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sk

from graft.reporting import plots
from graft.reporting.evaluation import METRICS, write_evaluation
from graft.scoring import metrics
from graft.scoring.calibration import Calibration, chance_calibration_error
from graft.scoring.history import History
from graft.scoring.predictions import Predictions
from graft.scoring.results import Results
from graft.scoring.statistics import compare_paired
from graft.system.files import read_json

PNG = {
    "confusion_matrix", "confusion_matrix_normalised", "curves", "grad_cam",
    "head_against_fine_tuned", "model_graph", "model_graph_head", "per_class", "precision_recall",
    "prediction_grid", "reliability", "roc", "top_confusions", "worst_mistakes",
}  # fmt: skip
CSV = {"per_class", "precision_recall", "reliability", "roc", "top_confusions", "worst_mistakes"}


def files(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_everything_is_written(written):
    folder, _ = written
    top = {
        "metrics.json",
        "predictions.csv",
        "report.json",
        "report.txt",
        "confusion_matrix.csv",
        "card.html",
    }
    drawn = {f"plots/{name}.png" for name in PNG} | {f"plots/{name}.csv" for name in CSV}
    assert set(files(folder)) == top | drawn
    assert not any(
        b"\r\n" in content for name, content in files(folder).items() if not name.endswith(".png")
    )


def test_written_twice_is_the_same_bytes(written, results, arguments, images, tmp_path):
    write_evaluation(tmp_path, results, images=images, **arguments)
    assert files(tmp_path) == files(written[0])
    assert list(images.asked) == sorted(set(images.asked))
    assert len(images.asked) < 90


def test_figures_follow_from_predictions_csv(written, results):
    folder, evaluation = written
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    index = {name: k for k, name in enumerate(results.predictions.classes)}
    y = np.array([index[row[1]] for row in rows])
    p = np.array([[float(v) for v in row[4:7]] for row in rows])
    predicted, head = p.argmax(axis=1), np.array([index[row[8]] for row in rows])
    assert [index[row[2]] for row in rows] == predicted.tolist()
    assert p.sum(axis=1) == pytest.approx(np.ones(90), abs=1e-15)
    bare = p**2 / (p**2).sum(axis=1, keepdims=True)

    def ece(q):
        confidence, right = q.max(axis=1), q.argmax(axis=1) == y
        bins = np.ceil(confidence * 15)
        return sum(abs((right[bins == b] - confidence[bins == b]).sum()) for b in range(1, 16)) / 90

    only_head, only_tuned = (
        ((head == y) & (predicted != y)).sum(),
        ((head != y) & (predicted == y)).sum(),
    )
    expected = {
        "n": 90,
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
        "macro_f1": sk.f1_score(y, predicted, average="macro"),
        "weighted_f1": sk.f1_score(y, predicted, average="weighted"),
        "loss": -np.log(p[np.arange(90), y]).mean(),
        "ece": ece(p),
        "roc_auc": sk.roc_auc_score(y, p, multi_class="ovr"),
        "average_precision": sk.average_precision_score(np.eye(3)[y], p),
        "min_class_recall": sk.recall_score(y, predicted, average=None).min(),
        "temperature": 2.0,
        "ece_uncalibrated": ece(bare),
        "ece_calibrated": ece(p),
        "loss_uncalibrated": sk.log_loss(y, bare),
        "loss_calibrated": sk.log_loss(y, p),
        "head_accuracy": sk.accuracy_score(y, head),
        "head_difference": (only_tuned - only_head) / 90,
    }
    read = Predictions.read(folder / "predictions.csv")
    again = metrics.summary(read, resamples=200, seed=7)
    ends = {key: again[key] for key in again if key.endswith(("_low", "_high"))}
    paired = compare_paired(head == y, predicted == y, groups=read.groups, resamples=200, seed=7)
    ends |= {
        "head_difference_low": paired.low,
        "head_difference_high": paired.high,
        "head_p_value": paired.p_value,
    }
    ends |= dict(
        zip(("ece_by_chance", "ece_by_chance_high"), chance_calibration_error(read, seed=7))
    )
    assert binomtest(int(only_tuned), int(only_tuned + only_head)).pvalue == pytest.approx(
        paired.p_value, abs=0.05
    )
    report = read_json(folder / "report.json")
    assert report == evaluation.report
    assert set(report["summary"]) == set(expected) | set(ends)
    assert report["summary"] == pytest.approx(expected | ends, abs=1e-9)
    assert report["confusion_matrix"] == sk.confusion_matrix(y, predicted).tolist()


def test_metrics_json_holds_what_a_table_has_room_for_and_the_report_everything(written):
    folder, evaluation = written
    figures = read_json(folder / "metrics.json")
    assert list(figures) == [
        "n",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "macro_f1",
        "loss",
        "ece",
        "head_accuracy",
    ]
    assert (
        figures == evaluation.metrics == {key: evaluation.report["summary"][key] for key in METRICS}
    )


DEGENERATE = {
    "three images": ([0, 1, 0], [[0.2, 0.7, 0.1], [0.9, 0.05, 0.05], [0.4, 0.6, 0]]),
    "one class, all right, certain": ([1, 1, 1, 1], [[0, 1, 0]] * 4),
    "a class missing, another never predicted": (
        [0, 1, 1, 0] * 5,
        [[0.6, 0.1, 0.3], [0.5, 0.2, 0.3]] * 10,
    ),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_test_sets_are_written_without_a_warning(
    name, results, arguments, images, tmp_path
):
    y, p = DEGENERATE[name]
    found = Predictions([str(i) for i in range(len(y))], y, p, results.predictions.classes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation = write_evaluation(
            tmp_path,
            dataclasses.replace(results, predictions=found, head=found),
            images=images,
            **arguments,
        )
    summary = evaluation.report["summary"]
    assert (summary["head_difference"], summary["head_p_value"]) == (0, 1)
    assert f"Tested on {len(y)} images" in evaluation.page
    assert {path.stem for path in (tmp_path / "plots").glob("*.png")} == PNG


def test_no_fine_tuning_leaves_the_heads_curves(results, history, arguments, images, tmp_path):
    """`fine_tune.layers` 0: the fine-tuned model is the head's, and no epoch was added."""
    alone = Results(results.head, results.head, Calibration(), History(history.head))
    evaluation = write_evaluation(tmp_path, alone, images=images, **arguments)
    assert {path.stem for path in (tmp_path / "plots").glob("*.png")} == PNG
    assert evaluation.report["summary"]["head_difference"] == 0
    assert "<dt>epochs, fine-tuning</dt><dd>0</dd>" in evaluation.page
    assert "peak lr, head" in evaluation.page
    assert "peak lr, fine-tuning" not in evaluation.page
    assert "did not call for temperature scaling" in evaluation.page


def test_a_hundred_classes(simulate, history, about, images, tmp_path):
    keras = pytest.importorskip("keras")
    image = keras.Input((16, 16, 3), dtype="uint8", name="image")
    x = keras.layers.Conv2D(4, 3, name="features")(keras.layers.Rescaling(1 / 255)(image))
    x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
    model = keras.Model(
        image, keras.layers.Dense(100, activation="softmax", name="probabilities")(x)
    )
    classes = [f"kind {k}" for k in range(100)]
    found, head = (simulate(2000, 100, signal=signal, classes=classes) for signal in (4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation = write_evaluation(
            tmp_path,
            Results(found, head, history=history),
            models=(model, model),
            images=images,
            about=about,
            resamples=50,
        )
    assert len(evaluation.page) < 5_000_000
    assert "most often confused" in evaluation.page
    assert all(f"<td>{name}</td>" in evaluation.page for name in classes)
    assert evaluation.metrics["accuracy"] == found.correct.mean()
    assert len(images.asked) < 100


def test_top_confusions():
    matrix = np.array([[8, 2, 0], [5, 4, 1], [2, 0, 0]])
    assert plots.top_confusions(matrix) == [
        (1, 0, 5, 0.5),
        (0, 1, 2, 0.2),
        (2, 0, 2, 1.0),
        (1, 2, 1, 0.1),
    ]


def test_worst_mistakes_are_the_wrong_ones_by_confidence():
    p = [[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6]]
    assert plots.worst_mistakes(Predictions("abcd", [1, 0, 0, 0], p, "xy")).tolist() == [0, 2, 3]


def test_figures_of_a_training_stage(simulate, history, residual_model, tmp_path):
    svg = plots.draw_training(tmp_path, simulate(60, 3), history, residual_model)
    names = {"curves", "confusion_matrix", "confusion_matrix_normalised", "model_graph"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png" for name in names}
    assert set(svg) == names
