"""The manifest that split writes, and the pictures it lists, decoded in parallel and in order."""

import csv
import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from stages import paths
from stages.common.parallel import ahead, processors
from stages.console import GraftError
from stages.dataset import images

SPLITS = ("train", "val", "test")
COLUMNS = ("path", "label", "split", "sha256", "width", "height", "group")


@dataclass(frozen=True, slots=True)
class Row:
    """One usable image. `path`: POSIX, relative to the data set's folder; `width`, `height`: pixels, upright;
    `group`: what it shares with its near-duplicates or with others of its `data.group_by` key, empty if it stands alone."""

    path: str
    label: str
    split: str
    sha256: str
    width: int
    height: int
    group: str = ""


@dataclass(frozen=True)
class Manifest:
    """Rows sorted by path, and the class names, sorted; the index of a class is its position."""

    rows: tuple
    classes: tuple

    def split(self, name):
        """The rows of one of SPLITS, with the classes of the whole."""
        if name not in SPLITS:
            raise ValueError(f"{name!r} is none of {SPLITS}")
        return replace(self, rows=tuple(row for row in self.rows if row.split == name))

    def __len__(self):
        return len(self.rows)

    @cached_property
    def paths(self):
        return tuple(row.path for row in self.rows)

    @cached_property
    def labels(self):
        """int64, shape (n,): the class index of each row."""
        index = {name: i for i, name in enumerate(self.classes)}
        return np.array([index[row.label] for row in self.rows], dtype=np.int64)

    @cached_property
    def sha256(self):
        return tuple(row.sha256 for row in self.rows)

    @cached_property
    def groups(self):
        """Group of each row; a row that stands alone is its own group, named by its path."""
        return tuple(row.group or row.path for row in self.rows)


def read_manifest(folder=paths.SPLIT):
    """`manifest.csv` and `classes.json` of `folder`. Raises GraftError where they are missing or do not fit together."""
    folder = Path(folder)
    try:
        classes = tuple(json.loads((folder / "classes.json").read_text(encoding="utf-8")))
        with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise GraftError(f"{folder / 'manifest.csv'}: its columns must be {','.join(COLUMNS)}; run `dvc repro split`")
            rows = tuple(Row(**{**row, "width": int(row["width"]), "height": int(row["height"])}) for row in reader)
    except FileNotFoundError as error:
        raise GraftError(f"{error.filename}: no such file; run `dvc repro split` first") from None
    strays = {row.label for row in rows} - set(classes)
    if strays:
        raise GraftError(f"{folder}: classes.json lacks {sorted(strays)[0]!r} of manifest.csv; run `dvc repro split`")
    return Manifest(rows=rows, classes=classes)


def manifest(pictures, splits, groups):
    """The Manifest of the inventory's `pictures`. splits: {path: split} of all; groups: {path: group} of those in one."""
    rows = [Row(p.path, p.label, splits[p.path], p.sha256, p.width, p.height, groups.get(p.path, "")) for p in pictures]
    shared = Counter(row.group for row in rows)
    rows = [row if shared[row.group] > 1 else replace(row, group="") for row in rows]  # the others may have been set aside
    return Manifest(tuple(sorted(rows, key=lambda row: row.path)), tuple(sorted({row.label for row in rows})))


def counts(manifest):
    """{split: {class: images}} with every split and every class, zeros too."""
    table = {name: dict.fromkeys(manifest.classes, 0) for name in SPLITS}
    for row in manifest.rows:
        table[row.split][row.label] += 1
    return table


def write_manifest(manifest, folder):
    """Write `manifest.csv` and `classes.json`: the same bytes for the same manifest, on any system."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([getattr(row, column) for column in COLUMNS] for row in manifest.rows)
    text = json.dumps(list(manifest.classes), ensure_ascii=False, indent=2) + "\n"
    (folder / "classes.json").write_text(text, encoding="utf-8", newline="\n")


def load_images(root, rows_paths, size, *, workers=None):
    """Iterate over the images at `root`/path, in the order of `rows_paths`: uint8 (size, size, 3), as `images.load`.

    Threads (Pillow decodes outside the interpreter lock) stay 8 images per worker ahead of the reader, no further:
    memory does not grow with the number of images. Raises GraftError, naming the file, for one that has gone or changed.
    """
    root, workers = Path(root), workers or processors()

    def one(path):
        try:
            return images.load(root / path, size, max_megapixels=None)  # split has applied data.max_megapixels already
        except (OSError, images.ImageProblem) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise GraftError(f"{root / path}: {why}; the folder has changed since the split, run `dvc repro`") from None

    yield from ahead(one, rows_paths, workers=workers, depth=8 * workers)


def iter_batches(root, rows_paths, size, *, batch_size, workers=None):
    """`load_images` in stacks: uint8 (b, size, size, 3) with b = batch_size, the last one what is left."""
    stack = []
    for image in load_images(root, rows_paths, size, workers=workers):
        stack.append(image)
        if len(stack) == batch_size:
            yield np.stack(stack)
            stack = []
    if stack:
        yield np.stack(stack)


@dataclass(frozen=True)
class ImageSet:
    """The pictures of a manifest at one size, to be read again and again, in any order.

    root: the data set's folder. size: side S in pixels. `sha256` and `resize` are what else determines their pixels.
    """

    manifest: Manifest
    root: str
    size: int
    batch_size: int = 64
    resize: str = images.RESIZE

    def __len__(self):
        return len(self.manifest)

    @property
    def sha256(self):
        return self.manifest.sha256

    def read(self, indices):
        """Iterate over batches uint8 (b, S, S, 3) of the pictures at `indices` (positions in the manifest), in that order."""
        chosen = [self.manifest.paths[i] for i in indices]
        return iter_batches(self.root, chosen, self.size, batch_size=self.batch_size)
