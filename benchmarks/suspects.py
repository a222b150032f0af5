"""How well suspect labels are found: labels of a data set flipped by chance, then looked for by
out-of-fold probabilities.

    python benchmarks/suspects.py FOLDER [--shares 0.02 0.05 0.1] [--seeds 0 1 2]

FOLDER holds `features.npy` and `oof.csv` of a data set, as `dvc repro second-look` leaves them in
data/second-look. Labels that are wrong already count against the figures, as right ones that were
suspected. AUROC: of the order by the probability of the label, flipped against kept. Precision: of
the first k, where k labels were flipped.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from graft.network import head_solver
from graft.scoring.predictions import Predictions

FOLDS = 5


def flipped(
    labels: np.ndarray, classes: int, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(labels with a share of them replaced by another class, evenly drawn; bool (n,), which)."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(labels), round(share * len(labels)), replace=False)
    changed = labels.copy()
    changed[chosen] = (labels[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return changed, changed != labels


def trial(features, given: Predictions, share: float, seed: int) -> tuple[float, float]:
    """(AUROC, precision among the first k)."""
    from sklearn.metrics import roc_auc_score

    labels, wrong = flipped(given.labels, len(given.classes), share, seed)
    options = {"classes": len(given.classes), "folds": FOLDS, "balanced": True}
    p = head_solver.out_of_fold(features, labels, given.groups, **options)
    doubt = -p[np.arange(len(labels)), labels]
    first = np.argsort(-doubt, kind="stable")[: wrong.sum()]
    return float(roc_auc_score(wrong, doubt)), float(wrong[first].mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.02, 0.05, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    features, given = (
        np.load(args.folder / "features.npy"),
        Predictions.read(args.folder / "oof.csv"),
    )
    print(f"{len(given)} photos, {len(given.classes)} classes, {FOLDS} folds")
    for share in args.shares:
        started = time.monotonic()
        found = np.array([trial(features, given, share, seed) for seed in args.seeds])
        areas, precisions = (" ".join(f"{v:.3f}" for v in column) for column in found.T)
        seconds = (time.monotonic() - started) / len(args.seeds)
        mean = found.mean(axis=0)
        print(
            f"{share:5.0%} flipped: AUROC {mean[0]:.3f} ({areas}), precision {mean[1]:.3f} "
            f"({precisions}), {seconds:.0f} s each"
        )


if __name__ == "__main__":
    main()
