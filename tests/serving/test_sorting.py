import os
from pathlib import Path

import pytest

from graft.serving.predict import Prediction
from graft.serving.sorting import Sorter
from graft.system.console import GraftError

CLASSES = ("cat", "dog/wolf", "..")


@pytest.fixture
def photos(tmp_path):
    """Two folders with a photo of the same name but other bytes, and a link to one of them."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_text(f"photo {name}")
    (tmp_path / "link.jpg").symlink_to("a/1.jpg")
    return tmp_path


def row(path, predicted="cat", confidence=0.9):
    return Prediction(str(path), predicted, confidence, problem="")


def lying(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("copy", [False, True])
def test_photos_are_linked_or_copied_and_a_rerun_changes_nothing(photos, copy):
    sorter = Sorter(photos / "out", CLASSES, 0.5, copy)
    rows = [
        row(photos / "a" / "1.jpg"),
        row(photos / "b" / "1.jpg"),
        row(photos / "b" / "1.jpg", confidence=0.4),
    ]
    rows += [row(photos / "a" / "1.jpg", "dog/wolf"), row(photos / "link.jpg", "..")]
    places = [sorter.place(each) for each in rows]
    assert [sorter.place(each) for each in rows] == places  # and again
    assert lying(photos / "out") == sorted(p.relative_to(photos / "out").as_posix() for p in places)
    assert [p.parent.name for p in places] == ["cat", "cat", "unsure", "dog_wolf", "_.."]
    assert [p.read_text() for p in places] == [
        "photo a",
        "photo b",
        "photo b",
        "photo a",
        "photo a",
    ]
    assert places[0].samefile(photos / "a" / "1.jpg") is not copy and not places[4].is_symlink()
    assert lying(photos / "a") == lying(photos / "b") == ["1.jpg"]


def test_a_name_that_is_taken_by_another_photo_loses_none(photos):
    sorter = Sorter(photos / "out", CLASSES)
    first, second = (sorter.place(row(photos / name / "1.jpg")) for name in ("a", "b"))
    assert first.name == "1.jpg" and second.name.startswith("1-") and second.suffix == ".jpg"
    second.unlink()
    second.write_text("somebody else's")
    with pytest.raises(GraftError, match="is another photo; name an empty folder"):
        sorter.place(row(photos / "b" / "1.jpg"))
    assert second.read_text() == "somebody else's"


def test_where_no_link_is_allowed_the_photo_is_copied(photos, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    place = Sorter(photos / "out", CLASSES).place(row(photos / "a" / "1.jpg"))
    assert place.read_text() == "photo a" and not place.samefile(photos / "a" / "1.jpg")
    assert lying(photos / "out") == ["cat/1.jpg"]


def test_a_photo_with_a_problem_goes_nowhere(photos):
    assert (
        Sorter(photos / "out", CLASSES).place(Prediction("gone.jpg", problem="unreadable")) is None
    )
    assert not (photos / "out").exists()


@pytest.mark.parametrize(
    ("sorter", "message"),
    [
        ({"classes": ("a/b", "a_b")}, "a_b/ would be the folder of two classes"),
        (
            {"classes": ("unsure",), "unsure_below": 0.5},
            "unsure/ would be the folder of two classes",
        ),
        ({"unsure_below": 1.5}, "--unsure-below 1.5: a confidence from 0 to 1"),
        ({"folder": "a/out"}, r"--sort-into a/out: lies in a, whose photos it shall sort"),
    ],
)
def test_what_would_mix_photos_up_is_refused_before_any_work(sorter, message, photos, monkeypatch):
    monkeypatch.chdir(photos)
    given = {"folder": "out", "classes": CLASSES, **sorter}
    with pytest.raises(GraftError, match=message):
        Sorter(**{**given, "folder": Path(given["folder"])}).check(["a", "b/1.jpg"])


def test_an_unwritable_folder_is_one_line(photos):
    with pytest.raises(GraftError, match=r"--sort-into .*: cannot be written: "):
        Sorter(photos / "link.jpg", CLASSES).place(row(photos / "a" / "1.jpg"))
