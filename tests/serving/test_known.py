"""`known` as it travels: the exported folder, the registered model and the network itself say the
same."""

import argparse
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from graft.commands import predict as command
from graft.known import FILE, fit
from graft.network.prediction import look_inside
from graft.serving import predict, pyfunc
from graft.system.console import GraftError
from graft.system.files import read_csv


@pytest.fixture(scope="module")
def knowing(trained, images, exported, tmp_path_factory):
    """(export folder and MLflow folder with a known.npz, the p-values of `images` as the network
    gives them)."""
    model, _ = trained
    inside = look_inside(model, [images], runtime="tensorflow")
    labels = np.arange(len(images)) % 3
    knows = fit(inside.features, labels, inside.features, inside.logits, classes=3)
    place = tmp_path_factory.mktemp("knowing")
    (place / "export").mkdir()
    shutil.copy(exported / "model.keras", place / "export")
    knows.write(place / "export" / FILE)
    pyfunc.save(place / "registered", *trained, place / "export" / FILE)
    return place, knows.p_values(inside.features, inside.logits)


@pytest.mark.parametrize("kind", ["export", "registered"])
def test_each_says_what_the_network_says(knowing, images, expected, kind):
    place, p_values = knowing
    model = predict.open_model(place / kind, knowing=True)
    probabilities, found = model.judged(images)
    np.testing.assert_allclose(probabilities, expected, atol=2e-5)
    # A rank of 24: these images are those that calibrated it.
    np.testing.assert_allclose(found, p_values, atol=0.041)


def test_photos_below_the_limit_are_called_unknown(knowing, images, tmp_path):
    place, _ = knowing
    for k, image in enumerate(images[:3]):
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    (tmp_path / "4.png").write_bytes(b"no picture")
    paths = sorted(tmp_path.iterdir())
    model = predict.open_model(place / "export", knowing=True)
    every, none = (list(predict.predict(model, paths, unknown_below=limit)) for limit in (1.1, 0.0))
    assert [row.predicted for row in every[:3]] == [predict.UNKNOWN] * 3
    assert all(row.predicted in model.description.classes for row in none[:3])
    assert [row.known for row in every[:3]] == [row.known for row in none[:3]]
    assert every[3].problem and every[3].predicted == ""


def test_an_export_of_before_cannot_say_so(exported, tmp_path):
    shutil.copy(exported / "model.keras", tmp_path)
    with pytest.raises(GraftError, match=r"no known\.npz in it"):
        predict.open_model(tmp_path, knowing=True)
    assert predict.open_model(tmp_path).judged is None


def test_a_registered_model_of_before_cannot_either(trained, images, tmp_path):
    pyfunc.save(tmp_path / "old", *trained)
    with pytest.raises(GraftError, match="does not say what it knows"):
        predict.open_model(tmp_path / "old", knowing=True)
    assert predict.open_model(tmp_path / "old").judged is None


@pytest.mark.parametrize("source", ["export/model.keras", "registered"])
@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
def test_a_table_has_it_where_the_model_carries_it(knowing, images, tmp_path, source, name):
    place, _ = knowing
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    args = argparse.ArgumentParser()
    command.add_arguments(args)
    with pytest.raises(SystemExit):  # status 2, of the damaged one
        command.predict(
            args.parse_args(
                [str(tmp_path), "--model", str(place / source), "--output", str(tmp_path / name)]
            )
        )
    first, second = read_table(tmp_path / name)
    (row, _) = predict.predict(
        predict.open_model(place / source), [tmp_path / "a.png", tmp_path / "b.png"]
    )
    assert 0 <= row.known <= 1 and list(first)[-1] == "known"
    assert float(first["known"]) == pytest.approx(row.known, rel=1e-4) and not second.get("known")


def read_table(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        return read_csv(path)
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()
