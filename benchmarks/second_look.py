"""What `second-look` costs beyond reading the photos: seconds of each of its parts, and memory, on
synthetic features.

    python benchmarks/second_look.py [--photos 100000] [--features 1904] [--classes 10]

Features are drawn about a centre per class, so that the head has something to learn; photos are
flat grey. The stage itself adds loading the model, and features that the cache does not have.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from graft.network import acquaintance, head_solver
from graft.reporting import second_look as report
from graft.scoring.predictions import Predictions
from graft.second_look import unknown
from graft.second_look.evidence import Evidence


class Grey:
    """Stands for an ImageSet."""

    def read(self, indices):
        for start in range(0, len(indices), 64):
            yield np.full((len(indices[start : start + 64]), 224, 224, 3), 128, np.uint8)


def draw(n, d, classes):
    """(features float16 (n, d), labels int64 (n,), splits)."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    centres = rng.normal(size=(classes, d)).astype(np.float32) * 0.25
    features = np.empty((n, d), np.float16)
    for start in range(0, n, 10_000):
        part = labels[start : start + 10_000]
        features[start : start + 10_000] = centres[part] + rng.normal(size=(len(part), d)).astype(
            np.float32
        )
    return (
        features,
        labels,
        tuple(np.array(["train", "val", "test"])[rng.choice(3, n, p=[0.7, 0.15, 0.15])]),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=1904)
    parser.add_argument("--classes", type=int, default=10)
    args = parser.parse_args()
    features, labels, splits = draw(args.photos, args.features, args.classes)
    paths, names = (
        tuple(f"{k}.jpg" for k in range(args.photos)),
        tuple(map(str, range(args.classes))),
    )

    def timed(what, function):
        wall, cpu = time.monotonic(), time.process_time()
        found = function()
        print(
            f"{what}: {time.monotonic() - wall:.1f} s, {time.process_time() - cpu:.1f} s of "
            "processor",
            flush=True,
        )
        return found

    options = {"classes": args.classes, "folds": 5, "balanced": True}
    p = timed("out of fold", lambda: head_solver.out_of_fold(features, labels, paths, **options))
    evidence = Evidence(Predictions(paths, labels, p, names, paths), features, splits)
    left_out = acquaintance.without_a_class(features, labels, splits, classes=args.classes, seed=0)
    near = timed("a class left out", lambda: unknown.near(left_out, names))
    with tempfile.TemporaryDirectory() as folder:
        timed(
            "suspects, segments, map, files",
            lambda: report.write(folder, evidence, near, images=Grey(), seed=0),
        )
    print(f"memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB at most")


if __name__ == "__main__":
    main()
