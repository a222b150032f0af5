"""A table of predictions that an interrupted run leaves half-finished, and the same command
finishes.

Rows go to `.NAME.part` beside the table. Every few seconds `.NAME.part.json` says how many of its
rows and bytes are good, and of which files they are; what follows them is cut off and computed
again. So a run that was killed at any moment doubles no row and loses none. The half-finished table
belongs to a model and to the files that it begins with: with another model, or where the sources
begin with other files, it is begun anew.
"""

import contextlib
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from graft.scoring.predictions import class_columns
from graft.serving.predict import Prediction, Sources
from graft.system import files
from graft.system.console import GraftError, log

if TYPE_CHECKING:
    from filelock import BaseFileLock

COLUMNS = ("path", "predicted", "confidence", "problem")
SUFFIXES = (".csv", ".jsonl", ".parquet")
CHECKPOINT_SECONDS = 2.0  # what is computed again after SIGKILL
BLOCK = 1 << 24  # bytes of CSV in a row group of Parquet


@dataclass(frozen=True)
class Columns:
    """What a row says. classes: of the model. top: only the so many likeliest of them, in that
    order; None for all. known: the p-value as of `graft.known`, last."""

    classes: tuple[str, ...]
    top: int | None = None
    known: bool = False

    @property
    def names(self) -> list[str]:
        last = ["known"] * self.known
        if self.top is None:
            return [*COLUMNS, *class_columns(self.classes), *last]
        more = range(2, min(self.top, len(self.classes)) + 1)
        return [
            *COLUMNS,
            *(name for k in more for name in (f"predicted_{k}", f"confidence_{k}")),
            *last,
        ]

    def likeliest(self, row: Prediction) -> list[tuple[str, float]]:
        """(class, probability) of each class that the row has room for, the likeliest first where
        there is a `top`."""
        p = np.array(row.probabilities, np.float64)
        order = (
            range(len(self.classes))
            if self.top is None
            else np.argsort(-p, kind="stable")[: self.top]
        )
        return [(self.classes[k], float(p[k])) for k in order]

    def cells(self, row: Prediction) -> list[str]:
        if row.problem:
            return [row.path, "", "", row.problem, *[""] * (len(self.names) - len(COLUMNS))]
        told = self.likeliest(row)
        more = (
            [f"{p:.6f}" for _, p in told]
            if self.top is None
            else [c for n, p in told[1:] for c in (n, f"{p:.6f}")]
        )
        last = [f"{row.known:.6g}"] * self.known
        return [row.path, row.predicted, f"{row.confidence:.6f}", "", *more, *last]

    def json(self, row: Prediction) -> str:
        told: dict[str, object] = {"problem": row.problem}
        if not row.problem:
            figures = {name: round(p, 6) for name, p in self.likeliest(row)}
            told = {
                "predicted": row.predicted,
                "confidence": round(row.confidence, 6),
                "probabilities": figures,
            }
            if self.known:
                told["known"] = float(f"{row.known:.6g}")
        return json.dumps({"path": row.path, **told}, ensure_ascii=False)


@dataclass
class Good:
    """How much of a half-finished table counts: rows, those of them with a problem, bytes, and a
    digest of the rows' paths."""

    rows: int = 0
    problems: int = 0
    bytes: int = 0
    paths: str = field(default_factory=lambda: hashlib.sha256().hexdigest())


