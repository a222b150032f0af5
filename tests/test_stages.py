"""train-head, fine-tune and evaluate as real functions on a few tiny pictures; MLflow is not what is tested here."""

import contextlib
import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages import console, evaluate, fine_tune, grafting, paths, split, train_head
from stages import params as parameters

ROOT = Path(__file__).parents[1]
CLASSES = ("dark", "light grey")


class Run:
    """Stands for a StageRun: keeps what is logged."""

    def __init__(self, stage):
        self.stage, self.pipeline_name, self.run_id = stage, "test", "0"
        self.metrics, self.rows, self.texts = {}, [], {}

    def log_metrics(self, values):
        self.metrics.update(values)

    def log_epoch(self, row):
        self.rows.append(row)

    def log_text(self, text, name):
        self.texts[name] = text

    def timed(self, what):
        return contextlib.nullcontext()


@pytest.fixture(scope="module")
def given():
    params = parameters.load(ROOT / "params.yaml")
    change = dataclasses.replace
    return change(
        params,
        image_size=32,
        batch_size=4,
        data=change(params.data, path="photos", val_fraction=0.25, test_fraction=0.25, near_duplicates=-1),
        augment=change(params.augment, views=2),
        head=change(params.head, epochs=3, lr=0.01),
        fine_tune=change(params.fine_tune, layers=20, epochs=2),
        evaluate=change(params.evaluate, bootstrap=100),
    )


@pytest.fixture(scope="module")
def clone(given, tmp_path_factory):
    """A folder in which split, train-head, fine-tune and evaluate have run once; yields it and their runs."""
    console.quiet_tensorflow()
    root = tmp_path_factory.mktemp("stages") / "clone"
    rng = np.random.default_rng(0)
    for k, name in enumerate(CLASSES):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(120 * k, 120 * k + 100, (24, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "photos" / name / f"{i}.png")
    (root / "data").mkdir()
    shutil.copytree(ROOT / "data" / "backbones", root / "data" / "backbones")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    with pytest.MonkeyPatch.context() as patch:
        for key in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_STAGE", "MLFLOW_TRACKING_URI"):
            patch.delenv(key, raising=False)
        patch.chdir(root)
        registered = []
        patch.setattr("stages.tracking.registry.register", lambda run, **facts: registered.append(facts) or "1")
        patch.setattr("stages.tracking.champion.contest", lambda run, **facts: registered.append(facts))
        split.split(given)
        runs = {stage: Run(stage) for stage in ("train-head", "fine-tune", "evaluate")}
        inputs = {"manifest": grafting.MANIFEST}
        train_head.train_head(given, runs["train-head"], inputs)
        fine_tune.fine_tune(given, runs["fine-tune"], inputs)
        evaluate.evaluate(given, runs["evaluate"])
        runs["registered"] = registered
        yield root, runs


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("stage", "epochs", "first"), [("train-head", 3, 0), ("fine-tune", 2, 3)])
def test_a_training_stage_writes_logs_and_registers_one_model(clone, stage, epochs, first):
    root, runs = clone
    folder = root / paths.STAGES[stage]
    assert sorted(p.name for p in folder.iterdir()) == sorted(grafting.FILES)
    assert [row["epoch"] for row in runs[stage].rows] == list(range(first, first + epochs))
    curves = read(folder / "curves.csv")
    assert len(curves) == first + epochs  # fine-tune's curves go on where the head's end
    assert [float(row["val_loss"]) for row in curves[first:]] == [row["val_loss"] for row in runs[stage].rows]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["n"] == 6
    assert metrics["epochs"] == epochs
    assert {p.name for p in (folder / "plots").iterdir()} >= {"curves.png", "confusion_matrix.png", "model_graph.png"}
    registered = runs["registered"][0 if stage == "train-head" else 1]
    assert registered["alias"] == {"train-head": "head", "fine-tune": "fine-tuned"}[stage]
    assert len(registered["digest"]) == 64


