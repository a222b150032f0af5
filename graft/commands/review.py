"""Write a page on which suspect and uncertain labels are corrected."""

import argparse
from pathlib import Path

import numpy as np

from graft import params as parameters
from graft import pixels
from graft.dataset import manifest
from graft.reporting import review as report
from graft.scoring.predictions import Predictions
from graft.system import files, paths
from graft.system.console import GraftError, Progress, log, warn

UNCERTAIN = "uncertain"
SIDE = 144  # pixels of a photo on the page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n",
        type=int,
        default=200,
        help="photos at most: suspects, then uncertain ones (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("review.html"),
        help="page to write (default: %(default)s)",
    )


def review(args: argparse.Namespace) -> None:
    """`graft review [-n 200]`: what `second-look` suspects, and where its heads were least sure, as
    one HTML file.

    Raises GraftError where that stage has not run, or ran on another split, and where there is
    nothing to look at.
    """
    if args.n < 1:
        raise GraftError(f"-n {args.n}: at least 1")
    rows, data = manifest.read(paths.SPLIT), parameters.load().data
    found = chosen(rows, args.n)
    if not found:
        raise GraftError("no photo is suspect, and none was judged: evaluate.folds is 0")
    doubts = []
    with Progress("review", len(found)) as progress:
        for path, label, likelier, confidence, why, split in found:
            progress.advance()
            try:
                file, most = Path(data.path) / path, data.max_megapixels
                shown = pixels.load(file, SIDE, resize="pad", max_megapixels=most, white=rows.white)
            except (OSError, pixels.ImageProblem) as error:
                warn(f"{path}: {getattr(error, 'strerror', None) or error}")
                continue
            doubts.append(report.Doubt(path, label, likelier, confidence, why, split, shown))
    files.write_text(args.output, report.page(doubts, rows.classes, name=Path(data.path).name))
    log(
        f"review: {len(doubts)} photos on {args.output}: open it, choose, save fixes.csv, then "
        "graft relabel fixes.csv"
    )


def chosen(rows: manifest.Manifest, n: int) -> list[tuple[str, str, str, float, str, str]]:
    """(path, label, likelier class, its probability, why, split) of up to n photos: suspects in
    their order, then those whose label leads or trails least."""
    file = paths.SECOND_LOOK / "suspects.csv"
    if not file.exists():
        raise GraftError(f"{file}: no such file; `dvc repro second-look` makes it")
    suspects, said = files.read_csv(file), Predictions.read(paths.SECOND_LOOK / "oof.csv")
    if said.paths != rows.paths:
        raise GraftError(
            f"{paths.SECOND_LOOK} is not of this split; `dvc repro second-look` makes it anew"
        )
    found = [
        (
            s["path"],
            s["label"],
            s["likelier"],
            float(s["likelier_probability"]),
            s["kind"],
            s["split"],
        )
        for s in suspects[:n]
    ]
    seen, split = {row[0] for row in found}, {row.path: row.split for row in rows.rows}
    if np.allclose(said.probabilities, 1 / len(said.classes)):
        return found
    own = said.probabilities[np.arange(len(said)), said.labels]
    others = said.probabilities.copy()
    others[np.arange(len(said)), said.labels] = -1
    second = others.argmax(axis=1)
    for i in np.argsort(np.abs(own - others.max(axis=1)), kind="stable"):
        path, label, _, _ = said.row(i)
        if len(found) >= n:
            break
        if path not in seen:
            found.append(
                (
                    path,
                    label,
                    said.classes[second[i]],
                    float(others[i].max()),
                    UNCERTAIN,
                    split[path],
                )
            )
    return found
