import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from graft import params as parameters
from graft import pixels
from graft.dataset import manifest
from graft.dataset.images import image_sets
from graft.dataset.manifest import Manifest, ManifestRow
from graft.scoring.predictions import Predictions
from graft.serving import pyfunc, readers, writers
from graft.system import paths
from graft.system.console import GraftError
from graft.system.files import sha256
from graft.tracking import champion, registry, runs, store

from .conftest import CLASSES, SIZE, encode

ROOT = Path(__file__).parents[2]

ALONE = """
import json, sys
from pathlib import Path
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
found = model.predict([Path(name).read_bytes() for name in sys.argv[2:]])
tops = {name.partition(".")[0] for name in sys.modules}
assert not tops & {"stages", "graft"}, "the project was imported"
print(json.dumps(found.to_dict("list")))
"""


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    place = tmp_path_factory.mktemp("registered") / "model"
    pyfunc.save(place, *trained)
    return place


@pytest.fixture(scope="module")
def model(folder):
    """What MLflow makes of the folder."""
    import mlflow

    return mlflow.pyfunc.load_model(str(folder))


def figures(found):
    return np.array([list(row.values()) for row in found["probabilities"]])


HOSTILE = {"KERAS_BACKEND": "torch", "TF_USE_LEGACY_KERAS": "1", "TF_ENABLE_ONEDNN_OPTS": "0"}
KERAS_JSON = {
    "backend": "jax",
    "floatx": "float16",
    "image_data_format": "channels_first",
    "epsilon": 0.5,
}