def test_what_is_saved_gives_what_the_report_says(clone):
    """The model as it lies on disk, run by Keras on the validation photos, against the stage's own figures."""
    from stages.dataset import loading
    from stages.network import classifier

    root, _ = clone
    with contextlib.chdir(root) if hasattr(contextlib, "chdir") else contextlib.nullcontext():
        val = loading.read_manifest(root / paths.SPLIT).split("val")
        images = np.stack(list(loading.load_images(root / "photos", val.paths, 32)))
        model, spec = classifier.load(root / paths.FINE_TUNE)
    assert spec.classes == CLASSES
    assert spec.trainable_layers == 20
    accuracy = (np.asarray(model(images, training=False)).argmax(1) == val.labels).mean()
    assert json.loads((root / paths.FINE_TUNE / "metrics.json").read_text())["accuracy"] == pytest.approx(accuracy)


def test_evaluate_measures_both_models_on_the_test_photos_alone(clone, given):
    from stages.dataset import loading
    from stages.network import classifier
    from stages.reporting import metrics

    root, runs = clone
    test = loading.read_manifest(root / paths.SPLIT).split("test")
    images = np.stack(list(loading.load_images(root / "photos", test.paths, 32)))
    rows = read(root / paths.EVALUATE / "predictions.csv")
    assert [row["path"] for row in rows] == list(test.paths)
    model, spec = classifier.load(root / paths.FINE_TUNE)
    expected = metrics.apply_temperature(np.asarray(model(images, training=False), np.float64), spec.temperature)
    assert np.allclose([[float(row[name]) for name in CLASSES] for row in rows], expected, atol=1e-5)
    head, _ = classifier.load(root / paths.TRAIN_HEAD)
    figures = json.loads((root / paths.EVALUATE / "metrics.json").read_text())
    assert figures["n"] == len(test) == 6
    assert figures["head_accuracy"] == (np.asarray(head(images, training=False)).argmax(1) == test.labels).mean()
    contested = runs["registered"][-1]
    assert contested["metrics"]["accuracy"] == figures["accuracy"]
    assert "min_class_recall" in contested["metrics"]
    card = (root / paths.EVALUATE / "card.html").read_text(encoding="utf-8")
    assert "http://" not in card.replace("http://www.w3.org", "")
    assert "MLflow run" in runs["evaluate"].texts["card.html"]
    assert "MLflow run" not in card


def test_a_second_experiment_computes_no_frozen_layer_again(clone, given, monkeypatch, capsys):
    from stages.network import engines

    root, _ = clone
    monkeypatch.chdir(root)
    monkeypatch.setattr("stages.tracking.registry.register", lambda run, **facts: "2")
    monkeypatch.setattr(engines, "start", lambda *_: pytest.fail("the trunk was started"))
    before = (root / paths.FINE_TUNE / "model.weights.h5").read_bytes()
    fine_tune.fine_tune(dataclasses.replace(given, lr=1e-5), Run("fine-tune"), {"manifest": grafting.MANIFEST})
    assert "activations of 12 images x 2 views reused" in capsys.readouterr().out
    assert (root / paths.FINE_TUNE / "model.weights.h5").read_bytes() != before


def test_no_layer_to_unfreeze_leaves_the_heads_model_as_it_is(clone, given, monkeypatch):
    from stages.network import classifier

    root, _ = clone
    monkeypatch.chdir(root)
    monkeypatch.setattr("stages.tracking.registry.register", lambda run, **facts: "3")
    run = Run("fine-tune")
    still = dataclasses.replace(given, fine_tune=dataclasses.replace(given.fine_tune, layers=0))
    fine_tune.fine_tune(still, run, {"manifest": grafting.MANIFEST})
    assert run.rows == []
    head, tuned = (classifier.load(root / folder)[0] for folder in (paths.TRAIN_HEAD, paths.FINE_TUNE))
    assert all(np.array_equal(a, b) for a, b in zip(head.get_weights(), tuned.get_weights()))
    assert len(read(root / paths.FINE_TUNE / "curves.csv")) == 3
