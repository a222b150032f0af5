"""The real stage on a few small pictures, in a clone of its own."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages import export as stage
from stages import params as parameters
from stages import paths
from stages.common import runtimes
from stages.console import GraftError
from tests.serving.conftest import CLASSES, encode, make_classifier, make_pictures

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A clone in which everything before export has run. Its labels are what the classifier says, but for one test image."""
    from stages.dataset.loading import Manifest, Row, write_manifest
    from stages.network import classifier

    root = tmp_path_factory.mktemp("clone")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(REPOSITORY / name, root)
    model, spec = make_classifier()
    classifier.save(model, spec, root / paths.FINE_TUNE)
    pictures, rows = make_pictures(30), []
    labels = model(pictures, training=False).numpy().argmax(1)
    labels[12] = (labels[12] + 1) % 3
    (root / "photos").mkdir()
    for i, split in enumerate(["test"] * 20 + ["train"] * 10):
        (root / "photos" / f"{i:02}.png").write_bytes(encode(pictures[i]))
        rows.append(Row(f"{i:02}.png", CLASSES[labels[i]], split, f"{i:064}", 32, 32))
    write_manifest(Manifest(tuple(rows), CLASSES), root / paths.SPLIT)
    (root / paths.EVALUATE).mkdir()
    (root / paths.EVALUATE / "metrics.json").write_text(json.dumps({"accuracy": 0.95}))
    return root


@pytest.fixture
def clone(template, tmp_path, monkeypatch):
    root = tmp_path / "my clöne"
    shutil.copytree(template, root)
    for key in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "DVC_ROOT", "DVC_EXP_NAME", "DVC_STAGE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.chdir(root)
    return root


class Run:
    """Stands for a StageRun where MLflow is not what is tested; the registry is not reached."""

    def __init__(self):
        self.metrics, self.texts = {}, {}

    def log_metrics(self, values):
        self.metrics.update(values)

    def log_text(self, text, name):
        self.texts[name] = text

    def timed(self, what):
        import contextlib

        return contextlib.nullcontext()


def settings(**changes):
    params = parameters.load()
    params = replace(params, data=replace(params.data, path="photos"))
    return replace(params, export=replace(params.export, **changes))


@pytest.fixture
def unregistered(monkeypatch):
    from stages.tracking import registry

    kept = []
    monkeypatch.setattr(registry, "register", lambda run, **given: kept.append(given) or "1")
    return kept


def test_all_formats_are_written_checked_logged_and_registered(clone):
    import mlflow

    from stages.serving import formats
    from stages.tracking import registry, runs, store

    params = settings()
    with runs.stage_run("export", params, inputs=stage.INPUTS) as run:
        stage.export(params, run)
    folder = clone / paths.EXPORT
    assert {p.name for p in folder.iterdir()} == {*formats.FILES.values(), "labels.txt", "checks.json"}
    checks = json.loads((folder / "checks.json").read_text())
    assert list(checks) == list(params.export.formats)
    assert all(
        set(c) == {"bytes", "n", "agreement", "clear_disagreements", "max_difference", "accuracy"} for c in checks.values()
    )
    assert [c["n"] for c in checks.values()] == [20] * 7
    assert (checks["keras"]["agreement"], checks["keras"]["accuracy"], checks["onnx"]["accuracy"]) == (1.0, 0.95, 0.95)
    about = json.loads(zipfile.ZipFile(folder / "model.keras").read("graft.json"))
    assert (about["classes"], about["temperature"]) == (list(CLASSES), 2.0)

    logged = run.client.get_run(run.run_id)
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["tflite/agreement"] == 1.0
    assert logged.data.metrics["latency/onnx/latency_p50_ms"] > 0
    version = registry.by_alias(run.client, "graft", "exported")
    assert (version.tags["stage"], version.tags["accuracy"]) == ("export", "0.95")
    mlflow.set_tracking_uri(store.tracking_uri())
    found = mlflow.pyfunc.load_model("models:/graft@exported").predict((clone / "photos" / "03.png").read_bytes())
    expected = formats.load("keras", folder)(make_pictures(30)[3:4])[0]
    np.testing.assert_allclose(list(found["probabilities"][0].values()), expected, atol=1e-6)


