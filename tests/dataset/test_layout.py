import pytest

from graft.dataset import scan
from graft.dataset.labels import ByFolder
from graft.dataset.layout import Unclear, find_layout, find_splits, named_splits
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


def placed(names, wanted="auto"):
    found = find_layout(names, wanted)
    return {(label, split) if split else label for label, split in map(found.place, names)}


@pytest.mark.parametrize("names, expected", [
    (["a/1.jpg", "b/2.jpg"], {"a", "b"}),
    (["a b/1.jpg", "ü/deep/2.jpg"], {"a b", "ü"}),
    (["u\u0308/1.jpg", "\u00fc/2.jpg", "b/3.jpg"], {"\u00fc", "b"}),
    (["train/a/1.jpg", "train/b/2.jpg", "test/a/3.jpg"],
     {("a", "train"), ("b", "train"), ("a", "test")}),
    (["Training/a/1.jpg", "Training/b/2.jpg", "Validation/b/2.jpg"],
     {("a", "train"), ("b", "train"), ("b", "val")}),
    (["train/a/1.jpg", "train/b/2.jpg"], {("a", "train"), ("b", "train")}),
    (["train/a/1.jpg", "train/b/2.jpg", "notes/readme.txt"], {("a", "train"), ("b", "train")}),
    (["train/a/1.jpg", "train/b/2.jpg", "test/3.jpg"], {("a", "train"), ("b", "train")}),
    (["car/1.jpg", "train/2.jpg"], {"car", "train"}),
    (["car/1.jpg", "train/steam/2.jpg"], {"car", "train"}),
    (["test/1.jpg", "a/2.jpg"], {"test", "a"}),
    (["photos/a/1.jpg", "photos/b/2.jpg", "photos/cover.jpg"], {"a", "b"}),
])  # fmt: skip
def test_layouts(tmp_path, names, expected):
    found = {
        (p.label, p.given) if p.given else p.label for p in scanned(tree(tmp_path, *names)).images
    }
    assert found == expected


@pytest.mark.parametrize("train, other, split", [
    ("training_set", "test_set", "test"), ("seg_train/seg_train", "seg_test/seg_test", "test"),
    ("train", "eval", "val"), ("trn", "tst", "test"), ("train", "holdout", "test"),
    ("train", "hold-out", "test"), ("train", "dev", "val"), ("train_images", "test_images", "test"),
    ("TrainingData", "TestData", "test"), ("trainset", "validationset", "val"),
    ("train2017", "val2017", "val"), ("pets-train", "pets-validation", "val"),
    ("TRAIN", "VALID", "val"), ("train/images", "test/images", "test"),
    ("set/train/animals", "set/test/animals", "test"), ("tr", "te", "test"),
    ("train", "held_out", "test"), ("train", "heldout", "test"),
    ("my photos/Train", "my photos/Testing", "test"),
    ("fruits-360_Training", "fruits-360_Test", "test"),
])  # fmt: skip
def test_usual_names_of_splits(train, other, split):
    names = [f"{train}/a/1.jpg", f"{train}/b/1.jpg", f"{other}/a/2.jpg"]
    assert placed(names) == {("a", "train"), ("b", "train"), ("a", split)}
    (line,) = find_layout(names).told()
    assert (
        f"{train.removeprefix('set/').removeprefix('my photos/')}/ is taken for train" in line
        and f"is taken for {split}" in line
    )


