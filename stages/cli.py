"""`graft`: what a person types besides `dvc` and `mlflow`."""

import argparse
import datetime
import subprocess
import sys
from pathlib import Path

from stages import console, params, paths


def import_(args):
    from stages.dataset import importing

    importing.import_dataset(
        args.source, name=args.name, into=Path(args.into), sha256=args.sha256, limits=params.load().import_limits
    )


def predict(args):
    from stages.serving import predict as prediction

    prediction.command(args.model, args.source, output=args.output)


def cache(args):
    from stages.network.memo import Memo

    memo = Memo(max_gb=params.load().cache.max_gb)
    if args.clear:
        entries, size = memo.clear()
        console.log(f"cleared {entries} entries, {size / 1e6:.1f} MB")
        return
    entries = memo.entries()
    for entry in entries:
        used = datetime.datetime.fromtimestamp(entry["used"]).isoformat(" ", "minutes")
        console.log(
            f"{entry['key'][:12]}  {entry['bytes'] / 1e6:9.1f} MB  last used {used}  "
            f"{entry['images']} images at {entry['size']} px, view {entry['view']}, {entry['cut']}, {entry['engine']}"
        )
    total = sum(entry["bytes"] for entry in entries)
    console.log(f"{len(entries)} entries, {total / 1e6:.1f} MB of {memo.max_bytes / 1e6:.0f} MB, in {memo.folder}")


def champion(args):
    from stages.tracking import champion as registry

    given = params.load()
    if args.set:
        console.log(registry.set_champion(given, args.set))
    elif args.rollback:
        console.log(registry.rollback(given))
    else:
        console.log(registry.show(given))


def compare(args):
    from stages.tracking import compare as comparison

    console.log(comparison.render(comparison.compare(params.load(), args.runs)))


def ui(args):
    from stages.tracking import store

    connection = store.connect(params.load())  # makes the store if there is none
    # Opened without this address the UI starts on its pages for language models.
    where = f"http://127.0.0.1:{args.port}/#/experiments/{connection.experiment_id}?workflowType=machine_learning"
    console.log(f"MLflow UI on {where} (Ctrl-C ends it)")
    options = ["--backend-store-uri", store.tracking_uri(), "--host", "127.0.0.1", "--port", str(args.port)]
    raise SystemExit(subprocess.call([sys.executable, "-m", "mlflow", "ui", *options], cwd=paths.root()))


def parser():
    top = argparse.ArgumentParser(
        prog="graft", description="Transfer learning for image classification: data sets in, predictions out."
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name, function, text):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        return sub

    sub = command(
        "import",
        import_,
        "Make a class-per-folder data set under data/raw/ of a folder, an archive or a TensorFlow Datasets name.",
    )
    sub.add_argument(
        "source", help="folder, .zip, .tar, .tar.gz, .tgz (a path or an https URL), or tfds:NAME[:VERSION][@DATA_DIR]"
    )
    sub.add_argument("--name", help="its folder's name (default: from the source)")
    sub.add_argument("--into", default="data/raw", help="where the folder is made (default: %(default)s)")
    sub.add_argument("--sha256", help="refuse an archive with another SHA-256")

    sub = command("predict", predict, "Say what photos show, with the champion or any exported model.")
    sub.add_argument("source", nargs="+", help="photos or folders")
    sub.add_argument(
        "--model", default=str(paths.EXPORT), help="export folder, model.keras, or models:/NAME@ALIAS (default: %(default)s)"
    )
    sub.add_argument("--output", help="file to write, .csv or .jsonl (default: a table on the terminal)")

    sub = command("cache", cache, "Show the memo of activations, or clear it.")
    sub.add_argument("--clear", action="store_true", help="remove every entry")

    sub = command("champion", champion, "Show the champion and its history; set or roll it back.")
    choice = sub.add_mutually_exclusive_group()
    choice.add_argument("--set", metavar="VERSION", help="make this version (a number or an alias) the champion")
    choice.add_argument("--rollback", action="store_true", help="give the alias back to the champion before")

    sub = command("compare", compare, "Compare experiments: params that differ, metrics with intervals, paired differences.")
    sub.add_argument("runs", nargs="*", metavar="RUN|EXP", help="experiment names or run ids (default: the latest ten)")

    sub = command("ui", ui, "Serve the MLflow UI on 127.0.0.1, on the store that the stages write to.")
    sub.add_argument("--port", type=int, default=5000)
    return top


@console.entry
def main(argv=None):
    args = parser().parse_args(argv)
    args.function(args)


if __name__ == "__main__":
    main()
