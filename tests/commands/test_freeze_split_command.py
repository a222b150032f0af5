import shutil

import numpy as np
import pytest
from PIL import Image

from graft import params
from graft.commands import main
from graft.dataset import manifest
from graft.dataset.intake import take_in
from graft.system import files, paths


def photos(root, first, last):
    for c, label in enumerate(("cat", "dog")):
        for k in range(first, last):
            path = root / label / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(
                np.random.default_rng(1000 * c + k).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            ).save(path)
    return root


@pytest.fixture
def project(clone):
    """A clone whose photos are in `photos`; returns what splits them, with data.* changed, and
    gives {path: split}."""
    photos(clone / "photos", 0, 20)

    def split(**changes):
        data = params.load().data.model_copy(update={"path": "photos", **changes})
        rows = take_in(data, seed=42, cache_file=None).manifest
        manifest.write(rows, paths.SPLIT)
        return {row.path: row.split for row in rows.rows}

    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(text.replace("path: data/raw/fashion", "path: photos"))
    return clone, split


def run(capsys, *arguments):
    try:
        main.main(["freeze-split", *arguments])
        status = 0
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


def test_no_photo_moves_when_others_come(project, capsys):
    root, split = project
    before = split()
    status, out, _ = run(capsys)
    assert status == 0 and "train 28, val 6, test 6" in out and "-S data.labels=labels.csv" in out
    rows = files.read_csv(root / "photos" / "labels.csv")
    assert {row["file"]: row["split"] for row in rows} == before and {
        row["label"] for row in rows
    } == {"cat", "dog"}
    assert split(labels="labels.csv") == before
    photos(root / "photos", 20, 40)
    # Without it, some do.
    assert {path: s for path, s in split().items() if path in before} != before
    after = split(labels="labels.csv")
    assert {path: s for path, s in after.items() if path in before} == before
    assert len(after) == 80 and {s for path, s in after.items() if path not in before} == {"train"}


def test_class_map_applies_once(project, capsys):
    root, split = project
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("class_map: {}", "class_map: {cat: pet}"))
    before = split()
    assert run(capsys)[0] == 0
    assert {row["label"] for row in files.read_csv(root / "photos" / "labels.csv")} == {
        "cat",
        "dog",
    }
    assert split(labels="labels.csv") == before and manifest.read().classes == ("dog", "pet")


def test_it_may_be_frozen_again_and_writes_over_nobodys_table(project, capsys):
    root, split = project
    split()
    (root / "photos" / "labels.csv").write_text("file,label\ncat/0.png,tiger\n")
    status, _, err = run(capsys)
    assert status == 1 and "labels.csv is there already" in err
    (root / "photos" / "labels.csv").unlink()
    run(capsys)
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("labels: null", "labels: labels.csv"))
    photos(root / "photos", 20, 21)
    split(labels="labels.csv")
    assert run(capsys)[0] == 0 and len(files.read_csv(root / "photos" / "labels.csv")) == 42


def test_a_split_of_other_photos_is_refused(project, capsys):
    root, split = project
    split()
    shutil.rmtree(root / "photos" / "dog")
    status, _, err = run(capsys)
    assert (
        status == 1
        and err.count("\n") == 1
        and "photos has no dog/0.png" in err
        and "`dvc repro split` first" in err
    )
