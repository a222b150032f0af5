"""data set -> manifest of train, val and test. Every file is read once; what is unusable is set aside and listed."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

from stages import console, params, paths
from stages.dataset import duplicates, inventory, loading, splitting


def write_problems(problems, folder):
    with (folder / "problems.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "problem", "action"))
        writer.writerows((p.path, p.problem, p.action) for p in problems)


def counts(found, manifest, problems):
    """metrics.json: every file of the folder is in exactly one of images, set_aside, non_images, hidden."""
    return {
        "files": found.files,
        "images": len(manifest),
        "set_aside": sum(p.action.startswith("set aside") for p in problems),
        "non_images": found.non_images,
        "hidden": found.hidden,
        "classes": len(manifest.classes),
        **{split: len(manifest.split(split)) for split in loading.SPLITS},
        "groups": len({row.group for row in manifest.rows if row.group}),
        "problems": dict(sorted(Counter(p.problem for p in problems).items())),
    }


def split(given, folder=paths.SPLIT):
    data = given.data
    root = Path(data.path)
    with inventory.Memo(paths.cache() / "inventory.sqlite", root) as memo:
        limits = {"min_side": data.min_side, "max_megapixels": data.max_megapixels, "on_damaged": data.on_damaged}
        found = inventory.scan(root, memo=memo, **limits)
    pictures, copies, _ = duplicates.set_aside_copies(found.pictures)
    items = [splitting.Item(p.path, p.label, p.sha256, "", p.given) for p in pictures]
    splits = splitting.assign(
        items, val_fraction=data.val_fraction, test_fraction=data.test_fraction, seed=given.seed, where=str(root)
    )
    rows = tuple(loading.Row(p.path, p.label, splits[p.path], p.sha256, p.width, p.height, "") for p in pictures)
    manifest = loading.Manifest(rows=rows, classes=tuple(sorted({row.label for row in rows})))
    problems = sorted((*found.problems, *copies), key=lambda p: (p.path, p.problem))

    shutil.rmtree(folder, ignore_errors=True)
    loading.write_manifest(manifest, folder)
    write_problems(problems, folder)
    metrics = counts(found, manifest, problems)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    (folder / "plots").mkdir(exist_ok=True)
    console.log(f"{root}: {metrics}")
    return manifest, metrics


@console.entry
def main():
    split(params.load())


if __name__ == "__main__":
    main()
