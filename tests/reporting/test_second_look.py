"""What second-look leaves: the same bytes twice, test photos apart, and an answer where there is
nothing to say."""

import csv

import numpy as np
import pytest

from graft.reporting import second_look
from graft.second_look.evidence import Evidence
from graft.system.files import read_json
from tests.recipes.conftest import NullRun


def files(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def evidence(simulate):
    predictions = simulate(60, 3, signal=3, classes=["a", "b <c>", "ä"])
    labels = predictions.labels.copy()
    labels[[4, 31]] = (labels[[4, 31]] + 1) % 3
    features = np.eye(3)[predictions.labels] * 3 + np.random.default_rng(0).normal(size=(60, 3))
    features = np.pad(features, ((0, 0), (0, 9))).astype(np.float16)
    probabilities = np.eye(3)[predictions.labels] * 0.9 + 0.1 / 3
    given = type(predictions)(predictions.paths, labels, probabilities, predictions.classes)
    return Evidence(given, features, ("train",) * 30 + ("test",) * 30)


@pytest.fixture(scope="module")
def written(evidence, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("second-look")
    return folder, second_look.write(folder, evidence, images=images, seed=1)


def test_everything_is_written_and_twice_the_same(written, evidence, images, tmp_path):
    names = {
        "features.npy",
        "oof.csv",
        "suspects.csv",
        "segments.csv",
        "unknown.csv",
        "metrics.json",
        "section.html",
        "plots/map.png",
        "plots/suspects.png",
    }
    assert set(files(written[0])) == names
    second_look.write(tmp_path, evidence, images=images, seed=1)
    assert files(tmp_path) == files(written[0])
    assert np.array_equal(np.load(tmp_path / "features.npy"), evidence.features)


def test_wrong_labels_are_found_and_test_photos_stand_apart_with_a_warning(written, evidence):
    folder, found = written
    with (folder / "suspects.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = {(evidence.predictions.paths[i], split) for i, split in ((4, "train"), (31, "test"))}
    assert {(row["path"], row["split"]) for row in rows} == wanted
    assert {key: [i.path for i in some] for key, some in found.images.items()} == {
        "Photos to train and validate with": [evidence.predictions.paths[4]],
        "Test photos": [evidence.predictions.paths[31]],
    }
    assert "flatters the model" in found.section
    assert "b &lt;c&gt;" in found.section
    assert "<c>" not in found.section
    metrics = read_json(folder / "metrics.json")
    assert (metrics["photos"], metrics["suspects"], metrics["suspects_test"]) == (60, 2, 1)
    assert metrics["accuracy"] == pytest.approx(58 / 60)
    assert metrics["accuracy_low"] < 58 / 60 < metrics["accuracy_high"]


def test_suspects_go_to_mlflow_under_keys_that_do_not_change(written):
    run = NullRun("second-look")
    second_look.log_images(run, written[1])
    assert list(run.images) == ["suspect labels/01", "suspect labels/02"]


def test_without_folds_there_is_a_map_and_no_accuracy(evidence, images, tmp_path):
    off = Evidence(evidence.predictions, evidence.features, evidence.splits, (), 0)
    found = second_look.write(tmp_path, off, images=images, seed=1)
    assert found.metrics == {
        "photos": 60,
        "suspects": 0,
        "suspects_test": 0,
        "twins": 0,
        "weak_segments": 0,
    }
    assert "evaluate.folds is 0" in found.section
    assert "evaluate.folds is 0" in found.line
    assert (tmp_path / "plots/map.png").exists()


def test_a_hundred_classes_and_two(images, tmp_path, simulate):
    for count in (2, 100):
        predictions = simulate(150, count, seed=count)
        features = np.random.default_rng(0).normal(size=(150, 8)).astype(np.float16)
        given = Evidence(predictions, features, ("train",) * 150)
        assert (
            second_look.write(tmp_path / str(count), given, images=images, seed=0).metrics["photos"]
            == 150
        )
