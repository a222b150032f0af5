"""Model files that were made to do harm, or that are damaged and load all the same: one clear line,
and nothing is executed."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from graft.description import FILES
from graft.network import backbones
from graft.serving import predict, readers, writers
from graft.system.console import GraftError
from tests.serving.conftest import SIZE, encode, make_classifier, make_images


class Harm:
    """Makes `mark` when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """A file that is there as soon as any code of a model has run."""
    return tmp_path / "executed"


def lambdas(mark):
    """(classifier with a Lambda layer whose code makes `mark`, its Description)."""
    import keras

    model, description = make_classifier()
    harm = eval(f"lambda x: (__import__('pathlib').Path({str(mark)!r}).touch(), x)[1]")
    x = keras.layers.Lambda(harm, output_shape=model.output_shape[1:])(model.output)
    made = keras.Model(model.input, x)
    mark.unlink(missing_ok=True)  # to build it is to call it
    return made, description


def refused(load, mark):
    with pytest.raises(GraftError) as error:
        load()
    assert not mark.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_lambda_layer_is_not_executed(tmp_path, mark, name):
    (writers.write_keras if name.endswith("keras") else writers._write_h5)(
        *lambdas(mark), tmp_path / name
    )
    mark.unlink(missing_ok=True)
    assert "cannot be loaded as" in refused(lambda: readers.load_file(tmp_path / name), mark)
    assert "cannot be loaded as" in refused(lambda: predict.open_model(tmp_path / name), mark)


@pytest.mark.parametrize(
    "harm",
    [
        {"module": "pathlib", "class_name": "Path", "config": {}, "registered_name": None},
        {
            "module": "subprocess",
            "class_name": "Popen",
            "config": {"args": ["touch", "MARK"]},
            "registered_name": "Popen",
        },
        {
            "module": "builtins",
            "class_name": "function",
            "config": "eval",
            "registered_name": "function",
        },
        {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"},
    ],
)
def test_a_configuration_that_names_other_code_is_not_believed(tmp_path, mark, harm):
    writers.write_keras(*make_classifier(), tmp_path / "sound.keras")
    with zipfile.ZipFile(tmp_path / "sound.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    evil = json.loads(json.dumps(harm).replace("MARK", str(mark)))
    for where in ("layer", "activation"):
        tree = json.loads(json.dumps(config))
        layers = tree["config"]["layers"]
        if where == "layer":
            layers[1] |= evil
        else:
            layers[-1]["config"]["activation"] = evil
        with zipfile.ZipFile(tmp_path / "evil.keras", "w") as archive:
            for name, data in (members | {"config.json": json.dumps(tree).encode()}).items():
                archive.writestr(name, data)
        assert "cannot be loaded as keras" in refused(
            lambda: readers.load_file(tmp_path / "evil.keras"), mark
        )


@pytest.mark.parametrize(
    "name", sorted(FILES[format] for format in ("keras", "h5", "tflite", "onnx"))
)
def test_a_pickle_is_not_unpickled(tmp_path, mark, name):
    (tmp_path / name).write_bytes(pickle.dumps(Harm(mark)))
    refused(lambda: predict.open_model(tmp_path / name), mark)
    refused(lambda: predict.open_model(tmp_path), mark)


def test_what_a_model_knows_is_not_unpickled(exported, tmp_path, mark):
    shutil.copy(exported / "model.keras", tmp_path)
    with (tmp_path / "known.npz").open("wb") as file:
        np.savez(file, mean=np.array([Harm(mark)], object))
    assert "not what graft exported" in refused(
        lambda: predict.open_model(tmp_path, knowing=True), mark
    )


@pytest.mark.parametrize("how", ["lambda", "pickle", "shape"])
def test_weights_of_a_backbone_that_do_harm_or_do_not_fit(tmp_path, mark, how):
    import keras

    model = keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.Conv2D(4, 3, name="conv")])
    path = tmp_path / "mine.keras"
    if how == "lambda":
        lambdas(mark)[0].save(path)
        mark.unlink(missing_ok=True)
    elif how == "pickle":
        path = tmp_path / "mine.h5"
        path.write_bytes(pickle.dumps(Harm(mark)))
    else:
        keras.Sequential(
            [keras.Input((SIZE, SIZE, 3)), keras.layers.Conv2D(5, 3, name="conv")]
        ).save(path)
    said = refused(lambda: backbones._load(model, path, "mobilenet_v2"), mark)
    assert said.startswith(f"backbone.weights: {path} does not fit mobilenet_v2")


@pytest.mark.parametrize("format", ["keras", "onnx"])
def test_a_model_that_gives_no_numbers_is_one_line(tmp_path, format):
    model, description = make_classifier()
    head = model.layers[-1]
    head.set_weights([np.full_like(weight, np.nan) for weight in head.get_weights()])
    writers.write((format, "keras"), *writers.self_contained(model, description), tmp_path)
    photo = tmp_path / "a.png"
    photo.write_bytes(encode(make_images(1)[0]))
    loaded = readers.load(format, tmp_path)
    with pytest.raises(GraftError, match="gives probabilities that are not finite"):
        list(predict.predict(loaded, [photo]))
