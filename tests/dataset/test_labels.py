import json

import pytest

from graft.dataset import labels, scan
from graft.dataset.labels import ByFolder, Place
from graft.dataset.layout import Unclear
from graft.dataset.scan_cache import ScanCache
from graft.system.console import GraftError

from .pictures import encoded, folder, scene, write


def photos(root, *names):
    for k, name in enumerate(names):
        write(root / name, encoded(scene(k), quality=60))
    return root


def text(root, name, content):
    write(root / name, (content if isinstance(content, str) else json.dumps(content)).encode())


def read(root, **rules):
    paths = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    found = labels.read(root, paths, ByFolder(**rules))
    return {
        path: (place.label, place.split)
        for path in labels.images_among(root, paths)
        if (place := found.place(path)).label
    }


FLAT = ("a.jpg", "b.jpg", "in/c.jpg", "in/d.jpg")
EXPECTED = {
    "a.jpg": ("cat", ""),
    "b.jpg": ("dog", ""),
    "in/c.jpg": ("cat", ""),
    "in/d.jpg": ("dog", ""),
}


@pytest.mark.parametrize(
    "table",
    [
        "file,label\na.jpg,cat\nb.jpg,dog\nin/c.jpg,cat\nin/d.jpg,dog\n",
        "\ufeffFile;Label\r\na.jpg;cat\r\nb.jpg;dog\r\nin\\c.jpg;cat\r\n./in/d.jpg; dog \r\n",
        "label\tfilename\ncat\ta.jpg\ndog\tb.jpg\ncat\tc.jpg\ndog\td.jpg\n",
        "id,class\na,cat\nb,dog\nc,cat\nd,dog\n",
        (
            'image_path,label,notes\n/home/x/a.jpg,cat,"one, '
            'two"\nC:\\photos\\b.jpg,dog,\nx/in/c.jpg,cat,\nin/d.jpg,dog,\n'
        ),
        "filename, cat, dog\na.jpg, 1, 0\nb.jpg, 0, 1\nin/c.jpg, 1, 0\nin/d.jpg, 0, 1\n",
        "sep=|\n\nImage Index|Finding Labels\na.jpg|cat\nb.jpg|dog\nc.jpg|cat\nd.jpg|dog\n",
        "\n \n\tfile\tlabel\n0\ta.jpg\tcat\n1\tb.jpg\tdog\n2\tc.jpg\tcat\n3\td.jpg\tdog\n",
        "filepaths,breed\nA.JPG,cat\nb.jpeg,\nb.jpg,dog\nin/C.JPG,cat\nd.jpg,dog\na.jpg,cat\n",
    ],
    ids=[
        "plain",
        "Excel",
        "tabs",
        "ids",
        "elsewhere",
        "a column per class",
        "bars",
        "an index",
        "capitals",
    ],
)
def test_tables(tmp_path, table):
    text(photos(tmp_path, *FLAT), "labels.csv", table)
    assert read(tmp_path, labels="labels.csv") == EXPECTED


def test_a_table_in_utf_16_as_excel_writes_unicode_text(tmp_path):
    table = "file\tlabel\na.jpg\tBär\nb.jpg\tdog\n".encode("utf-16")
    write(photos(tmp_path, *FLAT) / "labels.txt", table)
    assert read(tmp_path, labels="labels.txt") == {"a.jpg": ("Bär", ""), "b.jpg": ("dog", "")}


def test_what_of_a_table_is_used_is_said(tmp_path, capsys):
    text(
        photos(tmp_path, *FLAT),
        "labels.csv",
        ",file,label,class,fold\n0,a.jpg,cat,1,1\n1,else/b.jpg,dog,2,1\n",
    )
    assert read(tmp_path, labels="labels.csv") == {"a.jpg": ("cat", ""), "b.jpg": ("dog", "")}
    out = capsys.readouterr().out
    assert "labels.csv: the label is column label; not used: class, fold\n" in out
    assert (
        "labels.csv: 1 photos do not lie in the folders" in out
        and "e.g. else/b.jpg is taken for b.jpg\n" in out
    )


def label_studio(name, *choices, kind="choices", **annotation):
    result = [{"type": kind, "value": {"choices": list(choices)}}]
    return {"data": {"image": name}, "annotations": [{"result": result, **annotation}]}


