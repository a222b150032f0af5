"""The head at its optimum: L2-regularised softmax regression on pooled features, solved instead of
trained.

For a strength C the objective is scikit-learn's, each image counted once however many views it has:

    sum over rows of  weight / views * cross-entropy  +  ||W||^2 / (2 C),   the bias not penalised,

on standardised features. The penalty does not change under rotation, so the features are rotated
once to their principal axes, where the Hessian is nearly diagonal, curvature * variance + 1 / C:
scaled by its root, L-BFGS needs some 20 to 40 iterations whatever C is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graft.features.extractor import Features
from graft.network.classifier import head_input
from graft.network.cut import Cut, split_at
from graft.network.top_training import LabelledImages, predict
from graft.scoring.calibration import fit_temperature, log_probabilities
from graft.scoring.history import History
from graft.scoring.predictions import Predictions
from graft.scoring.results import TrainingResult
from graft.system.console import log

if TYPE_CHECKING:
    import keras

# C, two a decade (the loss is flat between), the strongest penalty first.
GRID = tuple(10.0 ** (e / 2) for e in range(-8, 5))
PATIENCE = 2  # strengths without a smaller loss after which the path ends
# Below so many validation images the strength is chosen by folds: 49 images say too little.
FOLDS, FEW = 5, 250
# Standard errors by which a stronger penalty may be worse than the best and still be taken.
MARGIN = 0.5
ROWS = 60_000  # of views together, at most: more views of so many images change nothing
# Images that a head is solved on: more of them would hardly move it, and fill the memory.
MOST = 100_000
CHOSEN_FROM = 20_000  # images by which the strength of out-of-fold heads is chosen, at most
MIDDLING = 0.01  # C that photos call for most often
CURVE_ROWS = 20
BLOCK = 50_000  # images that are judged at once
PATH_TOLERANCE, TOLERANCE, ITERATIONS = 3e-4, 1e-5, 300


@dataclass(frozen=True)
class _Rows:
    """x: float32 (m, r), rotated. labels: int (m,). weights: float32 (m,). classes: how many."""

    x: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    classes: int

    def take(self, mask):
        return _Rows(self.x[mask], self.labels[mask], self.weights[mask], self.classes)

    def loss(self, kernel, bias):
        """(weighted sum of the cross-entropy, its gradient by the logits, mean curvature)."""
        logits = self.x @ kernel.astype(np.float32) + bias.astype(np.float32)
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits)
        total = p.sum(axis=1, keepdims=True)
        at = np.arange(len(self.labels))
        loss = float(
            self.weights @ (np.log(total[:, 0]) - logits[at, self.labels]).astype(np.float64)
        )
        p /= total
        curvature = float(
            (self.weights[:, None] * p * (1 - p)).sum() / (self.weights.sum() * self.classes)
        )
        p[at, self.labels] -= 1
        return loss, p * self.weights[:, None], max(curvature, 1e-4)


def solve(
    model: keras.Model,
    cut: Cut,
    train: Features[LabelledImages],
    val: Features[LabelledImages],
    *,
    balanced: bool,
    on_epoch: Callable[[dict], None] | None = None,
) -> TrainingResult:
    """Put the optimum into the last layer of `model`, whose `cut` gives the pooled features.

    The strength is the strongest within half a standard error of the least held-out log loss along
    a warm-started path: by five folds over training and validation images, groups kept together, or
    by the validation images where they are many. balanced: whether classes weigh alike, in the loss
    that is solved and in the one that chooses.
    The result's history holds up to 20 of the iterations from nothing to the optimum, without a
    learning rate; on_epoch is called with each of its rows.
    """
    if cut.name != head_input(model):
        raise ValueError(f"the head is solved on pooled features, not on those at {cut.name}")
    classes = model.output.shape[1]
    (chosen, stand), (judging, stand_there) = (
        _some(part.images.labels, classes) for part in (train, val)
    )
    views = max(1, min(train.views, ROWS // len(chosen)))
    x = np.concatenate([train.take(chosen, v) for v in range(views)]).astype(np.float32)
    held = val.take(judging).astype(np.float32)
    mean, scale = _standardisation(x)
    x, held = ((part - mean) / scale for part in (x, held))
    axes, variance = _principal_axes(np.concatenate([x, held]))
    by_class = _class_weights(train.images.labels, classes) if balanced else np.ones(classes)
    labels, of_val = np.tile(train.images.labels[chosen], views), val.images.labels[judging]
    rows = _Rows(x @ axes, labels, ((by_class * stand)[labels] / views).astype(np.float32), classes)
    seen = _Rows(held @ axes, of_val, (by_class * stand_there)[of_val].astype(np.float32), classes)
    of_train, held_groups = (
        np.asarray(part.images.groups)[some] for part, some in ((train, chosen), (val, judging))
    )
    groups = np.concatenate([np.tile(of_train, views), held_groups])
    strength = _choose(_parts(rows, seen, groups, len(chosen)), variance)

    path: list = []
    kernel, bias, _ = _fit(
        rows, variance, strength, _nothing(rows, variance), tolerance=TOLERANCE, path=path
    )
    history = _history(path, rows.take(slice(len(chosen))), seen)
    if on_epoch:
        for row in history.rows:
            on_epoch(row)
    kernel = (axes.astype(np.float64) @ kernel) / scale[:, None]
    model.layers[-1].set_weights(
        [kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)]
    )
    log(
        f"head: solved in {len(path) - 1} iterations, strength C = {strength:.3g}, val loss "
        f"{history.rows[-1]['val_loss']:.4f}"
    )
    predictions = Predictions.of(val.images, predict(split_at(model, cut)[1], val))
    temperature = fit_temperature(log_probabilities(predictions.probabilities), predictions.labels)
    return TrainingResult(history, predictions, temperature, len(history.rows))


def out_of_fold(
    features: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str],
    *,
    classes: int,
    folds: int,
    balanced: bool,
) -> np.ndarray:
    """What a solved head says of images that it did not learn from, nor from another of their
    group: float64 (n, classes).

    features: float (n, d), pooled, of all images. labels: int64 (n,). groups: n strings. folds: at
    least 2, or 0: nothing is judged. All folds share the strength that the first one chooses (from
    CHOSEN_FROM images at most): five choices would cost five times as much, and the loss is flat
    about its least. Equal shares for what is not judged, as where there is one group.
    """
    probabilities = np.full((len(features), classes), 1 / classes)
    if not folds:
        return probabilities
    chosen, stand = _some(labels, classes)
    x = features[chosen].astype(np.float32)
    mean, scale = _standardisation(x)
    x -= mean
    x /= scale
    axes, variance = _principal_axes(x)
    by_class = (_class_weights(labels, classes) if balanced else np.ones(classes)) * stand
    rows = _Rows(x @ axes, labels[chosen], by_class[labels[chosen]].astype(np.float32), classes)
    fold_of_all = _deal(labels, np.asarray(groups), folds)
    fold, some = fold_of_all[chosen], np.zeros(len(x), bool)
    some[np.linspace(0, len(x) - 1, min(len(x), CHOSEN_FROM)).astype(int)] = True
    judged = [f for f in range(folds) if (some & (fold == f)).any() and (some & (fold != f)).any()]
    for f in judged[:1]:
        strength = _choose(
            [(rows.take(some & (fold != f)), rows.take(some & (fold == f)))], variance
        )
    for f in judged:
        fit = rows.take(fold != f)
        rotated, bias, _ = _fit(
            fit, variance, strength, _nothing(fit, variance), tolerance=PATH_TOLERANCE
        )
        kernel = (axes.astype(np.float64) @ rotated) / scale[:, None]
        layer = kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)
        for part in np.array_split(np.flatnonzero(fold_of_all == f), 1 + len(features) // BLOCK):
            logits = (features[part].astype(np.float32) @ layer[0] + layer[1]).astype(np.float64)
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            probabilities[part] = p / p.sum(axis=1, keepdims=True)
    return probabilities


def _some(labels, classes):
    """(positions int (m,), ascending; float64 (classes,), how many images one of a class stands
    for): m <= MOST, small classes whole, of large ones as many each, evenly."""
    counts, low, high = np.bincount(labels, minlength=classes), 1, MOST
    while low < high and len(labels) > MOST:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if np.minimum(counts, middle).sum() <= MOST else (low, middle - 1)
        )
    if len(labels) <= MOST:
        return np.arange(len(labels)), np.ones(classes)
    taken = [
        np.flatnonzero(labels == c)[np.linspace(0, n - 1, min(n, low)).astype(int)]
        for c, n in enumerate(counts)
        if n
    ]
    return np.sort(np.concatenate(taken)), counts / np.maximum(np.minimum(counts, low), 1)


def linear(
    features: np.ndarray, labels: np.ndarray, *, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """(kernel float32 (d, classes), bias (classes,)) of a head for these features, at a middling
    strength that is not chosen: for where the size of the logits counts, and not the last point of
    accuracy."""
    mean, scale = _standardisation(features.astype(np.float32))
    x = (features.astype(np.float32) - mean) / scale
    axes, variance = _principal_axes(x)
    rows = _Rows(x @ axes, labels, np.ones(len(x), np.float32), classes)
    kernel, bias, _ = _fit(rows, variance, MIDDLING, _nothing(rows, variance), tolerance=1e-3)
    kernel = (axes.astype(np.float64) @ kernel) / scale[:, None]
    return kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)


def _standardisation(x):
    """(mean, scale), float32 (d,); a constant feature has scale 1."""
    mean = x.mean(axis=0, dtype=np.float64)
    deviation = np.sqrt(np.maximum(np.square(x, dtype=np.float64).mean(axis=0) - mean**2, 0))
    scale = np.where(deviation > 1e-6 * np.maximum(1, np.abs(mean)), deviation, 1.0)
    return mean.astype(np.float32), scale.astype(np.float32)


def _principal_axes(x):
    """(axes float32 (d, r), variance (r,)): orthonormal axes that span all rows, and the mean
    square along each."""
    n, d = x.shape
    if n < d:
        rows = x.astype(np.float64)  # so that the axes are orthonormal to 1e-9
        values, vectors = np.linalg.eigh(rows @ rows.T)
        keep = values > max(values[-1], 1e-30) * 1e-7
        values, axes = values[keep], rows.T @ (vectors[:, keep] / np.sqrt(values[keep]))
    else:
        values, axes = np.linalg.eigh((x.T @ x).astype(np.float64))
    return axes.astype(np.float32), np.maximum(values / n, 1e-9)


def _class_weights(labels, classes):
    """n / (C n_c); 0 for a class without images."""
    counts = np.bincount(labels, minlength=classes)
    return np.where(
        counts > 0, len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0.0
    )


def _parts(rows, seen, groups, n):
    """[(rows to fit, rows that judge)]: folds over all images where validation images are few, else
    train and val.

    groups: of `rows` (view by view, n images each) and of `seen`. Only view 0 of an image judges.
    """
    if len(seen.labels) >= FEW:
        return [(rows, seen)]
    joined = [
        np.concatenate([getattr(rows, key), getattr(seen, key)])
        for key in ("x", "labels", "weights")
    ]
    both = _Rows(*joined, rows.classes)
    fold, plain = _deal(both.labels, groups, FOLDS), np.ones(len(groups), bool)
    plain[n : len(rows.labels)] = False
    parts = ((both.take(fold != f), both.take((fold == f) & plain)) for f in range(FOLDS))
    return [(fit, judge) for fit, judge in parts if len(judge.labels) and len(fit.labels)]


def _deal(labels, groups, folds):
    """int (n,): the fold of each row; groups whole, each class dealt out in turn, the same for the
    same rows."""
    names, first, member = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    order = order[np.argsort(labels[first][order], kind="stable")]
    fold = np.empty(len(names), int)
    fold[order] = np.arange(len(names)) % folds
    return fold[member]


def _choose(parts, variance):
    states, losses = [_nothing(fit, variance) for fit, _ in parts], {}
    best, since, chosen = math.inf, 0, GRID[0]
    weights = np.concatenate([judge.weights for _, judge in parts])
    for strength in GRID:
        judged = []
        for k, (fit, judge) in enumerate(parts):
            states[k] = _fit(fit, variance, strength, states[k], tolerance=PATH_TOLERANCE)
            judged.append(_losses(judge, *states[k][:2]))
        losses[strength] = np.concatenate(judged)
        value = float(np.average(losses[strength], weights=weights))
        best, since, chosen = (
            (value, 0, strength) if value < best - 1e-6 else (best, since + 1, chosen)
        )
        if since >= PATIENCE:
            break
    for strength, loss in losses.items():
        worse = (loss - losses[chosen]) * weights / weights.mean()
        if worse.mean() <= MARGIN * worse.std() / math.sqrt(len(worse)):
            return strength
    return chosen


def _nothing(rows, variance):
    """(kernel, bias, curvature) to start from: the shares of the classes."""
    share = np.bincount(rows.labels, rows.weights, rows.classes) / rows.weights.sum()
    return (
        np.zeros((len(variance), rows.classes)),
        np.log(np.maximum(share, 1e-3)),
        (1 - 1 / rows.classes) / rows.classes,
    )


def _fit(rows, variance, strength, start, *, tolerance, path=None):
    """(kernel, bias, curvature) at the optimum. path: a list that takes (kernel, bias) after each
    iteration."""
    from scipy.optimize import minimize

    kernel, bias, curvature = start
    n = float(rows.weights.sum())
    penalty = 1.0 / (strength * n)
    scale = np.concatenate(
        [1 / np.sqrt(curvature * variance + penalty), [1 / math.sqrt(max(curvature, 1e-3))]]
    )[:, None]
    found = [curvature]

    def objective(flat):
        at = flat.reshape(scale.shape[0], -1) * scale
        loss, errors, found[0] = rows.loss(at[:-1], at[-1])
        gradient = np.empty_like(at)
        gradient[:-1] = (rows.x.T @ errors) / n + penalty * at[:-1]
        gradient[-1] = errors.sum(axis=0, dtype=np.float64) / n
        return loss / n + penalty / 2 * float((at[:-1] ** 2).sum()), (gradient * scale).ravel()

    def keep(flat):
        if path is not None:
            at = flat.reshape(scale.shape[0], -1) * scale
            path.append((at[:-1], at[-1]))

    first = (np.concatenate([kernel, bias[None]]) / scale).ravel()
    keep(first)
    options = {
        "maxiter": ITERATIONS,
        "maxfun": 2 * ITERATIONS,
        "gtol": tolerance,
        "ftol": tolerance * 1e-4,
        "maxcor": 20,
    }
    last = minimize(objective, first, jac=True, method="L-BFGS-B", callback=keep, options=options).x
    at = last.reshape(scale.shape[0], -1) * scale
    return at[:-1], at[-1], found[0]


def _losses(rows, kernel, bias):
    logits = (rows.x @ kernel.astype(np.float32) + bias.astype(np.float32)).astype(np.float64)
    top = logits.max(axis=1)
    return (
        np.log(np.exp(logits - top[:, None]).sum(axis=1))
        + top
        - logits[np.arange(len(rows.labels)), rows.labels]
    )


def _history(path, train, val):
    """Losses and accuracies, unweighted, of up to CURVE_ROWS iterations, the last among them."""
    rows = []
    for number in sorted(
        {round(k) for k in np.linspace(0, len(path) - 1, min(CURVE_ROWS, len(path)))}
    ):
        row = {"epoch": len(rows), "lr": None}
        for name, part in (("train", train), ("val", val)):
            row[f"{name}_loss"] = float(_losses(part, *path[number]).mean())
            logits = part.x @ path[number][0].astype(np.float32) + path[number][1].astype(
                np.float32
            )
            row[f"{name}_accuracy"] = float((logits.argmax(axis=1) == part.labels).mean())
        rows.append(row)
    return History(tuple(rows))
