"""How many photos lie in another split than the last time, and why: for a line on the console,
never for a result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graft.dataset.intake import Intake
from graft.dataset.manifest import Manifest
from graft.dataset.scan_cache import ScanCache
from graft.dataset.splitting import age

if TYPE_CHECKING:
    from graft.params import Data

SETTINGS = (
    "val_fraction",
    "test_fraction",
    "group_by",
    "near_duplicates",
    "layout",
    "labels",
    "label_by",
    "class_map",
)
DIGITS = 16  # of a SHA-256, which tell photos apart here


@dataclass(frozen=True, slots=True)
class Home:
    """Where a photo was dealt to. `first`: DIGITS of the SHA-256 of its group's first by name, or
    its own if alone."""

    split: str
    first: str


def since_last(taken: Intake, data: Data, *, seed: int, cache_file: Path) -> list[str]:
    """What became of the photos that the last split of this folder knew, in lines for a person;
    remembers this one.

    data: params.data. cache_file: of the ScanCache, where the last split is kept.
    """
    now = _homes(taken.manifest)
    settings = {"seed": seed} | {f"data.{name}": getattr(data, name) for name in SETTINGS}
    with ScanCache(cache_file, taken.found.root) as cache:
        last = cache.last_split()
        cache.keep_split(
            {
                "settings": settings,
                "homes": {sha: [home.split, home.first] for sha, home in now.items()},
            }
        )
    if last is None:
        return []
    given = {image.sha256[:DIGITS] for image in taken.found.images if image.given}
    changed = [name for name, value in settings.items() if last["settings"].get(name) != value]
    return _told({sha: Home(*home) for sha, home in last["homes"].items()}, now, given, changed)


def _homes(rows: Manifest) -> dict[str, Home]:
    """{DIGITS of SHA-256: Home} of a manifest."""
    firsts: dict[str, str] = {}
    for row in sorted(rows.rows, key=lambda row: age(row.path)):
        firsts.setdefault(row.group or row.path, row.sha256[:DIGITS])
    return {
        row.sha256[:DIGITS]: Home(row.split, firsts[group])
        for row, group in zip(rows.rows, rows.groups)
    }


def _told(
    before: Mapping[str, Home], now: Mapping[str, Home], given: set[str], changed: Sequence[str]
) -> list[str]:
    """Lines on the photos that are in both of {DIGITS of SHA-256: Home}. given: those whose split a
    folder or table tells."""
    stayed = before.keys() & now.keys()
    came, went = len(now) - len(stayed), len(before) - len(stayed)
    moved = [sha for sha in stayed if before[sha].split != now[sha].split]
    if not (moved or came or went):
        return []
    line = (
        f"since the last split {came} photos came and {went} went; of {len(stayed)} others "
        f"{len(moved)} moved"
    )
    if not moved:
        return [line]
    ways = Counter(f"{before[sha].split} to {now[sha].split}" for sha in moved)
    line += f" ({', '.join(f'{n} {way}' for way, n in sorted(ways.items()))})"
    if changed:
        return [f"{line}, since {' and '.join(changed)} changed"]
    told = sum(sha in given for sha in moved)
    joined = sum(sha not in given and before[sha].first != now[sha].first for sha in moved)
    why = {
        "their folder or table says so": told,
        "they are joined with others than before": joined,
        "the borders of the shares shifted": len(moved) - told - joined,
    }
    reasons = "; ".join(f"{n} since {reason}" for reason, n in why.items() if n)
    return [f"{line}: {reasons}. `graft freeze-split` keeps all where they are"]
