"""Data set -> manifest of train, val and test. Every file is read once; what is unusable is set aside and listed."""

import shutil
from functools import partial
from pathlib import Path

from graft.dataset import grouping, images, manifest, near_duplicates, scan, splitting
from graft.dataset.scan_cache import ScanCache
from graft.reporting import data as report
from graft.run import run_stage
from graft.system import paths


def split(params, run):
    data, root = params.data, Path(params.data.path)
    limits = {"min_side": data.min_side, "max_megapixels": data.max_megapixels, "on_damaged": data.on_damaged}
    with ScanCache(paths.cache() / "scan.sqlite", root) as cache:
        found = scan.scan(root, cache=cache, **limits)
        usable, copies, copied_across = grouping.set_aside_copies(found.images)
        pairs = near_duplicates.find(usable, cache, max_distance=data.near_duplicates)
    grouped = grouping.group(usable, pairs, group_by=data.group_by)
    usable, leaks = splitting.resolve_leakage(usable, grouped.groups, copied_across, policy=data.leakage)

    shares = {"val_fraction": data.val_fraction, "test_fraction": data.test_fraction}
    splits = splitting.assign(splitting.items(usable, grouped), **shares, seed=params.seed, where=root)
    rows = manifest.build(usable, splits, grouped.groups)
    problems = scan.settled([*found.problems, *copies, *grouped.problems, *leaks])

    shutil.rmtree(paths.SPLIT, ignore_errors=True)
    manifest.write(rows, paths.SPLIT)
    duplicates = grouping.duplicates(problems)
    read = partial(images.load_fitted, root)
    metrics = report.write(paths.SPLIT, found=found, manifest=rows, problems=problems, duplicates=duplicates, read=read)
    run.log_metrics(metrics)


if __name__ == "__main__":
    run_stage(split)
