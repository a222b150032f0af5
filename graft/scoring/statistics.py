"""Intervals and paired tests that the report, the comparison and the champion's decision share.

`groups` everywhere: n strings or None; images of one group (near-duplicates, one photographer) are
resampled together, "" is an image on its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graft.scoring.predictions import Predictions

Z = 1.959963984540054  # the 97.5% quantile of the standard normal distribution
CHUNK = 4_000_000  # draws held at a time


@dataclass(frozen=True)
class Comparison:
    """Two models on the same n images: `difference` = accuracy of the second minus that of the
    first.

    low, high: 95% interval of the difference. only_first, only_second: images that only the one
    classifies correctly. p_value: two-sided, of `test`.
    """

    n: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_value: float
    test: str


def compare_predictions(
    first: Predictions, second: Predictions, *, resamples: int = 2000, seed: int = 0
) -> Comparison:
    """`compare_paired` of two models' predictions of the same images, in whatever order; the groups
    are the first's.

    Raises ValueError where the images or what they show differ. The class lists may differ.
    """
    at = {path: k for k, path in enumerate(second.paths)}
    if set(first.paths) != set(at):
        raise ValueError("the two models predict other images")
    order = [at[path] for path in first.paths]
    if first.names(first.labels) != second.names(second.labels[order]):
        raise ValueError("the two models' images have other labels")
    right = first.correct, second.correct[order]
    return compare_paired(*right, groups=first.groups, resamples=resamples, seed=seed)


def compare_paired(
    first_correct: npt.ArrayLike,
    second_correct: npt.ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Paired comparison of two models by which images each gets right: bool (n,), n >= 1, in the
    same order.

    The difference's interval is a paired bootstrap over images or groups; where the models disagree
    on no image it is what that leaves possible, ± the Wilson bound of 0 in n. The p-value is
    McNemar's exact one (McNemar 1947, binomial form); with groups of several images, whose images
    are not independent, a seeded sign-flip test over groups (10,000 flips, or all where they are
    fewer), which is McNemar's test where groups are single images. Raises ValueError for vectors of
    unequal length, or none.
    """
    from scipy.stats import binomtest

    first, second = np.asarray(first_correct, bool), np.asarray(second_correct, bool)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"need two equally long, non-empty vectors, not {first.shape} and {second.shape}"
        )
    n, group = len(first), group_ids(groups, len(first))
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    difference = (only_second - only_first) / n
    change = second.astype(np.int64) - first
    if only_first + only_second:
        counts = bootstrap_counts(change + 1, 3, group, resamples=resamples, seed=seed)
        low, high = percentile_interval(
            (counts[:, 2] - counts[:, 0]) / counts.sum(axis=1), difference
        )
    else:
        high = float(wilson(0, len(np.unique(group)))[1])
        low = -high
    per_group = np.bincount(group, weights=change)
    if len(per_group) == n:
        test = "exact McNemar"
        p_value = (
            float(binomtest(only_second, only_first + only_second).pvalue)
            if only_first + only_second
            else 1.0
        )
    else:
        test = "sign flips over groups"
        p_value = _sign_flips(per_group[per_group != 0], seed=seed)
    accuracies = float(first.mean()), float(second.mean())
    return Comparison(n, *accuracies, difference, low, high, only_first, only_second, p_value, test)


def _sign_flips(differences, *, seed, flips=10_000):
    """Two-sided p-value of the sum of `differences` when their signs are chance; the data count as
    one flip."""
    from scipy.stats import permutation_test

    if not len(differences):
        return 1.0
    options = {
        "permutation_type": "samples",
        "n_resamples": flips,
        "batch": max(1, CHUNK // len(differences)),
        "rng": seed,
    }
    padded = np.append(differences, 0.0)  # of one difference it wants nothing to do
    return float(permutation_test((padded,), np.sum, vectorized=True, **options).pvalue)


def group_ids(groups: Sequence[str] | None, n: int) -> np.ndarray:
    """int64 (n,): equal for images of one group, a number of its own for every image whose group is
    ""."""
    groups = [""] * n if groups is None else groups
    if len(groups) != n:
        raise ValueError(f"groups must name {n} images, not {len(groups)}")
    seen: dict[str | int, int] = {}
    return np.array(
        [seen.setdefault(group or i, len(seen)) for i, group in enumerate(groups)], np.int64
    )


def wilson(successes: npt.ArrayLike, n: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """95% score interval of a proportion (Wilson 1927); arrays broadcast, `n` may be fractional.
    NaN where n is 0."""
    successes, n = np.asarray(successes, np.float64), np.asarray(n, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = successes / n
        middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    low, high = np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)
    return np.where(p == 0, 0.0, low)[()], np.where(p == 1, 1.0, high)[()]


def bootstrap_counts(
    pair: np.ndarray, n_pairs: int, group: np.ndarray, *, resamples: int, seed: int
) -> np.ndarray:
    """Counts of each pair in bootstrap samples of the groups: float64 (resamples, n_pairs).

    Groups with equal contents are interchangeable, so they are drawn as one category of a
    multinomial distribution: the lone images by their pair, each larger group by itself. 2,000
    resamples of 20,000 images take about a second instead of a minute.
    """
    from scipy.sparse import csr_matrix

    size = np.bincount(group)
    lone = size[group] == 1
    lone_pairs, lone_weight = np.unique(pair[lone], return_counts=True)
    _, larger = np.unique(group[~lone], return_inverse=True)
    n_larger = int(larger.max()) + 1 if len(larger) else 0
    rows = np.concatenate([np.arange(len(lone_pairs)), len(lone_pairs) + larger])
    columns = np.concatenate([lone_pairs, pair[~lone]])
    contents = csr_matrix(
        (np.ones(len(rows)), (rows, columns)), shape=(len(lone_pairs) + n_larger, n_pairs)
    ).T
    weight = np.concatenate([lone_weight, np.ones(n_larger, np.int64)])
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // len(weight))
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    draws = (rng.multinomial(weight.sum(), weight / weight.sum(), size=size) for size in sizes)
    return np.concatenate([np.asarray((contents @ draw.T).T, np.float64) for draw in draws])


def percentile_interval(values: np.ndarray, point: float) -> tuple[float, float]:
    """95% percentile interval, widened to hold the point estimate (the bootstrap of a macro average
    is biased downwards)."""
    low, high = np.quantile(values, [0.025, 0.975])
    return min(float(low), point), max(float(high), point)
