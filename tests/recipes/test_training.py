"""train-head, fine-tune and evaluate as real functions on a few tiny images; MLflow is not what is
tested here."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graft import params as parameters
from graft.dataset import images, manifest
from graft.reporting import plots, second_look
from graft.scoring.calibration import apply_temperature
from graft.scoring.predictions import Predictions
from graft.system import environment, paths
from graft.system.files import read_csv, read_json
from graft.tracking import store
from tests.recipes.conftest import changed, run

ROOT = Path(__file__).parents[2]
CLASSES = ("dark", "light grey")
FILES = {
    "model.weights.h5",
    "model.json",
    "curves.csv",
    "predictions.csv",
    "metrics.json",
    "report.json",
    "report.txt",
    "confusion_matrix.csv",
}


@pytest.fixture(scope="module")
def given():
    params = parameters.load(ROOT / "params.yaml")
    return changed(
        params,
        image_size=32,
        batch_size=4,
        data={"path": "photos", "val_fraction": 0.25, "test_fraction": 0.25, "near_duplicates": -1},
        augment={"views": 2},
        head={"epochs": 3, "lr": 0.01},
        fine_tune={"layers": 20, "epochs": 2},
        evaluate={"bootstrap": 100},
    )


@pytest.fixture(scope="module")
def clone(given, tmp_path_factory):
    """A folder in which split, train-head, fine-tune and evaluate have run once; (root, their runs,
    what was registered)."""
    environment.quiet_tensorflow()
    root = tmp_path_factory.mktemp("stages") / "clone"
    rng = np.random.default_rng(0)
    for k, name in enumerate(CLASSES):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(120 * k, 120 * k + 100, (24, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "photos" / name / f"{i}.png")
    (root / "data").mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    with pytest.MonkeyPatch.context() as patch:
        for key in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_STAGE", "MLFLOW_TRACKING_URI"):
            patch.delenv(key, raising=False)
        patch.chdir(root)
        registered, challenges = [], []
        patch.setattr(
            "graft.serving.pyfunc.register", lambda *_, **options: registered.append(options) or "1"
        )
        patch.setattr("graft.tracking.champion.record_head", lambda *_: None)
        patch.setattr(
            "graft.tracking.champion.challenge", lambda _, **options: challenges.append(options)
        )
        runs = {
            stage: run(stage, given)
            for stage in ("split", "train-head", "second-look", "fine-tune", "evaluate")
        }
        yield root, runs, registered, challenges


@pytest.mark.parametrize("stage", ["train-head", "fine-tune"])
def test_a_training_stage_writes_logs_and_registers_one_model(clone, stage):
    root, runs, registered, _ = clone
    folder = root / paths.STAGES[stage]
    # Of the head, which is solved.
    iterations = len(read_csv(root / paths.TRAIN_HEAD / "curves.csv"))
    epochs, first = (iterations, 0) if stage == "train-head" else (2, iterations)
    known = {"known.npz"} if stage == "fine-tune" else set()
    # No picture: a colour must not retrain a network.
    assert {p.name for p in folder.iterdir()} == FILES | known
    assert [row["epoch"] for row in runs[stage].rows] == list(range(first, first + epochs))
    curves = read_csv(folder / "curves.csv")
    assert len(curves) == first + epochs  # fine-tune's curves go on where the head's end
    assert [float(row["val_loss"]) for row in curves[first:]] == [
        row["val_loss"] for row in runs[stage].rows
    ]
    metrics = read_json(folder / "metrics.json")
    assert metrics["n"] == 6
    assert metrics["epochs"] == epochs
    assert runs[stage].pictures >= {"curves.png", "confusion_matrix.png", "model_graph.png"}
    assert (
        registered[0 if stage == "train-head" else 1]["alias"]
        == {"train-head": "head", "fine-tune": "fine-tuned"}[stage]
    )


def test_what_is_saved_gives_what_the_report_says(clone):
    """The model as it lies on disk, run by Keras on the validation images, against the stage's own
    figures."""
    from graft.network import classifier

    root, *_ = clone
    model, description = classifier.load(root / paths.FINE_TUNE)
    (val,) = images.image_sets(
        manifest.read(root / paths.SPLIT), root / "photos", description, "val"
    )
    (pixels,) = val.read(range(len(val)))
    assert description.classes == CLASSES
    assert description.trainable_layers == 20
    probabilities = np.asarray(model(pixels, training=False))
    accuracy = (probabilities.argmax(1) == val.labels).mean()
    assert read_json(root / paths.FINE_TUNE / "metrics.json")["accuracy"] == pytest.approx(accuracy)
    written = Predictions.read(root / paths.FINE_TUNE / "predictions.csv")
    assert written.paths == val.paths
    # Features are kept in half precision.
    assert np.allclose(written.probabilities, probabilities, atol=1e-3)


def test_evaluate_measures_both_models_on_the_test_images_alone(clone):
    from graft.network import classifier

    root, runs, *_ = clone
    model, description = classifier.load(root / paths.FINE_TUNE)
    (test,) = images.image_sets(
        manifest.read(root / paths.SPLIT), root / "photos", description, "test"
    )
    (pixels,) = test.read(range(len(test)))
    written = Predictions.read(root / paths.EVALUATE / "predictions.csv")
    assert written.paths == test.paths
    expected = apply_temperature(
        np.asarray(model(pixels, training=False), np.float64), description.temperature
    )
    assert np.allclose(written.probabilities, expected, atol=1e-5)
    head, _ = classifier.load(root / paths.TRAIN_HEAD)
    figures = read_json(root / paths.EVALUATE / "metrics.json")
    assert figures["n"] == len(test) == 6
    assert (
        figures["head_accuracy"]
        == (np.asarray(head(pixels, training=False)).argmax(1) == test.labels).mean()
    )
    card = (root / paths.EVALUATE / "card.html").read_text(encoding="utf-8")
    assert "http://" not in card.replace("http://www.w3.org", "")
    assert "MLflow run" in runs["evaluate"].texts["card.html"]
    assert "MLflow run" not in card


def test_evaluate_says_how_strange_each_test_image_is_and_shows_pictures_of_nothing(clone):
    root, *_ = clone
    rows = read_csv(root / paths.EVALUATE / "predictions.csv")
    assert all(0 < float(row["known"]) <= 1 for row in rows)
    kinds = [row["kind"] for row in read_csv(root / paths.EVALUATE / "unknown.csv")]
    assert kinds == ["noise", "flat colours", "shuffled blocks"]
    assert 'id="unknown"' in (root / paths.EVALUATE / "card.html").read_text(encoding="utf-8")


def test_second_look_judges_every_photo_once(clone):
    root, runs, *_ = clone
    rows = manifest.read(root / paths.SPLIT)
    judged = Predictions.read(root / paths.SECOND_LOOK / "oof.csv")
    assert judged.paths == rows.paths
    assert np.load(root / paths.SECOND_LOOK / "features.npy").shape[0] == len(rows)
    assert runs["second-look"].metrics["photos"] == len(rows)
    assert 'id="second-look"' in (root / paths.EVALUATE / "card.html").read_text(encoding="utf-8")


def test_photos_are_logged_under_the_keys_that_the_view_in_mlflow_shows(clone):
    shown = {
        key
        for chart in json.loads(store._view())["compareRunCharts"]
        for key in chart.get("imageKeys", ())
    }
    logged = clone[1]["evaluate"].images
    assert set(logged) <= shown
    assert {f"test photos/{number:02}" for number in range(1, 7)} <= set(logged)  # all six of them
    assert "Grad-CAM/01" in logged
    assert {(image.dtype.name, image.ndim) for image in logged.values()} == {("uint8", 3)}
    assert {*plots.KEYS.values(), second_look.KEY} == set(store.GRIDS)
    assert (
        store.GRIDS["test photos"] == plots.COMPARED
        and store.GRIDS[second_look.KEY] == second_look.LOGGED
    )
    assert (
        min(plots.WORST, 2 * plots.EXPLAINED)
        == store.GRIDS["worst mistakes"]
        == store.GRIDS["Grad-CAM"]
    )


def test_the_champion_is_challenged_on_validation_images(clone):
    root, _, _, challenges = clone
    (challenge,) = challenges
    val = manifest.read(root / paths.SPLIT).split("val")
    assert challenge["predictions"].paths == val.paths
    assert (
        challenge["metrics"]["accuracy"]
        == read_json(root / paths.FINE_TUNE / "metrics.json")["accuracy"]
    )
    assert "min_class_recall" in challenge["metrics"]


def test_a_second_experiment_computes_no_frozen_layer_again(clone, given, monkeypatch, capsys):
    root, *_ = clone
    monkeypatch.chdir(root)
    monkeypatch.setattr("graft.runtimes.prepare", lambda *_: pytest.fail("the trunk was started"))
    before = (root / paths.FINE_TUNE / "model.weights.h5").read_bytes()
    run("fine-tune", changed(given, lr=1e-5))
    assert "12 images x 2 views" in capsys.readouterr().out
    assert (root / paths.FINE_TUNE / "model.weights.h5").read_bytes() != before


@pytest.mark.slow
def test_a_cluster_changes_no_byte_of_a_stages_outputs(clone, given, ray, monkeypatch, tmp_path):
    root, *_ = clone
    copy = shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns(".cache"))
    shutil.rmtree(copy / paths.TRAIN_HEAD)
    monkeypatch.chdir(copy)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    run("train-head", changed(given, features={"executor": "ray"}))
    assert list((copy / ".cache" / "features").glob("*/*.seg"))
    for name in FILES:
        assert (copy / paths.TRAIN_HEAD / name).read_bytes() == (
            root / paths.TRAIN_HEAD / name
        ).read_bytes(), name


def test_no_layer_to_unfreeze_leaves_the_heads_model_as_it_is(clone, given, monkeypatch):
    from graft.network import classifier

    root, *_ = clone
    monkeypatch.chdir(root)
    made = run("fine-tune", changed(given, fine_tune={"layers": 0}))
    assert made.rows == []
    head, tuned = (
        classifier.load(root / folder)[0] for folder in (paths.TRAIN_HEAD, paths.FINE_TUNE)
    )
    assert all(np.array_equal(a, b) for a, b in zip(head.get_weights(), tuned.get_weights()))
    head_curves, curves = (
        read_csv(root / folder / "curves.csv") for folder in (paths.TRAIN_HEAD, paths.FINE_TUNE)
    )
    assert curves == head_curves
    assert json.loads((root / paths.FINE_TUNE / "metrics.json").read_text())["epochs"] == 0
