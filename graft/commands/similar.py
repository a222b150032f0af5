"""Show which photos of the data set are most like one."""

import argparse
from pathlib import Path

import numpy as np

from graft import params as parameters
from graft.commands.looking import look
from graft.dataset import manifest
from graft.second_look.choice import nearest
from graft.system import paths
from graft.system.console import GraftError, log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", type=Path, help="any photo, of the data set or not")
    parser.add_argument(
        "-n", type=int, default=10, help="how many are shown (default: %(default)s)"
    )


def similar(args: argparse.Namespace) -> None:
    """`graft similar PHOTO [-n 10]`: a line per photo, the most similar first, by the frozen
    backbone's features.

    Raises GraftError where these are missing or of another split, and for a photo that cannot be
    read.
    """
    file, rows = paths.SECOND_LOOK / "features.npy", manifest.read(paths.SPLIT)
    if not file.exists():
        raise GraftError(f"{file}: no such file; `dvc repro second-look` makes it")
    features = np.load(file)
    seen = look(paths.TRAIN_HEAD, [args.photo], parameters.load())
    if seen.problems or seen.inside is None:
        raise GraftError(f"{args.photo}: {seen.problems[0][1]}")
    if features.shape != (len(rows), seen.inside.features.shape[1]):
        raise GraftError(
            f"{file} is not of this split and backbone; `dvc repro second-look` makes it anew"
        )
    positions, similarities = nearest(features, seen.inside.features[0], args.n)
    for position, similarity in zip(positions, similarities):
        row = rows.rows[position]
        log(f"{similarity:6.3f}  {row.label}  {row.split:5}  {row.path}")
