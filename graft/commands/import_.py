"""Make a class-per-folder data set under data/raw/ of a folder, an archive or a TensorFlow Datasets name."""

import argparse
from pathlib import Path

from graft import params
from graft.dataset.importing import import_dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="folder, .zip, .tar, .tar.gz, .tgz (a path or an https URL), or tfds:NAME[:VERSION][@DATA_DIR]"
    )
    parser.add_argument("--name", help="its folder's name (default: from the source)")
    parser.add_argument("--into", default="data/raw", help="where the folder is made (default: %(default)s)")
    parser.add_argument("--sha256", help="refuse an archive with another SHA-256")


def import_(args: argparse.Namespace) -> None:
    """`graft import SOURCE [--name NAME] [--into FOLDER] [--sha256 HEX]`. Raises GraftError as `import_dataset` does."""
    limits = params.load().import_limits
    import_dataset(args.source, limits=limits, name=args.name, into=Path(args.into), sha256=args.sha256)
