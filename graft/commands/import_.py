"""Make a data set under data/raw/ of folders, archives or a TensorFlow Datasets name."""

import argparse
from pathlib import Path

from graft import params
from graft.dataset.importing import import_dataset
from graft.dataset.labels import ByFolder
from graft.system.console import GraftError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="+",
        help="folder, .zip, .tar, .tar.gz, .tgz (or its https URL), or "
        "tfds:NAME[:VERSION][@DATA_DIR]; several become one",
    )
    parser.add_argument("--name", help="its folder's name (default: from the source)")
    parser.add_argument(
        "--into", default="data/raw", help="where the folder is made (default: %(default)s)"
    )
    parser.add_argument("--sha256", help="refuse an archive with another SHA-256")
    add_label_arguments(parser)


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say where labels come from; without them the folders do."""
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="table of labels: CSV (file, label), or an export of a labelling tool",
    )
    parser.add_argument(
        "--label-by", metavar="REGEX", help="regular expression on the path; its group is the class"
    )
    parser.add_argument(
        "--layout",
        choices=("auto", "classes", "splits", "deepest"),
        help="what the folders at the top are",
    )


def import_(args: argparse.Namespace) -> None:
    """`graft import SOURCE … [--name NAME] [--into FOLDER] [--sha256 HEX] [--labels FILE |
    --label-by REGEX] [--layout KIND]`.

    Raises GraftError as `import_dataset` does.
    """
    rules = given_rules(args)
    limits = params.load().import_limits
    import_dataset(
        *args.source,
        limits=limits,
        name=args.name,
        into=Path(args.into),
        sha256=args.sha256,
        rules=rules,
    )


def given_rules(args: argparse.Namespace) -> ByFolder:
    """The Rules that the options of `add_label_arguments` make."""
    if args.label_by is not None:
        try:
            params.check_label_pattern("--label-by", args.label_by)
        except ValueError as error:
            raise GraftError(str(error)) from None
    return ByFolder(args.layout or "auto", args.labels, args.label_by)
