"""export as a real function on a few small images, in a clone of its own."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from graft import params as parameters
from graft import resizers, runtimes
from graft.dataset import manifest
from graft.dataset.manifest import Manifest, ManifestRow
from graft.description import FILES
from graft.known import fit
from graft.network import classifier
from graft.network.prediction import look_inside
from graft.run import execute
from graft.scoring.predictions import Predictions
from graft.serving import parity, predict, pyfunc, readers, writers
from graft.system import paths
from graft.system.console import GraftError
from graft.system.files import read_json, sha256
from graft.tracking import registry, runs, store
from stages.export import export
from tests.recipes.conftest import NullRun
from tests.serving.conftest import CLASSES, encode, make_classifier, make_images

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A clone in which everything before export has run. Its labels are what the classifier says,
    but for one test image."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    model, description = make_classifier()
    classifier.save(model, description, root / paths.FINE_TUNE)
    images, rows = make_images(40), []
    inside = look_inside(model, [images], runtime="tensorflow")
    labels = inside.logits.argmax(1)
    fit(inside.features, labels, inside.features, inside.logits, classes=3).write(
        root / paths.KNOWN
    )
    labels[12] = (labels[12] + 1) % 3
    (root / "photos").mkdir()
    for i, split in enumerate(["test"] * 20 + ["train"] * 10 + ["val"] * 10):
        photo = root / "photos" / f"{i:02}.png"
        photo.write_bytes(encode(images[i]))
        rows.append(ManifestRow(photo.name, CLASSES[labels[i]], split, sha256(photo), 32, 32))
    listed = Manifest(tuple(rows), CLASSES)
    manifest.write(listed, root / paths.SPLIT)
    said = model(images, training=False).numpy().astype(np.float64) ** 0.5  # the temperature is 2
    for stage, split, chosen in (
        (paths.EVALUATE, "test", said[:20]),
        (paths.FINE_TUNE, "val", said[30:]),
    ):
        Predictions.of(listed.split(split), chosen).write(root / stage / "predictions.csv")
    return root


@pytest.fixture
def clone(template, tmp_path, monkeypatch):
    root = tmp_path / "my clöne"
    shutil.copytree(template, root)
    for key in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_REGISTRY_URI",
        "DVC_ROOT",
        "DVC_EXP_NAME",
        "DVC_STAGE",
    ):
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
    monkeypatch.setattr(
        pyfunc,
        "register",
        lambda run, model, description, **_: kept.append((model, description)) or "1",
    )
    return kept


# So small a network, untrained, bears no rounding.
GENEROUS = {"min_agreement": 0.0, "max_accuracy_drop": 1.0}


def test_all_formats_are_written_checked_logged_and_registered(clone):
    params = settings(**GENEROUS)
    with runs.stage_run("export", params) as run:
        export(params, run)
    folder = clone / paths.EXPORT
    checks = read_json(folder / "checks.json")
    photos = checks.pop("from_photos")
    assert {p.name for p in folder.iterdir()} == {
        *(FILES[name] for name in checks),
        "labels.txt",
        "checks.json",
        "known.npz",
    }
    assert list(checks) == list(params.export.formats)
    assert all(
        set(c) == {"bytes", "n", "agreement", "clear_disagreements", "max_difference", "accuracy"}
        for c in checks.values()
    )
    assert [c["n"] for c in checks.values()] == [20] * 7
    assert (
        checks["keras"]["agreement"],
        checks["keras"]["accuracy"],
        checks["onnx"]["accuracy"],
    ) == (1.0, 0.95, 0.95)
    # None of which changes a photo that has the size already, but JPEG.
    assert list(photos) == list(resizers.RESIZERS)
    assert [c["agreement"] for c in photos.values()][:-1] == [1.0] * 5
    described = json.loads(zipfile.ZipFile(folder / "model.keras").read("graft.json"))
    assert (described["classes"], described["temperature"], described["calibrated"]) == (
        list(CLASSES),
        2.0,
        True,
    )

    logged = run.client.get_run(run.run_id)
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["tflite/agreement"] == 1.0
    assert logged.data.metrics["latency/onnx/latency_p50_ms"] > 0
    version = registry.by_alias(run.client, "graft", "exported")
    assert (version.tags["stage"], version.tags["accuracy"]) == ("export", "0.95")
    assert version.tags["formats"] == ", ".join(checks)
    below = photos["jpeg_75"]["agreement"] < params.export.min_agreement
    assert ("warning" in version.tags) == below
    assert version.tags["digest"] == pyfunc.shipped_digest(
        *writers.self_contained(*make_classifier()), folder, paths.KNOWN
    )
    shipped = {path.name for path in (store.local_path(version.source) / pyfunc.FORMATS).iterdir()}
    assert shipped == {p.name for p in folder.iterdir()} - {"model.keras"}


def test_formats_that_take_any_size_are_asked_by_the_whole_photo(clone, unregistered):
    export(settings(formats=("keras", "onnx_any_size", "saved_model_any_size")), NullRun())
    checks = read_json(clone / paths.EXPORT / "checks.json")
    for name in ("onnx_any_size", "saved_model_any_size"):
        assert checks[name]["max_difference"] < 1e-4
        assert checks["from_photos"][name] == {"n": 20, "agreement": 1.0, "accuracy": 0.95}


def test_the_registered_model_is_the_exported_one(clone):
    import mlflow

    execute(export, settings(formats=("keras",)))
    mlflow.set_tracking_uri(store.tracking_uri())
    registered = Path(mlflow.artifacts.download_artifacts("models:/graft@exported"))
    assert list(registered.rglob("*.pyc")) == []
    assert (registered / "artifacts" / "model.keras").read_bytes() == (
        clone / paths.EXPORT / "model.keras"
    ).read_bytes()
    found = mlflow.pyfunc.load_model("models:/graft@exported").predict(
        (clone / "photos" / "03.png").read_bytes()
    )
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
    np.testing.assert_allclose(
        found(images), make_classifier()[0](images, training=False), atol=1e-5
    )


@pytest.mark.parametrize("on_miss", ["drop", "fail"])
def test_a_format_that_misses_is_left_out_and_the_others_stay(
    clone, unregistered, monkeypatch, capsys, on_miss
):
    """The planted fault: a converter that mixes up the classes."""
    import keras

    model, _ = make_classifier()
    mixed = keras.Model(model.input, keras.ops.take(model.output, [1, 2, 0], axis=1))
    real = writers._converter
    monkeypatch.setattr(
        writers, "_converter", lambda frozen, *rest: real(runtimes.freeze(mixed), *rest)
    )
    run = NullRun()
    params = settings(formats=("keras", "tflite", "tflite_fp16", "h5"), on_miss=on_miss)
    if on_miss == "fail":
        with pytest.raises(
            GraftError,
            match=r"^export: tflite: a probability differs from the original's by 0\.\d+ on 20 ",
        ):
            export(params, run)
        assert unregistered == []
    else:
        export(params, run)
        assert list(read_json(clone / paths.EXPORT / "checks.json")) == [
            "keras",
            "h5",
            "from_photos",
        ]
        left = {p.name for p in (clone / paths.EXPORT).iterdir()}
        assert left == {"model.keras", "model.h5", "labels.txt", "checks.json", "known.npz"}
        said = capsys.readouterr().err
        assert (
            "warning: export: tflite left out: a probability differs from the original's by 0."
            in said
        )
        assert "warning: export: tflite_fp16 left out: agrees with the original on 0." in said
        assert len(unregistered) == 1
    assert run.metrics["tflite"]["agreement"] < 0.5  # what was found is logged even so


def test_int8_is_chosen_on_validation_images(clone, unregistered, monkeypatch):
    """Not on the training images that set its ranges, and not on the test images that judge it."""
    seen = []
    monkeypatch.setattr(
        parity,
        "verdict",
        lambda format, folder, images, *_: seen.append((format, images.paths)) or "no",
    )
    export(settings(formats=("keras", "tflite_int8")), NullRun())
    assert seen == [("tflite_int8", tuple(f"{i}.png" for i in range(30, 40)))]
    assert "tflite_int8" not in read_json(clone / paths.EXPORT / "checks.json")


def change_predictions(chosen, power):
    """Of the images `chosen`, evaluate's probabilities p become p^power, normalised: below 0 the
    order turns round."""
    path = paths.EVALUATE / "predictions.csv"
    said = Predictions.read(path)
    changed = said.probabilities.copy()
    changed[chosen] **= power
    said.replace_probabilities(changed).write(path)


def test_a_model_that_answers_otherwise_than_evaluate_found_fails_the_stage(clone, unregistered):
    change_predictions(slice(None), 1.001)  # rounded otherwise
    export(settings(formats=("keras",)), NullRun())
    change_predictions([3, 7], -1.0)
    with pytest.raises(
        GraftError,
        match=r"^export: the model answers otherwise on 2 of 20 test images than evaluate found",
    ):
        export(settings(formats=("keras",)), NullRun())
    assert len(unregistered) == 1


def test_predictions_of_other_images_are_refused(clone, unregistered):
    shutil.copy(paths.FINE_TUNE / "predictions.csv", paths.EVALUATE)
    with pytest.raises(
        GraftError,
        match=r"^export: predictions.csv is of other images than the split; run `dvc repro`$",
    ):
        export(settings(formats=("keras",)), NullRun())


def test_equal_networks_are_asked_once(clone, unregistered, monkeypatch):
    """What the Keras files hold is the network that was written; one that differs in a bit is asked
    itself."""
    asked = []
    real = readers.Loaded.__call__

    def ask(loaded, images):
        if len(images) > 1:
            asked.append(loaded.format)
        return real(loaded, images)

    monkeypatch.setattr(readers.Loaded, "__call__", ask)
    formats = ("keras", "h5", "saved_model")
    export(settings(formats=formats), NullRun())
    assert asked[:2] == ["", "saved_model"]
    asked.clear()
    h5 = writers.WRITERS["h5"]

    def write(model, *rest):
        nudged = make_classifier()[0]
        nudged.set_weights([np.nextafter(weight, np.float32(1)) for weight in model.get_weights()])
        h5(nudged, *rest)

    monkeypatch.setitem(writers.WRITERS, "h5", write)
    export(settings(formats=formats), NullRun())
    assert asked[:3] == ["", "h5", "saved_model"]


def test_the_accuracy_is_that_of_all_test_images(clone, monkeypatch):
    """As evaluate found it, whichever of them the formats are compared on."""
    kept = []
    monkeypatch.setattr(pyfunc, "register", lambda *_, metrics, **__: kept.append(metrics) or "1")
    monkeypatch.setattr(parity, "SAMPLE", 7)
    export(settings(formats=("keras",)), NullRun())
    checks = read_json(clone / paths.EXPORT / "checks.json")["keras"]
    assert (checks["n"], checks["accuracy"], kept) == (7, 1.0, [{"accuracy": 0.95}])


def test_three_test_images_are_enough(clone, unregistered):
    listed, said = manifest.read(), Predictions.read(paths.EVALUATE / "predictions.csv")
    rows = tuple(row for row in listed.rows if row.split != "test" or row.path < "03")
    few = Manifest(rows, listed.classes)
    manifest.write(few, paths.SPLIT)
    Predictions.of(few.split("test"), said.probabilities[:3]).write(
        paths.EVALUATE / "predictions.csv"
    )
    export(settings(formats=("keras", "tflite_fp16"), **GENEROUS), NullRun())
    assert read_json(clone / paths.EXPORT / "checks.json")["tflite_fp16"]["n"] == 3
