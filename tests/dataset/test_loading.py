import threading

import numpy as np
import pytest

from stages.console import GraftError
from stages.dataset import images, loading
from stages.dataset.loading import Manifest, Row

from .pictures import folder

ROWS = (
    Row("a/ü, \"1\".jpg", "a", "train", "11", 30, 20, "near-1"),
    Row("b b/2.jpg", "b b", "test", "22", 8, 8),
    Row("b b/3\n.jpg", "b b", "train", "33", 8, 9, "near-1"),
    Row("c/4.jpg", "c", "val", "44", 8, 9),
)  # fmt: skip
MANIFEST = Manifest(ROWS, ("a", "b b", "c"))


def test_written_and_read_again(tmp_path):
    loading.write_manifest(MANIFEST, tmp_path)
    assert loading.read_manifest(tmp_path) == MANIFEST
    text = (tmp_path / "manifest.csv").read_bytes()
    assert text.startswith(b"path,label,split,sha256,width,height,group\n") and b"\r" not in text
    assert b"b b/2.jpg,b b,test,22,8,8,\n" in text
    assert (tmp_path / "classes.json").read_text(encoding="utf-8") == '[\n  "a",\n  "b b",\n  "c"\n]\n'


def test_columns():
    assert MANIFEST.labels.dtype == np.int64 and MANIFEST.labels.tolist() == [0, 1, 1, 2]
    assert MANIFEST.sha256 == ("11", "22", "33", "44")
    assert MANIFEST.groups == ("near-1", "b b/2.jpg", "near-1", "c/4.jpg")
    train = MANIFEST.split("train")
    assert (train.paths, train.classes, len(train), train.labels.tolist()) == (
        (ROWS[0].path, ROWS[2].path),
        MANIFEST.classes,
        2,
        [0, 1],
    )
    with pytest.raises(ValueError, match="'training' is none of"):
        MANIFEST.split("training")


def test_a_group_of_which_one_is_left_is_none():
    class P:
        def __init__(self, path):
            self.path, self.label, self.sha256, self.width, self.height = path, "a", "1", 9, 9

    splits = {"2": "train", "1": "test", "3": "train"}
    made = loading.manifest([P("2"), P("1"), P("3")], splits, {"1": "g", "2": "h", "3": "h"})
    assert [(row.path, row.split, row.group) for row in made.rows] == [
        ("1", "test", ""),
        ("2", "train", "h"),
        ("3", "train", "h"),
    ]


@pytest.mark.parametrize("change, message", [
    (lambda f: (f / "manifest.csv").unlink(), "no such file; run `dvc repro split` first"),
    (lambda f: (f / "classes.json").write_text('["a", "c"]'), "classes.json lacks 'b b'"),
    (lambda f: (f / "manifest.csv").write_text("path,label\n"), "its columns must be path,label,split"),
])  # fmt: skip
def test_what_does_not_fit_together(tmp_path, change, message):
    loading.write_manifest(MANIFEST, tmp_path)
    change(tmp_path)
    with pytest.raises(GraftError, match=message):
        loading.read_manifest(tmp_path)


@pytest.mark.parametrize("workers", [1, 3, None])
def test_images_come_in_order(tmp_path, workers):
    folder(tmp_path, each=25)
    paths = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.jpg"))[::-1]
    got = list(loading.load_images(tmp_path, paths, 16, workers=workers))
    assert len(got) == 50 and all((a == images.load(tmp_path / p, 16)).all() for a, p in zip(got, paths))
    batches = list(loading.iter_batches(tmp_path, paths, 16, batch_size=20))
    assert [b.shape for b in batches] == [(20, 16, 16, 3), (20, 16, 16, 3), (10, 16, 16, 3)]
    assert batches[0].dtype == np.uint8 and (np.concatenate(batches) == np.stack(got)).all()
    assert list(loading.iter_batches(tmp_path, [], 16, batch_size=4)) == []


def test_no_more_is_decoded_than_the_reader_will_soon_need(monkeypatch):
    decoded, lock = [], threading.Lock()

    def fake(path, size, **_):
        with lock:
            decoded.append(path)
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(images, "load", fake)
    stream = loading.load_images("/", map(str, range(10_000)), 4, workers=2)
    for _ in range(5):
        next(stream)
    stream.close()
    assert len(decoded) <= 5 + 8 * 2


@pytest.mark.parametrize("damage, message", [
    (lambda path: path.unlink(), "No such file"), (lambda path: path.write_bytes(b"x"), "undecodable: no picture in it"),
])  # fmt: skip
def test_a_file_that_has_gone_or_changed_is_named(tmp_path, damage, message):
    folder(tmp_path, each=3)
    damage(tmp_path / "cat" / "001.jpg")
    with pytest.raises(
        GraftError, match=rf"cat/001\.jpg: {message}.*; the folder has changed since the split, run `dvc repro`"
    ):
        list(loading.load_images(tmp_path, ["cat/000.jpg", "cat/001.jpg", "cat/002.jpg"], 8))
