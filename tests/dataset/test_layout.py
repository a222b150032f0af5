import pytest

from graft.dataset import scan
from graft.dataset.layout import class_root, find_layout
from graft.dataset.scan_cache import ScanCache
from graft.system.console import GraftError

from .pictures import encoded, scene, write


def scanned(root):
    with ScanCache(None, root) as cache:
        return scan.scan(root, cache=cache)


def tree(root, *names):
    for k, name in enumerate(names):
        write(root / name, encoded(scene(k)) if name.endswith(".jpg") else b"x")
    return root


@pytest.mark.parametrize("names, expected", [
    (["a/1.jpg", "b/2.jpg"], {"a", "b"}),
    (["a b/1.jpg", "ü/deep/2.jpg"], {"a b", "ü"}),
    (["u\u0308/1.jpg", "\u00fc/2.jpg", "b/3.jpg"], {"\u00fc", "b"}),
    (["train/a/1.jpg", "train/b/2.jpg", "test/a/3.jpg"], {("a", "train"), ("b", "train"), ("a", "test")}),
    (["Training/a/1.jpg", "Validation/b/2.jpg"], {("a", "train"), ("b", "val")}),
    (["train/a/1.jpg", "train/b/2.jpg"], {("a", "train"), ("b", "train")}),
    (["train/a/1.jpg", "train/b/2.jpg", "notes/readme.txt"], {("a", "train"), ("b", "train")}),
    (["train/a/1.jpg", "train/b/2.jpg", "test/3.jpg"], {("a", "train"), ("b", "train")}),
    (["car/1.jpg", "train/2.jpg"], {"car", "train"}),
    (["car/1.jpg", "train/steam/2.jpg"], {"car", "train"}),
    (["test/1.jpg", "a/2.jpg"], {"test", "a"}),
])  # fmt: skip
def test_layouts(tmp_path, names, expected):
    found = {(p.label, p.given) if p.given else p.label for p in scanned(tree(tmp_path, *names)).images}
    assert found == expected


@pytest.mark.parametrize("names, message", [
    ([], "holds no folders and no files"),
    (["1.jpg"], "holds no folders"),
    (["a/1.jpg"], "one class only, 'a'"),
    (["photos/a/1.jpg", "photos/b/2.jpg"], r"one class only, 'photos'.*one level down, in .*photos"),
    (["a/notes.txt", "b/notes.txt"], "holds no folders"),
    (["train/a/1.jpg", "test/a/2.jpg", "more/3.jpg"], "beside them 'more'"),
    (["train/1.jpg", "test/2.jpg"], "hold no class folders"),
])  # fmt: skip
def test_folders_that_cannot_be_learnt_from(tmp_path, names, message):
    with pytest.raises(GraftError, match=message) as caught:
        scanned(tree(tmp_path, *names))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("paths, path, expected", [
    (["a/1.jpg", "b/2.jpg"], "b/deep/3.jpg", ("b", "")),
    (["a/1.jpg", "b/2.jpg"], "3.jpg", (None, "")),
    (["train/a/1.jpg", "test/a/2.jpg"], "test/b/deep/3.jpg", ("b", "test")),
    (["train/a/1.jpg", "test/a/2.jpg"], "train/3.jpg", (None, "")),
    (["train/a/1.jpg", "test/a/2.jpg"], "else/where/3.txt", (None, "")),  # a file that turns out to be an image
])  # fmt: skip
def test_place(paths, path, expected):
    assert find_layout(paths).place(path) == expected


@pytest.mark.parametrize("paths, root", [
    (["a/1.jpg", "b/2.jpg"], ""),
    (["set/a/1.jpg", "set/b/2.jpg", "set/cover.jpg"], "set/"),
    (["my/set/train/a/1.jpg"], "my/set/"),
    (["set/a/deep/1.jpg", "set/b/2.jpg", "3.jpg"], "set/"),
    (["set/train/1.jpg", "set/car/2.jpg"], "set/"),
])  # fmt: skip
def test_class_root(paths, root):
    assert class_root(paths) == root


@pytest.mark.parametrize("paths, message", [
    (["1.jpg"], r"its images lie in one folder \(the top\)"),
    (["set/a/1.jpg", "2.jpg"], "holds one class only, 'a'"),
])  # fmt: skip
def test_no_class_root(paths, message):
    with pytest.raises(GraftError, match=message):
        class_root(paths)
