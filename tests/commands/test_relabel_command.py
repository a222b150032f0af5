import csv

import pytest

from graft.commands import main, relabel
from graft.dataset import manifest
from graft.dataset.manifest import Manifest, ManifestRow
from graft.system import paths


@pytest.fixture
def photos(clone):
    """data/raw/pets with three photos and the manifest of them."""
    root = clone / "data/raw/pets"
    names = ["cat/1.jpg", "cat/2.jpg", "dog/old/2.jpg"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    text = (
        (clone / "params.yaml")
        .read_text(encoding="utf-8")
        .replace("data/raw/fashion", "data/raw/pets")
    )
    (clone / "params.yaml").write_text(text, encoding="utf-8")
    rows = tuple(ManifestRow(name, name.split("/")[0], "train", "", 8, 8) for name in names)
    manifest.write(Manifest(rows, ("cat", "dog")), paths.SPLIT)
    return root


@pytest.fixture
def fixes(clone):
    def write(*rows, header=("path", "label")):
        with (clone / "fixes.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return "fixes.csv"

    return write


def there(root):
    return {p.relative_to(root).as_posix(): p.read_text() for p in root.rglob("*") if p.is_file()}


def test_a_dry_run_moves_nothing_and_says_what_would_be(photos, fixes, capsys):
    before = there(photos)
    main.main(["relabel", fixes(("cat/1.jpg", "dog"), ("dog/old/2.jpg", "dog"))])
    assert there(photos) == before
    out = capsys.readouterr().out
    assert "cat/1.jpg -> dog/1.jpg" in out
    assert "1 photos would be moved; nothing was" in out


def test_what_is_applied_can_be_undone_batch_by_batch(photos, fixes):
    before = there(photos)
    main.main(["relabel", fixes(("cat/1.jpg", "dog")), "--apply"])
    middle = there(photos)
    assert middle["dog/1.jpg"] == "cat/1.jpg" and "cat/1.jpg" not in middle
    main.main(["relabel", fixes(("dog/old/2.jpg", "cat")), "--apply"])
    assert there(photos)["cat/old/2.jpg"] == "dog/old/2.jpg"
    main.main(["relabel", "--undo"])
    assert there(photos) == middle
    main.main(["relabel", "--undo"])
    assert there(photos) == before
    assert (photos.parent / "pets.moves.csv").read_text() == "batch,from,to\n"


def test_a_crash_in_the_middle_loses_nothing(photos, fixes, monkeypatch):
    before, move = there(photos), relabel._move

    def fails(root, source, target):
        if source == "cat/2.jpg":
            raise KeyboardInterrupt
        move(root, source, target)

    monkeypatch.setattr(relabel, "_move", fails)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        main.main(["relabel", fixes(("cat/1.jpg", "dog"), ("cat/2.jpg", "dog")), "--apply"])
    assert "dog/1.jpg" in there(photos)
    monkeypatch.setattr(relabel, "_move", move)
    main.main(["relabel", "--undo"])
    assert there(photos) == before


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("cow/1.jpg", "dog"), "is not in"),
        (("../cat/1.jpg", "dog"), "is not in"),
        (("cat/1.jpg", "cow"), "no class is called 'cow'; --new-classes"),
        (("cat/1.jpg", "../x"), "is no name of a folder"),
        (("cat/1.jpg", ""), "is no name of a folder"),
    ],
)
def test_a_fix_that_cannot_be_made_stops_all(photos, fixes, capsys, row, words):
    before = there(photos)
    with pytest.raises(SystemExit):
        main.main(["relabel", fixes(("cat/2.jpg", "dog"), row), "--apply"])
    assert words in capsys.readouterr().err
    assert there(photos) == before


def test_nothing_is_overwritten(photos, fixes, capsys):
    (photos / "dog/1.jpg").write_text("another")
    with pytest.raises(SystemExit):
        main.main(["relabel", fixes(("cat/1.jpg", "dog")), "--apply"])
    assert "is there already" in capsys.readouterr().err
    assert there(photos)["dog/1.jpg"] == "another"


def test_photos_outside_data_raw_are_left_alone_unless_it_is_said(
    photos, fixes, clone, capsys, tmp_path
):
    photos.rename(tmp_path / "mine")
    text = (
        (clone / "params.yaml")
        .read_text(encoding="utf-8")
        .replace("data/raw/pets", str(tmp_path / "mine"))
    )
    (clone / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit):
        main.main(["relabel", fixes(("cat/1.jpg", "dog")), "--apply"])
    assert "lies outside data/raw/" in capsys.readouterr().err
    main.main(["relabel", fixes(("cat/1.jpg", "dog")), "--apply", "--in-place"])
    assert (tmp_path / "mine/dog/1.jpg").exists()


def test_a_table_without_the_columns_is_refused_and_so_is_nothing_to_undo(photos, fixes, capsys):
    for arguments, words in (
        (
            [fixes(("a", "b"), header=("file", "class"))],
            "needs the columns path and label; it has file, class",
        ),
        (["--undo"], "there is none to take back"),
        ([], "needs a table of fixes"),
        (["gone.csv"], "cannot be read"),
    ):
        with pytest.raises(SystemExit):
            main.main(["relabel", *arguments])
        assert words in capsys.readouterr().err


def test_a_new_class_may_be_made(photos, fixes):
    main.main(["relabel", fixes(("cat/1.jpg", "cow")), "--apply", "--new-classes"])
    assert (photos / "cow/1.jpg").exists()
