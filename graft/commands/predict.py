"""Say what photos show, with the champion or any exported model."""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from graft.network import backbones
from graft.serving.distributed import predict_on_cluster
from graft.serving.predict import Prediction, Sources, open_model
from graft.serving.predict import predict as predict_files
from graft.serving.readers import Loaded
from graft.serving.sorting import Sorter
from graft.serving.table import Columns, check_suffix, open_table
from graft.system import files, paths
from graft.system.console import GraftError, Progress, log, warn

RowsOf = Callable[[Loaded, Iterable[Path]], Iterable[Prediction]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="+",
        help="photos, folders, patterns, or lists: @FILE, or - for standard input",
    )
    parser.add_argument(
        "--model",
        default=str(paths.EXPORT),
        help="export folder, model.keras, or models:/NAME@ALIAS (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="table to write, .csv, .jsonl or .parquet (default: lines on the terminal)",
    )
    parser.add_argument(
        "--top", type=int, metavar="K", help="the K likeliest classes of each photo"
    )
    parser.add_argument(
        "--unknown-below",
        type=float,
        metavar="P",
        help="call photos unknown that look stranger than all but this share of the classes' own, "
        "such as 0.01",
    )
    parser.add_argument(
        "--sort-into",
        type=Path,
        metavar="DIR",
        help="link each photo into a folder of its class there",
    )
    parser.add_argument(
        "--unsure-below", type=float, metavar="P", help="photos of less confidence go into unsure/"
    )
    parser.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="ray: on the machines of a Ray cluster, the same rows",
    )
    parser.add_argument(
        "--copy", action="store_true", help="copy photos there, instead of hard links"
    )


def predict(args: argparse.Namespace) -> None:
    """`graft predict SOURCE … [--model MODEL] [--output FILE] [--top K] [--sort-into DIR]
    [--executor ray]`.

    A line per file on the terminal, or a table in a file; an interrupted table is gone on with.
    Ends with exit status 2 where some files could not be read, with 1 where none could.
    Raises GraftError for an output of another kind, and as `Sources`, `open_model`, `open_table`
    and `Sorter` do.
    """
    _check(args)
    sources = Sources(args.source)
    # Which also says that there is something to do.
    total = None if sources.once else sum(1 for _ in sources)
    limit = args.unknown_below
    model = open_model(args.model, suits_litert=_suits_litert, knowing=limit is not None)
    on_cluster = args.executor == "ray"
    columns = Columns(
        model.description.classes, args.top, known=not on_cluster and model.judged is not None
    )
    rows_of: RowsOf = (
        predict_on_cluster if on_cluster else partial(predict_files, unknown_below=limit)
    )
    sorter = None
    if args.sort_into:
        sorter = Sorter(
            args.sort_into, model.description.classes, args.unsure_below or 0.0, args.copy
        )
        sorter.check(args.source)
    with warnings.catch_warnings():
        # Pillow warns of oddities in metadata; what matters is a problem.
        warnings.simplefilter("ignore")
        if args.output is None:
            rows, problems = _print(_sorted(rows_of(model, sources), sorter), columns)
        else:
            rows, problems = _write(
                model, sources, sorter, (args.output, columns, total), limit, rows_of
            )
    done = rows - problems
    parts = [f"{done} image{'s' * (done != 1)} predicted by {model.name}"]
    parts += [f"{problems} could not be read"] * bool(problems)
    parts += [f"{sources.skipped} other files skipped"] * bool(sources.skipped)
    places = [str(place) for place in (args.output, args.sort_into) if place]
    log(f"predict: {', '.join(parts)}" + (f"; written to {' and '.join(places)}" if places else ""))
    if problems:
        sys.exit(2 if done else 1)


def _suits_litert(backbone):
    return backbone in backbones.BACKBONES and backbones.row(backbone).runtime == "litert"


def _check(args):
    if args.output is not None:
        check_suffix(args.output)
    if args.top is not None and args.top < 1:
        raise GraftError(f"--top {args.top}: at least 1")
    if args.sort_into is None and (args.copy or args.unsure_below is not None):
        raise GraftError("--copy and --unsure-below say how photos are sorted: add --sort-into DIR")
    if args.executor == "ray" and args.unknown_below is not None:
        raise GraftError(
            "--executor ray: --unknown-below needs TensorFlow, which workers do without; leave "
            "one out"
        )


def _sorted(rows: Iterable[Prediction], sorter: Sorter | None) -> Iterable[Prediction]:
    """`rows`, each after its photo has been put into its place: a row that is written stands for a
    photo that lies there."""
    for row in rows:
        if sorter is not None:
            sorter.place(row)
        yield row


def _print(rows, columns):
    """A line per Prediction. Returns the numbers of rows and of those with a problem."""
    width, done, problems = max(map(len, columns.classes)), 0, 0
    for row in rows:
        done, problems = done + 1, problems + bool(row.problem)
        seen, more = ("-", row.problem) if row.problem else (f"{row.confidence:.1%}", "")
        if columns.top and not row.problem:
            more = ", ".join(f"{p:.1%} {name}" for name, p in columns.likeliest(row)[1:])
        log(
            f"{seen:>6}  {row.predicted or '-':{width}}  {row.path}"
            + (f"  ({more})" if more else "")
        )
    return done, problems


def _write(
    model: Loaded,
    sources: Sources,
    sorter: Sorter | None,
    table: tuple[Path, Columns, int | None],
    limit: float | None,
    rows_of: RowsOf,
) -> tuple[int, int]:
    """All Predictions as a table: (file, its columns, number of rows if known). Returns as `_print`
    does."""
    output, columns, total = table
    identity = model.identity or files.sha256(model.name)
    identity += "" if limit is None else f", unknown below {limit}"
    with open_table(output, columns, identity) as written, Progress("predict", total) as progress:
        first = True
        for row in _sorted(rows_of(model, written.rest(sources)), sorter):
            if first:
                progress.advance(written.done.rows)
                first = False
            written.put(row)
            progress.advance()
            if row.problem:
                warn(f"{row.path}: {row.problem}")
    return written.done.rows, written.done.problems
