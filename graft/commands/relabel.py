"""Move photos whose labels you have corrected to the folders of their classes: dry run, log,
undo."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from graft import params as parameters
from graft.dataset import manifest
from graft.system import files, paths
from graft.system.console import GraftError, log

COLUMNS = ("batch", "from", "to")  # of the log
RAW = "data/raw"


@dataclass(frozen=True)
class Move:
    """A photo's path and where it goes, both relative to the data set's folder."""

    source: str
    target: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "fixes", nargs="?", type=Path, help="table with the columns path and label: the right one"
    )
    parser.add_argument(
        "--apply", action="store_true", help="move the files (default: say what would be moved)"
    )
    parser.add_argument("--undo", action="store_true", help="move the files of the last batch back")
    parser.add_argument(
        "--new-classes", action="store_true", help="allow labels that no photo bears so far"
    )
    parser.add_argument(
        "--in-place", action="store_true", help=f"allow a data set that lies outside {RAW}/"
    )


def relabel(args: argparse.Namespace) -> None:
    """`graft relabel fixes.csv [--apply]`, `graft relabel --undo`: files of data.path, each move in
    a log beside the folder.

    Nothing is moved where any move cannot be made. Raises GraftError for that, for labels that do
    not come from folders, and for a data set outside data/raw/ without --in-place.
    """
    data = parameters.load().data
    root = Path(data.path)
    inside = (paths.root() / RAW).resolve()
    if not args.in_place and not root.resolve().is_relative_to(inside):
        raise GraftError(
            f"{root} lies outside {RAW}/: these may be your only copies; --in-place moves them "
            "all the same"
        )
    record = root.with_name(f"{root.name}.moves.csv")
    if args.undo:
        _undo(root, record)
        return
    if args.fixes is None:
        raise GraftError("relabel needs a table of fixes, or --undo")
    if data.labels or data.label_by:
        raise GraftError(
            "labels come from data.labels or data.label_by, not from folders: correct them there"
        )
    moves = plan(_read(args.fixes), manifest.read(paths.SPLIT), new_classes=args.new_classes)
    begun = _is_last(_log(record), moves)  # a batch that was interrupted is gone on with
    moves = [move for move in moves if not (begun and _is_made(root, move))]
    _check(root, moves)
    for move in moves:
        log(f"{move.source} -> {move.target}")
    if not args.apply:
        log(
            f"relabel: {len(moves)} photos would be moved; nothing was. --apply moves them, "
            "relabel --undo takes it back"
        )
        return
    _apply(root, moves, record, begun=begun)
    log(
        f"relabel: {len(moves)} photos moved, listed in {record}; `graft relabel --undo` takes it "
        "back, `dvc repro` goes on"
    )
    if Path(f"{root}.dvc").exists():
        log(f"version it: dvc add {shlex.quote(root.as_posix())}")


def plan(
    fixes: Sequence[dict[str, str]], rows: manifest.Manifest, *, new_classes: bool = False
) -> list[Move]:
    """The moves that rows of path and label ask for; a label that is right already asks for none.
    Raises GraftError for a path that the manifest does not have, and a label that is no class, or
    no name of a folder."""
    known, moves = {row.path: row.label for row in rows.rows}, []
    for fix in fixes:
        path, label = fix["path"], fix["label"]
        if path not in known:
            raise GraftError(
                f"{path} is not in {paths.SPLIT / 'manifest.csv'}; paths are those of suspects.csv"
            )
        if label == known[path]:
            continue
        if not label.strip() or label.startswith(".") or "/" in label or "\\" in label:
            raise GraftError(f"{path}: {label!r} is no name of a folder")
        if label not in rows.classes and not new_classes:
            raise GraftError(f"{path}: no class is called {label!r}; --new-classes makes it one")
        parts = list(PurePosixPath(path).parts)
        folders = [k for k, part in enumerate(parts[:-1]) if part == known[path]]
        if not folders:
            raise GraftError(
                f"{path}: no folder of its path is called {known[path]!r}, so data.class_map "
                "renames it; correct it by hand"
            )
        parts[folders[0]] = label
        moves.append(Move(path, PurePosixPath(*parts).as_posix()))
    return moves


def _read(path):
    try:
        rows = files.read_csv(path)
    except (OSError, UnicodeDecodeError) as error:
        raise GraftError(
            f"{path}: cannot be read ({getattr(error, 'strerror', 'it is not UTF-8 text')})"
        ) from None
    if rows and not {"path", "label"} <= set(rows[0]):
        raise GraftError(
            f"{path}: needs the columns path and label; it has {', '.join(map(str, rows[0]))}"
        )
    return rows


def _check(root, moves):
    targets = [move.target for move in moves]
    for move in moves:
        if not (root / move.source).is_file():
            raise GraftError(
                f"{root / move.source} is gone; `dvc repro split` reads the folder anew"
            )
        if (root / move.target).exists() or targets.count(move.target) > 1:
            raise GraftError(
                f"{root / move.target} is there already, or two photos would go there; rename "
                f"{move.source} first"
            )


def _is_last(rows, moves):
    """Whether these moves are the last batch of the log."""
    return bool(rows) and {row[1:] for row in rows if row[0] == rows[-1][0]} == {
        (move.source, move.target) for move in moves
    }


def _is_made(root, move):
    return (root / move.target).is_file() and not (root / move.source).exists()


def _apply(root, moves, record, *, begun=False):
    rows = _log(record)
    batch = max((int(row[0]) for row in rows), default=0) + 1
    if not begun:  # written before a file is touched: what a crash leaves unmoved, undo passes over
        listed = ((batch, move.source, move.target) for move in moves)
        files.write_csv(record, COLUMNS, [*rows, *listed], durable=True)
    for move in moves:
        _move(root, move.source, move.target)


def _undo(root, record):
    rows = _log(record)
    if not rows:
        raise GraftError(f"{record}: no move is listed there, so there is none to take back")
    last = rows[-1][0]
    batch = [row for row in rows if row[0] == last]
    there = [(source, target) for _, source, target in batch if (root / target).is_file()]
    for source, target in there:
        if (root / source).exists():
            raise GraftError(
                f"{root / source} is there again; move it away, so that {target} can go back"
            )
    for source, target in there:
        _move(root, target, source)
    files.write_csv(record, COLUMNS, [row for row in rows if row[0] != last], durable=True)
    log(f"relabel: {len(there)} photos of the last batch are back where they were")


def _log(record):
    return (
        [tuple(row[name] for name in COLUMNS) for row in files.read_csv(record)]
        if record.exists()
        else []
    )


def _move(root, source, target):
    (root / target).parent.mkdir(parents=True, exist_ok=True)
    (root / source).rename(root / target)
