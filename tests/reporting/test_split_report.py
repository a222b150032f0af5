from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from graft.dataset.manifest import Manifest, ManifestRow
from graft.dataset.scan import Problem
from graft.figures.data import DuplicatesDisplay, SamplesDisplay, StandingOutDisplay
from graft.reporting import data
from graft.system.files import read_csv, read_json


def manifest(classes, each):
    names = [f"class {c}" for c in range(classes)]
    rows = [
        ManifestRow(
            f"{name}/{k}.jpg",
            name,
            ("test", "val", "train", "train")[k % 4],
            f"{99 - k:04d}",
            40 + k,
            30,
        )
        for name in names
        for k in range(each)
    ]
    return Manifest(tuple(rows), tuple(sorted(names)))


def read(path, size):
    return np.full((size, size, 3), len(path), np.uint8)


PROBLEMS = [
    Problem("class 0/1.jpg", "near_duplicate", "kept, grouped with class 0/2.jpg", "class 0/2.jpg"),
    Problem("class 1/9.jpg", "empty", "set aside: no bytes in the file"),
]
DUPLICATES = [("near_duplicate", ["class 0/1.jpg", "class 0/2.jpg"])]


def written(folder, problems=PROBLEMS, duplicates=DUPLICATES):
    found = SimpleNamespace(root="photos", files=13, non_images=1, hidden=1)
    given = {
        "found": found,
        "manifest": manifest(2, 5),
        "problems": problems,
        "duplicates": duplicates,
    }
    return data.write(folder, **given, read=read)


def test_written_twice_the_bytes_are_the_same(tmp_path, capsys):
    metrics = written(tmp_path / "one")
    assert metrics == read_json(tmp_path / "one" / "metrics.json") == {
        "files": 13, "images": 10, "set_aside": 1, "non_images": 1, "hidden": 1, "classes": 2,
        "train": 4, "val": 2, "test": 4, "groups": 0, "problems": {"empty": 1, "near_duplicate": 1},
    }  # fmt: skip
    assert read_csv(tmp_path / "one" / "problems.csv")[1] == {
        "path": "class 1/9.jpg",
        "problem": "empty",
        "action": "set aside: no bytes in the file",
    }
    assert capsys.readouterr().out == (
        "photos: 10 images in 2 classes -> train 4, val 2, test 4; 1 non-images and 1 hidden "
        "files passed over\n"
        f"problems: 1 empty, 1 near_duplicate (see {tmp_path / 'one'}/problems.csv)\n"
    )
    written(tmp_path / "two")
    made = {path.name: path.read_bytes() for path in (tmp_path / "one" / "plots").iterdir()}
    assert sorted(made) == ["class_balance.png", "duplicates.png", "samples.png", "sizes.png"]
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "two" / "plots").iterdir()}
    assert (
        b"Matplotlib" not in made["sizes.png"]
        and Image.open(tmp_path / "one" / "plots" / "sizes.png").width > 600
    )


def test_what_stands_out_is_shown_by_kind(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        data.data, "StandingOutDisplay", lambda of: (shown.append(of), StandingOutDisplay(of))[1]
    )
    odd = [Problem(f"class 0/{k}.jpg", "nearly_empty", "kept: …") for k in range(2)]
    metrics = written(tmp_path, [*odd, Problem("class 1/1.jpg", "dark", "kept: …")])
    assert metrics["problems"] == {"dark": 1, "nearly_empty": 2}
    assert {kind: len(pictures) for kind, pictures in shown[0].items()} == {
        "dark (1)": 1,
        "nearly empty (2)": 2,
    }
    assert Image.open(tmp_path / "plots" / "standing_out.png").height > 2 * StandingOutDisplay.SIDE


def test_without_problems(tmp_path, capsys):
    written(tmp_path, [], [])
    assert not (tmp_path / "plots" / "standing_out.png").exists()
    assert (
        not (tmp_path / "plots" / "duplicates.png").exists()
        and "problems" not in capsys.readouterr().out
    )
    assert (tmp_path / "problems.csv").read_bytes() == b"path,problem,action\n"


@pytest.mark.parametrize("classes, each", [(2, 8), (12, 8), (13, 4), (130, 4)])
def test_samples_are_taken_in_the_order_of_hashes(classes, each):
    asked = []
    samples = data._samples(
        manifest(classes, 9), lambda path, size: (asked.append(path), read(path, size))[1]
    )
    assert len(samples) == min(classes, 100) and {len(images) for images in samples.values()} == {
        each
    }
    assert asked[:each] == [f"class 0/{8 - k}.jpg" for k in range(each)]
    assert samples["class 0"][0].shape == (SamplesDisplay.SIDE, SamplesDisplay.SIDE, 3)


def test_groups_say_where_their_images_are():
    splits = {"class 0/3.jpg": "train"}
    title, images = data._group(
        "duplicate_across_classes", ["class 0/3.jpg", "class 1/9.jpg"], splits, read
    )
    assert (title, [caption for caption, _ in images]) == (
        "same bytes, two labels",
        ["class 0 · train", "class 1 · set aside"],
    )
    assert images[0][1].shape == (DuplicatesDisplay.SIDE, DuplicatesDisplay.SIDE, 3)
    title, images = data._group("leak", [f"a/{k}.jpg" for k in range(5)], splits, read)
    assert (title, len(images)) == ("in two given splits (5)", 4)
