"""Where the head is weaker than elsewhere: photos parted by what can be read off them, each part
against the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from graft import looks
from graft.second_look.evidence import Evidence
from graft.second_look.layout import principal

if TYPE_CHECKING:
    from graft.dataset.images import ImageSet

LEAST = 20  # photos of a segment, and wrong predictions in all: below, no test could find anything
TAIL = 0.2  # share of the photos at either end of a measure that makes a segment
VALUES = 40  # of a kind (folders, file types), at most, the most frequent
CLUSTERS, AXES = 10, 20
LEVEL = 0.05
GREY = 6.0  # mean difference of the channels below which a photo is grey
SEEN = 1200  # photos that are opened to be measured, at most
NAMES = {
    "brightness": ("dark", "bright"),
    "contrast": ("of little contrast", "of much contrast"),
    "sharpness": ("blurred", "sharp"),
    "size": ("small", "large"),
    "aspect": ("tall", "wide"),
}


@dataclass(frozen=True)
class Segment:
    """accuracy: of its `photos`, against `rest_accuracy` of all others that were measured. p:
    one-sided, Fisher's exact test. corrected: Holm's (1979), over all segments that were tested.
    indices: of its photos, int (n,)."""

    kind: str
    name: str
    photos: int
    accuracy: float
    rest_accuracy: float
    p: float
    corrected: float = 1.0
    indices: np.ndarray = field(default_factory=lambda: np.empty(0, int), repr=False, compare=False)

    @property
    def weak(self) -> bool:
        return self.corrected < LEVEL


COLUMNS = tuple(each.name for each in fields(Segment) if each.name != "indices")


def table(segments: Sequence[Segment]) -> list[tuple]:
    """Rows of segments.csv, under COLUMNS."""
    return [tuple(getattr(segment, name) for name in COLUMNS) for segment in segments]


def find(
    correct: np.ndarray, measures: Mapping[str, np.ndarray], kinds: Mapping[str, Sequence[str]]
) -> list[Segment]:
    """All segments of LEAST photos or more, the most surprising first.

    correct: bool (n,). measures: {name: float (n,)}, NaN where a photo was not measured; the fifth
    at each end is a segment. kinds: {name: n words}, "" where a photo has none; each word is a
    segment.
    """
    parts = []
    for name, values in measures.items():
        given = ~np.isnan(values)
        if given.sum() >= LEAST and np.ptp(values[given]) > 0:
            low, high = np.quantile(values[given], [TAIL, 1 - TAIL])
            few, many = NAMES.get(name, ("low", "high"))
            parts += [
                (name, few, given & (values <= low), given),
                (name, many, given & (values >= high), given),
            ]
    for name, words in kinds.items():
        said = np.asarray(words, str)
        values, counts = np.unique(said[said != ""], return_counts=True)
        for value in values[np.argsort(-counts, kind="stable")][:VALUES]:
            parts.append((name, str(value), said == value, said != ""))
    found = [
        _segment(*part, correct)
        for part in parts
        if min(part[2].sum(), (part[3] & ~part[2]).sum()) >= LEAST
    ]
    found.sort(key=lambda segment: segment.p)
    return _holm(found)


def _segment(kind, name, inside, measured, correct):
    from scipy.stats import fisher_exact

    rest = measured & ~inside
    table = [
        [int((inside & correct).sum()), int((inside & ~correct).sum())],
        [int((rest & correct).sum()), int((rest & ~correct).sum())],
    ]
    p = float(fisher_exact(table, alternative="less").pvalue)
    accuracies = float(correct[inside].mean()), float(correct[rest].mean())
    return Segment(kind, name, int(inside.sum()), *accuracies, p, indices=np.flatnonzero(inside))


def _holm(segments):
    """Segments, sorted by p, with their corrected p: (m - k) p of the k-th, never less than the one
    before."""
    values = [(len(segments) - k) * segment.p for k, segment in enumerate(segments)]
    corrected = np.minimum(np.maximum.accumulate(values), 1.0) if values else []
    return [replace(segment, corrected=float(value)) for segment, value in zip(segments, corrected)]


def of_evidence(evidence: Evidence, images: ImageSet, *, seed: int) -> list[Segment]:
    """`find` by all that can be read off the photos: those that `seed` draws are opened, at most
    SEEN."""
    n, p = len(evidence), evidence.predictions
    if not evidence.folds or (~p.correct).sum() < LEAST:
        return []
    opened = np.sort(np.random.default_rng(seed).choice(n, min(n, SEEN), replace=False))
    measures = measure(images, opened, n)
    grey = np.where(
        np.isnan(measures["colour"]), "", np.where(measures.pop("colour") < GREY, "grey", "colour")
    ).tolist()
    if evidence.sizes:
        width, height = np.array(evidence.sizes, float).T
        measures |= {"size": width * height, "aspect": width / height}
    folders = [PurePosixPath(path).parts for path in p.paths]
    kinds: dict[str, Sequence[str]] = {
        "colours": grey,
        "file type": [PurePosixPath(path).suffix.lower() for path in p.paths],
        "sub-folder": ["/".join(parts[:-1]) if len(parts) > 2 else "" for parts in folders],
        "group": [group if group != path else "" for group, path in zip(p.groups, p.paths)],
        "alike": clusters(evidence.features, seed=seed),
    }
    return find(p.correct, measures, kinds)


def measure(images: ImageSet, indices: np.ndarray, total: int) -> dict[str, np.ndarray]:
    """{"brightness", "contrast", "sharpness", "colour": float (total,)}, NaN for all but the photos
    at `indices`.

    images: `read(indices)` gives batches uint8 (b, S, S, 3). The first three as of `graft.looks`;
    colour: mean difference of the channels, in grey levels of 255.
    """
    from PIL import Image

    rows = []
    for batch in images.read(indices):
        colour = (batch.max(axis=3) - batch.min(axis=3)).mean(axis=(1, 2))
        seen = looks.measure([looks.small(Image.fromarray(image)) for image in batch])
        rows.append(np.column_stack([seen[:, :3], colour]))
    found = np.full((total, 4), np.nan)
    found[indices] = np.concatenate(rows)
    return dict(zip(("brightness", "contrast", "sharpness", "colour"), found.T))


def clusters(features: np.ndarray, *, seed: int) -> list[str]:
    """Of each photo the name of its cluster, by k-means on the first principal axes; in one thread,
    so that it is the same each time."""
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    k = min(CLUSTERS, len(features) // LEAST)
    if k < 2:
        return [""] * len(features)
    with threadpool_limits(1):
        x = principal(features, AXES)
        found = MiniBatchKMeans(k, random_state=seed, n_init=3, batch_size=2048).fit_predict(x)
    return [f"cluster {number + 1}" for number in found]
