"""Bring a file of backbone weights into data/weights/, where backbone.weights finds it by its
name."""

import argparse
import contextlib
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from graft.network.backbones import FORMATS
from graft.system import files, paths
from graft.system.console import GraftError, log

# What `-S backbone.weights=` takes without quotes.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
# Of what an array claims to the file that it lies in: beyond, it is made to fill the memory.
RATIO = 1000
INSIDE = "model.weights.h5"  # of a .keras archive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=Path,
        help="weights of a backbone without its classifier: .h5, .weights.h5 or .keras",
    )


def import_weights(args: argparse.Namespace) -> None:
    """`graft import-weights FILE`. Raises GraftError as `bring` does."""
    path, arrays, values = bring(args.file)
    log(f"{path}: {arrays} arrays, {values:,} values")
    log(
        f"version it:   dvc add {path}   (before the first run; `dvc exp run --temp` and "
        "`--queue` need it)"
    )
    log(f"train on it:  dvc exp run -S backbone.name=NAME -S backbone.weights={path.name}")


def bring(file: Path, folder: Path = paths.WEIGHTS) -> tuple[Path, int, int]:
    """Copy `file` into `folder`, whole or not at all. Returns (where it is now, its arrays, the
    values in them).

    Raises GraftError for what is no file of weights, a name that a command line does not take, a
    place that another file holds, and a folder that is not there.
    """
    if file.suffix not in FORMATS or not NAME.fullmatch(file.name):
        raise GraftError(
            f"{file}: its name must be made of letters, digits, . _ and -, and end in "
            f"{' or '.join(FORMATS)}"
        )
    if not folder.is_dir():
        raise GraftError(f"{folder}: no such folder; run from the root of the project")
    sizes, target = _sizes(file), folder / file.name
    if target.exists() and files.sha256(target) != files.sha256(file):
        raise GraftError(
            f"{target} is there already, with another content; remove it, or rename {file.name}"
        )
    if not target.exists():
        with files.whole(target) as part:
            shutil.copyfile(file, part)
    return target, len(sizes), sum(sizes)


def _sizes(file):
    """How many values each of its arrays holds."""
    import h5py

    sizes = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            if item.external or item.is_virtual:
                raise GraftError(
                    f"{file}: {name} lies in another file; weights must be in this one"
                )
            if item.nbytes > RATIO * length:
                raise GraftError(
                    f"{file}: {name} claims to be {item.nbytes / 1e9:.1f} GB, in a file of "
                    f"{length:,} bytes"
                )
            item[()]  # a file that was cut off opens, and fails here
            sizes.append(item.size)

    try:
        length = file.stat().st_size
        with _opened(file) as content, h5py.File(content, "r") as tree:
            tree.visititems(visit)
    except (OSError, KeyError, zipfile.BadZipFile, RuntimeError) as error:
        raise GraftError(
            f"{file}: not readable as weights: {' '.join(str(error).split())[:200]}"
        ) from None
    if not sizes:
        raise GraftError(f"{file}: holds no weights")
    return sizes


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    """The HDF5 file that `file` is or, as a .keras archive, holds."""
    if file.suffix != ".keras":
        with file.open("rb") as content:
            yield content
        return
    with zipfile.ZipFile(file) as archive, archive.open(INSIDE) as content:
        yield content