def test_more_readings_than_one_of_a_name():
    assert named_splits(["train", "dev", "eval"]) == {
        "train": "train",
        "dev": "val",
        "eval": "test",
    }
    assert named_splits(["steam_train", "toy_train", "test_tube", "contest", "latest"]) == {}
    names = ["cat/train/1.jpg", "cat/test/2.jpg", "dog/train/3.jpg", "dog/test/4.jpg"]
    assert placed(names) == {
        (label, split) for label in ("cat", "dog") for split in ("train", "test")
    }
    assert placed(
        ["seg_train/a/1.jpg", "seg_train/b/1.jpg", "seg_test/a/1.jpg", "seg_pred/9.jpg"]
    ) >= {("a", "test"), None}
    assert placed(["n01/images/1.jpg", "n02/images/1.jpg"]) == {"n01", "n02"}  # images is no class
    assert placed(["cat/Cat/1.jpg", "dog/dogs_images/1.jpg"]) == {"cat", "dog"}
    # Kaggle's chest_xray holds itself once more; what is there twice is no class.
    once = [
        f"{top}/{label}/{k}.jpg"
        for top in ("train", "test")
        for label in ("ill", "well")
        for k in range(2)
    ]
    assert placed([*once, *(f"chest_xray/{path}" for path in once)]) == placed(once) | {None}
    with pytest.raises(Unclear, match="beside them 'more'"):
        placed([*once, "more/train/ill/9.jpg"])


@pytest.mark.parametrize("names, problem, readings", [
    (["animals/cat/1.jpg", "animals/dog/2.jpg", "things/car/3.jpg", "things/tree/4.jpg"],
     "its folders hold folders", {
        ("layout", "classes"): {"animals", "things"},
        ("layout", "deepest"): {"cat", "dog", "car", "tree"}}),
    (["b1/cat/1.jpg", "b1/dog/2.jpg", "b2/cat/3.jpg", "b2/dog/4.jpg"],
     "share the names of their sub-folders", {
        ("layout", "classes"): {"b1", "b2"}, ("layout", "deepest"): {"cat", "dog"}}),
    (["cat/1.jpg", "dog/2.jpg", "bird/owl/3.jpg", "bird/wren/4.jpg"], "its folders hold folders", {
        ("layout", "classes"): {"cat", "dog", "bird"},
        ("layout", "deepest"): {"cat", "dog", "owl", "wren"}}),
    (["train/pets/cat/1.jpg", "train/pets/dog/2.jpg", "train/things/car/3.jpg",
      "test/pets/cat/4.jpg"], "hold folders", {
        ("layout", "deepest"): {("cat", "train"), ("dog", "train"), ("car", "train"),
                                ("cat", "test")}}),
    (["a/b/1.jpg", "c/d/2.jpg"], "its folders hold folders", {
        ("layout", "classes"): {"a", "c"}, ("layout", "deepest"): {"b", "d"}}),
    (["images/1.jpg", "masks/1.jpg"], "not called like classes",
     {("layout", "classes"): {"images", "masks"}}),
    (["train/a/1.jpg", "test/a/2.jpg", "more/3.jpg"], "beside them 'more'",
     {("layout", "classes"): {"train", "test", "more"}}),
    (["valid/a/1.jpg", "test/a/2.jpg"], "but no train/",
     {("layout", "classes"): {"valid", "test"}}),
    (["train/1.jpg", "test/2.jpg"], "hold photos but no class folders",
     {("layout", "classes"): {"train", "test"}}),
])  # fmt: skip
def test_what_is_unclear_is_refused_with_every_reading(names, problem, readings):
    with pytest.raises(Unclear, match=problem) as caught:
        find_layout(names)
    assert "\n" not in str(caught.value)
    for (key, value), expected in readings.items():
        assert f"-S data.{key}={value}" in str(caught.value)
        assert placed(names, value) == expected
    by_flag = caught.value.told(lambda key, value: f"--{key} {value}")
    assert all(f"--{key} {value}" in by_flag for key, value in readings)


