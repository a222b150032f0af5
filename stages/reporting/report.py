"""The files that the training stages and `evaluate` leave in their folder. The same arguments give the same bytes.

    write_training_report(folder, *, y, probabilities, classes, curves, groups=None, unfrozen_at=None, model=None,
                          trainable=None, resamples=2000, seed=0) -> dict
    write_evaluation(folder, *, paths, y, probabilities, classes, image, groups=None, temperature=1.0, calibrated=False,
                     head_probabilities=None, curves=None, unfrozen_at=None, model=None, trainable=None, facts=None,
                     resamples=2000, seed=0) -> Evaluation
    write_curves(path, curves, *, unfrozen_at=None), read_curves(path) -> (curves, unfrozen_at)
    read_predictions(path) -> Predictions
    write_json(path, content)

Arguments that both writers share:

    folder         pathlib.Path of the stage, e.g. data/evaluate; made if it does not exist
    y              int (n,), class indices: of validation images in training, of test images in the evaluation
    probabilities  float (n, C), what the model says; in the evaluation as shipped: after the temperature if `calibrated`
    classes        C names
    groups         n strings (manifest.csv's `group`, "" = alone) or None
    curves         one dict per epoch, head and fine-tuning in one list: epoch (0-based, counts on over the unfreezing),
                   lr, train_loss, train_accuracy, val_loss, val_accuracy; other keys (seconds) are not written
    unfrozen_at    epoch at which fine-tuning starts, None where there is none
    model          keras.Model, drawn as a graph (and seen through by Grad-CAM in the evaluation); None: no such pictures
    trainable      names of the layers that were trained, coloured in the graph; None: those with `layer.trainable`
    resamples, seed    of the bootstrap behind the intervals; the seed also chooses the photos
"""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stages.reporting import gallery, metrics
from stages.reporting.card import Card, Facts, render_card

