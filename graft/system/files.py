"""Files as the project reads and writes them: digests, and texts, JSON and CSV that come out the
same on any system."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

BLOCK = 1 << 20  # bytes read at a time
OF_HDF5 = 1 << 20  # bytes that a file of weights takes beside them, at most
PART = ".part-"  # begins the name of what is not whole yet
# After which an unfinished file, whoever wrote it, was left by a process that was killed.
STALE_SECONDS = 3600


def sha256(path: str | Path) -> str:
    """SHA-256 in hex of a file's bytes, or of a folder's relative paths and bytes. Raises
    FileNotFoundError."""
    path = Path(path)
    if not path.is_dir():
        return _hash(path, hashlib.sha256())
    total = hashlib.sha256()
    for file in _files(path):
        total.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
    return total.hexdigest()


def sha256_of(*paths: str | Path) -> str:
    """SHA-256 in hex of several files' bytes, one after the other. Raises FileNotFoundError."""
    total = hashlib.sha256()
    for path in paths:
        _hash(Path(path), total)
    return total.hexdigest()


def dvc_md5(path: str | Path) -> str | None:
    """The md5 that DVC records: of a file's bytes, or of the JSON list of a folder's files; None
    where nothing is there."""
    path = Path(path)
    if path.is_dir():
        listing = [
            {"md5": dvc_md5(p), "relpath": p.relative_to(path).as_posix()} for p in _files(path)
        ]
        listing.sort(key=lambda entry: entry["relpath"])
        return hashlib.md5(json.dumps(listing).encode(), usedforsecurity=False).hexdigest() + ".dir"
    return _hash(path, hashlib.md5(usedforsecurity=False)) if path.exists() else None


def _files(folder):
    """Every file below `folder` but those that .dvcignore names: bytecode, and what file managers
    leave behind."""
    return sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".pyc" and p.name not in (".DS_Store", "Thumbs.db")
    )


def _hash(path: Path, total: hashlib._Hash) -> str:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            total.update(block)
    return total.hexdigest()


@contextlib.contextmanager
def whole(path: str | Path, *, shared: bool = False) -> Iterator[Path]:
    """Yields a path beside `path` to be written to, which takes its place at the end of the block:
    old or new, never half.

    The folder is made where it is missing. What a killed process left there the next one writes
    over. shared: several processes may write `path` at once; each then has a name of its own, and
    `sweep` removes what killed ones left. What is no file, such as /dev/stdout, is written to as it
    is.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        yield path
        return
    part = path.with_name(
        f"{PART}{_here()}-{os.getpid()}-{path.name}" if shared else f"{PART}{path.name}"
    )
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def need_room(folder: Path, size: int) -> None:
    """Raise OSError where `size` bytes do not fit into `folder`: HDF5 crashes where the disk fills
    up under it."""
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                # Others: a file system that cannot tell.
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise OSError(error.errno, os.strerror(error.errno), str(folder)) from None


def sweep(folder: Path) -> None:
    """Remove what `whole` has begun in `folder`, as shared, in processes that are gone."""
    import psutil

    for part in folder.glob(f"{PART}*"):
        host, pid = [*part.name[len(PART) :].split("-"), "", ""][:2]
        gone = host == _here() and pid.isdigit() and not psutil.pid_exists(int(pid))
        with contextlib.suppress(OSError):  # another process was faster
            if gone or time.time() - part.stat().st_mtime > STALE_SECONDS:
                part.unlink()


def _here():
    """This host or container, by whose numbers processes are known."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def write_text(path: str | Path, text: str) -> None:
    """`text` as UTF-8 with plain line ends, whole or not at all; the folder is made where it is
    missing."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, content: object) -> None:
    """JSON in the order of `content`, indented, UTF-8. Raises ValueError for NaN and infinity,
    which JSON does not know."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """What a JSON file holds. Raises ValueError for anything else, FileNotFoundError."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


class _CsvWriter:
    """See `csv_writer`."""

    def __init__(self, file: TextIO) -> None:
        self._plain = csv.writer(file, lineterminator="\n")
        self._quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)

    def writerow(self, row: Iterable[object]) -> None:
        row = list(row)
        # Readers end a line at a bare CR, and Python before 3.13 does not put it into quotes.
        odd = any(isinstance(cell, str) and "\r" in cell for cell in row)
        (self._quoted if odd else self._plain).writerow(row)


def csv_writer(file: TextIO) -> _CsvWriter:
    """What writes all tables of the project, row by row; floats keep all digits, None is an empty
    cell."""
    return _CsvWriter(file)


def write_csv(
    path: str | Path,
    header: Sequence[str],
    rows: Iterable[Iterable[object]],
    *,
    durable: bool = False,
) -> None:
    """A table as of `csv_writer`, UTF-8, whole or not at all; the folder is made where it is
    missing.

    durable: it survives a loss of power too, as what nothing makes anew must.
    """
    with whole(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv_writer(file)
        writer.writerow(header)
        for row in rows:
            writer.writerow(row)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """A CSV file with a header as a list of dicts, every value a str. Raises FileNotFoundError."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
