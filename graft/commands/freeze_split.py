"""Write today's split into the photos' labels.csv, so that photos that come later move none of
them."""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path

from graft import params as parameters
from graft.dataset import labels, manifest
from graft.dataset.labels import COLUMNS, TABLE
from graft.dataset.layout import walk
from graft.system import files, paths
from graft.system.console import GraftError, log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # what there is to freeze, params.yaml and the split say


def freeze_split(args: argparse.Namespace) -> None:
    """`graft freeze-split`: train, val and test of data/split/manifest.csv become the column split
    of labels.csv in data.path.

    Photos that come later are labelled by their folders and train. Raises GraftError where the
    split is of other photos, or labels.csv holds more than graft would write.
    """
    data = parameters.load().data
    root, rows = Path(data.path), manifest.read(paths.SPLIT)
    table = root / TABLE
    gone = [row.path for row in rows.rows if not (root / row.path).is_file()]
    if gone:
        raise GraftError(
            f"{root} has no {gone[0]}, which {paths.SPLIT / 'manifest.csv'} lists: "
            "`dvc repro split` first"
        )
    if table.exists() and (
        data.labels != TABLE or not set(next(iter(files.read_csv(table)), {})) <= set(COLUMNS)
    ):
        raise GraftError(
            f"{table} is there already and is not what graft wrote; rename it, or take it out"
        )
    given = labels.read(root, [file.path for file in walk(root).files], data)
    places = dict(given.rows) | {
        row.path: replace(given.given(row.path), split=row.split) for row in rows.rows
    }
    labels.write_table(
        table, {path: place for path, place in places.items() if place.label is not None}
    )
    counts = ", ".join(f"{split} {len(rows.split(split))}" for split in manifest.SPLITS)
    log(f"{table}: {counts}; they stay where they are, and photos that come later train")
    log(f"use it: dvc exp run -S data.labels={TABLE}, or labels: {TABLE} under data in params.yaml")
    if Path(f"{root}.dvc").exists():
        log(f"version it: dvc add {shlex.quote(root.as_posix())}")
