"""The feature cache: what the frozen layers make of an image is computed once and then read from
disk, by every experiment.

What is kept belongs to the photo, not to a list of photos: a row is found by what determines its
values (the *space*: network, cut, size, runtime, view …) and the image's SHA-256. Rows lie in
segments of at most 512, one file each (an index, then the rows), written beside their place and
renamed into it, so that a segment is whole or absent. Every row carries a checksum, tested when the
row is first read; a damaged one counts as missing. The least recently used segments go when the
bound is reached.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graft.system import files, paths
from graft.system.console import warn

if TYPE_CHECKING:
    from filelock import BaseFileLock

ROWS = 512  # of a segment, at most
SPARE = 1 << 30  # bytes of disk that the cache leaves to everyone else
OPEN_MAPS = 256  # segments that are mapped at a time: each holds a file descriptor
SUFFIX, ABOUT = ".seg", "about.json"
INDEX = np.dtype([("sha256", "S64"), ("checksum", "<u4")])


class FeatureCache:
    """Spaces under one folder, each a folder of segments; bounded by `max_gb` (1e9 bytes) in
    all."""

    def __init__(self, folder: Path | None = None, *, max_gb: float):
        self.folder = Path(folder) if folder is not None else paths.cache() / "features"
        self.max_bytes = int(max_gb * 1e9)

    def space(self, key: str, shape: Sequence[int], dtype: np.dtype, about: dict) -> Space:
        """The rows of `shape` and `dtype` that `key` (hexadecimal) stands for; `about` says it to
        people."""
        return Space(self, self.folder / key, tuple(shape), np.dtype(dtype), about)

    def entries(self) -> list[dict]:
        """A dict per space, least recently used first: `key`, `bytes`, `segments`, `used`
        (Unix time) and its `about`."""
        found = []
        for file in self.folder.glob(f"*/{ABOUT}"):
            with contextlib.suppress(OSError, ValueError):  # another process may be removing it
                held = [status for _, status in _segments(file.parent)]
                about = json.loads(file.read_text(encoding="utf-8"))
                used = max((s.st_mtime for s in held), default=file.stat().st_mtime)
                size = sum(s.st_size for s in held)
                found.append(
                    {
                        "key": file.parent.name,
                        "bytes": size,
                        "segments": len(held),
                        "used": used,
                        **about,
                    }
                )
        return sorted(found, key=lambda entry: entry["used"])

    def clear(self) -> tuple[int, int]:
        """Remove every space. Returns (spaces, bytes) that went. Processes that read them compute
        anew what they miss."""
        entries = self.entries()
        for folder in self.folder.glob("*/"):
            if folder.name != "locks":
                shutil.rmtree(folder, ignore_errors=True)
        return len(entries), sum(entry["bytes"] for entry in entries)

    def make_room(self, needed: int, keep: frozenset[Path] = frozenset()) -> bool:
        """Remove least recently used segments, but none of `keep`, until `needed` bytes fit. False
        if they cannot."""
        held = sorted(_segments(self.folder), key=lambda entry: entry[1].st_mtime)
        total = sum(status.st_size for _, status in held)

        def fits():
            return (
                total + needed <= self.max_bytes
                and shutil.disk_usage(self.folder).free >= needed + SPARE
            )

        self.folder.mkdir(parents=True, exist_ok=True)
        for path, status in held:
            if fits():
                break
            if path not in keep:
                path.unlink(missing_ok=True)
                total -= status.st_size
        return fits()

    def lock(self, name: str) -> BaseFileLock:
        """A file lock for who computes rows: a process that waits finds them when its turn
        comes."""
        from filelock import FileLock

        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "locks" / f"{name}.lock")


def _segments(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.rglob(f"[!.]*{SUFFIX}"):
        with contextlib.suppress(OSError):
            yield path, path.stat()


class Space:
    """Rows whose values are determined by the same things but for the image. See
    `FeatureCache.space`."""

    def __init__(
        self,
        cache: FeatureCache,
        folder: Path,
        shape: tuple[int, ...],
        dtype: np.dtype,
        about: dict,
    ):
        self.cache, self.folder, self.shape, self.dtype, self.about = (
            cache,
            folder,
            shape,
            dtype,
            about,
        )
        self.row_bytes = int(np.prod(shape)) * dtype.itemsize

    def find(self, names: Sequence[str]) -> Rows:
        """The rows of the images with these SHA-256, those that are there."""
        wanted: dict[bytes, list[int]] = {}
        for position, name in enumerate(names):
            wanted.setdefault(name.encode(), []).append(position)
        files: list[Path] = []
        segment, row = np.full(len(names), -1, np.int32), np.zeros(len(names), np.int32)
        for path in sorted(self.folder.glob(f"[!.]*{SUFFIX}")):
            index = _read_index(path, self)
            hits = (
                []
                if index is None
                else [(r, p) for r, n in enumerate(index["sha256"]) for p in wanted.get(n, ())]
            )
            if hits:
                rows, positions = np.array(hits, np.int32).T
                segment[positions], row[positions] = len(files), rows
                files.append(path)
                with contextlib.suppress(OSError):
                    os.utime(path)
        return Rows(self, files, segment, row)

    @contextlib.contextmanager
    def writer(self, *, keep: frozenset[Path] = frozenset()) -> Iterator[Writer]:
        """Takes rows; a segment is there when it is full, the last one at the end of the block."""
        writer = Writer(self, set(keep))
        yield writer
        writer.flush()


class Writer:
    """Gathers rows into segments. Where there is no room (any more), it drops them, after one
    warning."""

    def __init__(self, space: Space, keep: set[Path]):
        self.space, self.keep, self.full = space, keep, ""  # why there is no room
        self.segments: list[Path] = []
        self.names: list[bytes] = []
        self.rows: list[np.ndarray] = []

    def append(self, name: str, row: np.ndarray) -> None:
        """`row`: of the space's shape and dtype, for the image with SHA-256 `name`."""
        if not self.full:
            self.names.append(name.encode())
            self.rows.append(np.ascontiguousarray(row, self.space.dtype))
            if len(self.names) == ROWS:
                self.flush()

    def flush(self) -> None:
        if not self.names:
            return
        index = np.array(
            [(name, _checksum(name, row)) for name, row in zip(self.names, self.rows)], INDEX
        )
        try:
            if not self.space.cache.make_room(
                len(self.rows) * self.space.row_bytes, frozenset(self.keep)
            ):
                raise OSError("no room within cache.max_gb, or on the disk")
            self.segments.append(self._write(index))
            self.keep.add(self.segments[-1])
        except OSError as error:
            self.full = error.strerror or str(error)
            warn_of_no_room(self.full)
        self.names, self.rows = [], []

    def _write(self, index):
        folder = self.space.folder
        folder.mkdir(parents=True, exist_ok=True)
        files.sweep(folder)
        if not (folder / ABOUT).exists():
            _write_whole(folder / ABOUT, json.dumps(self.space.about).encode())
        # The same rows, whoever computes them: one file.
        path = folder / f"{hashlib.sha256(index).hexdigest()[:32]}{SUFFIX}"
        _write_whole(path, index, *self.rows)
        return path


