"""`graft`: what a person types besides `dvc` and `mlflow`."""

import argparse
from collections.abc import Sequence
from importlib import metadata

from graft.commands import (
    benchmark,
    cache,
    champion,
    check,
    compare,
    drift,
    freeze_split,
    import_,
    import_weights,
    new,
    next_,
    params_,
    predict,
    preset,
    publish,
    relabel,
    review,
    serve,
    similar,
    suggest,
    tune,
    ui,
)
from graft.system.console import entry
from graft.tracking import dvc_lock

COMMANDS = {
    "new": (new, new.new),
    "check": (check, check.check),
    "freeze-split": (freeze_split, freeze_split.freeze_split),
    "import": (import_, import_.import_),
    "import-weights": (import_weights, import_weights.import_weights),
    "suggest": (suggest, suggest.suggest),
    "preset": (preset, preset.preset),
    "tune": (tune, tune.tune),
    "params": (params_, params_.params_),
    "predict": (predict, predict.predict),
    "serve": (serve, serve.serve),
    "benchmark": (benchmark, benchmark.benchmark),
    "next": (next_, next_.next_),
    "similar": (similar, similar.similar),
    "drift": (drift, drift.drift),
    "relabel": (relabel, relabel.relabel),
    "review": (review, review.review),
    "cache": (cache, cache.cache),
    "champion": (champion, champion.champion),
    "compare": (compare, compare.compare),
    "publish": (publish, publish.publish),
    "ui": (ui, ui.ui),
}


class _Version(argparse.Action):
    """`--version`, looked up only where it is asked for."""

    def __call__(self, parser, *_):
        print(f"graft {metadata.version('graft-vision')}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="graft",
        description="Transfer learning for image classification: data sets in, predictions out.",
    )
    top.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module, function) in COMMANDS.items():
        sub = commands.add_parser(name, help=module.__doc__, description=module.__doc__)
        module.add_arguments(sub)
        sub.set_defaults(function=function)
    return top


@entry
def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    dvc_lock.mend_rwlock()
    args.function(args)


if __name__ == "__main__":
    main()
