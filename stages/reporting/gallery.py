"""All pictures of an evaluation: PNG and data files in `plots/`, and the same as SVG and tiles for the card."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.reporting import explain, metrics
from stages.reporting.plots import (
    ConfusionMatrixDisplay,
    CurvesDisplay,
    HeadAgainstTunedDisplay,
    ModelGraphDisplay,
    PerClassDisplay,
    PhotosDisplay,
    PrecisionRecallDisplay,
    ReliabilityDisplay,
    RocDisplay,
    Tile,
    style,
)

SAMPLE, WORST, EXPLAINED = 24, 12, 6  # photos in the grid, of the worst mistakes, through Grad-CAM (right ones; as many wrong)
PAIRS, PHOTOS_PER_PAIR = 6, 4


@dataclass(frozen=True)
class Gallery:
    """What the card shows: `svg` {name: element}, `tiles` {name: [Tile, ...]}, `confusions` [(heading, [Tile, ...]), ...],
    `pairs` as `top_confusions` gives them, with class names.
    """

    svg: dict
    tiles: dict
    confusions: list
    pairs: list


def draw_training(folder, *, report, classes, curves, unfrozen_at=None, model=None, trainable=None):
    """The pictures of a training stage, into `folder`. Returns {name: SVG element}."""
    displays = {}
    if curves:
        displays["curves"] = CurvesDisplay(curves, unfrozen_at=unfrozen_at)
    for name, normalise in (("confusion_matrix", False), ("confusion_matrix_normalised", True)):
        displays[name] = ConfusionMatrixDisplay(report["confusion_matrix"], classes, normalise=normalise)
    if model is not None:
        displays["model_graph"] = ModelGraphDisplay.from_model(model, trainable=trainable)
    return _draw(folder, displays)


def draw_evaluation(
    folder, *, report, paths, y, probabilities, classes, image=None, uncalibrated=None, head=None, curves=None,
    unfrozen_at=None, model=None, trainable=None, seed=0,
):  # fmt: skip
    """The pictures of an evaluation, and the data behind them as CSV, into `folder`. Returns the `Gallery`.

    `image` None leaves out the photos; a figure that needs what is not given is left out likewise.
    """
    svg = draw_training(
        folder, report=report, classes=classes, curves=curves, unfrozen_at=unfrozen_at, model=model, trainable=trainable
    )  # fmt: skip
    displays = {
        "per_class": PerClassDisplay(report["classes"]),
        "roc": RocDisplay.from_predictions(y, probabilities, classes),
        "precision_recall": PrecisionRecallDisplay.from_predictions(y, probabilities, classes),
        "reliability": ReliabilityDisplay.from_predictions(y, probabilities, uncalibrated=uncalibrated),
    }
    if head is not None:
        displays["head_against_fine_tuned"] = HeadAgainstTunedDisplay.from_predictions(y, head, probabilities, classes)
    svg |= _draw(folder, displays)
    _write_rows(folder / "roc.csv", ["class", "fpr", "tpr"], displays["roc"].rows)
    _write_rows(folder / "precision_recall.csv", ["class", "recall", "precision"], displays["precision_recall"].rows)
    _write_dicts(folder / "per_class.csv", report["classes"])
    bins = [{"series": name, **row} for name, rows in displays["reliability"].series.items() for row in rows]
    _write_dicts(folder / "reliability.csv", bins)

    pairs = top_confusions(report["confusion_matrix"])
    named = [[str(classes[true]), str(classes[said]), count, share] for true, said, count, share in pairs]
    _write_rows(folder / "top_confusions.csv", ["label", "predicted", "images", "share"], named)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    worst = worst_mistakes(y, probabilities)
    rows = [[paths[i], classes[y[i]], classes[predicted[i]], float(confidence[i])] for i in worst]
    _write_rows(folder / "worst_mistakes.csv", ["path", "label", "predicted", "confidence"], rows)
    if image is None:
        return Gallery(svg, {}, [], named)

    seen = {}

    def tile(i, *more):
        if i not in seen:
            seen[i] = np.asarray(image(int(i)), np.uint8)
        return Tile((seen[i], *more), str(classes[y[i]]), str(classes[predicted[i]]), float(confidence[i]), str(paths[i]))

    sample = np.sort(np.random.default_rng(seed).choice(len(y), min(SAMPLE, len(y)), replace=False))
    tiles = {"prediction_grid": [tile(i) for i in sample], "worst_mistakes": [tile(i) for i in worst[:WORST]]}
    confusions = [
        (f"{classes[true]} taken for {classes[said]} · {count} of them, {style.percent(share)}", [tile(i) for i in chosen])
        for true, said, count, share in pairs[:PAIRS]
        if len(chosen := _most_confident(np.flatnonzero((y == true) & (predicted == said)), confidence)[:PHOTOS_PER_PAIR])
    ]
    if model is not None:
        chosen = [*_one_per_class(sample[predicted[sample] == y[sample]], y)[:EXPLAINED], *worst[:EXPLAINED]]
        photos = [tile(i).images[0] for i in chosen]
        heat = explain.grad_cam(model, np.stack(photos), predicted[chosen]) if chosen else []
        tiles["grad_cam"] = [tile(i, explain.overlay(photo, h)) for i, photo, h in zip(chosen, photos, heat)]

    titles = {
        "prediction_grid": f"{len(sample)} test images by chance",
        "worst_mistakes": "The most confident mistakes",
        "grad_cam": "What speaks for the prediction (Grad-CAM)",
    }
    for name, some in tiles.items():
        columns = 3 if name == "grad_cam" else 6
        style.png(PhotosDisplay.from_tiles(titles[name], some, columns=columns).plot().figure_, folder / f"{name}.png")
    style.png(PhotosDisplay("Most frequent confusions", confusions).plot().figure_, folder / "top_confusions.png")
    return Gallery(svg, tiles, confusions, named)


def top_confusions(matrix):
    """[(true, predicted, images, share of the true class)] of all pairs that were confused, the most frequent first."""
    matrix = np.asarray(matrix)
    off = np.where(np.eye(len(matrix), dtype=bool), 0, matrix).ravel()
    order = np.argsort(-off, kind="stable")[: np.count_nonzero(off)]
    support = matrix.sum(axis=1)
    return [(t, p, int(off[k]), float(off[k] / support[t])) for k in order for t, p in [divmod(int(k), len(matrix))]]


def worst_mistakes(y, probabilities):
    """Indices of all wrong predictions, the most confident first."""
    return _most_confident(np.flatnonzero(probabilities.argmax(axis=1) != y), probabilities.max(axis=1))


def _most_confident(chosen, confidence):
    return chosen[np.argsort(-confidence[chosen], kind="stable")]


def _one_per_class(chosen, y):
    """`chosen` reordered so that every class comes once before any comes twice."""
    turn = [int((y[chosen[:k]] == y[i]).sum()) for k, i in enumerate(chosen)]
    return [chosen[k] for k in np.argsort(turn, kind="stable")]


def _draw(folder, displays):
    """Writes `<name>.png` of each display; returns {name: SVG element}."""
    elements = {}
    for name, display in displays.items():
        fig = display.plot().figure_
        style.png(fig, folder / f"{name}.png")
        elements[name] = style.svg(fig)
    return elements


def _write_dicts(path, rows):
    _write_rows(path, list(rows[0]), [list(row.values()) for row in rows])


def _write_rows(path, header, rows):
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([repr(v) if isinstance(v, float) else "" if v is None else v for v in row] for row in rows)


def calibrations(probabilities, *, temperature, calibrated):
    """(without, with) the temperature, both float64 (n, C), from `probabilities` that are one of them."""
    if calibrated:
        return metrics.apply_temperature(probabilities, 1 / temperature), probabilities
    return probabilities, metrics.apply_temperature(probabilities, temperature)
