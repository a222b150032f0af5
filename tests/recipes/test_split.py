import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dataset.pictures import encoded, folder, scene, write
from PIL import Image

from graft import params
from graft.dataset import manifest
from graft.system import paths
from graft.system.console import GraftError
from stages import split
from tests.recipes.conftest import NullRun

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "clone"))


@pytest.fixture
def run(monkeypatch):
    """Split `data` into the folder `out` with some of params.yaml's data.* changed; returns the
    metrics."""

    def split_into(data, out, *, seed=42, **changes):
        given = params.load(ROOT / "params.yaml")
        block = given.data.model_copy(update={"path": str(data), **changes})
        monkeypatch.setattr(paths, "SPLIT", out)
        recorded = NullRun()
        split.split(given.model_copy(update={"seed": seed, "data": block}), recorded)
        return recorded.metrics

    return split_into


def outputs(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def problems(out):
    with (out / "problems.csv").open(encoding="utf-8", newline="") as file:
        return [(row["path"], row["problem"], row["action"]) for row in csv.DictReader(file)]


def test_files_in_and_rows_out(run, tmp_path):
    data = folder(tmp_path / "data", each=20)
    write(data / "cat" / "half.jpg", (data / "cat" / "000.jpg").read_bytes()[:300])
    write(data / "cat" / "copy.jpg", (data / "cat" / "001.jpg").read_bytes())
    write(data / "dog" / "either.jpg", (data / "cat" / "002.jpg").read_bytes())
    write(data / "dog" / "small.jpg", encoded(scene(1003).resize((40, 40)), quality=95))
    write(data / "notes.txt", b"x")
    write(data / "dog" / ".hidden", b"x")
    metrics = run(data, tmp_path / "out")
    out = tmp_path / "out"
    assert problems(out) == [
        (
            "cat/002.jpg",
            "duplicate_across_classes",
            "set aside: same bytes as dog/either.jpg, so the label is unknown",
        ),
        ("cat/copy.jpg", "duplicate_in_class", "set aside: same bytes as cat/001.jpg"),
        ("cat/half.jpg", "truncated", problems(out)[2][2]),
        ("dog/003.jpg", "near_duplicate", "kept, grouped with dog/small.jpg"),
        (
            "dog/either.jpg",
            "duplicate_across_classes",
            "set aside: same bytes as cat/002.jpg, so the label is unknown",
        ),
        ("dog/small.jpg", "near_duplicate", "kept, grouped with dog/003.jpg"),
    ]
    assert metrics == json.loads((out / "metrics.json").read_text()) == {
        "files": 46, "images": 40, "set_aside": 4, "non_images": 1, "hidden": 1, "classes": 2,
        "train": 28, "val": 6, "test": 6, "groups": 1,
        "problems": {"duplicate_across_classes": 2, "duplicate_in_class": 1, "near_duplicate": 2,
                     "truncated": 1},
    }  # fmt: skip
    rows = manifest.read(out)
    assert rows.classes == ("cat", "dog") and list(rows.paths) == sorted(rows.paths)
    pair = [row for row in rows.rows if row.group]
    assert [row.path for row in pair] == ["dog/003.jpg", "dog/small.jpg"] and len(
        {(r.split, r.group) for r in pair}
    ) == 1
    assert (pair[1].width, pair[1].height) == (40, 40)
    assert {p.stem for p in (out / "plots").iterdir()} == {
        "class_balance",
        "duplicates",
        "samples",
        "sizes",
    }


def test_the_same_bytes_whatever_the_path_the_cache_or_the_order_of_files(run, tmp_path):
    data = folder(tmp_path / "data", each=12)
    run(data, tmp_path / "first")
    run(data, tmp_path / "again")
    elsewhere = tmp_path / "else where" / "photos ü"
    for path in sorted(data.rglob("*.jpg"), reverse=True):
        write(elsewhere / path.relative_to(data), path.read_bytes())
    shutil.rmtree(tmp_path / "clone")
    run(elsewhere, tmp_path / "moved")
    first = outputs(tmp_path / "first")
    assert (
        len(first) == 7
        and outputs(tmp_path / "again") == first
        and outputs(tmp_path / "moved") == first
    )
    run(data, tmp_path / "other seed", seed=1)
    assert outputs(tmp_path / "other seed")["manifest.csv"] != first["manifest.csv"]


def test_what_an_earlier_split_left_is_gone(run, tmp_path):
    data = folder(tmp_path / "data", each=5)
    write(data / "dog" / "near.jpg", encoded(scene(1000), quality=50))
    run(data, tmp_path / "out")
    assert (tmp_path / "out" / "plots" / "duplicates.png").exists()
    run(data, tmp_path / "out", near_duplicates=-1)
    assert (
        not (tmp_path / "out" / "plots" / "duplicates.png").exists()
        and problems(tmp_path / "out") == []
    )


def test_what_is_not_an_output_stays(run, tmp_path):
    """data/split/.gitignore is tracked; DVC puts it back, a person who runs the stage by hand does
    not."""
    write(tmp_path / "out" / ".gitignore", b"/manifest.csv")
    write(tmp_path / "out" / "plots" / "old.png", b"x")
    run(folder(tmp_path / "data", each=5), tmp_path / "out")
    assert (tmp_path / "out" / ".gitignore").read_bytes() == b"/manifest.csv"
    assert not (tmp_path / "out" / "plots" / "old.png").exists()


def test_labels_splits_and_groups_of_a_table_arrive_in_the_manifest(run, tmp_path):
    data = tmp_path / "data"
    lines = ["file,label,split,group"]
    for k in range(24):
        write(data / "photos" / f"{k:02d}.jpg", encoded(scene(k), quality=92))
        split = "test" if k < 4 else ""
        lines.append(f"photos/{k:02d}.jpg,{'cat' if k % 2 else 'dog'},{split},p{k // 4}")
    write(data / "labels.csv", "\n".join(lines).encode())
    metrics = run(data, tmp_path / "out", labels="labels.csv", class_map={"dog": "hound"})
    rows = {row.path: row for row in manifest.read(tmp_path / "out").rows}
    assert manifest.read(tmp_path / "out").classes == ("cat", "hound") and metrics["groups"] == 6
    assert {path for path, row in rows.items() if row.split == "test"} == {
        f"photos/{k:02d}.jpg" for k in range(4)
    }
    assert (
        rows["photos/05.jpg"].group == rows["photos/06.jpg"].group == "by-p1"
        and rows["photos/05.jpg"].label == "cat"
    )
    assert all(
        len({rows[f"photos/{k:02d}.jpg"].split for k in range(4 * g, 4 * g + 4)}) == 1
        for g in range(6)
    )


def test_photos_that_group_by_joins_over_given_splits_are_other_photos(run, tmp_path, capsys):
    """One animal in train and in test: said, and nothing is called the same picture or dropped."""
    data = tmp_path / "data"
    for c, label in enumerate(("cat", "dog")):
        for k in range(12):
            split = "train" if k < 9 else "test"
            write(
                data / split / label / f"{label}{k // 4}_{k}.jpg",
                encoded(scene(1000 * c + k), quality=92),
            )
    metrics = run(data, tmp_path / "out", group_by=r"/(\w+)_\d+\.jpg", leakage="drop_from_train")
    assert (metrics["images"], metrics["set_aside"], metrics["test"]) == (24, 0, 6) and problems(
        tmp_path / "out"
    ) == []
    err = capsys.readouterr().err
    assert (
        "same picture" not in err
        and "2 groups of data.group_by or of a table have photos in several given splits" in err
    )


def test_a_class_with_one_test_photo_is_warned_of(run, tmp_path, capsys):
    folder(tmp_path / "data", ("emu",), each=3, start=5000)
    run(folder(tmp_path / "data", each=20), tmp_path / "out")
    assert "class 'emu' has 3 images (1 train, 1 val, 1 test): too few" in capsys.readouterr().err


def leaky(root):
    """train and test, with one test picture re-encoded and another byte for byte in train."""
    folder(root / "train", each=12)
    folder(root / "test", each=4, start=100)
    write(root / "train" / "cat" / "near.jpg", encoded(scene(100), quality=50))
    write(root / "train" / "dog" / "same.jpg", (root / "test" / "dog" / "001.jpg").read_bytes())
    return root


@pytest.mark.parametrize(
    "policy, action, train",
    [
        ("warn", "kept: same picture as test/cat/000.jpg", 21),
        ("drop_from_train", "set aside: same picture as test/cat/000.jpg", 20),
    ],
)
def test_leakage(run, tmp_path, policy, action, train, capsys):
    metrics = run(leaky(tmp_path / "data"), tmp_path / "out", leakage=policy)
    rows = problems(tmp_path / "out")
    assert ("train/cat/near.jpg", "leak", action) in rows
    assert (
        "train/dog/same.jpg",
        "duplicate_in_class",
        "set aside: same bytes as test/dog/001.jpg",
    ) in rows
    assert (metrics["test"], metrics["val"], metrics["train"]) == (8, 4, train)
    assert metrics["files"] == metrics["images"] + metrics["set_aside"] == 34
    assert "2 image(s) of train or val" in capsys.readouterr().err
    splits = {row.path: row.split for row in manifest.read(tmp_path / "out").rows}
    assert all(split == "test" for path, split in splits.items() if path.startswith("test/"))


def test_leakage_fails(run, tmp_path):
    with pytest.raises(
        GraftError, match=r"train/cat/near\.jpg ~ test/cat/000\.jpg.*data\.leakage is fail"
    ):
        run(leaky(tmp_path / "data"), tmp_path / "out", leakage="fail")
    assert not (tmp_path / "out").exists()


def test_photos_of_one_animal_stay_together(run, tmp_path):
    data = tmp_path / "data"
    for c, label in enumerate(("cat", "dog")):
        for animal in range(12):
            for k in range(3):
                write(
                    data / label / f"{label}{animal:02d}_{k}.jpg",
                    encoded(scene(1000 * c + 10 * animal + k), quality=92),
                )
    metrics = run(data, tmp_path / "out", group_by=r"/(\w+?)_\d\.jpg")
    rows = manifest.read(tmp_path / "out").rows
    assert metrics["groups"] == 24 and {
        row.group for row in rows if row.path.startswith("cat/cat03_")
    } == {"by-cat03"}
    assert len({(row.group, row.split) for row in rows}) == 24 and (
        metrics["val"],
        metrics["test"],
    ) == (12, 12)


@pytest.mark.parametrize("make, changes, message", [
    (lambda d: folder(d, each=2), {}, "has 2 usable images, and none is left for train"),
    (lambda d: folder(d, ("cat",)), {}, r"its photos lie in one folder \(cat\)"),
    (lambda d: d.mkdir(), {}, "holds no image and no files"),
    (lambda d: write(folder(d) / "cat" / "bad.jpg", b"x"), {"on_damaged": "fail"},
     r"cat/bad\.jpg: undecodable"),
    (lambda d: folder(d), {"group_by": "(patient)"}, "data.group_by: '.patient.' captures nothing"),
    (lambda d: folder(d), {"min_side": 65},
     "no usable image in the class folders of .*20 set aside"),
])  # fmt: skip
def test_refused_in_one_line_and_nothing_is_written(run, tmp_path, make, changes, message):
    make(tmp_path / "data")
    with pytest.raises(GraftError, match=message) as caught:
        run(tmp_path / "data", tmp_path / "out", **changes)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_neither_tensorflow_nor_keras_is_imported(tmp_path):
    data = folder(tmp_path / "data", each=4)
    code = f"""
import sys
from pathlib import Path
from types import SimpleNamespace
from graft import params
from graft.system import paths
from stages import split
from tests.recipes.conftest import NullRun
given = params.load({str(ROOT / "params.yaml")!r})
paths.SPLIT = Path({str(tmp_path / "out")!r})
data = given.data.model_copy(update=dict(path={str(data)!r}))
split.split(given.model_copy(update=dict(data=data)), SimpleNamespace(log_metrics=print))
print(sorted({{"tensorflow", "keras", "mlflow", "sklearn", "scipy", "pandas"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_images_are_upright_in_the_manifest(run, tmp_path):
    data = folder(tmp_path / "data", each=5)
    exif = Image.Exif()
    exif[0x0112] = 6
    write(data / "cat" / "turned.jpg", encoded(scene(7, 60, 90), quality=90, exif=exif))
    run(data, tmp_path / "out")
    assert next(
        (r.width, r.height) for r in manifest.read(tmp_path / "out").rows if "turned" in r.path
    ) == (90, 60)