@pytest.mark.parametrize(
    "train, test, classes",
    [
        (["cat.0.jpg", "dog.1.jpg", "cat.2.jpg", "dog.3.jpg"], ["1.jpg"], {"cat", "dog"}),
        (
            ["great dane_1.jpg", "great dane_2.jpg", "pug_31.JPG", "pug (4).jpg"],
            ["x.jpg"],
            {"great dane", "pug"},
        ),
        (["001-cat.jpg", "002-dog.jpg", "003-cat.jpg"], ["004.jpg"], {"cat", "dog"}),
        (["Äpfel1.jpg", "Äpfel2.jpg", "りんご1.jpg", "りんご2.jpg"], [], {"Äpfel", "りんご"}),
    ],
)
def test_flat_photos_are_refused_with_the_classes_that_their_names_give(train, test, classes):
    from graft.dataset.layout import label_in

    names = [f"train/{name}" for name in train] + [f"test1/{name}" for name in test]
    with pytest.raises(Unclear) as caught:
        find_layout(names)
    reading = caught.value.readings[0]
    assert (reading.key, caught.value.flat) == ("label_by", True)
    assert {label_in(reading.value, name) for name in names} - {""} == classes
    assert find_splits(names).split_of(names[0]) == "train"


def test_names_that_give_no_classes_are_not_offered():
    for names in (["IMG_1.jpg", "IMG_2.jpg"], [f"{k:x}.jpg" for k in range(99, 199)]):
        with pytest.raises(
            Unclear, match=r"columns file, label\): -S data\.labels=labels\.csv"
        ) as caught:
            find_layout(names)
        assert caught.value.readings == ()


@pytest.mark.parametrize(
    "form, classes",
    [
        ("{label}_{split}", {"cats", "dogs"}),
        ("{split}_{label}", {"cats", "dogs"}),
        ("{split}{label}", {"A", "B"}),
        ("data/{label} {split}", {"top dog", "cat"}),
    ],
)
def test_folders_that_name_a_class_and_a_split(tmp_path, form, classes):
    folders = [
        form.format(label=label, split=split) for label in classes for split in ("train", "test")
    ]
    tree(tmp_path, *(f"{folder}/{k}.jpg" for folder in folders for k in range(2)))
    with pytest.raises(Unclear, match="a class and a split at once") as caught:
        scanned(tmp_path)
    by_name, by_folder = caught.value.readings
    assert (by_name.key, by_folder.key) == ("label_by", "layout")
    with ScanCache(None, tmp_path) as cache:
        found = scan.scan(tmp_path, cache=cache, rules=ByFolder(label_by=by_name.value)).images
    assert {(image.label, image.given) for image in found} == {
        (label, s) for label in classes for s in ("train", "test")
    }


@pytest.mark.parametrize(
    "names, message",
    [
        ([], "holds no image and no files"),
        (["1.jpg"], r"its photos lie in one folder \(the top\)"),
        (["a/1.jpg"], r"its photos lie in one folder \(a\)"),
        (["set/a/1.jpg"], r"its photos lie in one folder \(set/a\)"),
        (["a/notes.txt", "b/notes.txt"], "holds no image"),
    ],
)
def test_folders_that_cannot_be_learnt_from(tmp_path, names, message):
    with pytest.raises(GraftError, match=message) as caught:
        scanned(tree(tmp_path, *names))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "paths, path, expected",
    [
        (["a/1.jpg", "b/2.jpg"], "b/deep/3.jpg", ("b", "")),
        (["a/1.jpg", "b/2.jpg"], "3.jpg", (None, "")),
        (["train/a/1.jpg", "train/b/1.jpg", "test/a/2.jpg"], "test/b/deep/3.jpg", ("b", "test")),
        (["train/a/1.jpg", "train/b/1.jpg", "test/a/2.jpg"], "train/3.jpg", (None, "train")),
        # That turns out to be an image.
        (["train/a/1.jpg", "train/b/1.jpg", "test/a/2.jpg"], "else/where/3.txt", (None, "")),
        (["set/a/1.jpg", "set/b/2.jpg"], "elsewhere/a/3.jpg", (None, "")),
    ],
)
def test_place(paths, path, expected):
    assert find_layout(paths).place(path) == expected


def test_a_layout_that_is_asked_for_must_fit():
    with pytest.raises(Unclear, match="'b' is called like none"):
        find_layout(["train/a/1.jpg", "b/a/2.jpg"], "splits")
    with pytest.raises(Unclear, match="none of its folders is called like train"):
        find_layout(["val/a/1.jpg", "test/a/2.jpg"], "splits")
