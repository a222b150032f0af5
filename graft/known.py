"""Does a photo show one of the classes at all? A p-value, from what the network makes of it. One file, as it travels with the
registered model; it needs NumPy alone.

Three scores, since none wins everywhere: how much farther the nearest class is than the middle of all (the relative
Mahalanobis distance, from means and shrunk covariances in reduced features; Ren et al. 2021), what the reduced features leave
out (the residual of Wang et al. 2022), and the energy of the logits (Liu et al. 2020). Each is measured in standard deviations
of the validation photos, and they are summed. The p-value is the share of validation photos with as large a sum; beyond their
upper tenth, where few are left to count, the tail is taken as exponential.
"""

import io
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

FILE = "known.npz"
BYTES = 64_000  # of axes and means, at most: the file stays below 100 kB
AXES = 64  # principal axes, at most
SHARE = 0.1  # of the validation photos, by which the tail is fitted
LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class Known:
    """mean, scale: float16 (d,), of the features. axes: int8 (d, r), in steps of `step`, float32 (r,). centres: float16 (C, r),
    class means. whitening, spreading: float32 (r, r), of photos about their class and about the middle of all. middle,
    spread: float32 (3,), of the three scores on validation photos. calibration: float32 (m,), their sums, ascending. tail:
    float32 (2,), where the tail begins and its mean excess."""

    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray
    step: np.ndarray
    centres: np.ndarray
    whitening: np.ndarray
    spreading: np.ndarray
    middle: np.ndarray
    spread: np.ndarray
    calibration: np.ndarray
    tail: np.ndarray

    def p_values(self, features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """float64 (n,), 0 to 1: the share of photos of the classes that look at least as strange.

        features: float (n, d), pooled. logits: float (n, C), before any temperature."""
        return _p(self.calibration, self.tail, _sum(_scores(self, features, logits), self.middle, self.spread))

    def write(self, path: Path) -> None:
        """The same bytes for the same content: NumPy's archives hold no time."""
        buffer = io.BytesIO()
        np.savez(buffer, **{field.name: getattr(self, field.name) for field in fields(self)})
        Path(path).write_bytes(buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> "Known":
        """What `write` wrote. Raises ValueError or OSError for anything else; nothing in it is executed."""
        with np.load(path, allow_pickle=False) as archive:
            return cls(**{field.name: archive[field.name] for field in fields(cls)})


def fit(train: np.ndarray, labels: np.ndarray, val: np.ndarray, val_logits: np.ndarray, *, classes: int) -> Known:
    """train: float (n, d), features of training photos, of these labels, int (n,). val: (m, d), those of validation photos, and
    the network's logits for them, (m, classes), by which it is calibrated."""
    x = np.asarray(train, np.float32)
    mean = x.mean(axis=0).astype(np.float16)
    scale = np.maximum(x.std(axis=0), 1e-4).astype(np.float16)
    x = (x - mean) / scale
    r = int(np.clip(BYTES // (x.shape[1] + 2 * classes), 1, min(AXES, len(x), x.shape[1])))
    axes = _principal(x, r)
    step = np.maximum(np.abs(axes).max(axis=0) / 127, LEAST).astype(np.float32)
    axes = np.round(axes / step).astype(np.int8)
    z = x @ (axes * step)
    present = np.flatnonzero(np.bincount(labels, minlength=classes))
    centres = np.stack([z[labels == k].mean(axis=0) for k in present]).astype(np.float16)
    within = z - centres[np.searchsorted(present, labels)]
    whitening, spreading = _whitening(within), _whitening(z)  # z has mean 0, as x has
    nothing = np.zeros(3, np.float32)
    draft = Known(mean, scale, axes, step, centres, whitening, spreading, nothing, nothing + 1, nothing, nothing)
    scores = _scores(draft, val, val_logits)
    middle, spread = scores.mean(axis=0), np.maximum(scores.std(axis=0), 1e-6)
    sums = np.sort(_sum(scores, middle, spread))
    begin = float(np.quantile(sums, 1 - SHARE))
    beyond = sums[sums > begin] - begin
    tail = np.array([begin, max(float(beyond.mean()) if len(beyond) else 0.0, 0.1)])
    kept = sums[np.linspace(0, len(sums) - 1, min(len(sums), 512)).astype(int)]
    given = (middle, spread, kept, tail)
    return Known(mean, scale, axes, step, centres, whitening, spreading, *(np.asarray(v, np.float32) for v in given))


def _scores(known, features, logits):
    """float64 (n, 3): the distance, the logarithm of the residual, and the energy; larger is stranger."""
    x = (np.asarray(features, np.float32) - known.mean) / known.scale
    axes = known.axes * known.step
    z = x @ axes
    w, centres = z @ known.whitening, known.centres.astype(np.float32) @ known.whitening
    nearest = np.stack([np.square(w - centre).sum(axis=1) for centre in centres]).min(axis=0)
    distance = nearest - np.square(z @ known.spreading).sum(axis=1)
    residual = np.square(x).sum(axis=1) - np.square(z).sum(axis=1)
    top = logits.max(axis=1)
    energy = -(top + np.log(np.exp(logits - top[:, None]).sum(axis=1)))
    columns = (distance, np.log(np.maximum(residual, 1e-6)), energy)
    return np.stack(columns, axis=1).astype(np.float64)


def _sum(scores, middle, spread):
    return ((scores - middle) / spread).sum(axis=1)


def _p(calibration, tail, sums):
    n = len(calibration)
    share = (1 + n - np.searchsorted(calibration, sums, side="left")) / (n + 1)
    begin, excess = (float(v) for v in tail)
    return np.where(sums > begin, SHARE * np.exp(-np.maximum(sums - begin, 0) / excess), share)


def _principal(x, r):
    """float32 (d, r): orthonormal, along which the rows vary most."""
    if len(x) < x.shape[1]:
        values, vectors = np.linalg.eigh((x @ x.T).astype(np.float64))
        return (x.T @ (vectors[:, ::-1][:, :r] / np.sqrt(np.maximum(values[::-1][:r], LEAST)))).astype(np.float32)
    return np.linalg.eigh((x.T @ x).astype(np.float64))[1][:, ::-1][:, :r].astype(np.float32)


def _whitening(z):
    values, vectors = np.linalg.eigh(_shrunk(z.astype(np.float64)))
    return (vectors / np.sqrt(np.maximum(values, LEAST))).astype(np.float32)


def _shrunk(z):
    """Covariance (r, r) of rows of mean 0, drawn towards a multiple of the identity as far as Ledoit and Wolf (2004) say."""
    n, r = z.shape
    covariance = z.T @ z / n
    mu = np.trace(covariance) / r
    apart = np.square(covariance).sum() - r * mu**2
    noise = (np.square(np.square(z).sum(axis=1)).sum() / n - np.square(covariance).sum()) / n
    weight = 1.0 if apart <= 0 else min(1.0, max(noise, 0.0) / apart)
    return (1 - weight) * covariance + (weight * mu + LEAST) * np.eye(r)