@pytest.mark.parametrize("hostile", [False, True], ids=["plain shell", "another project's shell"])
def test_loads_in_a_fresh_process_without_the_project(hostile, folder, tmp_path, images, expected):
    moved = tmp_path / "somewhere else"
    shutil.copytree(folder, moved)
    files = []
    for i in range(3):
        files.append(tmp_path / f"{i}.png")
        files[-1].write_bytes(encode(images[i]))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "HOME": str(tmp_path)
    }
    if hostile:
        environment |= HOSTILE
        (tmp_path / ".keras").mkdir()
        (tmp_path / ".keras" / "keras.json").write_text(json.dumps(KERAS_JSON))
    run = subprocess.run(
        [sys.executable, "-c", ALONE, moved, *files],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["label"] == [CLASSES[k] for k in expected[:3].argmax(1)]
    np.testing.assert_allclose(found["confidence"], expected[:3].max(1), atol=1e-5)
    assert [list(row) for row in found["probabilities"]] == [list(CLASSES)] * 3


def kinds():
    import pandas as pd

    def text(pixels):
        return base64.b64encode(encode(pixels)).decode()

    return {
        "bytes": (1, lambda p, d: encode(p[0])),
        "list of bytes": (2, lambda p, d: [encode(p[0]), encode(p[1])]),
        "base64": (1, lambda p, d: text(p[0])),
        "base64 in lines": (1, lambda p, d: "\n".join([text(p[0])[:40], text(p[0])[40:]])),
        "data url": (1, lambda p, d: ["data:image/png;base64," + text(p[0])]),
        "array of one": (1, lambda p, d: p[0]),
        "array of all": (24, lambda p, d: p),
        "array of int64": (2, lambda p, d: p[:2].astype(np.int64)),
        "array of whole floats": (2, lambda p, d: p[:2].astype(np.float32)),
        "nested lists, one": (1, lambda p, d: p[0].tolist()),
        "nested lists, two": (2, lambda p, d: p[:2].tolist()),
        "list of arrays": (2, lambda p, d: [p[0], p[1]]),
        "path": (1, lambda p, d: d / "0.png"),
        "mixed": (3, lambda p, d: [encode(p[0]), text(p[1]), p[2]]),
        "data frame": (2, lambda p, d: pd.DataFrame({"image": [encode(p[0]), text(p[1])]})),
        "series": (2, lambda p, d: pd.Series([encode(p[0]), text(p[1])])),
        "dict": (2, lambda p, d: {"image": [text(p[0]), text(p[1])]}),
        "array of texts": (2, lambda p, d: np.array([text(p[0]), text(p[1])])),
        "nothing": (0, lambda p, d: []),
    }


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_of_input(kind, model, images, expected, tmp_path):
    (tmp_path / "0.png").write_bytes(encode(images[0]))
    n, make = kinds()[kind]
    found = model.predict(make(images, tmp_path))
    assert found.columns.tolist() == ["label", "confidence", "probabilities"]
    assert len(found) == n
    assert found["label"].tolist() == [CLASSES[k] for k in expected[:n].argmax(1)]
    np.testing.assert_allclose(figures(found).reshape(n, 3), expected[:n], atol=1e-5)


def test_the_limit_on_pixels_is_the_models(model, images, monkeypatch):
    """data.max_megapixels of the training travels in the description; a larger picture is a request
    that is refused."""
    from mlflow.exceptions import MlflowException

    served = model.unwrap_python_model()
    assert served.reading == {"max_megapixels": 120.0, "white": 0}
    monkeypatch.setitem(served.reading, "max_megapixels", 0.0001)
    with pytest.raises(MlflowException, match="image 0: too_large"):
        model.predict([encode(images[0])])


def test_other_sizes_are_resized_as_in_training(model):
    image = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    squashed = pixels.load(encode(image), SIZE)
    found = model.predict([image, encode(image), squashed, image[:20]])
    np.testing.assert_array_equal(figures(found)[0], figures(found)[1])
    np.testing.assert_array_equal(figures(found)[0], figures(found)[2])
    assert (figures(found)[0] != figures(found)[3]).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: [encode(p[0])[:100]], "image 0: truncated: "),
        (lambda p: [encode(p[0])[:100], b""], "image 0: truncated: "),
        (lambda p: [b""], "image 0: empty: "),
        (lambda p: [b"no picture"], "image 0: undecodable: "),
        (
            lambda p: "/etc/hostname",
            (
                "image 0: a str must hold the bytes of an image file in base64; give a path as "
                "pathlib.Path"
            ),
        ),
        (lambda p: [Path("/nowhere/x.png")], "image 0: .*No such file"),
        (lambda p: p[:1] / 255, "image 0: pixels must be whole numbers 0..255, not scaled"),
        (lambda p: p[:1].astype(int) - 300, "image 0: pixels must be whole numbers 0..255"),
        (
            lambda p: p[0, :, :, 0],
            "image 0: neither an image file's bytes, nor base64, nor RGB pixels",
        ),
        (lambda p: np.zeros((1, 4, 4, 4), np.uint8), "image 0: neither an image file's bytes"),
        (lambda p: [None], "image 0: neither an image file's bytes"),
        (lambda p: {"a": [], "b": []}, "a dict of images must have one key, not 2"),
    ],
)
def test_unusable_input_is_named(make, message, model, images):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=message) as refused:
        model.predict(make(images))
    assert refused.value.get_http_status_code() == 400


def test_a_broken_image_in_a_batch_is_an_error_of_its_row_alone(model, images, expected):
    from mlflow.pyfunc import scoring_server

    batch = [encode(images[0]), encode(images[1])[:100], encode(images[2])]
    found = model.predict(batch)
    assert found.columns.tolist() == ["label", "confidence", "probabilities", "problem"]
    np.testing.assert_allclose(figures(found.iloc[[0, 2]]), expected[[0, 2]], atol=1e-5)
    assert (
        found["problem"].tolist() == ["", found["problem"][1], ""]
        and "image 1: truncated: " in found["problem"][1]
    )
    assert (found["label"][1], found["probabilities"][1]) == (None, {}) and found["confidence"][
        1
    ] is None
    request = json.dumps({"inputs": [base64.b64encode(content).decode() for content in batch]})
    answer = scoring_server.invocations(request, "application/json", model, None)
    # NaN is no JSON.
    row = json.loads(answer.response, parse_constant=pytest.fail)["predictions"][1]
    assert (answer.status, row["label"], row["confidence"]) == (200, None, None)