def coco(**classes):
    names = sorted({name for found in classes.values() for name in found})
    return {
        "images": [{"id": i, "file_name": f"{stem}.jpg"} for i, stem in enumerate(classes)],
        "categories": [{"id": 10 + i, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {"image_id": i, "category_id": 10 + names.index(name)}
            for i, found in enumerate(classes.values())
            for name in found
        ],
    }


STUDIO = [
    label_studio("/data/upload/3/12ab34cd-a.jpg", "cat"),
    label_studio("/data/local-files/?d=photos/b.jpg", "dog"),
    label_studio("s3://bucket/in/c.jpg", "cat"),
    label_studio("http://127.0.0.1/in/d.jpg?token=1", "dog"),
]
SMALL = [
    {"image": f"/data/upload/1/{name}", "choice": label, "id": 1}
    for name, label in (("a.jpg", "cat"), ("b.jpg", "dog"), ("c.jpg", "cat"), ("d.jpg", "dog"))
]


@pytest.mark.parametrize("name, content", [
    ("export.json", STUDIO), ("export.json", SMALL),
    ("coco.json", coco(a=["cat"], b=["dog", "dog"], c=["cat"], d=["dog"])),
    ("metadata.jsonl", "\n".join(json.dumps({"file_name": path, "label": label})
                                 for path, (label, _) in EXPECTED.items())),
], ids=["Label Studio", "Label Studio, short", "COCO", "imagefolder"])  # fmt: skip
def test_exports(tmp_path, name, content):
    text(photos(tmp_path, *FLAT), name, content)
    assert read(tmp_path, labels=name) == EXPECTED


@pytest.mark.parametrize(
    "name, content",
    [
        ("labels.csv", "file,label\na.jpg,cat\na.jpg,dog\nb.jpg,dog\n"),
        ("labels.csv", 'file,label\na.jpg,"[""cat"", ""dog""]"\n'),
        ("labels.csv", "file,label\na.jpg,cat|dog\n"),
        ("_classes.csv", "filename,cat,dog\na.jpg,1,1\nb.jpg,0,1\n"),
        ("export.json", [label_studio("a.jpg", "cat", "dog")]),
        ("export.json", [{"image": "a.jpg", "choice": {"choices": ["cat", "dog"]}}]),
        ("coco.json", coco(a=["cat", "dog"])),
    ],
)
def test_several_labels_of_one_photo_are_a_clear_no(tmp_path, name, content):
    text(photos(tmp_path, *FLAT), name, content)
    with pytest.raises(
        GraftError, match=rf"{name}: a\.jpg has .*labels.*graft gives a photo one label"
    ) as caught:
        read(tmp_path, labels=name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, content, message", [
    ("labels.csv", "file,animal\na.jpg,cat\n",
     r"has no column label \(its first line is file, animal\)"),
    ("labels.csv", "photo,label\na.jpg,cat\n",
     r"has no column file \(its first line is photo, label\)"),
    ("labels.csv", "file,label\n", "holds no rows"),
    ("labels.csv", "file,label\nz.jpg,cat\n", "no photo has a name that it holds, e.g. 'z.jpg'"),
    ("labels.csv", "file,label,split\na.jpg,cat,extra\n",
     "a.jpg has split 'extra', which is none of"),
    ("labels.csv", "file,label,split\na.jpg,cat,train\na.jpg,cat,test\n",
     "twice, with split 'train' and 'test'"),
    ("labels.csv", "file,label,group\na.jpg,cat,1\na.jpg,cat,2\n",
     "a.jpg stands there twice, with group '1' and '2'"),
    ("labels.csv", "file,label\ntrain/a.jpg,cat\ntest/a.jpg,dog\n",
     "which is a.jpg as train/a.jpg is, has two labels"),
    ("labels.csv", "file,label\na.jpg,cat\nb.jpg,bear, black\n",
     "b.jpg has more cells than there are columns"),
    ("labels.json", "{", "cannot be read as a table of labels"),
    ("labels.json", {"a.jpg": "cat"}, "is neither an export of COCO nor of Label Studio"),
    ("boxes.json", [label_studio("a.jpg", kind="rectanglelabels")],
     "is marked with rectanglelabels; graft takes choices"),
    ("none.csv", "", "there is no labels.csv in it"),
])  # fmt: skip
def test_tables_that_do_not_fit_are_refused_in_one_line(tmp_path, name, content, message):
    text(photos(tmp_path, *FLAT), name, content)
    with pytest.raises(GraftError, match=message) as caught:
        read(tmp_path, labels="labels.csv" if name == "none.csv" else name)
    assert "\n" not in str(caught.value)


def test_a_table_in_another_encoding_or_outside(tmp_path):
    write(photos(tmp_path, *FLAT) / "labels.csv", "file,label\na.jpg,Bär\n".encode("latin-1"))
    with pytest.raises(GraftError, match="save it as CSV UTF-8"):
        read(tmp_path, labels="labels.csv")
    for outside in ("/etc/labels.csv", "../labels.csv"):
        with pytest.raises(GraftError, match="must be inside the folder of the photos"):
            read(tmp_path, labels=outside)


