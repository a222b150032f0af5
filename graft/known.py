"""Does a photo show one of the classes at all? A p-value, from what the network makes of it. One
file, as it travels with the registered model; it needs NumPy alone.

Four scores, since none wins everywhere: how much farther the nearest class is than the middle of
all (the relative Mahalanobis distance, from means and shrunk covariances in reduced features; Ren
et al. 2021), what the reduced features leave out (the residual of Wang et al. 2022), the same of
the shallowest depth alone, where the head sees several (textures that no photo has show there:
shuffled blocks), which counts half, and the energy of the logits (Liu et al. 2020). Each is
measured in standard deviations of the validation photos, and they are summed. The p-value is the
share of validation photos with as large a sum; beyond their upper tenth, where few are left to
count, the tail is taken as exponential.
"""

import io
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

FILE = "known.npz"
# Of axes and means, at most: with the whitening, in 64 axes, the file stays below 100 kB.
BYTES = 60_000
AXES = 64  # principal axes, at most
SHALLOW = 16  # those of the shallowest depth
# Of the scores; with 1 a class that was left out is noticed less.
WEIGHTS = np.array([1.0, 1.0, 1.0, 0.5])
SHARE = 0.1  # of the validation photos, by which the tail is fitted
LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class Known:
    """mean, scale: float16 (d,), of the features. axes: int8 (d, r), in steps of `step`, float32
    (r,). centres: float16 (C, r), class means. whitening, spreading: float32 (r, r), of photos
    about their class and about the middle of all. middle, spread: float32 (k,), of the k scores on
    validation photos. calibration: float32 (m,), their sums, ascending. tail: float32 (2,), where
    the tail begins and its mean excess. shallow: int8 (s, q), in steps of `shallow_step`, float32
    (q,): axes of the first s features, which are of the shallowest depth; none where all are of one
    depth (k = 3, else 4)."""

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
    shallow: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int8))
    shallow_step: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def p_values(self, features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """float64 (n,), 0 to 1: the share of photos of the classes that look at least as strange.

        features: float (n, d), pooled. logits: float (n, C), before any temperature."""
        return _p(
            self.calibration,
            self.tail,
            _sum(_scores(self, features, logits), self.middle, self.spread),
        )

    def write(self, path: Path) -> None:
        """The same bytes for the same content: NumPy's archives hold no time."""
        buffer = io.BytesIO()
        np.savez(buffer, **{field.name: getattr(self, field.name) for field in fields(self)})
        Path(path).write_bytes(buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> "Known":
        """What `write` wrote. Raises ValueError or OSError for anything else; nothing in it is
        executed."""
        with np.load(path, allow_pickle=False) as archive:
            # Of before there were any.
            old = () if "shallow" in archive else ("shallow", "shallow_step")
            return cls(
                **{
                    field.name: archive[field.name]
                    for field in fields(cls)
                    if field.name not in old
                }
            )


def fit(
    train: np.ndarray,
    labels: np.ndarray,
    val: np.ndarray,
    val_logits: np.ndarray,
    *,
    classes: int,
    shallow: int = 0,
) -> Known:
    """train: float (n, d), features of training photos, of these labels, int (n,). val: (m, d),
    those of validation photos, and the network's logits for them, (m, classes), by which it is
    calibrated. shallow: how many of the features, the first, are of the shallowest depth; 0 where
    there is one depth."""
    x = np.asarray(train, np.float32)
    mean = x.mean(axis=0).astype(np.float16)
    scale = np.maximum(x.std(axis=0), 1e-4).astype(np.float16)
    x = (x - mean) / scale
    r = int(
        np.clip(
            (BYTES - SHALLOW * shallow) // (x.shape[1] + 2 * classes),
            1,
            min(AXES, len(x), x.shape[1]),
        )
    )
    axes, step = _quantised(_principal(x, r))
    low, low_step = _quantised(_principal(x[:, :shallow], min(SHALLOW, shallow // 2, len(x))))
    z = x @ (axes * step)
    present = np.flatnonzero(np.bincount(labels, minlength=classes))
    centres = np.stack([z[labels == k].mean(axis=0) for k in present]).astype(np.float16)
    within = z - centres[np.searchsorted(present, labels)]
    whitening, spreading = _whitening(within), _whitening(z)  # z has mean 0, as x has
    shapes = (mean, scale, axes, step, centres, whitening, spreading)
    nothing = np.zeros(1, np.float32)
    draft = Known(*shapes, nothing, nothing, nothing, nothing, low, low_step)
    scores = _scores(draft, val, val_logits)
    middle, spread = scores.mean(axis=0), np.maximum(scores.std(axis=0), 1e-6)
    sums = np.sort(_sum(scores, middle, spread))
    begin = float(np.quantile(sums, 1 - SHARE))
    beyond = sums[sums > begin] - begin
    tail = np.array([begin, max(float(beyond.mean()) if len(beyond) else 0.0, 0.1)])
    kept = sums[np.linspace(0, len(sums) - 1, min(len(sums), 512)).astype(int)]
    given = (middle, spread, kept, tail)
    return Known(*shapes, *(np.asarray(v, np.float32) for v in given), low, low_step)


def _scores(known, features, logits):
    """float64 (n, k): the distance, the logarithm of the residual, the energy, and the logarithm of
    the shallow residual where there is one; larger is stranger."""
    x = (np.asarray(features, np.float32) - known.mean) / known.scale
    axes = known.axes * known.step
    z = x @ axes
    w, centres = z @ known.whitening, known.centres.astype(np.float32) @ known.whitening
    nearest = np.stack([np.square(w - centre).sum(axis=1) for centre in centres]).min(axis=0)
    distance = nearest - np.square(z @ known.spreading).sum(axis=1)
    residual = np.square(x).sum(axis=1) - np.square(z).sum(axis=1)
    top = logits.max(axis=1)
    energy = -(top + np.log(np.exp(logits - top[:, None]).sum(axis=1)))
    columns = [distance, np.log(np.maximum(residual, 1e-6)), energy]
    if known.shallow.size:
        low = x[:, : len(known.shallow)]
        rest = np.square(low).sum(axis=1) - np.square(
            low @ (known.shallow * known.shallow_step)
        ).sum(axis=1)
        columns.append(np.log(np.maximum(rest, 1e-6)))
    return np.stack(columns, axis=1).astype(np.float64)


def _sum(scores, middle, spread):
    return ((scores - middle) / spread * WEIGHTS[: scores.shape[1]]).sum(axis=1)


def _p(calibration, tail, sums):
    n = len(calibration)
    share = (1 + n - np.searchsorted(calibration, sums, side="left")) / (n + 1)
    begin, excess = (float(v) for v in tail)
    return np.where(sums > begin, SHARE * np.exp(-np.maximum(sums - begin, 0) / excess), share)


def _quantised(axes):
    """(int8 (d, r), float32 (r,) steps) of float (d, r)."""
    step = np.maximum(np.abs(axes).max(axis=0, initial=0.0) / 127, LEAST).astype(np.float32)
    return np.round(axes / step).astype(np.int8), step


def _principal(x, r):
    """float32 (d, r): orthonormal, along which the rows vary most."""
    if r < 1:
        return np.zeros((x.shape[1], 0), np.float32)
    if len(x) < x.shape[1]:
        values, vectors = np.linalg.eigh((x @ x.T).astype(np.float64))
        return (
            x.T @ (vectors[:, ::-1][:, :r] / np.sqrt(np.maximum(values[::-1][:r], LEAST)))
        ).astype(np.float32)
    return np.linalg.eigh((x.T @ x).astype(np.float64))[1][:, ::-1][:, :r].astype(np.float32)


def _whitening(z):
    values, vectors = np.linalg.eigh(_shrunk(z.astype(np.float64)))
    return (vectors / np.sqrt(np.maximum(values, LEAST))).astype(np.float32)


def _shrunk(z):
    """Covariance (r, r) of rows of mean 0, drawn towards a multiple of the identity as far as
    Ledoit and Wolf (2004) say."""
    n, r = z.shape
    covariance = z.T @ z / n
    mu = np.trace(covariance) / r
    apart = np.square(covariance).sum() - r * mu**2
    noise = (np.square(np.square(z).sum(axis=1)).sum() / n - np.square(covariance).sum()) / n
    weight = 1.0 if apart <= 0 else min(1.0, max(noise, 0.0) / apart)
    return (1 - weight) * covariance + (weight * mu + LEAST) * np.eye(r)