CURVES = ("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
PREDICTIONS = ("path", "label", "predicted", "confidence")
AFTER_CLASSES = ("group", "head_predicted")
PREFIX = "class:"  # of a class's column where the class is called like one of the others


def write_training_report(
    folder, *, y, probabilities, classes, curves, groups=None, unfrozen_at=None, model=None, trainable=None, resamples=2000,
    seed=0,
):  # fmt: skip
    """Write what is known after a training stage, on the validation images; the arguments are described above.

    Writes `report.json`, `report.txt`, `confusion_matrix.csv`, `curves.csv`, `plots/curves.png`, `plots/confusion_matrix.png`,
    `plots/confusion_matrix_normalised.png` and, with a model, `plots/model_graph.png`. Returns `metrics.summary(...)` for the
    stage's own `metrics.json`, which is not written here.
    """
    folder = Path(folder)
    plots = folder / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    report = _write_report(folder, y, probabilities, classes, groups=groups, resamples=resamples, seed=seed)
    write_curves(folder / "curves.csv", curves, unfrozen_at=unfrozen_at)
    gallery.draw_training(
        plots, report=report, classes=classes, curves=curves, unfrozen_at=unfrozen_at, model=model, trainable=trainable
    )
    return report["summary"]


@dataclass(frozen=True)
class Evaluation:
    """What `write_evaluation` found: the content of `metrics.json` and of `report.json`, and the card."""

    metrics: dict
    report: dict
    card: Card = field(repr=False)


def write_evaluation(
    folder, *, paths, y, probabilities, classes, image, groups=None, temperature=1.0, calibrated=False, head_probabilities=None,
    curves=None, unfrozen_at=None, model=None, trainable=None, facts=None, resamples=2000, seed=0,
):  # fmt: skip
    """Write everything about the test images; the arguments that are not described above:

    paths               n paths as in the manifest
    image               callable: index into `paths` -> uint8 (S, S, 3), the picture as the model sees it; asked for < 100
    temperature         fitted on the validation images
    calibrated          True: `probabilities` were made with it; False: it is only reported what it would do
    head_probabilities  float (n, C) of the head-only model on the same images, or None
    facts               card.Facts, what the card says about model, data and training

    Writes `metrics.json`, `predictions.csv`, `report.json`, `report.txt`, `confusion_matrix.csv`, `card.html` and, in `plots/`,
    `confusion_matrix`, `confusion_matrix_normalised`, `per_class`, `roc`, `precision_recall`, `reliability`, with what
    they need also `curves`, `head_against_fine_tuned`, `model_graph`, `prediction_grid`, `worst_mistakes`,
    `top_confusions`, `grad_cam` (PNG); `per_class`, `roc`, `precision_recall`, `reliability`, `top_confusions`,
    `worst_mistakes` (CSV).

    Returns an `Evaluation`; `card.render_card(evaluation.card, provenance={...})` gives the page with what changes from
    run to run. `metrics.json` holds `metrics.summary(...)`; `temperature`, `ece_uncalibrated`, `ece_calibrated`,
    `loss_uncalibrated`, `loss_calibrated` (both are functions of predictions.csv and the temperature; `ece` and `loss`
    are those of the shipped probabilities); `ece_by_chance`, `ece_by_chance_high` (mean and 95% quantile of the `ece` that
    perfectly calibrated confidences would show on as many images); and, with `head_probabilities`, `head_accuracy`,
    `head_difference` (fine-tuned minus head) with `_low` and `_high`, `head_p_value`.
    """
    folder = Path(folder)
    plots = folder / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    y, p = np.asarray(y, np.int64), metrics.normalise(probabilities)
    head = None if head_probabilities is None else metrics.normalise(head_probabilities)
    bare, tempered = gallery.calibrations(p, temperature=temperature, calibrated=calibrated)
    report = _write_report(folder, y, p, classes, groups=groups, resamples=resamples, seed=seed)
    figures = {
        **report["summary"],
        "temperature": float(temperature),
        "ece_uncalibrated": metrics.expected_calibration_error(y, bare),
        "ece_calibrated": metrics.expected_calibration_error(y, tempered),
        "loss_uncalibrated": metrics.log_loss(y, bare),
        "loss_calibrated": metrics.log_loss(y, tempered),
    }
    figures["ece_by_chance"], figures["ece_by_chance_high"] = metrics.chance_calibration_error(p, seed=seed)
    against_head = None
    if head is not None:
        against_head = metrics.compare(y, head, p, groups=groups, resamples=resamples, seed=seed)
        figures["head_accuracy"] = against_head.first
        figures["head_difference"] = against_head.difference
        figures["head_difference_low"] = against_head.low
        figures["head_difference_high"] = against_head.high
        figures["head_p_value"] = against_head.p_value
    write_json(folder / "metrics.json", figures)
    write_predictions(folder / "predictions.csv", paths=paths, y=y, probabilities=p, classes=classes, groups=groups, head=head)
    pictures = gallery.draw_evaluation(
        plots, report=report, paths=paths, y=y, probabilities=p, classes=classes, image=image, head=head, curves=curves,
        uncalibrated=bare if calibrated and temperature != 1 else None, unfrozen_at=unfrozen_at, model=model,
        trainable=trainable, seed=seed,
    )  # fmt: skip
    card = Card(facts or Facts(), figures, report, pictures, calibrated=calibrated, against_head=against_head)
    (folder / "card.html").write_text(render_card(card), encoding="utf-8", newline="\n")
    return Evaluation(figures, report, card)


def _write_report(folder, y, probabilities, classes, **options):
    report = metrics.classification_report(y, probabilities, classes, **options)
    write_json(folder / "report.json", report)
    (folder / "report.txt").write_text(metrics.report_text(report), encoding="utf-8", newline="\n")
    predicted = metrics.normalise(probabilities).argmax(axis=1)
    # One row per image, which is what the `confusion` template of `dvc plots` counts; the matrix itself is in report.json.
    rows = ([classes[true], classes[said]] for true, said in zip(y, predicted))
    _write_csv(folder / "confusion_matrix.csv", ["actual", "predicted"], rows)
    return report


# --- files --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictions:
    """A predictions.csv: `probabilities` float64 (n, C), `y` int64 (n,), `head_predicted` int64 (n,) or None."""

    paths: tuple
    y: np.ndarray
    probabilities: np.ndarray
    classes: tuple
    groups: tuple
    head_predicted: np.ndarray | None


def write_predictions(path, *, paths, y, probabilities, classes, groups=None, head=None):
    """path, label, predicted, confidence, one column per class (probabilities, all digits), group, head_predicted.

    A class that is called like one of the other columns has its column named `class:<name>`.
    """
    predicted = probabilities.argmax(axis=1)
    head_predicted = [""] * len(paths) if head is None else [classes[k] for k in head.argmax(axis=1)]
    groups = [""] * len(paths) if groups is None else groups
    reserved = {*PREDICTIONS, *AFTER_CLASSES}
    columns = [f"{PREFIX}{name}" if name in reserved or name.startswith(PREFIX) else name for name in classes]
    # repr gives the shortest digits that read back as the same float64.
    rows = (
        [path, classes[true], classes[top], repr(row[top]), *map(repr, row), group or "", said]
        for path, true, top, row, group, said in zip(paths, y, predicted, probabilities.tolist(), groups, head_predicted)
    )
    _write_csv(path, [*PREDICTIONS, *columns, *AFTER_CLASSES], rows)


def read_predictions(path):
    """`Predictions` of a file that `write_predictions` wrote."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    last = len(header) - len(AFTER_CLASSES)
    classes = [name.removeprefix(PREFIX) for name in header[len(PREDICTIONS) : last]]
    index = {name: k for k, name in enumerate(classes)}
    head = [row[last + 1] for row in rows]
    return Predictions(
        paths=tuple(row[0] for row in rows),
        y=np.array([index[row[1]] for row in rows], np.int64),
        probabilities=np.array([row[len(PREDICTIONS) : last] for row in rows], np.float64).reshape(len(rows), len(classes)),
        classes=tuple(classes),
        groups=tuple(row[last] for row in rows),
        head_predicted=np.array([index[name] for name in head], np.int64) if all(head) else None,
    )


def write_curves(path, curves, *, unfrozen_at=None):
    """epoch, phase (head | fine-tune), lr, losses and accuracies; no times, which would differ on a rerun."""
    cut = float("inf") if unfrozen_at is None else unfrozen_at
    rows = ([r["epoch"], "head" if r["epoch"] < cut else "fine-tune", *(repr(float(r[k])) for k in CURVES)] for r in curves)
    _write_csv(path, ["epoch", "phase", *CURVES], rows)


def read_curves(path):
    """(curves, unfrozen_at) as `write_curves` took them."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    curves = [{"epoch": int(row["epoch"]), **{k: float(row[k]) for k in CURVES}} for row in rows]
    return curves, next((int(row["epoch"]) for row in rows if row["phase"] == "fine-tune"), None)


def write_json(path, content):
    """JSON in the order of `content`, indented, UTF-8. Raises ValueError for NaN and infinity, which JSON does not know."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8", newline="\n")


def _write_csv(path, header, rows):
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