def test_what_the_model_says_of_itself(folder, model, trained):
    about = model.metadata
    _, description = trained
    assert about.metadata == json.loads(description.replace(calibrated=True).to_json())
    assert about.get_output_schema().input_names() == ["label", "confidence", "probabilities"]
    assert about.metadata["input"].startswith("uint8 RGB pixels")  # which MLflow has no schema for
    required = (folder / "requirements.txt").read_text().split()
    assert [line.split("==")[0] for line in required] == [
        "mlflow",
        "tensorflow",
        "keras",
        "numpy",
        "pandas",
        "pillow",
    ]
    assert all(line.split("==")[1] for line in required)


@pytest.mark.parametrize("key", ["inputs", "instances", "dataframe_split", "dataframe_records"])
@pytest.mark.parametrize("kind", ["base64", "pixels"])
def test_a_request_of_every_documented_form(key, kind, model, images, expected):
    """As MLflow's scoring server reads it, see the slow test for the server itself."""
    from mlflow.pyfunc import scoring_server

    cells = [
        base64.b64encode(encode(p)).decode() if kind == "base64" else p.tolist() for p in images[:2]
    ]
    forms = {
        "dataframe_split": {"columns": ["image"], "data": [[c] for c in cells]},
        "dataframe_records": [{"image": c} for c in cells],
    }
    for content in (
        [forms[key]]
        if key in forms
        else [cells, *([{"image": c} for c in cells],) * (key == "instances")]
    ):
        answer = scoring_server.invocations(
            json.dumps({key: content}), "application/json", model, None
        )
        assert answer.status == 200, answer.response
        found = json.loads(answer.response)["predictions"]
        assert [row["label"] for row in found] == [CLASSES[k] for k in expected[:2].argmax(1)]


def test_large_images_are_decoded_one_at_a_time(folder, monkeypatch):
    """Four PNGs of 21 kB took a served model from 0.9 to 4.3 GB."""
    import mlflow

    inside = mlflow.pyfunc.load_model(str(folder)).unwrap_python_model()
    now, most, guard = [0], {True: 0, False: 0}, threading.Lock()
    real, large = inside.decoder.load, encode(np.zeros((40, 40, 3), np.uint8))
    small = encode(np.zeros((20, 20, 3), np.uint8))

    def load(image, *rest, **options):
        with guard:
            now[0] += 1
            most[image == large] = max(most[image == large], now[0])
        time.sleep(0.05)
        try:
            return real(image, *rest, **options)
        finally:
            with guard:
                now[0] -= 1

    monkeypatch.setattr(inside.decoder, "load", load)
    monkeypatch.setattr(inside.decoder, "LARGE", 1000)
    inside.predict(None, [large] * 6)
    inside.predict(None, [small] * 6)
    assert most[True] == 1 < most[False]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["inputs", "instances", "dataframe_split", "dataframe_records"])
