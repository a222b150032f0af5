"""All figures of a stage: PNG and data files in a folder, and the same as SVG and images for the
model card."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graft.figures import (
    calibration,
    classes,
    curves,
    grad_cam,
    image_grid,
    model_graph,
    ranking,
    style,
)
from graft.figures.image_grid import PredictedImage
from graft.scoring.history import History
from graft.scoring.metrics import confusion_matrix
from graft.scoring.predictions import COLUMNS, Predictions
from graft.scoring.results import Results, TrainingResult
from graft.system import files

if TYPE_CHECKING:
    import keras

    from graft.dataset.images import ImageSet
    from graft.tracking.runs import StageRun

# Images in the grid, of the worst mistakes, through Grad-CAM (right ones; as many wrong).
SAMPLE, WORST, EXPLAINED = 24, 12, 6
PAIRS, IMAGES_PER_PAIR = 6, 4
COMPARED = 16  # images of each kind that MLflow shows side by side for several runs
# As MLflow has them.
KEYS = {
    "prediction_grid": "test photos",
    "worst_mistakes": "worst mistakes",
    "grad_cam": "Grad-CAM",
}


@dataclass(frozen=True)
class Plots:
    """What the model card shows: `svg` {name: element}, `images` {name: [PredictedImage, ...]},
    `confusions` [(heading, [PredictedImage, ...]), ...], `pairs` as `top_confusions` gives them,
    with class names.
    """

    svg: Mapping[str, str]
    images: Mapping[str, list[PredictedImage]]
    confusions: list[tuple[str, list[PredictedImage]]]
    pairs: list[tuple[str, str, int, float]]


def draw_training(
    folder: str | Path, predictions: Predictions, history: History, model: keras.Model
) -> dict[str, str]:
    """The figures of a training stage, as PNG into `folder`. Returns {name: SVG element}."""
    displays = {
        "curves": curves.CurvesDisplay(history),
        "confusion_matrix": classes.ConfusionMatrixDisplay.from_predictions(predictions),
        "confusion_matrix_normalised": classes.ConfusionMatrixDisplay.from_predictions(
            predictions, normalise=True
        ),
        "model_graph": model_graph.ModelGraphDisplay.from_model(model),
    }
    return _draw(Path(folder), displays)


def log_training(run: StageRun, trained: TrainingResult, model: keras.Model) -> None:
    """The figures of a training stage as artifacts of its `run`: no DVC output, so that a colour
    retrains no network."""
    with tempfile.TemporaryDirectory(prefix="graft-plots-") as folder:
        draw_training(folder, trained.predictions, trained.history, model)
        run.log_artifacts(folder, "plots")


def log_images(run: StageRun, images: Mapping[str, list[PredictedImage]]) -> None:
    """Images of the Plots one by one, under keys that are the same for every run: "test photos/01"
    to "test photos/16".

    MLflow's image grid has a row per key and a column per run; of several steps under one key it
    would show one at a time. The test photos are chosen by seed, not by what the model says of
    them.
    """
    for name, key in KEYS.items():
        for number, image in enumerate(images[name][:COMPARED], start=1):
            run.log_image(image_grid.tile(image), f"{key}/{number:02}")


def draw_evaluation(
    folder: Path,
    results: Results,
    report: dict,
    *,
    models: tuple[keras.Model, keras.Model],
    images: ImageSet,
    seed: int,
) -> Plots:
    """The figures of an evaluation, and the data behind them as CSV, into `folder`.

    report: of `results`. models: (head, fine-tuned), keras.Model. images: what was predicted;
    `images.read(indices)` gives batches uint8 (b, S, S, 3), asked for less than 100. seed: chooses
    the images.
    """
    folder, predictions = Path(folder), results.predictions
    scaled = results.calibration.applied and results.calibration.temperature != 1
    bare = results.calibration.both(predictions)[0] if scaled else None
    roc = ranking.RocDisplay.from_predictions(predictions)
    precision_recall = ranking.PrecisionRecallDisplay.from_predictions(predictions)
    reliability = calibration.ReliabilityDisplay.from_predictions(predictions, uncalibrated=bare)
    displays = {
        "per_class": classes.PerClassDisplay(report["classes"]),
        "roc": roc,
        "precision_recall": precision_recall,
        "reliability": reliability,
        "head_against_fine_tuned": classes.HeadAgainstTunedDisplay.from_predictions(
            results.head, predictions
        ),
        "model_graph_head": model_graph.ModelGraphDisplay.from_model(models[0], title="Head"),
    }
    svg = draw_training(folder, predictions, results.history, models[1]) | _draw(folder, displays)
    files.write_csv(folder / "roc.csv", ["class", "fpr", "tpr"], roc.rows)
    files.write_csv(
        folder / "precision_recall.csv", ["class", "recall", "precision"], precision_recall.rows
    )
    _write_dicts(folder / "per_class.csv", report["classes"])
    bins = [{"series": name, **row} for name, rows in reliability.series.items() for row in rows]
    _write_dicts(folder / "reliability.csv", bins)
    pairs = top_confusions(confusion_matrix(predictions))
    named = [
        (predictions.classes[true], predictions.classes[said], count, share)
        for true, said, count, share in pairs
    ]
    files.write_csv(folder / "top_confusions.csv", ["label", "predicted", "images", "share"], named)
    shown, confused = _draw_images(
        folder, predictions, pairs, model=models[1], images=images, seed=seed
    )
    return Plots(svg, shown, confused, named)


def _draw_images(folder, predictions, pairs, *, model, images, seed):
    """The figures that show images. Returns `images` and `confusions` of the Plots."""
    worst = worst_mistakes(predictions)
    files.write_csv(folder / "worst_mistakes.csv", COLUMNS[:4], map(predictions.row, worst))
    sample = np.random.default_rng(seed).choice(
        len(predictions), min(SAMPLE, len(predictions)), replace=False
    )
    sample.sort()
    right = _one_per_class(sample[predictions.correct[sample]], predictions.labels)
    explained = [*right[:EXPLAINED], *worst[:EXPLAINED]]
    confused = {}
    for true, said, count, share in pairs[:PAIRS]:
        name, other = predictions.names((true, said))
        of_pair = np.flatnonzero((predictions.labels == true) & (predictions.predicted == said))
        heading = f"{name} taken for {other} · {count} of them, {style.percent(share)}"
        confused[heading] = _most_confident(of_pair, predictions)[:IMAGES_PER_PAIR]

    wanted = sorted(
        {int(i) for some in (sample, worst[:WORST], explained, *confused.values()) for i in some}
    )
    pixels = dict(zip(wanted, np.concatenate(list(images.read(np.array(wanted))))))
    heat = grad_cam.grad_cam(
        model, np.stack([pixels[i] for i in explained]), predictions.predicted[explained]
    )

    def shown(i, *more):
        path, *said = predictions.row(i)
        return PredictedImage((pixels[i], *more), *said, path)

    grids = {
        "prediction_grid": [shown(i) for i in sample],
        "worst_mistakes": [shown(i) for i in worst[:WORST]],
        "grad_cam": [shown(i, grad_cam.overlay(pixels[i], h)) for i, h in zip(explained, heat)],
    }
    confusions = [(heading, [shown(i) for i in some]) for heading, some in confused.items()]
    in_rows = image_grid.ImageGridDisplay.from_images
    displays = {
        "prediction_grid": in_rows(
            f"{len(sample)} test images by chance", grids["prediction_grid"]
        ),
        "worst_mistakes": in_rows("The most confident mistakes", grids["worst_mistakes"]),
        "grad_cam": in_rows(
            "What speaks for the prediction (Grad-CAM)", grids["grad_cam"], columns=3
        ),
        "top_confusions": image_grid.ImageGridDisplay("Most frequent confusions", confusions),
    }
    for name, display in displays.items():
        style.png(display.plot().figure_, folder / f"{name}.png")
    return grids, confusions


def top_confusions(matrix: np.ndarray) -> list[tuple[int, int, int, float]]:
    """[(true, predicted, images, share of the true class)] of all pairs that were confused, the
    most frequent first."""
    off = np.where(np.eye(len(matrix), dtype=bool), 0, matrix).ravel()
    order = np.argsort(-off, kind="stable")[: np.count_nonzero(off)]
    support = matrix.sum(axis=1)
    return [
        (t, p, int(off[k]), float(off[k] / support[t]))
        for k in order
        for t, p in [divmod(int(k), len(matrix))]
    ]


def worst_mistakes(predictions: Predictions) -> np.ndarray:
    """Indices of all wrong predictions, the most confident first."""
    return _most_confident(np.flatnonzero(~predictions.correct), predictions)


def _most_confident(chosen, predictions):
    return chosen[np.argsort(-predictions.confidence[chosen], kind="stable")]


def _one_per_class(chosen, labels):
    """`chosen` reordered so that every class comes once before any comes twice."""
    turn = [int((labels[chosen[:k]] == labels[i]).sum()) for k, i in enumerate(chosen)]
    return chosen[np.argsort(turn, kind="stable")]


def _draw(folder, displays):
    """Writes `<name>.png` of each display; returns {name: SVG element}."""
    elements = {}
    for name, display in displays.items():
        style.png(display.plot().figure_, folder / f"{name}.png")
        elements[name] = style.svg(display.figure_)
    return elements


def _write_dicts(path, rows):
    files.write_csv(path, rows[0], (row.values() for row in rows))
