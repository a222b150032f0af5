"""Photos as points in the plane, those that look alike to the backbone near each other."""

from dataclasses import dataclass

import numpy as np

# Photos, at most: t-SNE's time grows faster than their number, and more points cover each other.
MAPPED = 1000
AXES = 30  # principal axes that t-SNE starts from
STEPS = 350
PERPLEXITY = 30  # neighbours that a photo counts as near, at most (van der Maaten and Hinton 2008)
MOST = 100_000  # photos that principal axes are taken from
FEW = 8  # photos, below which there are no neighbourhoods: principal axes alone


@dataclass(frozen=True, eq=False)
class Layout:
    """`indices`: int (m,), ascending, of the photos shown. `points`: float64 (m, 2), each axis from
    0 to 1. `method`: t-SNE or PCA."""

    indices: np.ndarray
    points: np.ndarray
    method: str


def lay_out(features: np.ndarray, first: np.ndarray, *, seed: int) -> Layout:
    """features: float (n, d). first: int (k,), photos that must be shown; chance adds others up to
    MAPPED.

    t-SNE on the first principal axes, begun from them, in one thread: the order in which threads
    add up would change its last bits, and those its picture.
    """
    from threadpoolctl import threadpool_limits

    n = len(features)
    must = np.asarray(first, int)[:MAPPED]
    rest = np.setdiff1d(np.arange(n), must)
    more = np.random.default_rng(seed).choice(
        rest, min(len(rest), MAPPED - len(must)), replace=False
    )
    indices = np.sort(np.concatenate([must, more]))
    x = principal(features[indices], AXES)
    if len(x) < FEW:
        return Layout(indices, _unit(x[:, :2]), "PCA")
    from sklearn.manifold import TSNE

    start = x[:, :2] / max(float(x[:, 0].std()), 1e-12) * 1e-4
    with threadpool_limits(1):
        perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
        points = TSNE(
            2, init=start, perplexity=perplexity, max_iter=STEPS, random_state=seed, n_jobs=1
        ).fit_transform(x)
    return Layout(indices, _unit(points), "t-SNE")


def principal(features: np.ndarray, axes: int) -> np.ndarray:
    """float32 (n, axes): standardised features along their first principal axes, each signed so
    that its largest value is positive; zeros where there are fewer. The axes are those of up to
    MOST photos, evenly taken."""
    chosen = np.linspace(0, len(features) - 1, min(len(features), MOST)).astype(int)
    x = features[chosen].astype(np.float32)
    mean = x.mean(axis=0)
    x -= mean
    scale = np.maximum(x.std(axis=0), 1e-6)
    x /= scale
    gram = len(x) <= x.shape[1]
    values, vectors = np.linalg.eigh((x @ x.T if gram else x.T @ x).astype(np.float64))
    top = vectors[:, ::-1][:, :axes]
    found = top * np.sqrt(np.maximum(values[::-1][:axes], 0)) if gram else x @ top
    if len(features) > len(x):
        along = (
            x.T @ (top / np.sqrt(np.maximum(values[::-1][:axes], 1e-12))) if gram else top
        ).astype(np.float32)
        parts = np.array_split(np.arange(len(features)), 1 + len(features) // MOST)
        found = np.concatenate(
            [(features[part].astype(np.float32) - mean) / scale @ along for part in parts]
        )
    found = found * np.where(found.max(axis=0) >= -found.min(axis=0), 1, -1)
    return np.pad(found, ((0, 0), (0, max(0, axes - found.shape[1])))).astype(np.float32)


def _unit(points):
    low, high = points.min(axis=0), points.max(axis=0)
    return ((points - low) / np.maximum(high - low, 1e-9)).astype(np.float64)
