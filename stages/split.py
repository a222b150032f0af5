"""data set -> manifest of train, val and test. Every file is read once; what is unusable is set aside and listed."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

from stages import console, paths, warm
from stages import params as parameters
from stages.dataset import duplicates, inventory, loading, plots, splitting

OUTPUTS = [paths.SPLIT / name for name in ("manifest.csv", "classes.json", "problems.csv", "metrics.json", "plots")]


def split(params, folder=paths.SPLIT):
    data, root = params.data, Path(params.data.path)
    with inventory.Memo(paths.cache() / "inventory.sqlite", root) as memo:
        limits = {"min_side": data.min_side, "max_megapixels": data.max_megapixels, "on_damaged": data.on_damaged}
        found = inventory.scan(root, memo=memo, **limits)
        pictures, copies, copied_across = duplicates.set_aside_copies(found.pictures)
        pairs = duplicates.near_duplicates(pictures, memo, max_distance=data.near_duplicates)
    grouping = duplicates.group(pictures, pairs, group_by=data.group_by)
    pictures, leaks = splitting.settle_leaks(pictures, grouping.groups, copied_across, policy=data.leaks)

    items = splitting.items(pictures, grouping)
    splits = splitting.assign(
        items, val_fraction=data.val_fraction, test_fraction=data.test_fraction, seed=params.seed, where=root
    )
    manifest = loading.manifest(pictures, splits, grouping.groups)
    problems = in_order([*found.problems, *copies, *grouping.problems, *leaks])
    metrics = counts(found, manifest, problems)

    shutil.rmtree(folder, ignore_errors=True)
    loading.write_manifest(manifest, folder)
    write_problems(problems, folder / "problems.csv")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8", newline="\n")
    plots.write(folder / "plots", root=root, manifest=manifest, problems=problems)
    tell(metrics, root, folder)
    return metrics


def in_order(problems):
    """By path; for a path that was set aside in the end, only the rows that say so."""
    gone = {p.path for p in problems if p.action.startswith("set aside")}
    return sorted(
        (p for p in problems if p.path not in gone or p.action.startswith("set aside")), key=lambda p: (p.path, p.problem)
    )


def write_problems(problems, path):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "problem", "action"))
        writer.writerows((p.path, p.problem, p.action) for p in problems)


def counts(found, manifest, problems):
    """metrics.json. Nothing is lost: files = images + set_aside + non_images + hidden."""
    return {
        "files": found.files,
        "images": len(manifest),
        "set_aside": sum(p.action.startswith("set aside") for p in problems),
        "non_images": found.non_images,
        "hidden": found.hidden,
        "classes": len(manifest.classes),
        **{name: len(manifest.split(name)) for name in loading.SPLITS},
        "groups": len({row.group for row in manifest.rows} - {""}),
        "problems": dict(sorted(Counter(p.problem for p in problems).items())),
    }


def tell(metrics, root, folder):
    console.log(
        f"{root}: {metrics['images']} images in {metrics['classes']} classes -> "
        + ", ".join(f"{name} {metrics[name]}" for name in loading.SPLITS)
        + f"; {metrics['non_images']} non-images and {metrics['hidden']} hidden files passed over"
    )
    if metrics["problems"]:
        console.log(
            "problems: " + ", ".join(f"{n} {kind}" for kind, n in metrics["problems"].items()) + f" (see {folder}/problems.csv)"
        )


@console.entry
def main():
    from stages.tracking import runs

    params = parameters.load()
    with runs.stage_run("split", params, outputs=OUTPUTS) as run:
        run.log_metrics(split(params))


if __name__ == "__main__":
    warm.run("stages.split", main)