def test_a_second_run_leaves_the_same_bytes_and_no_format_that_is_not_wanted(clone, unregistered):
    def kept():
        return {p.name: p.read_bytes() for p in (clone / paths.EXPORT).iterdir()}

    (clone / paths.EXPORT).mkdir()
    (clone / paths.EXPORT / "model.h5").write_text("of an earlier export")
    stage.export(settings(formats=("keras",)), Run())
    before = kept()
    assert set(before) == {"model.keras", "labels.txt", "checks.json"}
    stage.export(settings(formats=("keras",)), Run())
    assert kept() == before
    assert unregistered[0]["digest"] == unregistered[1]["digest"]


def test_without_calibration_the_temperature_is_left_out(clone, unregistered):
    from stages.serving import formats

    params = settings(formats=("keras",))
    stage.export(replace(params, evaluate=replace(params.evaluate, calibrate=False)), Run())
    found = formats.load("keras", clone / paths.EXPORT)
    images = make_pictures(4)
    assert found.metadata.temperature == 1.0
    np.testing.assert_allclose(found(images), make_classifier()[0](images, training=False), atol=1e-5)


def test_a_format_that_disagrees_fails_the_stage(clone, unregistered, monkeypatch):
    """The planted fault: a converter that mixes up the classes."""
    import keras

    from stages.serving import formats

    model, _ = make_classifier()
    mixed = keras.Model(model.input, keras.ops.take(model.output, [1, 2, 0], axis=1))
    monkeypatch.setattr(formats, "_tflite", lambda frozen, format, real=formats._tflite: real(runtimes.freeze(mixed), format))
    run = Run()
    with pytest.raises(
        GraftError, match=r"^export: tflite: a probability differs from the original's by 0\.\d+ \(at most 0.0001 "
    ):
        stage.export(settings(formats=("keras", "tflite")), run)
    monkeypatch.setattr("stages.serving.checks.TOLERANCE", dict.fromkeys(formats.FILES, 1.0))
    with pytest.raises(
        GraftError, match=r"^export: tflite: clearly another class than the original's on (1\d|20) of 20 test images"
    ):
        stage.export(settings(formats=("keras", "tflite")), run)
    assert unregistered == []
    assert run.metrics["tflite"]["agreement"] < 0.5  # what was found is logged even so


def test_another_accuracy_than_evaluate_found_fails_the_stage(clone, unregistered):
    for accuracy in (0.95, 0.9):  # one image of 20 may fall on the other side of a boundary
        (clone / paths.EVALUATE / "metrics.json").write_text(json.dumps({"accuracy": accuracy}))
        stage.export(settings(formats=("keras",)), Run())
    (clone / paths.EVALUATE / "metrics.json").write_text(json.dumps({"accuracy": 0.85}))
    with pytest.raises(GraftError, match=r"^export: keras: accuracy 0\.9500 on 20 test images, but evaluate found 0\.8500"):
        stage.export(settings(formats=("keras",)), Run())
    assert len(unregistered) == 2


def test_three_test_images_are_enough(clone, unregistered):
    from stages.dataset.loading import read_manifest, write_manifest

    manifest = read_manifest()
    rows = tuple(row for row in manifest.rows if row.split != "test" or row.path < "03")
    write_manifest(replace(manifest, rows=rows), paths.SPLIT)
    (clone / paths.EVALUATE / "metrics.json").write_text(json.dumps({"accuracy": 1.0}))
    stage.export(settings(formats=("keras", "tflite_fp16")), Run())
    assert json.loads((clone / paths.EXPORT / "checks.json").read_text())["tflite_fp16"]["n"] == 3
