import csv
from dataclasses import dataclass

import numpy as np
import pytest

from graft.scoring.predictions import Predictions, normalise
from graft.system.console import GraftError

CLASSES = ["daisy", "path", 'a "b", <c> & d']


@pytest.mark.parametrize(
    ("labels", "p", "message"),
    [
        ([], np.zeros((0, 2)), "no images to evaluate"),
        ([0], [[0.5, 0.5], [1, 0]], r"labels must have shape \(2,\)"),
        ([0, 2], [[0.5, 0.5], [1, 0]], r"labels must lie in 0 … 1, not 0 … 2"),
        ([0, -1], [[0.5, 0.5], [1, 0]], r"labels must lie in 0 … 1, not -1 … 0"),
        ([0], [[np.nan, 1]], "row 0 is not a distribution"),
        ([0, 0], [[1, 0], [0, 0]], "row 1 is not a distribution"),
        ([0], [[1.5, -0.5]], "row 0 is not a distribution"),
        ([0], [1.0], "C >= 2"),
        ([0], [[1, 1, 1]], "2 class names for 3 columns"),
    ],
)
def test_what_does_not_fit_together_is_refused(labels, p, message):
    with pytest.raises(ValueError, match=message):
        Predictions(["x"] * len(labels), labels, p, ["a", "b"])


@pytest.mark.parametrize(("paths", "groups"), [(["x", "y"], ()), (["x"], ["g", "h"])])
def test_paths_and_groups_are_as_many_as_images(paths, groups):
    with pytest.raises(
        ValueError, match=f"not \\(1,\\), {len(paths)} paths and {len(groups) or 1} groups"
    ):
        Predictions(paths, [0], [[0.5, 0.5]], ["a", "b"], groups)


def test_what_follows_from_probabilities():
    found = Predictions(
        "xyz", [0, 1, 1], np.array([[3, 1], [1, 1], [1, 4]], np.float32), ["a", "b"]
    )
    assert found.probabilities.tolist() == [[0.75, 0.25], [0.5, 0.5], [0.2, 0.8]]
    assert found.probabilities.dtype == np.float64
    assert len(found) == 3
    assert found.predicted.tolist() == [0, 0, 1]  # the first of equal ones
    assert found.confidence.tolist() == [0.75, 0.5, 0.8]
    assert found.correct.tolist() == [True, False, True]
    assert found.groups == ("", "", "")
    assert found.row(1) == ("y", "b", "a", 0.5)
    turned = found.replace_probabilities(found.probabilities[:, ::-1])
    assert turned.predicted.tolist() == [1, 0, 0]
    assert turned.paths == found.paths


def test_of_an_image_set():
    @dataclass
    class Images:
        paths: tuple = ("a/1", "b/2")
        labels: tuple = (0, 1)
        classes: tuple = ("a", "b")
        groups: tuple = ("g", "g")

    found = Predictions.of(Images(), [[0.6, 0.4], [0.3, 0.7]])
    assert (found.paths, found.classes, found.groups, found.correct.tolist()) == (
        ("a/1", "b/2"),
        ("a", "b"),
        ("g", "g"),
        [True] * 2,
    )


def test_normalised_twice_is_the_same_bits():
    p = normalise(np.random.default_rng(0).random((2000, 100), np.float32))
    assert p.sum(axis=1) == pytest.approx(np.ones(2000), abs=1e-12)
    assert (normalise(p) == p).all()


def test_read_back_as_they_were(simulate, tmp_path):
    written = simulate(
        90, 3, classes=CLASSES, groups=["" if i % 3 else f"g{i // 9}" for i in range(90)]
    )
    head = simulate(90, 3, classes=CLASSES, signal=1)
    for options, more in (({}, []), ({"head": head}, ["head_predicted"])):
        written.write(tmp_path / "p.csv", **options)
        with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        columns = [
            "path",
            "label",
            "predicted",
            "confidence",
            "daisy",
            "class:path",
            CLASSES[2],
            "group",
        ]
        assert header == columns + more
        assert [row[2] for row in rows] == written.names(written.predicted)
        assert [float(row[3]) for row in rows] == written.confidence.tolist()
        assert not more or [row[-1] for row in rows] == head.names(head.predicted)
        read = Predictions.read(tmp_path / "p.csv")
        assert (read.paths, read.classes, read.groups) == (
            written.paths,
            tuple(CLASSES),
            written.groups,
        )
        assert (read.probabilities == written.probabilities).all()
        assert (read.labels == written.labels).all()


@pytest.mark.parametrize(
    "classes",
    [
        ["group", "class:group"],
        ["ok", "problem"],
        ["label", "confidence"],
        ["head_predicted", "path"],
        ["predicted", "ça va, \n?"],
    ],
)
def test_classes_called_like_columns(classes, tmp_path):
    Predictions(["x"], [1], [[0.25, 0.75]], classes).write(tmp_path / "p.csv")
    read = Predictions.read(tmp_path / "p.csv")
    assert (read.classes, read.labels.tolist(), read.probabilities.tolist()) == (
        tuple(classes),
        [1],
        [[0.25, 0.75]],
    )
    assert read.groups == ("",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "path,label\n",
        "epoch,lr\n1,2\n",
        "path,label,predicted,confidence,a,b,group\nx,c,a,1,1,0,\n",
        "path,label,predicted,confidence,a,b,group\nx,a,a,1,one,0,\n",
    ],
)
def test_another_file_is_refused_in_one_line(text, tmp_path):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(GraftError, match=r"p\.csv: not a table of predictions"):
        Predictions.read(tmp_path / "p.csv")
