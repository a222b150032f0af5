"""Is the confidence worth its name: temperature scaling, reliability, expected calibration
error."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graft.scoring.predictions import Predictions, normalise
from graft.scoring.statistics import CHUNK, Z, wilson

BINS = 15  # of the calibration error, as in Guo et al. 2017
TEMPERATURES = (0.05, 20.0)
# Standard deviation of log(temperature): a handful of validation images, all right, must not send
# it to 0.
PRIOR = 0.5


def log_probabilities(probabilities: npt.ArrayLike) -> np.ndarray:
    """Natural logarithm, with an exact 0 taken as the smallest positive float32, so that it stays
    finite."""
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))


def apply_temperature(probabilities: npt.ArrayLike, temperature: float) -> np.ndarray:
    """softmax(log(p) / temperature) as float64 (n, C); `1 / temperature` undoes it. Above 1
    softens.

    Raises ValueError for a temperature that is not a positive number.
    """
    if not temperature > 0 or not np.isfinite(temperature):
        raise ValueError(f"temperature must be above 0, not {temperature}")
    p = normalise(probabilities)
    if temperature == 1:
        return p
    # Relative to the row's largest, so that a sharp temperature cannot underflow the whole row.
    with np.errstate(under="ignore"):
        return normalise((p / p.max(axis=1, keepdims=True)) ** (1.0 / temperature))


def fit_temperature(log_probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The temperature in [0.05, 20] that minimises the log loss of softmax(log_probabilities / T)
    (Guo et al. 2017).

    `log_probabilities` float (n, C): logits or logarithms of probabilities of *validation* images;
    -inf is allowed. `labels` int (n,). Apply the result with `apply_temperature`. Exactly 1.0 where
    the images do not call for another (likelihood-ratio test at 5%): there scaling would follow
    chance, and the calibration error of other images rises as often as it falls. A log-normal prior
    (sd 0.5), weighing as much as a fraction of one image, keeps T finite where every image is
    right.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    z, labels = np.asarray(log_probabilities, np.float64), np.asarray(labels, np.int64)
    if not len(labels):
        return 1.0
    z = np.maximum(z - z.max(axis=1, keepdims=True), np.log(np.finfo(np.float32).tiny))
    right = z[np.arange(len(labels)), labels]

    def loss(log_t):
        return float((logsumexp(z / np.exp(log_t), axis=1) - right / np.exp(log_t)).sum())

    def cost(log_t):
        return loss(log_t) + (log_t / PRIOR) ** 2 / 2

    best = minimize_scalar(
        cost, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-8}
    ).x
    return float(np.exp(best)) if 2 * (loss(0.0) - loss(best)) > Z**2 else 1.0


@dataclass(frozen=True)
class Calibration:
    """temperature: fitted on validation images. applied: whether the model ships with it, or it is
    only reported."""

    temperature: float = 1.0
    applied: bool = False

    def shipped(self, predictions: Predictions) -> Predictions:
        """What the model ships, from its predictions without the temperature."""
        return self._scaled(predictions, self.temperature) if self.applied else predictions

    def both(self, predictions: Predictions) -> tuple[Predictions, Predictions]:
        """(without, with) the temperature, from predictions as shipped."""
        if self.applied:
            return self._scaled(predictions, 1 / self.temperature), predictions
        return predictions, self._scaled(predictions, self.temperature)

    @staticmethod
    def _scaled(predictions, temperature):
        return predictions.replace_probabilities(
            apply_temperature(predictions.probabilities, temperature)
        )


def calibrated_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 (n,): log loss of each image, nats, after the temperature that fits them best.

    What candidates are chosen by: overconfidence spoils the raw loss of the more accurate one, and
    a temperature is fitted anyway.
    """
    logits = log_probabilities(np.asarray(probabilities, np.float64))
    tempered = apply_temperature(probabilities, fit_temperature(logits, labels))
    return -log_probabilities(tempered[np.arange(len(labels)), labels])


def reliability(predictions: Predictions, *, bins: int = BINS) -> list[dict]:
    """One dict per equal-width bin (low, high] of the confidence: `low`, `high`, `n`, mean
    `confidence`, `accuracy`, `accuracy_low`, `accuracy_high` (Wilson); the last four are None where
    n is 0.
    """
    edges, bin_of = _bins(predictions.confidence, bins)
    n = np.bincount(bin_of, minlength=bins)
    confidence, right = (
        np.bincount(bin_of, weights=values, minlength=bins)
        for values in (predictions.confidence, predictions.correct)
    )
    with np.errstate(invalid="ignore"):
        columns = {"confidence": confidence / n, "accuracy": right / n}
    columns["accuracy_low"], columns["accuracy_high"] = wilson(right, n)
    return [
        {"low": float(edges[k]), "high": float(edges[k + 1]), "n": int(n[k])}
        | {name: float(values[k]) if n[k] else None for name, values in columns.items()}
        for k in range(bins)
    ]


def _bins(confidence, bins):
    """Edges of equal-width bins (low, high], float (bins + 1,), and the bin of each confidence, int
    (n,)."""
    edges = np.linspace(0, 1, bins + 1)
    return edges, np.digitize(confidence, edges[1:-1], right=True)


def calibration_error(rows: list[dict]) -> float:
    """Mean |accuracy - confidence| over the bins of `reliability`, weighted by images (Guo et al.
    2017)."""
    held = [row for row in rows if row["n"]]
    return float(
        sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in held)
        / sum(row["n"] for row in held)
    )


def expected_calibration_error(predictions: Predictions, *, bins: int = BINS) -> float:
    return calibration_error(reliability(predictions, bins=bins))


def chance_calibration_error(
    predictions: Predictions, *, bins: int = BINS, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """(mean, 95% quantile) of the calibration error that perfectly calibrated confidences would
    show on so few images.

    Each resample draws which images are right from their confidences (consistency resampling,
    Bröcker and Smith 2007). An error within that range says nothing against the model; on 467
    photos of flowers (accuracy 0.92) the mean was 0.03.
    """
    _, bin_of = _bins(predictions.confidence, bins)
    order = np.argsort(bin_of, kind="stable")
    confidence, starts = (
        predictions.confidence[order],
        np.flatnonzero(np.diff(bin_of[order], prepend=-1)),
    )
    rng, n = np.random.default_rng(seed), len(confidence)
    step = max(1, CHUNK // n)
    parts = []
    for start in range(0, resamples, step):
        right = rng.random((min(step, resamples - start), n)) < confidence
        gaps = np.add.reduceat(right - confidence, starts, axis=1)
        parts.append(np.abs(gaps).sum(axis=1) / n)
    errors = np.concatenate(parts)
    return float(errors.mean()), float(np.quantile(errors, 0.95))
