"""Rows of the table of backbones through all six recipes, with random weights at the smallest
size."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graft import params as parameters
from graft.network import backbones, classifier
from graft.system import environment, paths
from graft.system.files import read_json
from stages import export
from tests.recipes.conftest import NullRun, changed, run

ROOT = Path(__file__).parents[2]
ALL = 999  # layers
# Training all layers takes most of a row's minutes; that all cuts hold is tested without training
# in tests/network.
ALL_TOO = ("xception", "efficientnet_lite1")
NONE_TOO = ("mobilenet_v2", "densenet121", "efficientnet_b0")  # one of each kind
CASES = {
    name: (50, *[ALL] * (name in ALL_TOO), *[0] * (name in NONE_TOO))
    for name in backbones.BACKBONES
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A clone with 24 images of two classes, split."""
    environment.quiet_tensorflow()
    root = tmp_path_factory.mktemp("backbones")
    rng = np.random.default_rng(0)
    for k, name in enumerate(("dark", "light")):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(120 * k, 120 * k + 100, (24, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "photos" / name / f"{i}.png")
    (root / "data").mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("name", "depths"), CASES.items(), ids=CASES)
def test_a_backbone_goes_through_all_stages(root, monkeypatch, name, depths):
    import keras

    for key in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_STAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.chdir(root)
    monkeypatch.setattr("graft.serving.pyfunc.register", lambda *_, **options: "1")
    monkeypatch.setattr("graft.tracking.champion.challenge", lambda _, **options: None)
    monkeypatch.setattr("graft.tracking.champion.record_head", lambda *_: None)
    params = changed(
        parameters.load(),
        image_size=-(-backbones.row(name).smallest_size // 4) * 4,
        batch_size=4,
        data={"path": "photos", "val_fraction": 0.25, "test_fraction": 0.25, "near_duplicates": -1},
        backbone={"name": name, "alpha": 1.0, "weights": "none"},
        augment={"views": 2},
        head={"epochs": 1},
        evaluate={"bootstrap": 100},
        export={"formats": ("keras",)},
    )
    run("split", params)
    run("train-head", params)
    run("second-look", params)
    for layers in depths:
        tried = changed(params, fine_tune={"layers": layers, "epochs": 1})
        for stage in ("fine-tune", "evaluate"):
            run(stage, tried)
        with environment.training_scope(tried.seed):
            export.export(tried, NullRun("export", tried))
        model, description = classifier.load(paths.FINE_TUNE)
        assert description.trainable_layers == min(layers, len(classifier.backbone_layers(model)))
        assert read_json(paths.FINE_TUNE / "metrics.json")["epochs"] == (1 if layers else 0)
        assert read_json(paths.EVALUATE / "metrics.json")["n"] == 6
        assert read_json(paths.EXPORT / "checks.json")["keras"]["agreement"] == 1
    keras.backend.clear_session()
