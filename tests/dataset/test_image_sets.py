import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from graft import pixels, resizers
from graft.dataset import images
from graft.dataset.manifest import Manifest, ManifestRow
from graft.system.console import GraftError
from graft.system.files import sha256

from .pictures import encoded, folder, write


@pytest.mark.parametrize("workers", [1, 3, None])
def test_images_come_in_order(tmp_path, workers):
    folder(tmp_path, each=25)
    paths = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.jpg"))[::-1]
    got = list(images.load_images(tmp_path, paths, 16, workers=workers))
    assert len(got) == 50 and all(
        (a == pixels.load(tmp_path / p, 16)).all() for a, p in zip(got, paths)
    )
    batches = list(images.iter_batches(tmp_path, paths, 16, batch_size=20))
    assert [b.shape for b in batches] == [(20, 16, 16, 3), (20, 16, 16, 3), (10, 16, 16, 3)]
    assert batches[0].dtype == np.uint8 and (np.concatenate(batches) == np.stack(got)).all()
    assert list(images.iter_batches(tmp_path, [], 16, batch_size=4)) == []


def test_each_image_may_come_by_a_resizer_of_its_own(tmp_path):
    folder(tmp_path, each=3)
    paths = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.jpg"))
    rows = tuple(ManifestRow(path, "cat", "train", sha256(tmp_path / path), 9, 9) for path in paths)
    held = images.ImageSet(Manifest(rows, ("cat",)), tmp_path, 24, batch_size=2, resize="crop")
    by = ["nearest", None, "jpeg_75"]
    (first, second) = held.read([4, 0, 2], by)
    for got, i, name in zip((*first, *second), (4, 0, 2), by):
        assert (got == resizers.load(tmp_path / paths[i], 24, "crop", name)).all()
    plain = np.concatenate(list(held.read([4, 0, 2])))
    assert (plain[1] == first[1]).all() and (plain[0] != first[0]).any()


def test_no_more_is_decoded_than_the_reader_will_soon_need(tmp_path, monkeypatch):
    decoded, lock = [], threading.Lock()
    for k in range(50):
        (tmp_path / str(k)).write_bytes(b"")

    def fake(content, size, **_):
        with lock:
            decoded.append(content)
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(pixels, "load", fake)
    stream = images.load_images(tmp_path, map(str, range(10_000)), 4, workers=2)
    for _ in range(5):
        next(stream)
    stream.close()
    assert len(decoded) <= 5 + 8 * 2


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(b"x"), "undecodable: no picture in it"),
    ],
)
def test_a_file_that_has_gone_or_changed_is_named(tmp_path, damage, message):
    folder(tmp_path, each=3)
    damage(tmp_path / "cat" / "001.jpg")
    with pytest.raises(
        GraftError,
        match=rf"cat/001\.jpg: {message}.*; the folder has changed since the split, run "
        rf"`dvc repro`",
    ):
        list(images.load_images(tmp_path, ["cat/000.jpg", "cat/001.jpg", "cat/002.jpg"], 8))


def test_image_sets(tmp_path):
    folder(tmp_path, each=3)
    classes = ("cat", "dog")
    digests = {
        path: sha256(tmp_path / path)
        for path in (f"{c}/00{k}.jpg" for c in classes for k in range(3))
    }
    rows = [
        ManifestRow(path, path.split("/")[0], "val" if "000" in path else "train", digest, 64, 64)
        for path, digest in digests.items()
    ]
    train, val = images.image_sets(
        Manifest(tuple(rows), classes),
        tmp_path,
        SimpleNamespace(image_size=16, resize="squash"),
        "train",
        "val",
    )
    assert (len(train), len(val)) == (4, 2) and val.paths == (
        "cat/000.jpg",
        "dog/000.jpg",
    ) == val.groups
    assert (
        val.sha256 == (digests["cat/000.jpg"], digests["dog/000.jpg"])
        and val.labels.tolist() == [0, 1]
        and val.classes == train.classes == classes
    )
    (batch,) = train.read([3, 0])
    assert (batch[0] == pixels.load(tmp_path / "dog" / "002.jpg", 16)).all() and batch.shape == (
        2,
        16,
        16,
        3,
    )
    assert train.resize == "squash"
    (tmp_path / "dog" / "002.jpg").write_bytes((tmp_path / "dog" / "001.jpg").read_bytes())
    with pytest.raises(
        GraftError,
        match=r"dog/002\.jpg: changed: its content is not what the manifest says; .* `dvc repro`",
    ):
        list(train.read([0, 3]))


@pytest.mark.parametrize(
    "size, expected", [((40, 20), (8, 4)), ((5, 20), (2, 8)), ((2, 4), (4, 8)), ((400, 1), (8, 1))]
)
def test_fitted_images_keep_their_proportions(tmp_path, size, expected):
    write(tmp_path / "red.png", encoded(Image.new("RGB", size, "red"), "PNG"))
    red = images.load_fitted(tmp_path, "red.png", 8)[..., 1] == 0
    assert (int(red.any(axis=0).sum()), int(red.any(axis=1).sum())) == expected


def test_a_fitted_image_that_has_gone_is_grey(tmp_path):
    assert (images.load_fitted(tmp_path, "gone.png", 8) == 230).all()