def warn_of_no_room(why: str) -> None:
    warn(f"feature cache: {why}; going on without it, features are computed when they are needed")


def _write_whole(path, *parts):
    with files.whole(path, shared=True) as part, part.open("wb") as file:
        file.writelines(parts)


def _checksum(name, row):
    return zlib.crc32(np.ascontiguousarray(row), zlib.crc32(name))


def _read_index(path, space):
    """The index of a segment; None for one that is cut off (it is removed) or has just gone."""
    try:
        count, rest = divmod(path.stat().st_size, INDEX.itemsize + space.row_bytes)
        index = np.fromfile(path, INDEX, count)
    except OSError:
        return None
    return index if not rest else _discard(path, "its length")


def _discard(path, why):
    warn(
        f"feature cache: segment {path.parent.name[:12]}/{path.name} is damaged ({why}); its rows "
        "are computed again"
    )
    path.unlink(missing_ok=True)


class Rows:
    """Where the rows of n images lie: `files`, and per image the `segment` (a position in files,
    -1: none) and `row`, int32."""

    def __init__(self, space, files, segment, row):
        self.space, self.files, self.segment, self.row = space, files, segment, row
        self._checked = np.zeros(len(segment), bool)
        self._mapped = functools.lru_cache(OPEN_MAPS)(self._map)

    @property
    def missing(self) -> np.ndarray:
        """bool (n,): whether the image has no row."""
        return self.segment < 0

    def read(self, positions: np.ndarray, into: np.ndarray) -> np.ndarray:
        """Copy the rows of the images at `positions`, int (b,), to `into`, (b, *shape). Returns
        bool (b,): which are there."""
        segments = self.segment[positions]
        for number in np.unique(segments[segments >= 0]):
            chosen = np.flatnonzero(segments == number)
            held = self._mapped(int(number))
            if held is None:
                self.segment[self.segment == number] = -1
                continue
            index, data = held
            into[chosen] = data[self.row[positions[chosen]]]
            self._check(int(number), index, positions[chosen], into[chosen])
        return self.segment[positions] >= 0

    def _check(self, number, index, positions, rows):
        """Test rows that are read for the first time. One that is damaged takes its segment with
        it."""
        for position, row in zip(positions, rows):
            name, checksum = index[self.row[position]]
            if not self._checked[position] and _checksum(name, row) != checksum:
                _discard(self.files[number], f"the row of image {name.decode()[:12]}")
                self.segment[self.segment == number] = -1
                return
            self._checked[position] = True

    def _map(self, number):
        """(index, memory map) of a segment, or None where it has gone since it was found."""
        path, space = self.files[number], self.space
        index = _read_index(path, space)
        with contextlib.suppress(OSError):
            if index is not None:
                return index, np.memmap(
                    path, space.dtype, "r", index.nbytes, (len(index), *space.shape)
                )
        return None