def test_a_live_server_takes_every_documented_form(key, served, images, expected):
    cell = base64.b64encode(encode(images[0])).decode()
    forms = {
        "dataframe_split": {"columns": ["image"], "data": [[cell]]},
        "dataframe_records": [{"image": cell}],
    }
    body = json.dumps({key: forms.get(key, [cell])}).encode()
    request = urllib.request.Request(
        f"{served}/invocations", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        (row,) = json.loads(answer.read())["predictions"]
    assert row["label"] == CLASSES[expected[0].argmax()]


@pytest.fixture(scope="module")
def served(folder):
    """Address of `mlflow models serve` on the model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = [
        "-m",
        str(folder),
        "--env-manager",
        "local",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command = [sys.executable, "-m", "mlflow", "models", "serve", *where]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    nothing = subprocess.DEVNULL
    process = subprocess.Popen(
        command, env=environment, stdout=nothing, stderr=nothing, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                break
            except OSError:
                assert time.monotonic() < deadline and process.poll() is None, (
                    "the server does not start"
                )
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_input_example_is_a_request(folder, model):
    request = json.loads((folder / "serving_input_example.json").read_text())
    assert list(request) == ["inputs"]
    assert model.predict(request["inputs"])["label"][0] in CLASSES


def test_no_pickle_and_no_path_of_this_machine(folder):
    assert not [p for p in folder.rglob("*") if p.suffix in (".pkl", ".pickle")]
    text = (folder / "MLmodel").read_text()
    assert str(Path(pyfunc.__file__).parent) not in text
    assert str(Path.home()) not in text


def test_temperature_of_the_model(trained, tmp_path, images):
    model, description = trained
    pyfunc.save(tmp_path / "plain", model, description.replace(temperature=1.0))
    found = pyfunc.load(str(tmp_path / "plain"))
    np.testing.assert_allclose(found(images[:4]), model(images[:4], training=False), atol=1e-5)


def test_load_gives_what_an_exported_file_does(folder, trained, images, expected):
    found = pyfunc.load(str(folder))
    assert (found.name, found.description) == (str(folder), trained[1].replace(calibrated=True))
    np.testing.assert_allclose(found(images), expected, atol=1e-5)


def test_what_is_saved_is_the_exported_file(folder, exported):
    copy = folder / "artifacts" / "model.keras"
    assert copy.read_bytes() == (exported / "model.keras").read_bytes()
    assert readers.read_description(copy).classes == CLASSES


def test_load_refuses_what_graft_did_not_make(tmp_path):
    from mlflow.models import Model

    Model().save(str(tmp_path / "MLmodel"))
    with pytest.raises(GraftError, match=str(tmp_path)) as refused:
        pyfunc.load(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_digest_is_of_weights_and_description(trained):
    import keras

    model, description = trained
    digest = pyfunc.digest(model, description)
    assert digest == pyfunc.digest(*trained)
    assert digest != pyfunc.digest(model, description.replace(temperature=2.5))
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    assert pyfunc.digest(other, description) == digest
    other.layers[-1].bias.assign_add([0, 0, 1e-6])
    assert pyfunc.digest(other, description) != digest


# --- the registry ---


@pytest.fixture
def params(tmp_path, monkeypatch):
    """Of an empty clone, which is the working folder."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    for key in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_REGISTRY_URI",
        "DVC_ROOT",
        "DVC_EXP_NAME",
        "DVC_STAGE",
    ):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.chdir(tmp_path)
    return parameters.load()


def _stub(folder, model, description, knows=None, *, written=None):
    from mlflow.models import Model

    folder.mkdir()
    Model().save(str(folder / "MLmodel"))


def test_register_saves_a_model_once(params, trained, monkeypatch):
    model, description = trained
    monkeypatch.setattr(pyfunc, "save", _stub)
    with runs.stage_run("fine-tune", params) as run:
        assert (
            pyfunc.register(run, model, description, alias="fine-tuned", tags={"note": "größer"})
            == "1"
        )
        assert run.client.get_run(run.run_id).data.tags["model.version"] == "1"
        monkeypatch.setattr(pyfunc, "save", lambda *_, **__: pytest.fail("saved again"))
        assert pyfunc.register(run, model, description, alias="again") == "1"
    # Adds what it measured to the version that is there.
    with runs.stage_run("evaluate", params) as run:
        found = pyfunc.register(
            run,
            model,
            description,
            alias="fine-tuned",
            stage="fine-tune",
            metrics={"accuracy": 0.97},
        )
        assert found == "1"
        monkeypatch.setattr(pyfunc, "save", _stub)
        assert pyfunc.register(run, model, description, alias="fine-tuned") == "2"  # another stage
        changed = description.replace(temperature=3.0)
        assert pyfunc.register(run, model, changed, alias="fine-tuned", stage="fine-tune") == "3"
    first, last = (
        registry.by_alias(run.client, "graft", alias) for alias in ("again", "fine-tuned")
    )
    assert (str(first.version), first.tags["accuracy"], first.tags["note"]) == (
        "1",
        "0.97",
        "größer",
    )
    shipped = pyfunc.shipped_digest(model, changed)
    assert (str(last.version), last.tags["stage"], last.tags["digest"]) == (
        "3",
        "fine-tune",
        shipped,
    )


