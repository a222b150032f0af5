"""What is known of every photo of a data set once a head that did not learn from it has judged
it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graft.scoring.predictions import Predictions


@dataclass(frozen=True, eq=False)
class Evidence:
    """n photos, those of all splits, in the order of the manifest.

    predictions: out-of-fold probabilities of each. features: float16 (n, d), pooled, of the frozen
    backbone. splits: n names. problems: rows of problems.csv (path, problem, action). folds: behind
    `predictions`; 0: none were made, and `predictions` say nothing. sizes: (width, height) of each
    file, pixels, or none.
    """

    predictions: Predictions
    features: np.ndarray
    splits: tuple[str, ...]
    problems: Sequence[Mapping[str, str]] = ()
    folds: int = 5
    sizes: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.predictions)
