"""`graft drift` on a network that is random and small."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graft import params as parameters
from graft.commands import main
from graft.dataset import manifest
from graft.dataset.manifest import Manifest, ManifestRow
from graft.description import Description
from graft.system import paths
from graft.tracking import store


@pytest.fixture
def trained(clone):
    """24 validation photos, 25 new ones of which one is damaged, and a network with its
    known.npz."""
    from graft.known import fit
    from graft.network import classifier
    from graft.network.prediction import look_inside

    description = Description("mobilenet_v2", 0.35, 32, ("a", "b", "c"), 0, 0.0, "squash")
    model = classifier.build(description)
    classifier.save(model, description, paths.FINE_TUNE)
    text = (clone / "params.yaml").read_text(encoding="utf-8").replace("data/raw/fashion", "photos")
    (clone / "params.yaml").write_text(text, encoding="utf-8")
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    for folder, change in (("photos", 0), ("new", 90)):
        (clone / folder).mkdir()
        for k, picture in enumerate(pictures):
            Image.fromarray(np.maximum(picture, change).astype(np.uint8)).save(
                clone / f"{folder}/{k:02}.png"
            )
    (clone / "new/broken.png").write_bytes(b"\x89PNG no picture")
    inside = look_inside(model, [pictures], runtime="tensorflow")
    fit(inside.features, np.arange(24) % 3, inside.features, inside.logits, classes=3).write(
        paths.KNOWN
    )
    rows = tuple(ManifestRow(f"{k:02}.png", "abc"[k % 3], "val", "", 32, 32) for k in range(24))
    manifest.write(Manifest(rows, ("a", "b", "c")), paths.SPLIT)
    return clone


def test_it_says_what_is_different_on_the_terminal_on_a_page_and_in_mlflow(trained, capsys):
    main.main(["drift", "new"])
    said = capsys.readouterr()
    assert "broken.png" in said.err
    assert "24 new photos" in said.out and "expected accuracy" in said.out
    page = (trained / "drift.html").read_text(encoding="utf-8")
    connection = store.connect(parameters.load())
    (run,) = connection.search(kind="drift")
    assert run.info.status == "FINISHED" and run.data.tags["drift.photos"] == "new"
    assert 0 <= run.data.metrics["auroc"] <= 1 and run.data.metrics["new"] == 24
    assert sum(run.data.metrics[f"share/{name}"] for name in "abc") == pytest.approx(1)
    kept = connection.client.download_artifacts(run.info.run_id, "drift.html", str(trained))
    assert Path(kept).read_text(encoding="utf-8") == page


def test_too_few_photos_are_one_line(trained, capsys):
    with pytest.raises(SystemExit):
        main.main(["drift", "new/01.png", "new/02.png"])
    assert "error: 2 new photos can be read, 20 are needed" in capsys.readouterr().err
    assert not (trained / "drift.html").exists()
