"""Test accuracy over seeds: the pipeline's own stage functions, split to evaluate, one seed after the other in one process.

    python benchmarks/accuracy.py --data FOLDER --weights FILE.h5 --seeds 0 1 2 3 4 --set augment.flip=horizontal

Each seed gives another split, head, augmentation and order of training, as `dvc exp run -S seed=…` would, and the same figures;
MLflow and the registry are left out. Prints a row per seed, then mean and range. The feature cache lies in a temporary folder.
"""

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ruamel.yaml import YAML  # noqa: E402

from graft import params as parameters  # noqa: E402
from graft.system import environment, paths  # noqa: E402
from graft.system.files import read_json  # noqa: E402
from stages import evaluate, fine_tune, split, train_head  # noqa: E402

RECIPES = {"split": split.split, "train-head": train_head.train_head, "fine-tune": fine_tune.fine_tune,
           "evaluate": evaluate.evaluate}  # fmt: skip


class Unlogged:
    """Stands for a StageRun where nothing is recorded."""

    def __init__(self, stage, params):
        self.stage, self.params = stage, params
        self.identity, self.digests, self.shown_params, self.provenance = {"params": params.flat()}, {}, {}, {}

    def __getattr__(self, name):
        return lambda *_, **__: contextlib.nullcontext()


def settings(arguments):
    yaml = YAML()
    tree = yaml.load(ROOT / "params.yaml")
    tree["data"]["path"], tree["image_size"] = str(Path(arguments.data).resolve()), arguments.image_size
    tree["backbone"].update(weights=str(Path(arguments.weights).resolve()), alpha=arguments.alpha)
    for change in arguments.set:
        key, _, value = change.partition("=")
        *blocks, last = key.split(".")
        block = tree
        for name in blocks:
            block = block[name]
        block[last] = yaml.load(io.StringIO(value))
    yaml.dump(tree, Path("params.yaml"))
    return parameters.load()


def run(given):
    """All figures of the evaluation for one seed, and accuracy and loss on the validation images, to choose settings by."""
    with (
        mock.patch("graft.serving.pyfunc.register", lambda *_, **__: "0"),
        mock.patch("graft.tracking.champion.challenge"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        for stage, recipe in RECIPES.items():
            with environment.training_scope(given.seed):
                recipe(given, Unlogged(stage, given))
    tuned, found = (read_json(folder / "report.json")["summary"] for folder in (paths.FINE_TUNE, paths.EVALUATE))
    return {**found, "val_accuracy": tuned["accuracy"], "val_loss": tuned["loss"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    arguments.data, arguments.weights = Path(arguments.data).resolve(), Path(arguments.weights).resolve()
    environment.quiet_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DVC_ROOT"] = folder
        os.chdir(folder)
        shutil.copy(ROOT / "dvc.yaml", folder)
        given, rows = settings(arguments), []
        print("seed  val acc  val loss    n  accuracy    head  ECE raw  ECE calibrated  temperature  seconds", flush=True)
        for seed in arguments.seeds:
            started = time.monotonic()
            m = run(given.model_copy(update={"seed": seed}))
            rows.append(m)
            ece = f"{m['ece_uncalibrated']:.4f}          {m['ece_calibrated']:.4f}       {m['temperature']:.4f}"
            took = time.monotonic() - started
            val = f"{m['val_accuracy']:.4f}    {m['val_loss']:.4f}"
            test = f"{m['n']:4d}    {m['accuracy']:.4f}  {m['head_accuracy']:.4f}"
            print(f"{seed:4d}   {val} {test}   {ece}    {took:5.0f}", flush=True)
        os.chdir(ROOT)
    for name, key in (("validation accuracy", "val_accuracy"), ("test accuracy", "accuracy")):
        values = [row[key] for row in rows]
        print(f"{name}: mean {sum(values) / len(values):.4f}, range {min(values):.4f} to {max(values):.4f}, {len(rows)} seeds")


if __name__ == "__main__":
    main()
