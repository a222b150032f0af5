"""`graft next` and `graft similar`, on a network that is random and small."""

import json

import numpy as np
import pytest
from PIL import Image

from graft.commands import main
from graft.dataset import manifest
from graft.dataset.labels import ByFolder, read
from graft.dataset.layout import walk
from graft.dataset.manifest import Manifest, ManifestRow
from graft.description import Description
from graft.system import paths
from graft.system.files import read_csv, read_json

CLASSES = ("a", "b", "c")


@pytest.fixture
def photos(clone):
    """Twelve pictures, a damaged one, and a network with its known.npz in both stages' folders."""
    from graft.known import fit
    from graft.network import classifier
    from graft.network.prediction import look_inside

    description = Description("mobilenet_v2", 0.35, 32, ("a", "b", "c"), 0, 0.0, "squash")
    model = classifier.build(description)
    for folder in (paths.TRAIN_HEAD, paths.FINE_TUNE):
        classifier.save(model, description, folder)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    (clone / "new").mkdir()
    for k, picture in enumerate(pictures):
        Image.fromarray(picture).save(clone / f"new/{k:02}.png")
    (clone / "new/broken.png").write_bytes(b"\x89PNG no picture")
    inside = look_inside(model, [pictures], runtime="tensorflow")
    fit(inside.features, np.arange(12) % 3, inside.features, inside.logits, classes=3).write(
        paths.KNOWN
    )
    rows = tuple(ManifestRow(f"{k:02}.png", "abc"[k % 3], "train", "", 32, 32) for k in range(12))
    manifest.write(Manifest(rows, ("a", "b", "c")), paths.SPLIT)
    paths.SECOND_LOOK.mkdir(parents=True)
    np.save(paths.SECOND_LOOK / "features.npy", inside.features)
    return clone


def test_next_and_similar_on_a_folder_of_photos(photos, capsys):
    main.main(["next", "new", "-n", "4", "--output", "chosen.csv"])
    said = capsys.readouterr()
    assert "broken.png" in said.err
    assert "4 of 12 photos chosen" in said.out
    rows = read_csv(photos / "chosen.csv")
    uncertain = [row for row in rows if row["kind"] == "uncertain"]
    assert len({row["path"] for row in uncertain}) == 4
    assert all(0 <= float(row["margin"]) <= float(row["confidence"]) <= 1 for row in rows)

    main.main(["similar", "new/05.png", "-n", "3"])
    lines = [line for line in capsys.readouterr().out.splitlines() if ".png" in line]
    assert len(lines) == 3
    assert lines[0].split() == ["1.000", "c", "train", "05.png"]

    for arguments, words in (
        (["similar", "new/broken.png"], "broken.png: "),
        (["next", "new/broken.png"], "no photo there"),
    ):
        with pytest.raises(SystemExit):
            main.main(arguments)
        assert words in capsys.readouterr().err
    np.save(paths.SECOND_LOOK / "features.npy", np.zeros((3, 4), np.float16))
    with pytest.raises(SystemExit):
        main.main(["similar", "new/05.png"])
    assert "is not of this split and backbone" in capsys.readouterr().err


def test_tasks_for_label_studio_come_back_as_labels(photos, capsys):
    (photos / "new" / "ü &1.png").write_bytes((photos / "new" / "05.png").read_bytes())
    main.main(["next", "new", "-n", "20", "--output", "tasks.json"])
    tasks = read_json(photos / "tasks.json")
    addresses = {task["data"]["image"] for task in tasks}
    assert len(tasks) == 13 and "/data/local-files/?d=new/%C3%BC%20%261.png" in addresses
    for task in tasks:
        ((said,),) = [prediction["result"] for prediction in task["predictions"]]
        assert (said["type"], said["from_name"], said["to_name"]) == ("choices", "choice", "image")
        assert said["value"]["choices"][0] in CLASSES and 0 <= task["predictions"][0]["score"] <= 1
    # As a person confirms them there and exports them.
    exported = [
        {"data": t["data"], "annotations": [{"result": t["predictions"][0]["result"]}]}
        for t in tasks
    ]
    (photos / "new" / "export.json").write_text(json.dumps(exported), encoding="utf-8")
    files = sorted(file.path for file in walk(photos / "new").files)
    assert (
        read(photos / "new", files, ByFolder(labels="export.json")).place("ü &1.png").label
        in CLASSES
    )

    for arguments, words in (
        (["--document-root", "data"], "must hold all photos"),
        (["--output", "x.xml"], "must end in"),
    ):
        with pytest.raises(SystemExit):
            main.main(["next", "new", "--output", "tasks.json", *arguments])
        assert words in capsys.readouterr().err


def test_similar_needs_the_features_of_second_look(clone, capsys):
    manifest.write(Manifest((ManifestRow("1.png", "a", "train", "", 32, 32),), ("a",)), paths.SPLIT)
    with pytest.raises(SystemExit):
        main.main(["similar", "1.png"])
    assert "dvc repro second-look" in capsys.readouterr().err