class Table:
    """A table under way; see `open_table`. done: how much of it is there, the rows of earlier runs
    among them."""

    def __init__(self, path: Path, key: str, columns: Columns) -> None:
        self.path, self.part = path, path.with_name(f".{path.name}.part")
        self.state = path.with_name(f"{self.part.name}.json")
        self.columns, self.done, self._key = columns, Good(), key
        self._digest, self._told = hashlib.sha256(), time.monotonic()
        self._under_way = False  # whether rows are added to those that count
        self._file: BinaryIO  # these, and what writes a row, from `open` on
        self._text: io.TextIOWrapper
        self._lock: BaseFileLock
        self._put: Callable[[Prediction], None]

    def open(self) -> None:
        """Take hold of the half-finished table. Raises GraftError where it cannot be written, or
        another process is at it."""
        from filelock import FileLock, Timeout

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.part.with_suffix(".lock"))
            if self.path.is_dir():
                raise IsADirectoryError(21, "is a folder")
            self._lock.acquire(blocking=False)
            self._file = os.fdopen(os.open(self.part, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        except Timeout:
            raise GraftError(
                f"--output {self.path}: another `graft predict` writes it now"
            ) from None
        except OSError as error:
            raise GraftError(f"--output {self.path}: cannot be written: {error.strerror}") from None
        self.done = self._found()
        self._text = io.TextIOWrapper(
            self._file, encoding="utf-8", errors="backslashreplace", newline=""
        )
        self._put = self._writer()
        self._begin()

    def _found(self) -> Good:
        """What an earlier run left; nothing of it where it does not fit."""
        size = self._file.seek(0, os.SEEK_END)
        try:
            tree = files.read_json(self.state)
            good, key = Good(**tree["good"]), tree["key"]
        except (OSError, ValueError, TypeError, KeyError):
            return Good()
        if key != self._key:
            log(f"predict: {self.part} is of another model, or has other columns: begun anew")
        return good if key == self._key and good.bytes <= size else Good()

    def _writer(self) -> Callable[[Prediction], None]:
        writer = files.csv_writer(self._text)

        def put(row: Prediction) -> None:
            if self.path.suffix.lower() == ".jsonl":
                self._text.write(self.columns.json(row) + "\n")
            else:
                writer.writerow(self.columns.cells(row))

        return put

    def _begin(self) -> None:
        """Cut off what does not count, and go on from there."""
        self._text.flush()
        self._file.truncate(self.done.bytes)
        self._file.seek(self.done.bytes)
        if self.done.rows:
            return
        self._digest, self._under_way = hashlib.sha256(), True
        if self.path.suffix.lower() != ".jsonl":
            files.csv_writer(self._text).writerow(self.columns.names)

    def rest(self, sources: Sources) -> Iterator[Path]:
        """Those of `sources` that are still to be predicted, in their order.

        Raises GraftError where the half-finished table begins with other files and standard input,
        read by then, cannot be read again.
        """
        paths = iter(sources)
        if self.done.rows:
            digest = hashlib.sha256()
            for path in islice(paths, self.done.rows):
                digest.update(_name(path.as_posix()))
            if digest.hexdigest() == self.done.paths:
                self._digest, self._under_way = digest, True
                log(
                    f"predict: goes on after {self.done.rows} rows of an interrupted run, in "
                    f"{self.part}"
                )
            elif sources.once:
                raise GraftError(
                    f"-: standard input begins with other photos than {self.part}, the table of "
                    "an interrupted run; to begin anew, delete that file"
                )
            else:
                log(f"predict: {self.part} begins with other photos: begun anew")
                self.done, paths = Good(), iter(sources)
                self._begin()
        yield from paths

    def put(self, row: Prediction) -> None:
        """Add a row. Raises GraftError where the disk is full."""
        try:
            self._put(row)
            self._digest.update(_name(row.path))
            self.done.rows += 1
            self.done.problems += bool(row.problem)
            if time.monotonic() - self._told >= CHECKPOINT_SECONDS:
                self.checkpoint()
        except OSError as error:
            raise GraftError(f"--output {self.path}: cannot be written: {error.strerror}") from None

    def checkpoint(self) -> None:
        """Note how much of the table counts from now on, whatever happens."""
        self._text.flush()
        os.fsync(self._file.fileno())
        self.done.bytes, self.done.paths = self._file.tell(), self._digest.hexdigest()
        fresh = self.state.with_name(f"{self.state.name}.new")
        files.write_json(fresh, {"key": self._key, "good": vars(self.done)})
        fresh.replace(self.state)
        self._told = time.monotonic()

    def finish(self) -> None:
        """The whole table, at its place."""
        self.checkpoint()
        if self.path.suffix.lower() == ".parquet":
            whole = self.part.with_suffix(".whole")
            _to_parquet(self.part, whole, self.columns)
            whole.replace(self.path)
            self.part.unlink()
        else:
            self.part.replace(self.path)
        self.state.unlink()

    def close(self) -> None:
        """Let go of it."""
        self._file.close()
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def leave(self) -> None:
        """Keep what is there for the next run; nothing where there is nothing."""
        with contextlib.suppress(OSError):  # the error that is on its way says more
            if self.done.rows:
                if self._under_way:
                    self.checkpoint()
            else:
                self.part.unlink(missing_ok=True)
                self.state.unlink(missing_ok=True)


@contextlib.contextmanager
def open_table(path: Path, columns: Columns, model: str) -> Iterator[Table]:
    """A Table at `path`, of one of SUFFIXES, which appears when the block ends well; else its rows
    are kept for the next run.

    model: a digest of it. Raises GraftError for another suffix and as `Table.open` does.
    """
    check_suffix(path)
    key = hashlib.sha256(
        json.dumps([model, columns.names, path.suffix.lower()]).encode()
    ).hexdigest()
    table = Table(path, key, columns)
    table.open()
    with contextlib.closing(table):
        try:
            yield table
        except BaseException:
            table.leave()
            raise
        table.finish()


def check_suffix(path: Path) -> None:
    """Raise GraftError for a table of a kind that is not written, or whose package is missing."""
    if path.suffix.lower() not in SUFFIXES:
        raise GraftError(
            f"--output {path}: must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise GraftError(
                f"--output {path}: Parquet needs pyarrow: pip install pyarrow, or write .csv or "
                ".jsonl"
            ) from None


def _name(path: str) -> bytes:
    return os.fsencode(path) + b"\0"


def _to_parquet(table: Path, into: Path, columns: Columns) -> None:
    """The CSV `table` as Parquet, a block at a time: figures as float64, empty cells as null."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    def kind(name):
        words = name in ("path", "predicted", "problem") or (
            columns.top is not None and name.startswith("predicted_")
        )
        return pa.string() if words else pa.float64()

    schema = pa.schema([(name, kind(name)) for name in columns.names])
    types = {field.name: field.type for field in schema}
    reader = csv.open_csv(
        table,
        read_options=csv.ReadOptions(block_size=BLOCK),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types=types, null_values=[""], strings_can_be_null=True
        ),
    )
    with parquet.ParquetWriter(into, schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
