"""Test accuracy over seeds: the pipeline's own stages, split to evaluate, beside a logistic
regression on the same photos.

    python benchmarks/accuracy.py --data FOLDER [FOLDER …] --seeds 0 1 2 3 4 [--set KEY=VALUE …]

Each seed gives another split, augmentation and order of training, as `dvc exp run -S seed=…` would,
and the same figures; MLflow and the registry are left out. Beside it stands what one second of
scikit-learn gives on the pipeline's own manifest: the frozen backbone's last features, pooled and
standardised, of each training photo and its mirror image, and LogisticRegression with C by
validation log loss.

The difference is paired: a photo's share in it is (right by graft) - (right by the regression), a
photo tested under several seeds is one unit, and the interval resamples photos (groups, where there
are any). `--keep DIR` keeps features and logs between calls, `--json FILE` adds a line per seed to
a file, `--pool FILE …` prints the table of such files and all pooled.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ruamel.yaml import YAML  # noqa: E402

from graft import params as parameters  # noqa: E402
from graft import runtimes  # noqa: E402
from graft.dataset import images, manifest  # noqa: E402
from graft.network import backbones, classifier  # noqa: E402
from graft.scoring.calibration import calibrated_losses  # noqa: E402
from graft.scoring.predictions import Predictions  # noqa: E402
from graft.system import environment, paths  # noqa: E402
from graft.system.files import read_json  # noqa: E402
from stages import evaluate, fine_tune, second_look, split, train_head  # noqa: E402

RECIPES = {
    "split": split.split,
    "train-head": train_head.train_head,
    "second-look": second_look.second_look,
    "fine-tune": fine_tune.fine_tune,
    "evaluate": evaluate.evaluate,
}
GRID = [10.0 ** (e / 2) for e in range(-8, 5)]
FIELDS = {"accuracy": "test", "head": "head alone", "regression": "regression",
          "val_accuracy": "val", "val_flips": "val, flips", "val_loss": "val loss",
          "head_val_loss": "head's", "log_loss": "test loss", "ece": "ECE",
          "seconds": "seconds"}  # fmt: skip


class Unlogged:
    """Stands for a StageRun where nothing is recorded."""

    def __init__(self, stage, params):
        self.stage, self.params = stage, params
        self.identity, self.digests, self.shown_params, self.provenance = (
            {"params": params.flat()},
            {},
            {},
            {},
        )

    def __getattr__(self, name):
        return lambda *_, **__: contextlib.nullcontext()


def settings(data, changes):
    yaml = YAML()
    tree = yaml.load(ROOT / "params.yaml")
    tree["data"]["path"] = str(data)
    for change in changes:
        key, _, value = change.partition("=")
        *blocks, last = key.split(".")
        block = tree
        for name in blocks:
            block = block[name]
        block[last] = yaml.load(io.StringIO(value))
    yaml.dump(tree, Path("params.yaml"))
    return parameters.load()


def run(given, log, evaluated=True):
    """The seconds that the stages took; what they wrote lies in the current folder."""
    started = time.monotonic()
    with (
        mock.patch("graft.serving.pyfunc.register", lambda *_, **__: "0"),
        mock.patch("graft.tracking.champion.challenge"),
        mock.patch("graft.tracking.champion.record_head"),
        contextlib.redirect_stdout(log),
    ):
        for stage, recipe in RECIPES.items():
            if evaluated or stage not in ("second-look", "evaluate"):
                with environment.training_scope(given.seed):
                    recipe(given, Unlogged(stage, given))
    return time.monotonic() - started


class Regression:
    """Features of photos are kept by content, so that another seed costs nothing."""

    def __init__(self):
        self.known = {}

    def predict(self, given):
        """(labels it gives the test photos (n,), C): int64, float."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import log_loss
        from sklearn.preprocessing import StandardScaler

        model, description = classifier.load(paths.TRAIN_HEAD)
        parts = images.image_sets(
            manifest.read(), given.data.path, description, "train", "val", "test"
        )
        (plain, mirrored), (val, _), (test, _) = (
            self._features(model, given, part) for part in parts
        )
        scaler = StandardScaler().fit(np.concatenate([plain, mirrored]))
        x, y = scaler.transform(np.concatenate([plain, mirrored])), np.tile(parts[0].labels, 2)
        best, found = np.inf, None
        for strength in GRID:
            fitted = LogisticRegression(C=strength, max_iter=2000, tol=1e-4).fit(x, y)
            loss = log_loss(
                parts[1].labels, fitted.predict_proba(scaler.transform(val)), labels=fitted.classes_
            )
            if loss > 1.2 * best:  # weaker penalties only overfit more
                break
            best, found = (loss, (strength, fitted)) if loss < best else (best, found)
        return found[1].predict(scaler.transform(test)), found[0]

    def _features(self, model, given, part):
        missing = [i for i, name in enumerate(part.sha256) if name not in self.known]
        if missing:
            runtime = backbones.choose_runtime(given.features.runtime, given.backbone.name)
            compute, at = runtimes.start(model, [model.get_layer("pooling").output], runtime), 0
            for batch in part.read(missing):
                both = [
                    compute(np.ascontiguousarray(view))[0] for view in (batch, batch[:, :, ::-1])
                ]
                self.known.update(
                    zip((part.sha256[i] for i in missing[at : at + len(batch)]), zip(*both))
                )
                at += len(batch)
        return [
            np.stack([self.known[name][k] for name in part.sha256]).astype(np.float64)
            for k in (0, 1)
        ]


