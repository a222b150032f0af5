import dataclasses
import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graft import pixels
from graft.description import Description
from graft.serving import predict, pyfunc, readers, writers
from graft.system.console import GraftError

from .conftest import CLASSES, SIZE, encode, make_classifier

ROOT = Path(__file__).parents[2]
ORDER = ["0.png", "cut.png", "empty.jpg", "deep/no suffix", "deep/er/1.JPG"]


@pytest.fixture
def photos(tmp_path, images):
    """Three photos, one of them under a wrong name, one damaged, one empty; a text and a hidden
    photo that do not count."""
    folder = tmp_path / "photos ü"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "0.png").write_bytes(encode(images[0]))
    (folder / "deep" / "er" / "1.JPG").write_bytes(encode(images[1]))  # a PNG in truth
    (folder / "deep" / "no suffix").write_bytes(encode(images[2]))
    (folder / "cut.png").write_bytes(encode(images[3])[:90])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden" / "4.png").write_bytes(encode(images[4]))
    (folder / ".5.png").write_bytes(encode(images[5]))
    return folder


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """An export folder whose resizing rule is the one that `pixels.load` follows."""
    model, description = make_classifier()
    folder = tmp_path_factory.mktemp("right")
    described = description.replace(resize="squash")
    writers.write(["keras", "tflite"], *writers.self_contained(model, described), folder)
    return folder


def find(sources):
    """(files, number of those passed over)."""
    found = predict.Sources(sources)
    return list(found), found.skipped


def test_find_looks_at_content_and_passes_over_the_rest(photos):
    files, skipped = find([photos])
    assert [f.relative_to(photos).as_posix() for f in files] == ORDER
    assert skipped == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes there")
def test_find_goes_by_the_rule_of_split(photos):
    """What a NAS left behind is no photo, a pipe would be waited for without an end, a link to
    nothing is told of."""
    (photos / "@eaDir").mkdir()
    (photos / "@eaDir" / "SYNOPHOTO_THUMB_M.png").write_bytes((photos / "0.png").read_bytes())
    os.mkfifo(photos / "pipe.png")
    os.mkfifo(photos / "pipe")
    (photos / "gone.png").symlink_to("nowhere.png")
    files, skipped = find([photos])
    assert [f.relative_to(photos).as_posix() for f in files] == [
        *ORDER[:3],
        "gone.png",
        *ORDER[3:],
    ] and skipped == 1


def test_the_limit_on_pixels_is_the_models(photos, images):
    description = Description("none", 1.0, SIZE, CLASSES, 0, 0.0, "squash", max_megapixels=0.0001)
    model = readers.Loaded(
        "tiny",
        description,
        lambda batch: np.full((len(batch), len(CLASSES)), 1 / len(CLASSES), np.float32),
    )
    (row,) = predict.predict(model, [photos / "0.png"])
    assert row.problem.startswith("too_large")
    model = dataclasses.replace(model, description=description.replace(max_megapixels=120.0))
    assert [row.problem for row in predict.predict(model, [photos / "0.png"])] == [""]


def test_find_takes_files_patterns_and_nothing_twice(photos):
    named = [
        photos / "notes.txt",
        str(photos / "*.png"),
        str(photos / "**" / "*.JPG"),
        photos / "0.png",
    ]
    files, skipped = find(named)
    assert [f.name for f in files] == ["notes.txt", "0.png", "cut.png", "1.JPG"]
    assert skipped == 0
    odd = photos / "a[1].png"
    odd.write_bytes((photos / "0.png").read_bytes())
    assert find([odd])[0] == [odd]  # a name with brackets is a name before it is a pattern


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.png", "@nowhere.txt", "@."])
def test_find_refuses_a_source_that_is_not_there(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GraftError, match="no such file, folder, list or pattern with a match"):
        find([source])


def test_a_list_is_taken_line_by_line_in_its_order(photos, tmp_path, monkeypatch):
    lines = [photos / "notes.txt", photos / "0.png", "nowhere.png", photos / "0.png"]
    text = "".join(f"{line}\r\n\n" for line in lines).encode()
    (tmp_path / "list.txt").write_bytes(text)
    assert find([f"@{tmp_path / 'list.txt'}"]) == (list(map(Path, lines)), 0)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    stdin = predict.Sources(["-", photos / "cut.png"])
    assert stdin.once and list(stdin) == [*map(Path, lines), photos / "cut.png"]


