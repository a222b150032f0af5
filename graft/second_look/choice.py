"""Which photos to look at: the most telling of many unlabelled ones, the nearest of those that are
known."""

from collections.abc import Sequence

import numpy as np

from graft.second_look.layout import principal

AXES = 30
BLOCK = 1024  # photos that are compared with all others at once
POOL = 10  # times as many as are wanted: the least certain, among which those are spread


def margins(probabilities: np.ndarray) -> np.ndarray:
    """float (n,): by how much the most probable class leads the second, 0 to 1. probabilities:
    (n, C), C >= 2."""
    top = np.partition(probabilities, -2, axis=1)
    return top[:, -1] - top[:, -2]


def telling(features: np.ndarray, margin: np.ndarray, n: int) -> np.ndarray:
    """int (m,), positions of up to n photos, the least certain first, then each as unlike those
    before as can be.

    Of the POOL * n photos of the smallest margin, by k-centre's greedy rule (Gonzalez 1985; Sener
    and Savarese 2018) over standardised features: labels of photos that are alike tell little more
    than one of them.
    """
    pool = np.argsort(margin, kind="stable")[: POOL * n]
    if not len(pool) or n < 1:
        return np.empty(0, int)
    x = principal(features[pool], AXES)
    chosen, apart = [0], np.square(x - x[0]).sum(axis=1)
    while len(chosen) < min(n, len(pool)):
        apart[chosen] = -1.0
        chosen.append(int(apart.argmax()))
        apart = np.minimum(apart, np.square(x - x[chosen[-1]]).sum(axis=1))
    return pool[chosen]


def nearest(features: np.ndarray, feature: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(positions int (k,), similarities float (k,)) of the rows of `features`, float (n, d), most
    like `feature`, (d,), the most similar first: cosines of features standardised by `features`."""
    mean, scale = _scales(features)
    x, y = (
        (np.asarray(features, np.float32) - mean) / scale,
        (np.asarray(feature, np.float32) - mean) / scale,
    )
    cosine = x @ y / np.maximum(np.linalg.norm(x, axis=1) * np.linalg.norm(y), 1e-9)
    order = np.argsort(-cosine, kind="stable")[:k]
    return order, cosine[order]


def across(
    features: np.ndarray, splits: Sequence[str], *, least: float
) -> list[tuple[float, int, int]]:
    """(similarity, i, j) of the photos i and j of two different splits that are at least so
    similar, as of `nearest`, the most similar first; i is of train where one of the two is.

    features: float (n, d). splits: n names. Blocks of BLOCK rows are compared with all: memory does
    not grow with n squared.
    """
    mean, scale = _scales(features)
    part = np.asarray(splits)
    found = []
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        left, right = np.flatnonzero(part == first), np.flatnonzero(part == second)
        others = _directions(features[right], mean, scale)
        for start in range(0, len(left), BLOCK):
            rows = left[start : start + BLOCK]
            cosines = _directions(features[rows], mean, scale) @ others.T
            found += [
                (float(cosines[a, b]), int(rows[a]), int(right[b]))
                for a, b in np.argwhere(cosines >= least)
            ]
    return sorted(found, key=lambda pair: (-pair[0], pair[1:]))


def _scales(features):
    x = np.asarray(features, np.float32)
    return x.mean(axis=0), np.maximum(x.std(axis=0), 1e-12)


def _directions(features, mean, scale):
    x = (np.asarray(features, np.float32) - mean) / scale
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
