"""A folder of photos becomes a manifest: what `split` writes down, and `graft check` shows
before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graft import looks
from graft.dataset import grouping, manifest, near_duplicates, scan, splitting
from graft.dataset.manifest import SPLITS, Manifest
from graft.dataset.scan import Problem, ScannedImage, ScanResult
from graft.dataset.scan_cache import ScanCache

if TYPE_CHECKING:
    from graft.params import Data

# Images of a class that call for a warning; times that one class may have another's.
FEW, LOPSIDED = 10, 20


@dataclass(frozen=True)
class Intake:
    """`found`: what the folder holds; `manifest`: the usable images, each in its split; `problems`:
    of the others."""

    found: ScanResult
    manifest: Manifest
    problems: list[Problem]


def take_in(data: Data, *, seed: int, cache_file: Path | None) -> Intake:
    """Scan the folder data.path, set aside what is damaged or there twice, group what must not be
    parted, and deal it out.

    data: params.data. cache_file: of the ScanCache. Raises GraftError where there is nothing to
    learn from, and where a file came, changed or went meanwhile: it would be vouched for, and never
    be seen again.
    """
    root = Path(data.path)
    with ScanCache(cache_file, root) as cache:
        found = scan.scan(
            root,
            cache=cache,
            rules=data,
            min_side=data.min_side,
            max_megapixels=data.max_megapixels,
            on_damaged=data.on_damaged,
        )
        usable, copies, copied_across = grouping.set_aside_copies(found.images)
        pairs = near_duplicates.find(usable, cache, max_distance=data.near_duplicates)
    grouped = grouping.group(usable, pairs, group_by=data.group_by)
    usable, leaks = splitting.resolve_leakage(
        usable, grouped.near, copied_across, policy=data.leakage
    )

    shares = {"val_fraction": data.val_fraction, "test_fraction": data.test_fraction}
    splits = splitting.assign(splitting.items(usable, grouped), **shares, seed=seed, where=root)
    rows = manifest.build(usable, splits, grouped.groups)
    scan.check_unchanged(found)
    doubts = [*found.problems, *copies, *grouped.problems, *leaks]
    return Intake(found, rows, scan.settled([*doubts, *standing_out(usable, doubts)]))


def standing_out(images: Sequence[ScannedImage], doubts: Sequence[Problem]) -> list[Problem]:
    """Of `images` those that are blurred, dark, … beside the others: kept, for a person to look at.
    What is of one colour only is said to be so among the `doubts`."""
    even = {problem.path for problem in doubts if problem.problem == "one_colour"}
    images = [image for image in images if image.path not in even]
    seen = np.frombuffer(b"".join(image.looks for image in images), np.float32).reshape(
        len(images), -1
    )
    sizes = np.array([(image.width, image.height) for image in images])
    found = looks.standing_out(seen, sizes)
    return [
        Problem(images[i].path, kind, f"kept: {looks.WORDS[kind]}")
        for kind, where in found.items()
        for i in where
    ]


def doubtful_counts(rows: Manifest) -> list[str]:
    """What makes figures doubtful, for a person: classes of few images, of one in val or test, of
    many times others'."""
    counts = rows.counts()
    sizes = {label: sum(counts[split][label] for split in SPLITS) for label in rows.classes}
    few = [
        label
        for label in rows.classes
        if min(counts["val"][label], counts["test"][label]) < 2 or sizes[label] < FEW
    ]
    lines = []
    for label in few[:5]:
        shares = ", ".join(f"{counts[split][label]} {split}" for split in SPLITS)
        lines.append(
            f"class {label!r} has {sizes[label]} images ({shares}): too few for its figures to "
            "mean much"
        )
    if len(few) > 5:
        lines.append(f"{len(few) - 5} more classes have as few images")
    least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    if sizes[most] > LOPSIDED * sizes[least]:
        lines.append(
            f"class {most!r} has {sizes[most]} images, {least!r} {sizes[least]}: look at "
            "balanced_accuracy, not accuracy"
        )
    return lines
