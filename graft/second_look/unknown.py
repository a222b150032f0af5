"""Is a photo that shows none of the classes told apart from those that do? Measured on what
certainly shows none."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np

from graft.scoring.statistics import Z, wilson

REFUSED = 0.05  # share of the known that may be refused
BLOCKS = 16  # along a side, of a shuffled photo: with fewer, a petal stays a petal
FAR = 60  # pictures of each kind


@dataclass(frozen=True)
class Verdict:
    """One kind of unknown pictures against known photos. auroc: of the p-values, 1.0 tells all
    apart. caught: the share of the unknown below the p-value below which 5% of the known lie. Each
    with its 95% interval. kept_below: share of the known with a p-value below 0.01, which is 0.01
    where p-values are what they claim."""

    kind: str
    unknown: int
    known: int
    auroc: float
    auroc_low: float
    auroc_high: float
    caught: float
    caught_low: float
    caught_high: float
    kept_below: float


COLUMNS = tuple(field.name for field in fields(Verdict))


def judge(kind: str, known: np.ndarray, unknown: np.ndarray) -> Verdict:
    """known, unknown: p-values, float (n,) and (m,), at least one each. The area's interval is
    Hanley and McNeil's (1982)."""
    from scipy.stats import mannwhitneyu

    n, m = len(known), len(unknown)
    area = float(mannwhitneyu(known, unknown).statistic / (n * m))
    # At an area of 1 or 0 theirs has no width: what is left possible is taken from half a pair.
    a = min(max(area, 0.5 / max(n, m)), 1 - 0.5 / max(n, m))
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = np.sqrt((a * (1 - a) + (m - 1) * (q1 - a * a) + (n - 1) * (q2 - a * a)) / (n * m))
    hits = int((unknown < np.quantile(known, REFUSED)).sum())
    low, high = (float(end) for end in wilson(hits, m))
    area_low, area_high = max(0.0, min(area, a - Z * error)), min(1.0, max(area, a + Z * error))
    return Verdict(
        kind,
        m,
        n,
        area,
        float(area_low),
        float(area_high),
        hits / m,
        low,
        high,
        float((known < 0.01).mean()),
    )


def near(
    left_out: Iterable[tuple[int, np.ndarray, np.ndarray]], classes: Sequence[str]
) -> list[Verdict]:
    """left_out: (class, p-values of known photos, of that class's photos), each by a model that
    never saw the class."""
    return [judge(classes[k], known, unknown) for k, known, unknown in left_out]


def far(pixels: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """Pictures that show nothing, {kind: uint8 (m, S, S, 3)}: noise, flat colours, and `pixels`,
    photos uint8 (m, S, S, 3), with their blocks shuffled."""
    rng = np.random.default_rng(seed)
    m, size = pixels.shape[:2]
    flat = np.broadcast_to(rng.integers(0, 256, (m, 1, 1, 3), dtype=np.uint8), pixels.shape)
    shuffled = np.stack([_shuffled(image, rng) for image in pixels])
    noise = rng.integers(0, 256, (m, size, size, 3), dtype=np.uint8)
    return {"noise": noise, "flat colours": np.ascontiguousarray(flat), "shuffled blocks": shuffled}


def _shuffled(image, rng):
    side = max(1, len(image) // BLOCKS)
    k = len(image) // side
    inside = (
        image[: k * side, : k * side]
        .reshape(k, side, k, side, 3)
        .swapaxes(1, 2)
        .reshape(k * k, side, side, 3)
    )
    mixed = (
        rng.permutation(inside)
        .reshape(k, k, side, side, 3)
        .swapaxes(1, 2)
        .reshape(k * side, k * side, 3)
    )
    rest = len(image) - k * side
    return np.pad(mixed, ((0, rest), (0, rest), (0, 0)), mode="edge")


def table(verdicts: Sequence[Verdict]) -> list[tuple]:
    """Rows of unknown.csv, under COLUMNS."""
    return [astuple(verdict) for verdict in verdicts]
