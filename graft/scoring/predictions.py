"""What a classifier says of labelled images, in memory and as `predictions.csv`."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from graft.system import files
from graft.system.console import GraftError

COLUMNS = ("path", "label", "predicted", "confidence", "group", "head_predicted", "known")
PREFIX = "class:"  # of a class's column where the class is called like one of the others
# A row whose sum is that close to 1 stays as it is, so that what is read back is what was written.
ROUNDING = 1e-12


class Labelled(Protocol):
    """Images whose classes are known: `labels` int (n,), positions in `classes`; paths and groups n
    each."""

    @property
    def paths(self) -> Sequence[str]: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def groups(self) -> Sequence[str]: ...


def class_columns(classes: Sequence[str]) -> list[str]:
    """Names of the columns of probabilities, here and in what `graft predict` writes: a class that
    is called like one of the other columns of either has its own named `class:<name>`."""
    reserved = (*COLUMNS, "problem")
    return [
        f"{PREFIX}{name}" if name in reserved or name.startswith(PREFIX) else name
        for name in classes
    ]


def normalise(probabilities: npt.ArrayLike) -> np.ndarray:
    """float64 (n, C), each row divided by its sum; what has been normalised stays as it is, bit for
    bit.

    Raises ValueError for another shape, C < 2, and a negative, NaN or all-zero row.
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or p.shape[1] < 2:
        raise ValueError(f"probabilities must have shape (n, C) with C >= 2, not {p.shape}")
    total = p.sum(axis=1, keepdims=True)
    bad = ~np.isfinite(total[:, 0]) | (total[:, 0] <= 0) | (p < 0).any(axis=1)
    if bad.any():
        raise ValueError(f"probabilities: row {int(np.flatnonzero(bad)[0])} is not a distribution")
    return np.where(np.abs(total - 1) > ROUNDING, p / total, p)


@dataclass(frozen=True, eq=False)
class Predictions:
    """n >= 1 images, what they show, and what a model says of them.

    paths: as in the manifest. labels: int64 (n,), indices into `classes`. probabilities: float64
    (n, C), normalised here. classes: C names. groups: n strings, images of one group are
    near-duplicates or of one origin, "" is an image on its own; left out, every image is. Raises
    ValueError where these do not fit together.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]
    groups: tuple[str, ...] = ()

    def __post_init__(self):
        p, labels = normalise(self.probabilities), np.asarray(self.labels, np.int64)
        n, width = p.shape
        groups = tuple(self.groups) or ("",) * n
        if len(self.classes) != width:
            raise ValueError(
                f"{len(self.classes)} class names for {width} columns of probabilities"
            )
        if labels.shape != (n,) or len(self.paths) != n or len(groups) != n:
            found = f"{labels.shape}, {len(self.paths)} paths and {len(groups)} groups"
            raise ValueError(
                f"labels must have shape ({n},) like the probabilities, and so paths and groups, "
                f"not {found}"
            )
        if not n:
            raise ValueError("no images to evaluate")
        if labels.min() < 0 or labels.max() >= width:
            raise ValueError(
                f"labels must lie in 0 … {width - 1}, not {labels.min()} … {labels.max()}"
            )
        values = (tuple(self.paths), labels, p, tuple(map(str, self.classes)), groups)
        for field, value in zip(dataclasses.fields(self), values):
            object.__setattr__(self, field.name, value)

    @classmethod
    def of(cls, images: Labelled, probabilities: npt.ArrayLike) -> "Predictions":
        """`probabilities` (n, C) of an ImageSet, or of anything else with paths, labels, classes
        and groups."""
        paths, classes, groups = tuple(images.paths), tuple(images.classes), tuple(images.groups)
        return cls(paths, images.labels, np.asarray(probabilities), classes, groups)

    def __len__(self):
        return len(self.labels)

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        """int64 (n,): the most probable class, the first of equal ones."""
        return self.probabilities.argmax(axis=1)

    @functools.cached_property
    def confidence(self) -> np.ndarray:
        """float64 (n,): the probability of `predicted`."""
        return self.probabilities.max(axis=1)

    @functools.cached_property
    def correct(self) -> np.ndarray:
        """bool (n,)."""
        return self.predicted == self.labels

    def names(self, indices: Iterable[int]) -> list[str]:
        return [self.classes[k] for k in indices]

    def row(self, i: int) -> tuple[str, str, str, float]:
        """(path, label, predicted, confidence) of image `i`, the classes by name."""
        label, predicted = self.names((self.labels[i], self.predicted[i]))
        return self.paths[i], label, predicted, float(self.confidence[i])

    def replace_probabilities(self, probabilities: npt.ArrayLike) -> "Predictions":
        return dataclasses.replace(self, probabilities=np.asarray(probabilities))

    def write(
        self,
        path: str | Path,
        *,
        head: "Predictions | None" = None,
        known: np.ndarray | None = None,
    ) -> None:
        """path, label, predicted, confidence, one column per class (all digits), group; with
        `head`, what that one says; with `known`, float (n,), the p-values of `graft.known`."""
        header = [*COLUMNS[:4], *class_columns(self.classes), "group"]
        columns = [
            self.paths,
            self.names(self.labels),
            self.names(self.predicted),
            self.confidence.tolist(),
            *self.probabilities.T.tolist(),
            self.groups,
        ]
        if head is not None:
            header.append("head_predicted")
            columns.append(self.names(head.predicted))
        if known is not None:
            header.append("known")
            columns.append(np.asarray(known, np.float64).tolist())
        files.write_csv(path, header, zip(*columns))

    @classmethod
    def read(cls, path: str | Path) -> "Predictions":
        """What `write` wrote, without the head's. Raises GraftError for a file that is not a table
        of predictions."""
        rows = files.read_csv(path)
        try:
            columns = [name for name in rows[0] if name not in COLUMNS]
            classes = tuple(name.removeprefix(PREFIX) for name in columns)
            index = {name: k for k, name in enumerate(classes)}
            return cls(
                paths=tuple(row["path"] for row in rows),
                labels=np.array([index[row["label"]] for row in rows]),
                probabilities=np.array([[float(row[name]) for name in columns] for row in rows]),
                classes=classes,
                groups=tuple(row["group"] for row in rows),
            )
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise GraftError(
                f"{path}: not a table of predictions: {type(error).__name__}: {error}"
            ) from None
