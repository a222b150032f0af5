"""The list of a data set's usable images: what each shows, its split, its bytes. Written by split,
read by all that follows."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from graft.system import files, paths
from graft.system.console import GraftError

SPLITS = ("train", "val", "test")
NUMBERS = ("width", "height", "white")  # columns of whole numbers


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One usable image. `path`: POSIX, relative to the data set's folder; `width`, `height`:
    pixels, upright; `group`: what it shares with its near-duplicates or with others of its
    `data.group_by` key, "" if it stands alone; `white`: the 16-bit sample that is white in its set,
    0 for a picture of 8 bits or that states its own."""

    path: str
    label: str
    split: str
    sha256: str
    width: int
    height: int
    group: str = ""
    white: int = 0


ALL_COLUMNS = tuple(field.name for field in fields(ManifestRow))
COLUMNS = ALL_COLUMNS[:-1]  # the last is written where a set needs it


@dataclass(frozen=True)
class Manifest:
    """Rows sorted by path, and the class names, sorted; the index of a class is its position."""

    rows: tuple[ManifestRow, ...]
    classes: tuple[str, ...]

    def split(self, name: str) -> "Manifest":
        """The rows of one of SPLITS, with the classes of the whole."""
        if name not in SPLITS:
            raise ValueError(f"{name!r} is none of {SPLITS}")
        return replace(self, rows=tuple(row for row in self.rows if row.split == name))

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def paths(self) -> tuple[str, ...]:
        return tuple(row.path for row in self.rows)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64, shape (n,): the class index of each row."""
        index = {name: i for i, name in enumerate(self.classes)}
        return np.array([index[row.label] for row in self.rows], dtype=np.int64)

    @cached_property
    def shorter_sides(self) -> tuple[int, ...]:
        """Pixels, of each row."""
        return tuple(min(row.width, row.height) for row in self.rows)

    @cached_property
    def sha256(self) -> tuple[str, ...]:
        return tuple(row.sha256 for row in self.rows)

    @cached_property
    def white(self) -> int:
        """The 16-bit sample that is white where a picture states none, 0 where there is no such
        picture."""
        return max((row.white for row in self.rows), default=0)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Group of each row; a row that stands alone is its own group, named by its path."""
        return tuple(row.group or row.path for row in self.rows)

    def counts(self) -> dict[str, dict[str, int]]:
        """{split: {class: images}} with every split and every class, zeros too."""
        table = {name: dict.fromkeys(self.classes, 0) for name in SPLITS}
        for row in self.rows:
            table[row.split][row.label] += 1
        return table


def build(images: Iterable, splits: Mapping[str, str], groups: Mapping[str, str]) -> Manifest:
    """The Manifest of a scan's `images` (ScannedImages). `splits`: {path: split} of all; `groups`:
    {path: group} of some."""
    rows = [
        ManifestRow(
            i.path,
            i.label,
            splits[i.path],
            i.sha256,
            i.width,
            i.height,
            groups.get(i.path, ""),
            i.white,
        )
        for i in images
    ]
    shared = Counter(row.group for row in rows)
    # The others may have been set aside.
    rows = [row if shared[row.group] > 1 else replace(row, group="") for row in rows]
    return Manifest(
        tuple(sorted(rows, key=lambda row: row.path)), tuple(sorted({row.label for row in rows}))
    )


def write(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.csv` and `classes.json`: the same bytes for the same manifest, on any
    system."""
    columns = ALL_COLUMNS if manifest.white else COLUMNS
    files.write_csv(
        Path(folder) / "manifest.csv", columns, map(attrgetter(*columns), manifest.rows)
    )
    files.write_json(Path(folder) / "classes.json", manifest.classes)


def read(folder: Path = paths.SPLIT) -> Manifest:
    """What `write` wrote. Raises GraftError where it is missing or does not fit together."""
    folder = Path(folder)
    try:
        classes, table = (
            tuple(files.read_json(folder / "classes.json")),
            files.read_csv(folder / "manifest.csv"),
        )
    except FileNotFoundError as error:
        raise GraftError(f"{error.filename}: no such file; run `dvc repro split` first") from None
    if not table or tuple(table[0]) not in (COLUMNS, ALL_COLUMNS):
        raise GraftError(
            f"{folder / 'manifest.csv'}: its columns must be {','.join(COLUMNS)}; run "
            "`dvc repro split`"
        )
    typed: list[dict[str, Any]] = [
        row | {name: int(row[name]) for name in NUMBERS if name in row} for row in table
    ]
    rows = tuple(ManifestRow(**row) for row in typed)
    strays = {row.label for row in rows} - set(classes)
    if strays:
        raise GraftError(
            f"{folder}: classes.json lacks {sorted(strays)[0]!r} of manifest.csv; run "
            "`dvc repro split`"
        )
    return Manifest(rows, classes)


@dataclass(frozen=True)
class DatasetInfo:
    """A data set as its manifest has it. `digest`: SHA-256 of manifest.csv; `test_digest`: 12 hex
    digits of what two evaluations must share to be comparable; `counts`: images, classes, train,
    val, test."""

    name: str
    path: str
    digest: str
    test_digest: str
    counts: dict[str, int]


def dataset_info(data_path: str, folder: Path = paths.SPLIT) -> DatasetInfo | None:
    """What the manifest in `folder` says of the data set at `data_path`; None when there is no
    manifest yet.

    `test_digest` covers path, label and bytes of every test image, and the class list.
    """
    file = Path(folder) / "manifest.csv"
    if not file.exists():
        return None
    rows = files.read_csv(file)
    test = sorted(
        (row["path"], row["label"], row["sha256"]) for row in rows if row["split"] == "test"
    )
    classes = sorted({row["label"] for row in rows})
    test_digest = hashlib.sha256(json.dumps([classes, test]).encode()).hexdigest()[:12]
    counts = {"images": len(rows), "classes": len(classes)} | {
        s: sum(row["split"] == s for row in rows) for s in SPLITS
    }
    return DatasetInfo(Path(data_path).name, data_path, files.sha256(file), test_digest, counts)
