"""Choose, of unlabelled photos, those whose labels would tell the most."""

from __future__ import annotations

import argparse
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graft import params as parameters
from graft.commands.looking import Seen, look
from graft.known import Known
from graft.second_look.choice import margins, telling
from graft.serving.predict import Sources
from graft.system import files, paths
from graft.system.console import GraftError, log, warn

if TYPE_CHECKING:
    from graft.network.prediction import Inside

COLUMNS = ("path", "kind", "predicted", "confidence", "margin", "known")
UNKNOWN_BELOW = 0.01
UNCERTAIN, UNKNOWN = "uncertain", "unknown"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="+", help="photos or folders")
    parser.add_argument(
        "-n", type=int, default=50, help="how many are chosen (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("next.csv"),
        help="table to write, .csv, or tasks for Label Studio, .json (default: %(default)s)",
    )
    parser.add_argument(
        "--document-root",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="what Label Studio's LOCAL_FILES_DOCUMENT_ROOT will be: a folder that holds the "
        "photos (default: this one)",
    )


def next_(args: argparse.Namespace) -> None:
    """`graft next DIR [-n 50]`: by the fine-tuned model; unknown photos stand apart, at the end,
    the strangest first.

    Raises GraftError where there is no photo that can be read, or no fine-tuned model, and for
    tasks of photos that lie outside --document-root.
    """
    if args.output.suffix.lower() not in (".csv", ".json"):
        raise GraftError(f"--output {args.output}: must end in .csv or .json")
    seen = look(paths.FINE_TUNE, list(Sources(args.source)), parameters.load())
    for file, why in seen.problems:
        warn(f"{file}: {why}")
    if seen.inside is None:
        raise GraftError(f"{', '.join(args.source)}: no photo there can be read")
    rows = choose(seen, seen.inside, Known.read(paths.KNOWN), args.n)
    if args.output.suffix.lower() == ".json":
        files.write_json(args.output, tasks(rows, args.document_root))
    else:
        files.write_csv(args.output, COLUMNS, rows)
    strange = sum(row[1] == UNKNOWN for row in rows)
    log(
        f"next: {len(rows) - strange} of {len(seen.files)} photos chosen, and {strange} that seem "
        f"to show none of the classes; written to {args.output}"
    )


def choose(seen: Seen, inside: Inside, known: Known, n: int) -> list[tuple]:
    """Rows of the table: up to n uncertain photos, and up to n unknown ones."""
    p = seen.probabilities
    margin, p_values = margins(p), known.p_values(inside.features, inside.logits)
    strange = np.flatnonzero(p_values < UNKNOWN_BELOW)
    usual = np.flatnonzero(p_values >= UNKNOWN_BELOW)
    best = usual[telling(inside.features[usual], margin[usual], n)]
    order = [(UNCERTAIN, i) for i in best] + [
        (UNKNOWN, i) for i in strange[np.argsort(p_values[strange], kind="stable")][:n]
    ]
    classes = seen.description.classes
    return [
        (
            seen.files[i].as_posix(),
            kind,
            classes[p[i].argmax()],
            float(p[i].max()),
            float(margin[i]),
            float(p_values[i]),
        )
        for kind, i in order
    ]


def tasks(rows: Sequence[tuple], root: Path) -> list[dict]:
    """Label Studio's tasks, with the model's predictions, for its template "Image Classification":
    it opens the files below `root`, which is to be its LOCAL_FILES_DOCUMENT_ROOT. Raises GraftError
    for a file elsewhere."""
    found = []
    for path, kind, predicted, confidence, margin, known in rows:
        try:
            inside = Path(path).resolve().relative_to(root.resolve())
        except ValueError:
            raise GraftError(
                f"{path} lies outside {root}: --document-root must hold all photos"
            ) from None
        address = f"/data/local-files/?d={urllib.parse.quote(inside.as_posix())}"
        chosen = {
            "type": "choices",
            "from_name": "choice",
            "to_name": "image",
            "value": {"choices": [predicted]},
        }
        about = {"image": address, "kind": kind, "margin": margin, "known": known}
        found.append(
            {
                "data": about,
                "predictions": [
                    {"model_version": "graft", "score": confidence, "result": [chosen]}
                ],
            }
        )
    return found
