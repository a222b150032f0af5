"""What the folders of a data set mean: which hold classes, which a split of them, and what is passed over."""

import os
import stat
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from graft import pixels
from graft.system.console import GraftError

SPLIT_FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
                 "test": "test", "testing": "test"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class File:
    """A regular file. `path`: POSIX, relative to the folder that was walked; `size`: bytes."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Walk:
    """Everything below a folder. `files`: by path; `odd`: (path, problem or "non_image", action) of what cannot be read;
    `hidden`: number of files that are passed over."""

    files: tuple[File, ...]
    odd: tuple[tuple[str, str, str], ...]
    hidden: int


def walk(root: Path) -> Walk:
    """Go through `root`, links to folders too; never raises for what it meets."""
    files, odd, hidden = [], [], 0
    stack = [("", str(root), False, frozenset())]
    while stack:
        prefix, folder, is_hidden, above = stack.pop()
        try:
            info = Path(folder).stat()
            if (info.st_dev, info.st_ino) in above:  # a link to a folder that contains it: its files have been seen
                continue
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            odd.append((_printable(prefix.rstrip("/")), "undecodable", f"set aside: folder cannot be read ({error.strerror})"))
            continue
        for entry in entries:
            path = prefix + entry.name
            veiled = is_hidden or entry.name.startswith(".") or entry.name in ("__MACOSX", "Thumbs.db", "desktop.ini")
            try:
                if entry.is_dir():
                    stack.append((path + "/", entry.path, veiled, above | {(info.st_dev, info.st_ino)}))
                    continue
                status = None if veiled else entry.stat()
            except OSError as error:
                problem = "undecodable" if Path(path).suffix.lower() in pixels.SUFFIXES else "non_image"
                odd.append((_printable(path), problem, f"set aside: cannot be read ({error.strerror})"))
                continue
            if status is None:
                hidden += 1
            elif not stat.S_ISREG(status.st_mode):  # a pipe or device: reading it might never end
                odd.append((_printable(path), "non_image", ""))
            elif _printable(path) != path:
                odd.append((_printable(path), "unsupported", "set aside: its name is not valid Unicode"))
            else:
                files.append(File(path, status.st_size, status.st_mtime_ns))
    return Walk(tuple(sorted(files, key=lambda file: file.path)), tuple(odd), hidden)


def _printable(path):
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class Layout:
    """`tops`: folders at the top that hold images; `splits`: {those of them that hold a split: which}, empty where the folders
    at the top are the classes."""

    tops: frozenset[str]
    splits: dict[str, str]

    def place(self, path: str) -> tuple[str | None, str]:
        """(class or None, split or "") of the file at `path`."""
        parts = path.split("/")
        split = self.splits.get(parts[0], "")
        if self.splits:
            parts = parts[1:] if split else []
        if len(parts) < 2:
            return None, ""
        return unicodedata.normalize("NFC", parts[0]), split  # macOS writes é as two code points: one class, not two


def find_layout(paths: Iterable[str]) -> Layout:
    """The Layout of images at `paths` (POSIX, relative), by the names of the folders at the top."""
    images = [path.split("/") for path in paths]
    tops = frozenset(parts[0] for parts in images if len(parts) > 1)
    named = named_splits(tops)
    deep = {parts[0] for parts in images if len(parts) > 2}
    # One folder called train among others is a class of trains; train and test together are what they say.
    clear = len(set(named.values())) > 1 or len(named) == len(tops)
    return Layout(tops, named if clear and "train" in named.values() and deep & set(named) else {})


def named_splits(folders: Iterable[str]) -> dict[str, str]:
    """{folder: split} of those that are called as a split is."""
    return {folder: SPLIT_FOLDERS[folder.casefold()] for folder in folders if folder.casefold() in SPLIT_FOLDERS}


def class_root(paths: Iterable[str]) -> str:
    """The folder ("" or ending in "/") whose sub-folders are the classes, or splits of them, of images at `paths`.

    Folders that hold nothing but one other folder of folders are gone through. Raises GraftError where the images lie in one
    folder.
    """
    folders = {tuple(path.split("/")[:-1]) for path in paths}
    here = ()
    while True:
        depth = len(here)
        inside = [folder for folder in folders if folder[:depth] == here]
        below = {folder[depth] for folder in inside if len(folder) > depth}
        if len(below) != 1 or named_splits(below):
            break
        if all(len(folder) <= depth + 1 for folder in inside):
            raise GraftError(f"holds one class only, {below.pop()!r}; there must be two folders of images or more")
        here = (*here, *below)
    if not below:
        raise GraftError(f"its images lie in one folder ({'/'.join(here) or 'the top'}); there must be one folder per class")
    return "".join(f"{folder}/" for folder in here)