def test_one_name_in_two_folders_is_not_guessed(tmp_path):
    text(photos(tmp_path, "x/1.jpg", "y/1.jpg"), "labels.csv", "file,label\n1.jpg,cat\n")
    with pytest.raises(GraftError, match=r"1\.jpg may be x/1\.jpg or y/1\.jpg"):
        read(tmp_path, labels="labels.csv")


def test_split_and_group_of_a_table(tmp_path):
    text(
        photos(tmp_path, *FLAT),
        "labels.csv",
        "file,label,split,group\na.jpg,cat,train,p1\nb.jpg,dog,VALIDATION,\nc.jpg,cat,,p1\n",
    )
    found = labels.read(tmp_path, [*FLAT, "labels.csv"], ByFolder(labels="labels.csv"))
    assert found.place("a.jpg") == Place("cat", "train", "p1") and found.place("b.jpg") == Place(
        "dog", "val"
    )
    assert found.place("in/c.jpg") == Place("cat", "", "p1")
    assert found.place("in/d.jpg") == Place(None, why="not in labels.csv") and found.unlabelled == (
        "in/d.jpg",
    )
    assert any(
        "1 images have no label and are left out, e.g. in/d.jpg" in line for line in found.told()
    )


def test_a_table_in_each_split_folder_is_found_by_its_name(tmp_path):
    """Roboflow and imagefolder write one beside the photos of each split, and need no flag."""
    for split, names in (("train", "abcd"), ("valid", "ef"), ("test", "gh")):
        photos(tmp_path, *(f"{split}/{name}.jpg" for name in names))
        rows = "".join(f"{name}.jpg,{k % 2},{1 - k % 2}\n" for k, name in enumerate(names))
        text(tmp_path, f"{split}/_classes.csv", f"filename,cat,dog\n{rows}")
    expected = {
        "train/a.jpg": ("dog", "train"),
        "train/b.jpg": ("cat", "train"),
        "valid/f.jpg": ("cat", "val"),
        "test/g.jpg": ("dog", "test"),
    }
    assert read(tmp_path).items() >= expected.items() and len(read(tmp_path)) == 8
    assert read(tmp_path, labels="_classes.csv") == read(tmp_path)


def test_a_table_of_another_name_is_offered_where_the_folders_say_nothing(tmp_path):
    text(
        photos(tmp_path, *FLAT),
        "train labels.csv",
        'file,label,note\na.jpg,cat,"two\nlines"\nb.jpg,dog,\n',
    )
    text(tmp_path, "other.csv", "x,y\n1,2\n")
    with pytest.raises(
        Unclear, match=r"as train labels\.csv says: -S 'data\.labels=\"train labels\.csv\"'$"
    ) as caught:
        read(tmp_path)
    (reading,) = caught.value.readings
    assert set(read(tmp_path, labels=reading.value)) == {"a.jpg", "b.jpg"}


def test_a_table_beside_class_folders_is_used_only_where_params_say_so(tmp_path):
    text(
        folder(tmp_path, each=2),
        "labels.csv",
        "file,label\ncat/000.jpg,kitten\ndog/000.jpg,puppy\n",
    )
    assert {label for label, _ in read(tmp_path).values()} == {"cat", "dog"}
    assert read(tmp_path, labels="labels.csv") == {
        "cat/000.jpg": ("kitten", ""),
        "dog/000.jpg": ("puppy", ""),
    }


