import hashlib
from types import SimpleNamespace

import numpy as np
import pytest

from graft.dataset import manifest
from graft.dataset.manifest import Manifest, ManifestRow
from graft.system.console import GraftError

ROWS = (
    ManifestRow('a/ü, "1".jpg', "a", "train", "11", 30, 20, "near-1"),
    ManifestRow("b b/2.jpg", "b b", "test", "22", 8, 8),
    ManifestRow("b b/3\n.jpg", "b b", "train", "33", 8, 9, "near-1"),
    ManifestRow("c/4.jpg", "c", "val", "44", 8, 9),
)
MANIFEST = Manifest(ROWS, ("a", "b b", "c"))


def test_written_and_read_again(tmp_path):
    manifest.write(MANIFEST, tmp_path / "new")
    assert manifest.read(tmp_path / "new") == MANIFEST
    text = (tmp_path / "new" / "manifest.csv").read_bytes()
    assert text.startswith(b"path,label,split,sha256,width,height,group\n") and b"\r" not in text
    assert b"b b/2.jpg,b b,test,22,8,8,\n" in text
    assert (tmp_path / "new" / "classes.json").read_text(
        encoding="utf-8"
    ) == '[\n  "a",\n  "b b",\n  "c"\n]\n'


def test_columns():
    assert MANIFEST.labels.dtype == np.int64 and MANIFEST.labels.tolist() == [0, 1, 1, 2]
    assert MANIFEST.sha256 == ("11", "22", "33", "44")
    assert MANIFEST.groups == ("near-1", "b b/2.jpg", "near-1", "c/4.jpg")
    train = MANIFEST.split("train")
    assert (train.paths, train.classes) == ((ROWS[0].path, ROWS[2].path), MANIFEST.classes)
    assert (len(train), train.labels.tolist()) == (2, [0, 1])
    with pytest.raises(ValueError, match="'training' is none of"):
        MANIFEST.split("training")


def test_counts():
    assert MANIFEST.counts() == {
        "train": {"a": 1, "b b": 1, "c": 0},
        "val": {"a": 0, "b b": 0, "c": 1},
        "test": {"a": 0, "b b": 1, "c": 0},
    }


def test_a_group_of_which_one_is_left_is_none():
    images = [
        SimpleNamespace(path=path, label="a", sha256="1", width=9, height=9, white=0)
        for path in "213"
    ]
    made = manifest.build(
        images, {"2": "train", "1": "test", "3": "train"}, {"1": "g", "2": "h", "3": "h"}
    )
    assert [(row.path, row.split, row.group) for row in made.rows] == [
        ("1", "test", ""),
        ("2", "train", "h"),
        ("3", "train", "h"),
    ]


@pytest.mark.parametrize("change, message", [
    (lambda f: (f / "manifest.csv").unlink(), "no such file; run `dvc repro split` first"),
    (lambda f: (f / "classes.json").write_text('["a", "c"]'), "classes.json lacks 'b b'"),
    (lambda f: (f / "manifest.csv").write_text("path,label\n"),
     "its columns must be path,label,split"),
    (lambda f: (f / "manifest.csv").write_text("path,label\na/1.jpg,a\n"),
     "its columns must be path,label,split"),
])  # fmt: skip
def test_what_does_not_fit_together(tmp_path, change, message):
    manifest.write(MANIFEST, tmp_path)
    change(tmp_path)
    with pytest.raises(GraftError, match=message):
        manifest.read(tmp_path)


def info(folder, rows):
    manifest.write(Manifest(tuple(rows), tuple(sorted({row.label for row in rows}))), folder)
    return manifest.dataset_info("data/raw/digits", folder)


def row(number, label, split, sha256=None):
    return ManifestRow(f"{label}/{number}.png", label, split, sha256 or f"{number:064x}", 8, 8)


NINE = tuple(row(k, "aab"[k % 3], ("train", "val", "test")[k // 3]) for k in range(9))


def test_dataset_info(tmp_path):
    assert manifest.dataset_info("data/raw/digits", tmp_path) is None
    found = info(tmp_path, NINE)
    assert (found.name, found.path) == ("digits", "data/raw/digits")
    assert found.counts == {"images": 9, "classes": 2, "train": 3, "val": 3, "test": 3}
    assert found.digest == hashlib.sha256((tmp_path / "manifest.csv").read_bytes()).hexdigest()
    assert len(found.test_digest) == 12


@pytest.mark.parametrize(
    "old, new, same",
    [
        (0, row(0, "a", "val"), True),  # what is trained on does not matter
        (8, row(8, "b", "val"), False),  # one test image less
        (8, row(8, "a", "test"), False),  # another label
        (8, row(8, "b", "test", f"{9:064x}"), False),  # other bytes
        (0, row(0, "c", "train"), False),  # another class list
    ],
)
def test_test_digest(tmp_path, old, new, same):
    changed = [new if k == old else row for k, row in enumerate(NINE)]
    before, after = info(tmp_path, NINE), info(tmp_path, changed)
    assert (before.test_digest == after.test_digest) is same and before.digest != after.digest
