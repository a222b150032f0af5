"""What is known of the files of a data set: kept under path, size, times and inode, so that none is
read twice."""

import dataclasses
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from graft.dataset.layout import File
from graft.system import console

THUMB = 32  # pixels of a side of the grey thumbnails that near-duplicates are compared by
VERSION = f"8 Pillow {PIL.__version__}"
# A file changed this recently may change again within one tick of its clock: not believed next
# time.
FRESH_SECONDS = 2.0
TABLES = {
    "files": "(root TEXT, path TEXT, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, inode "
    "INTEGER, problem TEXT, detail TEXT, sha256 BLOB, width INTEGER, height INTEGER, megapixels "
    "REAL, most INTEGER, pixels BLOB, note TEXT, looks BLOB, PRIMARY KEY (root, path)) WITHOUT "
    "ROWID",
    "thumbs": "(sha256 BLOB PRIMARY KEY, thumbs BLOB) WITHOUT ROWID",
    "pairs": "(a BLOB, b BLOB, way INTEGER, alike INTEGER, PRIMARY KEY (a, b, way)) WITHOUT ROWID",
    "results": "(root TEXT, key TEXT, pairs TEXT, PRIMARY KEY (root, key))",
    "splits": "(root TEXT PRIMARY KEY, content TEXT)",
    "version": "(version TEXT)",
}
CREATE = " ".join(
    f"CREATE TABLE IF NOT EXISTS {table} {columns};" for table, columns in TABLES.items()
)
DROP = " ".join(f"DROP TABLE {table};" for table in TABLES)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What one file is, whatever the params say. `problem`: "", a kind of damage (scan.DAMAGED) or
    "non_image"; `detail`: for a person; `sha256`: 32 bytes; `width`, `height`: pixels, upright;
    `megapixels`: that were decoded; `most`: the largest of 16-bit samples of which nothing says
    what is white, else 0; `pixels`: None where the image has thumbnails, else the digest of its
    pixels if it is small, or nothing; `note`: what a person should know of how it was read;
    `looks`: of a picture, six float32 (`graft.looks`); `thumbs`: 32 x 32 grey bytes each."""

    problem: str = ""
    detail: str = ""
    sha256: bytes = b""
    width: int = 0
    height: int = 0
    megapixels: float = 0.0
    most: int = 0
    pixels: bytes | None = b""
    note: str = ""
    looks: bytes = b""
    thumbs: bytes = b""


class ScanCache:
    """What is known of the files under one folder: an SQLite file, safe under parallel experiments.
    A context manager.

    `path`: the database, or None for one in memory. A database that is damaged or of another
    version is started afresh.
    """

    def __init__(self, path: Path | None, root: str | Path):
        self.path = path
        folder, here = Path(root).resolve(), Path.cwd().resolve()
        # Relative where it can be: the throw-away copies of `dvc exp run --temp` then share what is
        # known of data/raw.
        self.root = (
            folder.relative_to(here).as_posix()
            if folder.is_relative_to(here)
            else folder.as_posix()
        )

    def __enter__(self):
        try:
            self._open()
        except (sqlite3.DatabaseError, OSError) as error:
            # Locked for a minute, disk full, folder read-only.
            if isinstance(error, (sqlite3.OperationalError, OSError)):
                console.warn(f"{self.path}: {error}; hashes are not kept")
                self.path = None
            else:
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            self._open()
        return self

    def _open(self):
        if self.path is not None:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(self.path or ":memory:", timeout=60)
        try:
            self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {CREATE}")
            if self._db.execute("SELECT version FROM version").fetchall() != [(VERSION,)]:
                self._db.executescript(DROP + CREATE)
                self._db.execute("INSERT INTO version VALUES (?)", (VERSION,))
            self._db.commit()
        except sqlite3.Error:
            self._db.close()  # with what it holds locked
            raise

    def _keep(self, write: Callable[[], object]) -> None:
        """Do what `write` does to the database, and commit it; where the disk is full, in memory
        from now on."""
        try:
            write()
            self._db.commit()
        except sqlite3.OperationalError as error:
            if self.path is None:
                raise
            console.warn(f"{self.path}: {error}; hashes are not kept")
            self._db.rollback()
            memory = sqlite3.connect(":memory:")
            self._db.backup(memory)
            # The old one is not closed: `records` may be reading from it.
            self._db, self.path = memory, None
            write()
            self._db.commit()

    def __exit__(self, *exception):
        self._db.close()

    def records(self, files: Iterable[File]) -> Iterator[tuple[File, FileRecord | None]]:
        """Yield (file, its FileRecord without thumbs, or None) for `files`, sorted by path; forgets
        what is no longer there."""
        rows = self._db.execute(
            "SELECT path, size, mtime_ns, ctime_ns, inode, problem, detail, sha256, width, height,"
            " megapixels, most, pixels, note, looks FROM files WHERE root = ? ORDER BY path",
            (self.root,),
        )
        row, gone = next(rows, None), []
        for file in files:
            while row is not None and row[0] < file.path:
                gone.append((self.root, row[0]))
                row = next(rows, None)
            known = None
            if row is not None and row[0] == file.path:
                if row[:5] == dataclasses.astuple(file):
                    known = FileRecord(*row[5:])
                row = next(rows, None)
            yield file, known
        if row is not None:
            gone += [(self.root, path) for path, *_ in (row, *rows)]
        if gone:
            self._keep(lambda: self._forget(gone))

    def _forget(self, gone):
        self._db.executemany("DELETE FROM files WHERE root = ? AND path = ?", gone)
        self._db.execute("DELETE FROM thumbs WHERE sha256 NOT IN (SELECT sha256 FROM files)")
        self._db.execute("DELETE FROM pairs WHERE a NOT IN (SELECT sha256 FROM thumbs)")

    def keep_records(self, results: Iterable[tuple[File, FileRecord]]) -> None:
        now = time.time_ns()
        rows, thumbs = [], []
        for file, record in results:
            if record.problem == "too_large" or record.detail.startswith("cannot be read"):
                continue  # depends on data.max_megapixels, or may pass
            settled = now - file.mtime_ns > FRESH_SECONDS * 1e9
            *known, kept = dataclasses.astuple(record)
            path, size, mtime, *identity = dataclasses.astuple(file)
            rows.append((self.root, path, size, mtime if settled else -1, *identity, *known))
            if kept:
                thumbs.append((record.sha256, kept))
        self._keep(lambda: self._insert(rows, thumbs))

    def _insert(self, rows, thumbs):
        self._db.executemany(f"INSERT OR REPLACE INTO files VALUES ({','.join('?' * 16)})", rows)
        self._db.executemany("INSERT OR IGNORE INTO thumbs VALUES (?,?)", thumbs)

    def thumbs(self, digests: Sequence[str]) -> list[np.ndarray]:
        """uint8 (k, 32, 32) each: the thumbnails of the images with these SHA-256 (hex)."""
        blobs = dict(self._among("SELECT sha256, thumbs FROM thumbs WHERE sha256 IN", digests))
        return [
            np.frombuffer(blobs[bytes.fromhex(digest)], np.uint8).reshape(-1, THUMB, THUMB)
            for digest in digests
        ]

    def _among(self, query, digests):
        """Rows of a query that ends in IN, for many digests at once: one query each would take four
        times as long."""
        wanted = [bytes.fromhex(digest) for digest in sorted(set(digests))]
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            yield from self._db.execute(f"{query} ({','.join('?' * len(part))})", part)

    def pairs(self, key: str) -> list[tuple[int, int]] | None:
        """The near-duplicates that were found in a set of images with this key, or None."""
        row = self._db.execute(
            "SELECT pairs FROM results WHERE root = ? AND key = ?", (self.root, key)
        ).fetchone()
        return None if row is None else [(i, j) for i, j in json.loads(row[0])]

    def keep_pairs(self, key: str, pairs: Sequence[tuple[int, int]]) -> None:
        row = (self.root, key, json.dumps(pairs))

        def write():
            # One set per folder: the last.
            self._db.execute("DELETE FROM results WHERE root = ?", (self.root,))
            self._db.execute("INSERT INTO results VALUES (?,?,?)", row)

        self._keep(write)

    def last_split(self) -> dict | None:
        """What `keep_split` was given last for this folder, or None."""
        row = self._db.execute("SELECT content FROM splits WHERE root = ?", (self.root,)).fetchone()
        return None if row is None else json.loads(row[0])

    def keep_split(self, content: dict) -> None:
        row = (self.root, json.dumps(content))
        self._keep(lambda: self._db.execute("INSERT OR REPLACE INTO splits VALUES (?,?)", row))

    def verdicts(self, pairs: Sequence[tuple[str, str, int]]) -> list[bool | None]:
        """For pairs of SHA-256 (hex) and the way in which they are compared: whether they have been
        found alike (True, False), None where not yet judged."""
        rows = self._among(
            "SELECT a, b, way, alike FROM pairs WHERE a IN", [a for a, _, _ in pairs]
        )
        known = {(a, b, way): bool(alike) for a, b, way, alike in rows}
        return [known.get((bytes.fromhex(a), bytes.fromhex(b), way)) for a, b, way in pairs]

    def keep_verdicts(self, judged: Iterable[tuple[str, str, int, bool]]) -> None:
        rows = [
            (bytes.fromhex(a), bytes.fromhex(b), way, int(alike)) for a, b, way, alike in judged
        ]
        self._keep(
            lambda: self._db.executemany("INSERT OR REPLACE INTO pairs VALUES (?,?,?,?)", rows)
        )
