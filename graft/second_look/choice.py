"""Which photos to look at: the most telling of many unlabelled ones, the nearest of those that are known."""

import numpy as np

from graft.second_look.layout import principal

AXES = 30
POOL = 10  # times as many as are wanted: the least certain, among which those are spread


def margins(probabilities: np.ndarray) -> np.ndarray:
    """float (n,): by how much the most probable class leads the second, 0 to 1. probabilities: (n, C), C >= 2."""
    top = np.partition(probabilities, -2, axis=1)
    return top[:, -1] - top[:, -2]


def telling(features: np.ndarray, margin: np.ndarray, n: int) -> np.ndarray:
    """int (m,), positions of up to n photos, the least certain first, then each as unlike those before as can be.

    Of the POOL * n photos of the smallest margin, by k-centre's greedy rule (Gonzalez 1985; Sener and Savarese 2018) over
    standardised features: labels of photos that are alike tell little more than one of them.
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
    """(positions int (k,), similarities float (k,)) of the rows of `features`, float (n, d), most like `feature`, (d,), the
    most similar first: cosines of features standardised by `features`."""
    x = np.asarray(features, np.float32)
    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-12)
    x, y = (x - mean) / scale, (np.asarray(feature, np.float32) - mean) / scale
    cosine = x @ y / np.maximum(np.linalg.norm(x, axis=1) * np.linalg.norm(y), 1e-9)
    order = np.argsort(-cosine, kind="stable")[:k]
    return order, cosine[order]