def test_serving_code_decoder_pins_and_formats_are_part_of_what_is_shipped(
    trained, tmp_path, monkeypatch
):
    def edited(module_or_path, name):
        copy = tmp_path / name
        copy.write_text(
            Path(module_or_path).read_text(encoding="utf-8") + "\n# another line\n",
            encoding="utf-8",
        )
        return copy

    (tmp_path / "formats").mkdir()
    (tmp_path / "formats" / "model.tflite").write_bytes(b"a")
    digests = [
        pyfunc.shipped_digest(*trained),
        pyfunc.shipped_digest(*trained, tmp_path / "formats"),
    ]
    (tmp_path / "formats" / "model.tflite").write_bytes(b"b")
    digests.append(pyfunc.shipped_digest(*trained, tmp_path / "formats"))
    for target, name, value in (
        (pyfunc, "CODE", edited(pyfunc.CODE, "code.py")),
        (pixels, "__file__", str(edited(pixels.__file__, "pixels.py"))),
        (pyfunc, "_pins", lambda: ["keras==0"]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, value)
            digests.append(pyfunc.shipped_digest(*trained))
    digests.append(pyfunc.shipped_digest(trained[0], trained[1].replace(temperature=2.5)))
    assert len(set(digests)) == 7
    assert pyfunc.shipped_digest(*trained) == digests[0]
    assert (
        len(
            {
                pyfunc.network_digest(trained[0], trained[1].replace(temperature=t))
                for t in (1.0, 2.5)
            }
        )
        == 1
    )


def test_other_serving_code_takes_the_aliases_along(params, trained, monkeypatch):
    monkeypatch.setattr(pyfunc, "save", _stub)
    with runs.stage_run("fine-tune", params) as run:
        pyfunc.register(run, *trained, alias="fine-tuned")
        champion.set_champion(params, "1")
        monkeypatch.setattr(pyfunc, "_pins", lambda: ["keras==0"])
        assert pyfunc.register(run, *trained, alias="fine-tuned") == "2"
    aliases = {
        alias: str(registry.by_alias(run.client, "graft", alias).version)
        for alias in ("fine-tuned", "champion")
    }
    assert aliases == {"fine-tuned": "2", "champion": "2"}
    assert [entry["action"] for entry in champion.history(run.client, "graft")] == [
        "set",
        "renewed",
    ]


def test_without_calibration_the_registered_model_has_no_temperature(params, trained, monkeypatch):
    saved = []
    monkeypatch.setattr(
        pyfunc,
        "save",
        lambda folder, _, description, knows, **__: (
            saved.append(description) or _stub(folder, 0, 0)
        ),
    )
    params = params.model_copy(
        update={"evaluate": params.evaluate.model_copy(update={"calibrate": False})}
    )
    with runs.stage_run("fine-tune", params) as run:
        pyfunc.register(run, *trained, alias="fine-tuned")
    assert (trained[1].temperature, [description.temperature for description in saved]) == (
        2.0,
        [1.0],
    )


def test_the_exported_version_holds_its_formats_and_is_linked_with_its_original(
    params, trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(pyfunc, "save", _stub)
    folder = tmp_path / "export"
    (folder / "saved_model").mkdir(parents=True)
    for name in ("model.keras", "model.tflite", "checks.json", "saved_model/saved_model.pb"):
        (folder / name).write_bytes(b"x")
    with runs.stage_run("fine-tune", params) as run:
        pyfunc.register(
            run,
            *trained,
            alias="fine-tuned",
            tags={"evaluate.run": run.run_id, "val_accuracy": "0.9"},
        )
    with runs.stage_run("export", params) as run:
        shipped = writers.self_contained(*trained)
        version = pyfunc.register(
            run, *shipped, alias="exported", export=(folder, pyfunc.network_digest(*trained))
        )
    original, exported = (
        run.client.get_model_version("graft", number) for number in ("1", version)
    )
    assert (original.tags["exported.version"], exported.tags["fine-tuned.version"]) == ("2", "1")
    assert (exported.tags["evaluate.run"], exported.tags["val_accuracy"]) == (
        original.tags["evaluate.run"],
        "0.9",
    )
    there = (
        store.local_path(run.client.get_model_version_download_uri("graft", "2")) / pyfunc.FORMATS
    )
    assert sorted(p.relative_to(there).as_posix() for p in there.rglob("*.*")) == [
        "checks.json",
        "model.tflite",
        "saved_model/saved_model.pb",
    ]


def test_a_contest_is_not_held_again_by_publishing(params, trained, monkeypatch):
    """Else publishing would take the title back from a champion that was set by hand since."""
    import keras

    monkeypatch.setattr(pyfunc, "save", _stub)
    rows = [
        ManifestRow(f"{i}.png", CLASSES[i % 3], ("train", "val", "test")[i // 3], f"{i:064x}", 8, 8)
        for i in range(9)
    ]
    manifest.write(Manifest(tuple(rows), CLASSES), paths.SPLIT)
    for folder in (paths.TRAIN_HEAD, paths.FINE_TUNE):
        folder.mkdir(parents=True)
        val = Predictions([f"{i}.png" for i in range(3, 6)], np.arange(3), np.eye(3), CLASSES)
        val.write(folder / "predictions.csv")
    params = params.model_copy(
        update={"tracking": params.tracking.model_copy(update={"promote": "always"})}
    )
    other = keras.models.clone_model(trained[0])
    with runs.stage_run("evaluate", params) as run:
        # Versions 1, the head, and 2.
        pyfunc.contest(run, trained, trained, {"accuracy": 1.0}, image_sets, once=True)
        pyfunc.register(run, other, trained[1], alias="other", stage="fine-tune")
        holders = [champion.set_champion(params, "3")]
        for once in (True, False):
            pyfunc.contest(run, trained, trained, {"accuracy": 1.0}, image_sets, once=once)
            holders.append(str(registry.by_alias(run.client, "graft", "champion").version))
    assert holders == ["version 3 is the champion of graft now", "3", "2"]


def test_what_another_version_says_of_photos(params, trained, images, expected, tmp_path):
    """As a champion of another split is asked; where it cannot be run, that is said."""
    params = params.model_copy(update={"data": params.data.model_copy(update={"path": "photos"})})
    (tmp_path / "photos").mkdir()
    rows = []
    for i in range(4):
        photo = tmp_path / "photos" / f"{i}.png"
        photo.write_bytes(encode(images[i]))
        rows.append(ManifestRow(photo.name, CLASSES[i % 3], "val", sha256(photo), SIZE, SIZE))
    listed = Manifest(tuple(rows), CLASSES)
    with runs.stage_run("fine-tune", params) as run:
        pyfunc.register(run, *trained, alias="fine-tuned")
    found = pyfunc._ask(params, image_sets, "1", listed)
    assert found.paths == listed.paths
    np.testing.assert_allclose(found.probabilities, expected[:4], atol=1e-5)
    with pytest.raises(GraftError, match=r"its model cannot be run: .*2"):
        pyfunc._ask(params, image_sets, "2", listed)


def test_a_model_that_cannot_be_saved_leaves_no_version(params, trained, monkeypatch):
    def broken(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(pyfunc, "save", broken)
    with pytest.raises(OSError, match="no space"), runs.stage_run("fine-tune", params) as run:
        pyfunc.register(run, *trained, alias="fine-tuned")
    assert run.client.search_model_versions("name = 'graft'") == []
    assert registry.by_alias(run.client, "graft", "fine-tuned") is None
