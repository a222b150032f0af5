"""Where things lie: one folder per stage under `data/`, and what outlives an experiment under the
root.

`root()` is the real clone. In `dvc exp run --temp` and `--queue` the working folder is a throw-away
copy of it, so what must survive (the MLflow store, the feature cache, checkpoints) is anchored
there and never at the working folder.
"""

import os
from pathlib import Path

PARAMS = Path("params.yaml")
DATA = Path("data")
WEIGHTS = DATA / "weights"  # files that the user brought
SPLIT = DATA / "split"
TRAIN_HEAD = DATA / "train-head"
SECOND_LOOK = DATA / "second-look"
FINE_TUNE = DATA / "fine-tune"
KNOWN = FINE_TUNE / "known.npz"  # what the tuned model knows, see graft/known.py
EVALUATE = DATA / "evaluate"
EXPORT = DATA / "export"
STAGES = {
    "split": SPLIT,
    "train-head": TRAIN_HEAD,
    "second-look": SECOND_LOOK,
    "fine-tune": FINE_TUNE,
    "evaluate": EVALUATE,
    "export": EXPORT,
}


def root() -> Path:
    """The clone that this process belongs to: `$DVC_ROOT`, else the nearest parent that holds a
    `dvc.yaml`."""
    if os.environ.get("DVC_ROOT"):
        return Path(os.environ["DVC_ROOT"])
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "dvc.yaml").exists()), here)


def cache() -> Path:
    """Folder of everything that can be computed again: features, checkpoints, scans.
    Git-ignored."""
    return root() / ".cache"
