"""What a person reads of a split: problems.csv, metrics.json, plots/, and two lines on the
terminal."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from graft import looks
from graft.figures import data, style
from graft.system import console, files

if TYPE_CHECKING:
    from graft.dataset.manifest import Manifest
    from graft.dataset.scan import Problem, ScanResult

TITLES = {
    "duplicate_across_classes": "same bytes, two labels",
    "leak": "in two given splits",
    "near_duplicate": "near-duplicates",
    "duplicate_in_class": "same bytes",
}


def write(
    folder: Path,
    *,
    found: ScanResult,
    manifest: Manifest,
    problems: Sequence,
    duplicates: Sequence[tuple[str, Sequence[str]]],
    read: Callable[[str, int], np.ndarray],
) -> dict[str, Any]:
    """Write it all into `folder`, the same bytes for the same data, and return what metrics.json
    holds.

    found: a ScanResult. manifest: the Manifest that came of it. problems: all Problems on the way.
    duplicates: [(kind of problem, paths)], the gravest first. read: path and S to an image, uint8
    (S, S, 3).
    """
    metrics = summary(found, manifest, problems)
    files.write_csv(
        folder / "problems.csv",
        ("path", "problem", "action"),
        ((p.path, p.problem, p.action) for p in problems),
    )
    files.write_json(folder / "metrics.json", metrics)
    draw(folder / "plots", manifest, duplicates, read, problems)
    splits = ", ".join(f"{split} {metrics[split]}" for split in manifest.counts())
    others = f"{found.non_images} non-images and {found.hidden} hidden files passed over"
    console.log(
        f"{found.root}: {len(manifest)} images in {len(manifest.classes)} classes -> {splits}; "
        f"{others}"
    )
    if problems:
        kinds = ", ".join(f"{n} {kind}" for kind, n in metrics["problems"].items())
        console.log(f"problems: {kinds} (see {folder}/problems.csv)")
    return metrics


def summary(found: ScanResult, manifest: Manifest, problems: Sequence[Problem]) -> dict[str, Any]:
    """What metrics.json holds. Nothing is lost: files = images + set_aside + non_images +
    hidden."""
    return {
        "files": found.files,
        "images": len(manifest),
        "set_aside": sum(p.set_aside for p in problems),
        "non_images": found.non_images,
        "hidden": found.hidden,
        "classes": len(manifest.classes),
        **{split: sum(of_class.values()) for split, of_class in manifest.counts().items()},
        "groups": len({row.group for row in manifest.rows} - {""}),
        "problems": dict(sorted(Counter(p.problem for p in problems).items())),
    }


def draw(
    folder: Path,
    manifest: Manifest,
    duplicates: Sequence[tuple[str, Sequence[str]]],
    read: Callable[[str, int], np.ndarray],
    problems: Sequence[Problem] = (),
) -> None:
    """class_balance.png, samples.png, sizes.png and, if there are any, duplicates.png and
    standing_out.png."""
    folder.mkdir(parents=True, exist_ok=True)
    displays = {
        "class_balance": data.ClassBalanceDisplay(manifest.counts()),
        "samples": data.SamplesDisplay(_samples(manifest, read)),
        "sizes": data.SizesDisplay(
            [row.width for row in manifest.rows], [row.height for row in manifest.rows]
        ),
    }
    if duplicates:
        splits = {row.path: row.split for row in manifest.rows}
        groups = [
            _group(kind, paths, splits, read)
            for kind, paths in duplicates[: data.DuplicatesDisplay.GROUPS]
        ]
        displays["duplicates"] = data.DuplicatesDisplay(groups, total=len(duplicates))
    if standing_out := _standing_out(manifest, problems, read):
        displays["standing_out"] = data.StandingOutDisplay(standing_out)
    for name, display in displays.items():
        style.png(display.plot().figure_, folder / f"{name}.png")


def _samples(manifest, read):
    """Some images per class, taken in the order of their hashes: neither the first nor random."""
    rows = defaultdict(list)
    for row in manifest.rows:
        rows[row.label].append(row)
    names = [
        manifest.classes[i] for i in data.largest([len(rows[name]) for name in manifest.classes])
    ]
    each, side = data.SamplesDisplay.each(len(names)), data.SamplesDisplay.SIDE
    picks = {name: sorted(rows[name], key=lambda row: row.sha256)[:each] for name in names}
    return {name: [read(row.path, side) for row in of_class] for name, of_class in picks.items()}


def _standing_out(manifest, problems, read):
    """{kind (number): some images} of those that are blurred, dark, …, in the order of their
    hashes."""
    digests = {row.path: row.sha256 for row in manifest.rows}
    each, side = data.SamplesDisplay.each(len(looks.WORDS)), data.SamplesDisplay.SIDE
    found = {kind: [p.path for p in problems if p.problem == kind] for kind in looks.WORDS}
    return {
        f"{kind.replace('_', ' ')} ({len(paths)})": [
            read(path, side) for path in sorted(paths, key=digests.get)[:each]
        ]
        for kind, paths in found.items()
        if paths
    }


def _group(kind, paths, splits, read):
    """A group of the DuplicatesDisplay."""
    each, side = data.DuplicatesDisplay.EACH, data.DuplicatesDisplay.SIDE
    title = f"{TITLES[kind]} ({len(paths)})" if len(paths) > each else TITLES[kind]
    return title, [
        (f"{PurePosixPath(p).parent.name} · {splits.get(p, 'set aside')}", read(p, side))
        for p in paths[:each]
    ]
