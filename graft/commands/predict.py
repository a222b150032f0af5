"""Say what photos show, with the champion or any exported model."""

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from graft.scoring.predictions import class_columns
from graft.serving.predict import find, open_model
from graft.serving.predict import predict as predict_files
from graft.system import files, paths
from graft.system.console import GraftError, Progress, log, warn

COLUMNS = ("path", "predicted", "confidence", "problem")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="+", help="photos or folders")
    parser.add_argument(
        "--model", default=str(paths.EXPORT), help="export folder, model.keras, or models:/NAME@ALIAS (default: %(default)s)"
    )
    parser.add_argument(
        "--unknown-below",
        type=float,
        metavar="P",
        help="call photos unknown that look stranger than all but this share of the classes' own, such as 0.01",
    )
    parser.add_argument("--output", help="file to write, .csv or .jsonl (default: a table on the terminal)")


def predict(args: argparse.Namespace) -> None:
    """`graft predict SOURCE … [--model MODEL] [--output FILE]`: a line per file on the terminal, or a table in a file.

    Ends with exit status 2 where some files could not be read, with 1 where none could.
    Raises GraftError for an output of another kind, and as `find` and `open_model` do.
    """
    output = None if args.output is None else Path(args.output)
    if output is not None and output.suffix.lower() not in WRITERS:
        raise GraftError(f"--output {output}: must end in {' or '.join(WRITERS)}")
    images, skipped = find(args.source)
    limit = {} if args.unknown_below is None else {"unknown_below": args.unknown_below}
    model = open_model(args.model, knowing=True) if limit else open_model(args.model)
    rows, classes = predict_files(model, images, **limit), model.description.classes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of oddities in metadata; what matters is a problem
        problems = _print(rows, classes) if output is None else _write(rows, classes, output, len(images))
    done = len(images) - problems
    parts = [f"{done} image{'s' * (done != 1)} predicted by {model.name}"]
    parts += [f"{problems} could not be read"] * bool(problems) + [f"{skipped} other files skipped"] * bool(skipped)
    log(f"predict: {', '.join(parts)}" + (f"; written to {output}" if output else ""))
    if problems:
        sys.exit(2 if done else 1)


def _print(rows, classes):
    """A line per Prediction. Returns the number of those with a problem."""
    width, problems = max(map(len, classes)), 0
    for row in rows:
        problems += bool(row.problem)
        seen, why = ("-", f"  ({row.problem})") if row.problem else (f"{row.confidence:.1%}", "")
        log(f"{seen:>6}  {row.predicted or '-':{width}}  {row.path}{why}")
    return problems


def _write(rows, classes, output, total):
    """All `total` Predictions as a table. Returns the number of those with a problem."""
    problems = 0
    with _atomic(output) as file, Progress("predict", total) as progress:
        put = WRITERS[output.suffix.lower()](file, classes)
        for row in rows:
            put(row)
            progress.advance()
            if row.problem:
                problems += 1
                warn(f"{row.path}: {row.problem}")
    return problems


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[TextIO]:
    """A text file that appears at `path` when the block ends well, and not at all otherwise."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise GraftError(f"--output {path}: cannot be written: {error.strerror}") from None
    try:
        with file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _csv(file, classes):
    writer = files.csv_writer(file)
    writer.writerow([*COLUMNS, *class_columns(classes)])

    def put(row):
        figures = [""] * (1 + len(classes)) if row.problem else [f"{p:.6f}" for p in (row.confidence, *row.probabilities)]
        writer.writerow([row.path, row.predicted, figures[0], row.problem, *figures[1:]])

    return put


def _json_lines(file, classes):
    def put(row):
        tree = {"path": row.path, "problem": row.problem}
        if not row.problem:
            figures = {name: round(float(p), 6) for name, p in zip(classes, row.probabilities)}
            told = {"predicted": row.predicted, "confidence": round(row.confidence, 6), "probabilities": figures}
            tree = {"path": row.path, **told}
        file.write(json.dumps(tree, ensure_ascii=False) + "\n")

    return put


WRITERS: dict[str, Callable] = {".csv": _csv, ".jsonl": _json_lines}
