"""Which network and size suit the photos at hand: each is tried as features for a solved head,
nothing is fine-tuned.

No network is best everywhere, and how well a regression on its frozen features does tells within
minutes which to take (arXiv 2410.08592).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from graft import keras_graph, runtimes
from graft.description import Description
from graft.features.extractor import FeatureExtractor
from graft.network import backbones, classifier, head_solver
from graft.network.cut import find_cut
from graft.system import paths

ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)


@dataclass(frozen=True)
class Candidate:
    """What `backbone` and `image_size` in params.yaml may be."""

    name: str
    alpha: float
    weights: str
    size: int


@dataclass(frozen=True)
class Trial:
    """losses: float (n,), log loss of each image by a head that did not see it, fold after fold.
    accuracy: of the same. rate: images/s of the frozen layers, as measured. operations:
    multiply-adds of an image, which do not differ from run to run. megabytes: of all weights, at 4
    bytes each."""

    candidate: Candidate
    losses: np.ndarray
    accuracy: float
    rate: float
    operations: int
    megabytes: float

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    @property
    def error(self) -> float:
        """Standard error of `loss`."""
        return float(self.losses.std(ddof=1) / np.sqrt(len(self.losses)))


def candidates(
    shorter_sides: Sequence[int], *, own: tuple[str, float, str] | None = None
) -> Iterator[Candidate]:
    """Every network whose weights are at hand, at the size that `image_size: auto` gives images of
    these shorter sides (pixels), and where that is its native one, at two thirds of it too.

    own: name, alpha and file of params.yaml's backbone block, where it names a file in
    data/weights: that a file which is not called as Keras calls it belongs to this network, nothing
    else says.
    """
    for name, row in backbones.BACKBONES.items():
        auto = backbones.resolve_size(name, "auto", shorter_sides)
        smaller = backbones.smaller_size(auto)
        sizes = [
            auto,
            *([smaller] if auto == row.native_size and smaller >= row.smallest_size else []),
        ]
        for alpha, size in itertools.product(ALPHAS if row.has_alpha else (1.0,), sizes):
            weights = _at_hand(name, alpha, size)
            if own is not None and own[0] == name and (own[1] == alpha or not row.has_alpha):
                weights = own[2]
            if weights is not None:
                yield Candidate(name, alpha, weights, size)


def _at_hand(name, alpha, size):
    """What `backbone.weights` may be without a download, or None."""
    row = backbones.row(name)
    if row.packaged is not None:
        return "packaged" if backbones.is_installed(name) else None
    file = row.file.format(alpha=alpha, size=size)
    if file == row.file.format(alpha=1.0, size=size) and alpha != 1.0:  # it comes in one width
        return None
    if (backbones.keras_cache() / file).is_file():
        return "imagenet"
    return file if (paths.WEIGHTS / file).is_file() else None


def attempt(
    candidate: Candidate,
    description: Description,
    folds: Iterable[tuple],
    extractor: FeatureExtractor,
    *,
    balanced: bool,
) -> Trial:
    """Solve a head on the features of `description`'s network with `candidate`'s weights, fold by
    fold.

    folds: pairs of image sets (to train on, to judge by), as that Description sees them; each image
    judges once. balanced: as `head_solver.solve`. Raises GraftError where the weights do not fit.
    """
    model = classifier.build(description, weights=candidate.weights)
    cut, losses, right = find_cut(model, 0), [], []
    # A network per candidate is traced, and that is meant.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # a line per fold says nothing here
        for train, held in folds:
            seen, judged = (
                extractor.extract(model, [cut], part, label=candidate.name)[0]
                for part in (train, held)
            )
            predictions = head_solver.solve(model, cut, seen, judged, balanced=balanced).predictions
            of_truth = predictions.probabilities[np.arange(len(held)), predictions.labels]
            losses.append(-np.log(np.maximum(of_truth, 1e-12)))
            right.append(predictions.predicted == predictions.labels)
    rate = runtimes.rate(
        runtimes.start(model, list(cut.tensors), extractor.runtime), candidate.size
    )
    return Trial(
        candidate,
        np.concatenate(losses),
        float(np.concatenate(right).mean()),
        rate,
        keras_graph.multiply_adds(model),
        4 * model.count_params() / 1e6,
    )


def worth(trials: Sequence[Trial]) -> Trial:
    """Of those whose loss is within a standard error (of the paired difference) of the smallest,
    that of fewest operations."""
    best = min(trials, key=lambda trial: trial.loss)

    def as_good(trial):
        worse = trial.losses - best.losses
        return worse.mean() <= worse.std(ddof=1) / np.sqrt(len(worse))

    return min(filter(as_good, trials), key=lambda trial: trial.operations)