def test_photos_that_come_after_a_frozen_split_are_labelled_by_their_folders(tmp_path, capsys):
    folder(tmp_path, each=3)
    text(
        tmp_path,
        "labels.csv",
        "file,label,split\ncat/000.jpg,cat,train\ncat/001.jpg,cat,test\ndog/000.jpg,dog,val\n",
    )
    found = read(tmp_path, labels="labels.csv")
    assert (
        found["cat/001.jpg"] == ("cat", "test")
        and found["dog/002.jpg"] == ("dog", "")
        and len(found) == 6
    )
    assert (
        "3 photos that labels.csv does not list are labelled by their folders"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("pattern, expected", [
    (r"/([a-z]+)\.\d+\.jpg$", {"train/cat.0.jpg": ("cat", "train"),
                               "train/dog.1.jpg": ("dog", "train")}),
    (r"(?P<split>test|train)\d?/(?P<label>\w+)\.", {
        "train/cat.0.jpg": ("cat", "train"), "train/dog.1.jpg": ("dog", "train"),
        "test1/3.jpg": ("3", "test")}),
])  # fmt: skip
def test_labels_from_file_names(tmp_path, pattern, expected):
    photos(tmp_path, "train/cat.0.jpg", "train/dog.1.jpg", "test1/3.jpg")
    assert read(tmp_path, label_by=pattern) == expected


def test_a_pattern_that_captures_nothing_and_two_sources_of_labels(tmp_path):
    photos(tmp_path, *FLAT)
    with pytest.raises(GraftError, match=r"captures nothing in any path, e\.g\. in 'a\.jpg'"):
        read(tmp_path, label_by=r"(\d)")
    with pytest.raises(GraftError, match="both given"):
        read(tmp_path, label_by=r"(\d)", labels="labels.csv")


def test_class_map_merges_renames_and_drops(tmp_path):
    folder(tmp_path, ("Cat", "cat", "dog", "noise"), each=1)
    assert read(tmp_path, class_map={"Cat": "cat", "dog": "hound", "noise": None}) == {
        "Cat/000.jpg": ("cat", ""),
        "cat/000.jpg": ("cat", ""),
        "dog/000.jpg": ("hound", ""),
    }
    with pytest.raises(GraftError, match="there is no class 'doog'; there is dog"):
        read(tmp_path, class_map={"doog": "x"})


def test_a_table_that_is_written_is_read_again(tmp_path):
    photos(tmp_path, *FLAT)
    places = {"a.jpg": Place("cat", "train", "p 1"), "in/c.jpg": Place("dög, big", "test")}
    labels.write_table(tmp_path / "labels.csv", places)
    found = labels.read(tmp_path, [*FLAT, "labels.csv"], ByFolder(labels="labels.csv"))
    assert {path: found.place(path) for path in places} == places
    labels.write_table(tmp_path / "labels.csv", {"a.jpg": Place("cat")})
    assert (tmp_path / "labels.csv").read_bytes() == b"file,label\na.jpg,cat\n"


def scanned(root, **rules):
    with ScanCache(None, root) as cache:
        return scan.scan(root, cache=cache, rules=ByFolder(**rules))


@pytest.mark.parametrize("train, test, words", [
    (("Cat", "Dog"), ("cat", "Dog"),
     r"class 'cat' is only in valid/, train/ has 'Cat'; .*data\.class_map: {cat: Cat}"),
    (("Cat", "Dog"), ("cat", "dog"),
     r"class 'cat' \(and 1 more\) is only in valid/, train/ has 'Cat'"),
    (("cat", "dog"), ("cats", "dog"),
     r"class 'cats' is only in valid/, train/ has 'cat'; .*class_map: {cats: cat}"),
    (("cat", "dog"), ("cat", "emu"),
     r"class 'emu' is only in valid/, train/ has cat, dog; move some .*class_map: {emu: null}"),
])  # fmt: skip
def test_a_class_that_train_lacks_is_named_with_the_cause(tmp_path, train, test, words):
    folder(tmp_path / "train", train, each=6)
    folder(tmp_path / "valid", test, each=3, start=50)
    with pytest.raises(GraftError, match=words) as caught:
        scanned(tmp_path)
    assert "add photos" not in str(caught.value) and "\n" not in str(caught.value)


def test_names_that_look_like_mistakes_are_warned_of(tmp_path, capsys):
    folder(tmp_path, ("Cat", "cat", "dog ", "nan"), each=2)
    (tmp_path / "fish").mkdir()
    write(tmp_path / "bird" / "notes.txt", b"x")
    write(tmp_path / "@eaDir" / "cat" / "1.jpg", encoded(scene(99)))
    write(tmp_path / "cat" / "1.jpg~", encoded(scene(98)))  # an editor's copy
    assert len(scanned(tmp_path).images) == 8
    err = capsys.readouterr().err
    assert "class 'nan' is called as an empty cell is" in err and "@eaDir" not in err
    assert (
        "classes 'Cat' and 'cat' differ by little" in err
        and "class 'dog ' begins or ends with a blank" in err
    )
    assert "no picture came out of bird/, fish/" in err


def test_what_a_table_drops_is_listed(tmp_path):
    text(
        folder(tmp_path, each=3),
        "labels.csv",
        "file,label\ncat/000.jpg,cat\ncat/001.jpg,\ndog/000.jpg,dog\n",
    )
    found = scanned(tmp_path, labels="labels.csv")
    assert [image.path for image in found.images] == ["cat/000.jpg", "dog/000.jpg"]
    assert {p.path: (p.problem, p.action) for p in found.problems} == {
        "cat/001.jpg": ("no_class", "set aside: no label in labels.csv"),
        **dict.fromkeys(
            ("cat/002.jpg", "dog/001.jpg", "dog/002.jpg"),
            ("no_class", "set aside: not in labels.csv"),
        ),
    }
