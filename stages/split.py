"""Data set -> manifest of train, val and test. Every file is read once; what is unusable is set
aside and listed."""

import shutil
from functools import partial
from pathlib import Path

from graft.dataset import grouping, images, manifest
from graft.dataset.intake import doubtful_counts, take_in
from graft.dataset.moves import since_last
from graft.reporting import data as report
from graft.run import run_stage
from graft.system import paths
from graft.system.console import log, warn


def split(params, run):
    cache_file = paths.cache() / "scan.sqlite"
    taken = take_in(params.data, seed=params.seed, cache_file=cache_file)
    for line in since_last(taken, params.data, seed=params.seed, cache_file=cache_file):
        log(line)
    for line in doubtful_counts(taken.manifest):
        warn(line)

    # Which of its pictures there are depends on the data.
    shutil.rmtree(paths.SPLIT / "plots", ignore_errors=True)
    manifest.write(taken.manifest, paths.SPLIT)
    metrics = report.write(
        paths.SPLIT,
        found=taken.found,
        manifest=taken.manifest,
        problems=taken.problems,
        duplicates=grouping.duplicates(taken.problems),
        read=partial(images.load_fitted, Path(params.data.path)),
    )
    run.log_metrics(metrics)


if __name__ == "__main__":
    run_stage(split)