def figures(given, regression):
    """One seed's row, with the groups and outcomes of the test photos."""
    tuned, found = (
        read_json(folder / "report.json")["summary"] for folder in (paths.FINE_TUNE, paths.EVALUATE)
    )
    val, val_head = (
        Predictions.read(folder / "predictions.csv")
        for folder in (paths.FINE_TUNE, paths.TRAIN_HEAD)
    )
    rows = manifest.read().split("test").rows
    test = Predictions.read(paths.EVALUATE / "predictions.csv")
    assert list(test.paths) == [row.path for row in rows]
    mirrored = _mirrored(given)
    result = {
        "accuracy": found["accuracy"],
        "head": found["head_accuracy"],
        "val_accuracy": tuned["accuracy"],
        "val_loss": float(calibrated_losses(val.probabilities, val.labels).mean()),
        "val_flips": float((np.argmax(val.probabilities + mirrored, axis=1) == val.labels).mean()),
        "head_val_loss": float(calibrated_losses(val_head.probabilities, val_head.labels).mean()),
        "log_loss": found["loss"],
        "ece": found["ece_calibrated"],
        "n": len(test),
        "groups": [row.group or row.sha256[:16] for row in rows],
        "right": (test.predicted == test.labels).astype(int).tolist(),
    }
    if regression:
        labels, result["strength"] = regression.predict(given)
        result["regression"] = float((labels == test.labels).mean())
        result["right_by_regression"] = (labels == test.labels).astype(int).tolist()
    return result


def _mirrored(given):
    """Probabilities (n, C) of the mirror images of the validation photos."""
    model, description = classifier.load(paths.FINE_TUNE)
    (val,) = images.image_sets(manifest.read(), given.data.path, description, "val")
    return np.concatenate([model(batch[:, :, ::-1]).numpy() for batch in val.read(range(len(val)))])


def difference(rows, resamples=10_000):
    """Graft's accuracy minus the regression's over all rows, with its 95% interval, in points;
    units are groups."""
    units = {}
    for row in rows:
        for group, ours, theirs in zip(row["groups"], row["right"], row["right_by_regression"]):
            gain, count = units.get((row["data"], group), (0, 0))
            units[row["data"], group] = gain + ours - theirs, count + 1
    gains, counts = np.array(list(units.values()), float).T
    drawn = np.random.default_rng(0).integers(0, len(gains), (resamples, len(gains)))
    means = gains[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return (
        f"graft - regression {100 * gains.sum() / counts.sum():.2f} points (95%: {100 * low:.2f} "
        f"to {100 * high:.2f})"
    )


def table(rows):
    for data in dict.fromkeys(row["data"] for row in rows):
        mine = [row for row in rows if row["data"] == data]
        for key in ("accuracy", "head", "regression"):
            values = [row[key] for row in mine if key in row]
            if values:
                shown = f"mean {np.mean(values):.4f}, range {min(values):.4f} to {max(values):.4f}"
                print(f"{data}: {FIELDS[key]} {shown}, {len(values)} seeds, n = {mine[0]['n']}")
        if all("regression" in row for row in mine):
            print(f"{data}: {difference(mine)}")
    if len({row["data"] for row in rows}) > 1 and all("regression" in row for row in rows):
        print(f"all pooled: {difference(rows)}")


def measure(data, arguments):
    given, rows, regression = (
        settings(data, arguments.set),
        [],
        None if arguments.no_regression else Regression(),
    )
    print(
        f"{data.name}\nseed     n  " + "  ".join(f"{name:>10}" for name in FIELDS.values()),
        flush=True,
    )
    for seed in arguments.seeds:
        seeded = given.model_copy(update={"seed": seed})
        with Path(f"{data.name}.log").open("a", encoding="utf-8") as log:
            seconds = run(seeded, log)
        row = {
            "data": data.name,
            "seed": seed,
            "set": arguments.set,
            "seconds": round(seconds, 1),
            **figures(seeded, regression),
        }
        rows.append(row)
        shown = (f"{row[key]:10.4f}" if key in row else f"{'':10}" for key in FIELDS)
        print(f"{seed:4d} {row['n']:5d}  " + "  ".join(shown), flush=True)
        if arguments.json:
            with arguments.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--no-regression", action="store_true")
    parser.add_argument("--keep", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--pool", type=Path, nargs="+", default=[], metavar="FILE")
    arguments = parser.parse_args()
    if arguments.json:
        arguments.json = arguments.json.resolve()
    rows = [
        json.loads(line)
        for file in arguments.pool
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    data = [folder.resolve() for folder in arguments.data]
    environment.quiet_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        folder = arguments.keep.resolve() if arguments.keep else Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["DVC_ROOT"] = str(folder)
        os.chdir(folder)
        shutil.copy(ROOT / "dvc.yaml", folder)
        for one in data:
            rows += measure(one, arguments)
        os.chdir(ROOT)
    table(rows)


if __name__ == "__main__":
    main()
