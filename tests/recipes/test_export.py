"""export as a real function on a few small images, in a clone of its own."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from graft import params as parameters
from graft import runtimes
from graft.dataset import manifest
from graft.dataset.manifest import Manifest, ManifestRow
from graft.description import FILES
from graft.known import fit
from graft.network import classifier
from graft.network.prediction import look_inside
from graft.run import execute
from graft.serving import parity, predict, pyfunc, readers, writers
from graft.system import paths
from graft.system.console import GraftError
from graft.system.files import read_json, sha256, write_json
from graft.tracking import registry, runs, store
from stages.export import export
from tests.recipes.conftest import NullRun
from tests.serving.conftest import CLASSES, encode, make_classifier, make_images

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A clone in which everything before export has run. Its labels are what the classifier says, but for one test image."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    model, description = make_classifier()
    classifier.save(model, description, root / paths.FINE_TUNE)
    images, rows = make_images(40), []
    inside = look_inside(model, [images], runtime="tensorflow")
    labels = inside.logits.argmax(1)
    fit(inside.features, labels, inside.features, inside.logits, classes=3).write(root / paths.KNOWN)
    labels[12] = (labels[12] + 1) % 3
    (root / "photos").mkdir()
    for i, split in enumerate(["test"] * 20 + ["train"] * 10 + ["val"] * 10):
        photo = root / "photos" / f"{i:02}.png"
        photo.write_bytes(encode(images[i]))
        rows.append(ManifestRow(photo.name, CLASSES[labels[i]], split, sha256(photo), 32, 32))
    manifest.write(Manifest(tuple(rows), CLASSES), root / paths.SPLIT)
    write_json(root / paths.EVALUATE / "metrics.json", {"accuracy": 0.95})
    return root


@pytest.fixture
def clone(template, tmp_path, monkeypatch):
    root = tmp_path / "my clöne"
    shutil.copytree(template, root)
    for key in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "DVC_ROOT", "DVC_EXP_NAME", "DVC_STAGE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.chdir(root)
    return root


def settings(*, calibrate=True, **changes):
    """Of params.yaml, with `changes` of its block export."""
    params = parameters.load()
    return params.model_copy(
        update={
            "data": params.data.model_copy(update={"path": "photos"}),
            "evaluate": params.evaluate.model_copy(update={"calibrate": calibrate}),
            "export": params.export.model_copy(update=changes),
        }
    )


@pytest.fixture
def unregistered(monkeypatch):
    """(model, description) of each model that would have been registered."""
    kept = []
    monkeypatch.setattr(pyfunc, "register", lambda run, model, description, **_: kept.append((model, description)) or "1")
    return kept


GENEROUS = {"min_agreement": 0.0, "max_accuracy_drop": 1.0}  # so small a network, untrained, bears no rounding


def test_all_formats_are_written_checked_logged_and_registered(clone):
    params = settings(**GENEROUS)
    with runs.stage_run("export", params) as run:
        export(params, run)
    folder = clone / paths.EXPORT
    checks = read_json(folder / "checks.json")
    assert {p.name for p in folder.iterdir()} == {*(FILES[name] for name in checks), "labels.txt", "checks.json", "known.npz"}
    assert list(checks) == list(params.export.formats)
    assert all(
        set(c) == {"bytes", "n", "agreement", "clear_disagreements", "max_difference", "accuracy"} for c in checks.values()
    )
    assert [c["n"] for c in checks.values()] == [20] * 7
    assert (checks["keras"]["agreement"], checks["keras"]["accuracy"], checks["onnx"]["accuracy"]) == (1.0, 0.95, 0.95)
    described = json.loads(zipfile.ZipFile(folder / "model.keras").read("graft.json"))
    assert (described["classes"], described["temperature"], described["calibrated"]) == (list(CLASSES), 2.0, True)

    logged = run.client.get_run(run.run_id)
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["tflite/agreement"] == 1.0
    assert logged.data.metrics["latency/onnx/latency_p50_ms"] > 0
    version = registry.by_alias(run.client, "graft", "exported")
    assert (version.tags["stage"], version.tags["accuracy"]) == ("export", "0.95")
    assert version.tags["formats"] == ", ".join(checks)
    assert version.tags["digest"] == pyfunc.shipped_digest(*writers.self_contained(*make_classifier()), folder, paths.KNOWN)
    shipped = {path.name for path in (store.local_path(version.source) / pyfunc.FORMATS).iterdir()}
    assert shipped == {p.name for p in folder.iterdir()} - {"model.keras"}


def test_the_registered_model_is_the_exported_one(clone):
    import mlflow

    execute(export, settings(formats=("keras",)))
    mlflow.set_tracking_uri(store.tracking_uri())
    registered = Path(mlflow.artifacts.download_artifacts("models:/graft@exported"))
    assert list(registered.rglob("*.pyc")) == []
    assert (registered / "artifacts" / "model.keras").read_bytes() == (clone / paths.EXPORT / "model.keras").read_bytes()
    found = mlflow.pyfunc.load_model("models:/graft@exported").predict((clone / "photos" / "03.png").read_bytes())
    expected = readers.load("keras", clone / paths.EXPORT)(make_images(30)[3:4])[0]
    np.testing.assert_allclose(list(found["probabilities"][0].values()), expected, atol=1e-6)
    opened = predict.open_model("models:/graft@exported")
    assert opened.description.temperature == 2.0
    np.testing.assert_allclose(opened(make_images(30)[3:4])[0], expected, atol=1e-6)


def test_a_second_run_leaves_the_same_bytes_and_no_format_that_is_not_wanted(clone, unregistered):
    def kept():
        return {p.name: p.read_bytes() for p in (clone / paths.EXPORT).iterdir()}

    (clone / paths.EXPORT).mkdir()
    (clone / paths.EXPORT / "model.h5").write_text("of an earlier export")
    export(settings(formats=("keras",)), NullRun())
    before = kept()
    assert set(before) == {"model.keras", "labels.txt", "checks.json", "known.npz"}
    export(settings(formats=("keras",)), NullRun())
    assert kept() == before
    assert pyfunc.digest(*unregistered[0]) == pyfunc.digest(*unregistered[1])


def test_without_calibration_the_temperature_is_left_out(clone, unregistered):
    export(settings(calibrate=False, formats=("keras",)), NullRun())
    found = readers.load("keras", clone / paths.EXPORT)
    images = make_images(4)
    assert (found.description.temperature, found.description.calibrated) == (1.0, False)
    assert unregistered[0][1] == found.description
    np.testing.assert_allclose(found(images), make_classifier()[0](images, training=False), atol=1e-5)


@pytest.mark.parametrize("on_miss", ["drop", "fail"])
def test_a_format_that_misses_is_left_out_and_the_others_stay(clone, unregistered, monkeypatch, capsys, on_miss):
    """The planted fault: a converter that mixes up the classes."""
    import keras

    model, _ = make_classifier()
    mixed = keras.Model(model.input, keras.ops.take(model.output, [1, 2, 0], axis=1))
    real = writers._converter
    monkeypatch.setattr(writers, "_converter", lambda frozen, *rest: real(runtimes.freeze(mixed), *rest))
    run = NullRun()
    params = settings(formats=("keras", "tflite", "tflite_fp16", "h5"), on_miss=on_miss)
    if on_miss == "fail":
        with pytest.raises(GraftError, match=r"^export: tflite: a probability differs from the original's by 0\.\d+ on 20 "):
            export(params, run)
        assert unregistered == []
    else:
        export(params, run)
        assert list(read_json(clone / paths.EXPORT / "checks.json")) == ["keras", "h5"]
        assert {p.name for p in (clone / paths.EXPORT).iterdir()} == {
            "model.keras",
            "model.h5",
            "labels.txt",
            "checks.json",
            "known.npz",
        }
        said = capsys.readouterr().err
        assert "warning: export: tflite left out: a probability differs from the original's by 0." in said
        assert "warning: export: tflite_fp16 left out: agrees with the original on 0." in said
        assert len(unregistered) == 1
    assert run.metrics["tflite"]["agreement"] < 0.5  # what was found is logged even so


def test_int8_is_chosen_on_validation_images(clone, unregistered, monkeypatch):
    """Not on the training images that set its ranges, and not on the test images that judge it."""
    seen = []
    monkeypatch.setattr(parity, "verdict", lambda format, folder, images, *_: seen.append((format, images.paths)) or "no")
    export(settings(formats=("keras", "tflite_int8")), NullRun())
    assert seen == [("tflite_int8", tuple(f"{i}.png" for i in range(30, 40)))]
    assert "tflite_int8" not in read_json(clone / paths.EXPORT / "checks.json")


def test_another_accuracy_than_evaluate_found_fails_the_stage(clone, unregistered):
    for accuracy in (0.95, 0.9):  # one image of 20 may fall on the other side of a boundary
        write_json(paths.EVALUATE / "metrics.json", {"accuracy": accuracy})
        export(settings(formats=("keras",)), NullRun())
    write_json(paths.EVALUATE / "metrics.json", {"accuracy": 0.85})
    with pytest.raises(GraftError, match=r"^export: keras: accuracy 0\.9500 on 20 test images, but evaluate found 0\.8500"):
        export(settings(formats=("keras",)), NullRun())
    assert len(unregistered) == 2


@pytest.mark.parametrize("sample", [200, 7])
def test_the_accuracy_is_that_of_all_test_images(sample, clone, unregistered, monkeypatch):
    """The one that is wrong is among those that the formats are compared on, or not."""
    monkeypatch.setattr(parity, "SAMPLE", sample)
    export(settings(formats=("keras",)), NullRun())
    assert read_json(clone / paths.EXPORT / "checks.json")["keras"]["n"] == min(sample, 20)
    assert len(unregistered) == 1


def test_three_test_images_are_enough(clone, unregistered):
    listed = manifest.read()
    rows = tuple(row for row in listed.rows if row.split != "test" or row.path < "03")
    manifest.write(Manifest(rows, listed.classes), paths.SPLIT)
    write_json(paths.EVALUATE / "metrics.json", {"accuracy": 1.0})
    export(settings(formats=("keras", "tflite_fp16"), **GENEROUS), NullRun())
    assert read_json(clone / paths.EXPORT / "checks.json")["tflite_fp16"]["n"] == 3
