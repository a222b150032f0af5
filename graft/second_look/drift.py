"""Are new photos like those that the model was validated on? Without labels: do features tell them
apart, which classes are they of, and how often is the model right on them?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graft.second_look.layout import principal

AXES, FOLDS = 30, 5
PERMUTATIONS, RESAMPLES = 200, 200
STEPS, CHANGE = 200, 1e-6  # of EM
LEAST = 20  # new photos: of fewer, no test says anything


@dataclass(frozen=True)
class Share:
    """A class's share among the photos that were known, and, with its 95% interval, among the new
    ones."""

    name: str
    before: float
    now: float
    low: float
    high: float


@dataclass(frozen=True)
class Drift:
    """What of `known` and `new` photos is different. auroc: of a classifier that is to tell them
    apart, 0.5 where they are alike; p_value: by permutation. shares: of the classes. unknown: share
    of the new photos whose p-value `known` lies below 0.05. accuracy: expected of the new photos,
    `accuracy_low` to `accuracy_high`."""

    known: int
    new: int
    auroc: float
    p_value: float
    shares: tuple[Share, ...]
    unknown: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


def compare(
    features: Sequence[np.ndarray],
    probabilities: Sequence[np.ndarray],
    p_values: np.ndarray,
    *,
    classes: Sequence[str],
    seed: int,
) -> Drift:
    """features: float (m, d) of known photos that the model did not learn from, and (n, d) of new
    ones. probabilities: calibrated, (m, C) and (n, C). p_values: (n,), of `graft.known` for the new
    ones.

    The shares come of Saerens, Latinne and Decaestecker's EM (2002), the expected accuracy is the
    mean confidence after it: both hold where the classes look as they did and only their shares
    have changed. Intervals resample the new photos.
    """
    rng = np.random.default_rng(seed)
    known, new = len(features[0]), len(features[1])
    auroc, p_value = two_sample(features[0], features[1], rng)
    before = probabilities[0].mean(axis=0)
    draws = [np.arange(new)] + [rng.integers(0, new, new) for _ in range(RESAMPLES)]
    found = [_adapted(probabilities[1][drawn], before) for drawn in draws]
    shares, accuracies = (
        np.stack([share for share, _ in found]),
        np.array([accuracy for _, accuracy in found]),
    )
    low, high = np.quantile(shares[1:], [0.025, 0.975], axis=0)
    ends = np.quantile(accuracies[1:], [0.025, 0.975])
    listed = tuple(
        Share(name, *map(float, row)) for name, *row in zip(classes, before, shares[0], low, high)
    )
    unknown = float((p_values < 0.05).mean())
    return Drift(
        known,
        new,
        auroc,
        p_value,
        listed,
        unknown,
        float(accuracies[0]),
        float(ends[0]),
        float(ends[1]),
    )


def two_sample(known: np.ndarray, new: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """(AUROC, p) of a classifier that is to tell two samples apart, float (m, d) and (n, d), by
    cross-validation.

    A classifier two-sample test (Lopez-Paz and Oquab 2017): a linear discriminant on the first
    principal axes, since it is solved in no time; p is the share of random labellings that it tells
    apart as well.
    """
    x = principal(np.concatenate([known, new]), AXES)
    is_new = np.arange(len(x)) >= len(known)
    fold = rng.permutation(len(x)) % FOLDS
    area = _area(x, is_new, fold)
    chance = [_area(x, rng.permutation(is_new), fold) for _ in range(PERMUTATIONS)]
    return area, (1 + sum(value >= area for value in chance)) / (1 + PERMUTATIONS)


def _area(x, is_new, fold):
    from scipy.stats import rankdata

    score = np.zeros(len(x))
    for f in range(FOLDS):
        fit, judged = fold != f, fold == f
        one, other = x[fit & is_new], x[fit & ~is_new]
        if not len(one) or not len(other):
            return 0.5
        within = np.cov(np.concatenate([one - one.mean(axis=0), other - other.mean(axis=0)]).T)
        within = within + (1e-3 * np.trace(within) / len(within) + 1e-9) * np.eye(len(within))
        direction = np.linalg.solve(within, one.mean(axis=0) - other.mean(axis=0))
        score[judged] = (x[judged] - (one.mean(axis=0) + other.mean(axis=0)) / 2) @ direction
    n = int(is_new.sum())
    return float((rankdata(score)[is_new].sum() - n * (n + 1) / 2) / (n * (len(x) - n)))


def _adapted(p, before):
    """(shares of the classes, mean confidence) of photos with these probabilities, whose shares had
    been `before`."""
    ratio = p / np.maximum(before, 1e-12)
    shares = before
    for _ in range(STEPS):
        q = ratio * shares
        q /= np.maximum(q.sum(axis=1, keepdims=True), 1e-300)
        last, shares = shares, q.mean(axis=0)
        if np.abs(shares - last).max() < CHANGE:
            break
    return shares, q.max(axis=1).mean()