def test_sources_are_read_as_one_goes(photos):
    """The second folder is not there any more when its turn comes, and nobody has asked for it
    before."""
    (photos / "deep" / "later").mkdir()
    files = iter(
        predict.Sources([photos / "deep" / "er", photos / "deep" / "later", photos / "0.png"])
    )
    assert next(files).name == "1.JPG"
    (photos / "deep" / "later" / "new.png").write_bytes((photos / "0.png").read_bytes())
    assert [file.name for file in files] == ["new.png", "0.png"]


def test_find_refuses_a_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(GraftError, match=r"no image there \(1 other files\)"):
        find([tmp_path])


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_damaged_files_are_listed_at_their_place(batch_size, right, photos, expected):
    files, _ = find([photos])
    rows = list(
        predict.predict(predict.open_model(right / "model.tflite"), files, batch_size=batch_size)
    )
    assert [row.path for row in rows] == [(photos / name).as_posix() for name in ORDER]
    assert [row.problem.partition(":")[0] for row in rows] == ["", "truncated", "empty", "", ""]
    good = [row for row in rows if not row.problem]
    for row, want in zip(good, expected[[0, 2, 1]]):
        assert row.predicted == CLASSES[want.argmax()]
        np.testing.assert_allclose(row.probabilities, want, atol=2e-5)
        assert row.confidence == row.probabilities.max()
    assert all(row.probabilities is None and row.predicted == "" for row in rows if row.problem)


def test_open_model_takes_every_kind(exported, trained, right, images, expected, tmp_path):
    pyfunc.save(tmp_path / "registered", *trained)
    for source in (
        exported,
        exported / "model.keras",
        exported / "saved_model",
        tmp_path / "registered",
    ):
        opened = predict.open_model(source)
        assert (opened.description.classes, opened.description.image_size) == (CLASSES, SIZE)
        np.testing.assert_allclose(opened(images), expected, atol=2e-5)
    assert predict.open_model(exported).name == str(exported / "model.tflite")
    assert predict.open_model(
        exported, suits_litert=lambda name: name != "mobilenet_v2"
    ).name == str(exported / "model.onnx")
    assert predict.open_model(right).name == str(right / "model.tflite")


def test_a_model_with_an_unknown_rule_of_resizing_is_refused(trained, tmp_path):
    model, description = trained
    writers.write(
        ["keras"], *writers.self_contained(model, description.replace(resize="stretch")), tmp_path
    )
    with pytest.raises(
        GraftError, match="resizes photos by a rule that is not known here: stretch"
    ):
        predict.open_model(tmp_path)


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_photos_become_squares_as_in_training(trained, tmp_path, resize):
    from PIL import Image

    model, description = trained
    writers.write(
        ["keras"], *writers.self_contained(model, description.replace(resize=resize)), tmp_path
    )
    wide = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    opened = predict.open_model(tmp_path)
    (row,) = predict.predict(opened, [tmp_path / "wide.png"])
    pixels_seen = pixels.load(tmp_path / "wide.png", SIZE, resize=resize)
    np.testing.assert_allclose(row.probabilities, opened(pixels_seen[None])[0], atol=1e-6)


def test_onnx_is_passed_over_where_its_runtime_is_missing(exported, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name)
    )
    assert predict.open_model(exported, suits_litert=lambda name: False).name == str(
        exported / "model.tflite"
    )


@pytest.mark.parametrize("name", ["", "model.onnx"])
def test_an_onnx_or_tflite_model_needs_no_tensorflow(name, exported, photos):
    code = (
        "import sys; from graft.commands import main\n"
        "main.main(['predict', sys.argv[2], '--model', sys.argv[1]])\n"
        "print([name for name in ('tensorflow', 'mlflow', 'matplotlib', 'sklearn', 'pandas') if "
        "name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, exported / name, photos / "0.png"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "no exported model in it; run `dvc repro export` first"),
        ("model.txt", "not an exported model: neither a SavedModel's folder nor one of .keras"),
        ("other.keras", "no such model"),
        ("export", "no such model; run `dvc repro export` first"),
    ],
)
def test_open_model_refuses_what_is_none(name, message, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.txt").touch()
    with pytest.raises(GraftError, match=message):
        predict.open_model(tmp_path / name)


@pytest.mark.parametrize("address", ["", "sqlite:///mlruns/mlflow.db"])
def test_a_store_that_is_not_there_is_not_made(address, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with pytest.raises(
        GraftError,
        match=r"^models:/graft@champion: no MLflow store at .*mlflow\.db; run `dvc repro` first",
    ):
        predict.open_model("models:/graft@champion")
    assert list(tmp_path.iterdir()) == []


def test_a_registry_without_the_model_is_said_with_what_fills_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(
        GraftError,
        match=r"^models:/graft@champion: no such model in the registry; `dvc repro` makes one",
    ):
        predict.open_model("models:/graft@champion")
