import copy
import datetime
import json
import typing
from pathlib import Path

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from graft import params as parameters
from graft.system.console import GraftError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def write(tmp_path):
    def make(changes):
        """params.yaml of the project with changes by dotted key, KeyError deletes:
        write({"data.path": "x"})."""
        yaml = YAML()
        tree = yaml.load(ROOT / "params.yaml")
        for key, value in changes.items():
            *blocks, last = key.split(".") if isinstance(key, str) else [key]
            block = tree
            for name in blocks:
                block = block[name]
            if value is KeyError:
                del block[last]
            else:
                block[last] = value
        path = tmp_path / "params.yaml"
        yaml.dump(tree, path)
        return path

    return make


def test_the_projects_own_file_loads_with_the_types_that_it_declares():
    given = parameters.load(ROOT / "params.yaml")
    assert isinstance(given.lr, float)
    assert isinstance(given.seed, int)
    assert given.data.path == "data/raw/fashion"
    assert given.features.runtime == "auto"
    known, asked_for = (
        typing.get_args(parameters.Format),
        ("onnx_any_size", "saved_model_any_size", "openvino", "coreml"),
    )
    others = {"tflite_dynamic", *asked_for}  # the first is what int8 falls back to
    assert given.export.formats == tuple(name for name in known if name not in others)
    assert given.flat()["fine_tune.layers"] == "auto"
    assert len(given.flat()) == 58


def test_every_format_has_a_file_name_and_the_other_way_round():
    from graft import description

    assert tuple(description.FILES) == typing.get_args(parameters.Format)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-05", 1e-5), ("1e-5", 1e-5), ("1.0e-4", 1e-4), ("1", 1.0), ("0.00001", 1e-5)],
)
def test_a_rate_is_a_number_however_it_is_written(tmp_path, text, value):
    """`dvc exp run -S lr=1e-5` writes 1e-05, which YAML 1.1 takes for a word."""
    path = tmp_path / "params.yaml"
    lines = (ROOT / "params.yaml").read_text().splitlines()
    path.write_text("\n".join(f"lr: {text}" if line.startswith("lr:") else line for line in lines))
    assert parameters.load(path).lr == value


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("learning_rate", 1, "unknown key learning_rate"),
        ("head.epoch", 3, "unknown key head.epoch; did you mean head.epochs?"),
        ("lr", "fast", "lr must be a number, not 'fast'"),
        ("lr", 0, "lr must be above 0 and at most 100, not 0"),
        ("lr", -1e-3, "lr must be above 0 and at most 100, not -0.001"),
        ("lr", float("nan"), "lr must be a number, not nan"),
        ("lr", True, "lr must be a number, not True"),
        ("lr", None, "lr must be a number, not None"),
        ("lr", float("inf"), "lr must be a number, not inf"),
        ("lr", [1e-3], r"lr must be a number, not \[0.001\]"),
        ("seed", 1.5, "seed must be a whole number, not 1.5"),
        ("seed", -1, "seed must be at least 0 and at most 2147483647, not -1"),
        ("seed", True, "seed must be a whole number, not True"),
        ("image_size", "big", "image_size must be a whole number or auto, not 'big'"),
        ("image_size", 8, "image_size must be at least 16 and at most 4096, not 8"),
        ("image_size", 32.5, "image_size must be a whole number or auto, not 32.5"),
        ("image_size", None, "image_size must be a whole number or auto, not None"),
        ("batch_size", 0, "batch_size must be at least 1 and at most 65536, not 0"),
        ("data", "photos", "data must be a block of keys, not 'photos'"),
        ("data", None, "data must be a block of keys, not None"),
        ("data.path", "", "data.path must be a word, not ''"),
        ("data.path", 3, "data.path must be a word, not 3"),
        ("data.path", "  ", "data.path must be a word, not '  '"),
        (
            "data.layout",
            "folders",
            "data.layout must be one of auto, classes, splits, deepest, not 'folders'",
        ),
        ("data.labels", 3, "data.labels must be a word, not 3"),
        ("data.label_by", "(", "data.label_by is not a regular expression"),
        (
            "data.label_by",
            "(a)(b)",
            r"data.label_by must have one \(group\), or one called \(\?P<label>…\), not 2",
        ),
        ("data.class_map", ["cat"], "data.class_map must be a block of class names"),
        (
            "data.class_map",
            {"cat": 1.5},
            "data.class_map must be a block of class names, .* or null, not 1.5",
        ),
        (
            "data.class_map",
            {"cat": ""},
            "data.class_map must be a block of class names, .* or null, not ''",
        ),
        ("data.val_fraction", 1.0, "data.val_fraction must be above 0 and below 1, not 1.0"),
        ("data.test_fraction", 0.9, r"data.val_fraction \+ data.test_fraction must stay below 1"),
        (
            "data.on_damaged",
            "ignore",
            "data.on_damaged must be one of quarantine, fail, not 'ignore'",
        ),
        ("data.group_by", "(", "data.group_by is not a regular expression"),
        ("data.group_by", "abc", r"data.group_by must have one \(group\), not 0"),
        ("data.group_by", 3, "data.group_by must be a word, not 3"),
        (
            "data.near_duplicates",
            17,
            "data.near_duplicates must be at least -1 and at most 16, not 17",
        ),
        ("data.leak", "warn", "unknown key data.leak; did you mean data.leakage?"),
        ("data.leaks", "warn", "data.leaks is called data.leakage now"),
        (
            "data.leakage",
            "ignore",
            "data.leakage must be one of warn, drop_from_train, fail, not 'ignore'",
        ),
        (
            "augment.flip",
            True,
            "augment.flip must be one of none, horizontal, vertical, both, not True",
        ),
        ("augment.views", -1, "augment.views must be at least 0"),
        ("head.dropout", 1, "head.dropout must be at least 0 and below 1, not 1"),
        ("evaluate.calibrate", "yes", "evaluate.calibrate must be true or false, not 'yes'"),
        (
            "evaluate.gates",
            {"speed": 1},
            "evaluate.gates must be made of accuracy, .*, min_class_recall, not 'speed'",
        ),
        (
            "evaluate.gates",
            {"accuracy": "high"},
            "evaluate.gates must be a block of numbers from 0 to 1, not 'high'",
        ),
        (
            "evaluate.gates",
            {"accuracy": float("nan")},
            "evaluate.gates must be a block of numbers from 0 to 1, not nan",
        ),
        (
            "evaluate.gates",
            {"accuracy": 90},
            "evaluate.gates must be a block of numbers from 0 to 1, not 90",
        ),
        (
            "evaluate.gates",
            {"accuracy": True},
            "evaluate.gates must be a block of numbers from 0 to 1, not True",
        ),
        ("evaluate.gates", ["accuracy"], "evaluate.gates must be a block of numbers"),
        (
            "export.formats",
            ["keras", "pdf"],
            "export.formats must be made of keras, .*, coreml, not 'pdf'",
        ),
        ("export.formats", ["keras", 1], "export.formats must be made of keras, .*, coreml, not 1"),
        ("export.formats", ["onnx"], "export.formats must hold keras"),
        ("export.formats", "keras", "export.formats must be a list of words"),
        (
            "features.runtime",
            "gpu",
            "features.runtime must be one of auto, tensorflow, litert, onnx, not 'gpu'",
        ),
        ("dropout", 0.1, "unknown key dropout; did you mean head.dropout?"),
        ("augment.learning_rate", 1, "unknown key augment.learning_rate; known here: views, "),
        ("finetune", {}, "unknown key finetune; did you mean fine_tune?"),
        (
            "export.label_smoothing",
            0.1,
            "unknown key export.label_smoothing; did you mean fine_tune.label_smoothing?",
        ),
        ("features.engine", "auto", "unknown key features.engine; known here: runtime"),
        ("trunk", {"engine": "auto"}, "trunk.engine is called features.runtime now"),
        (
            "tracking.model",
            "my/model",
            (
                "tracking.model must be a name of at most 200 characters, without / : and @, on "
                "one line"
            ),
        ),
        (
            "tracking.experiment",
            "a\nb",
            "tracking.experiment must be a name of at most 200 characters, on one line",
        ),
        (
            "tracking.promote",
            "maybe",
            "tracking.promote must be one of better, significant, always, never",
        ),
        ("fine_tune.layers", KeyError, "missing key fine_tune.layers"),
        ("cache", KeyError, "missing key cache"),
        (7, 1, "unknown key 7; known here: lr, "),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_that_names_the_key(write, key, value, words):
    with pytest.raises(GraftError, match=words) as error:
        parameters.load(write({key: value}))
    assert "\n" not in str(error.value)
    assert "params.yaml" in str(error.value)


def test_an_unknown_key_is_named_before_the_one_that_it_leaves_missing(write):
    path = write({"lr": KeyError, "head.epochs": KeyError, "head.epoch": 3})
    with pytest.raises(GraftError, match=r"unknown key head\.epoch; did you mean head\.epochs\?"):
        parameters.load(path)


@pytest.mark.parametrize(
    ("key", "value", "loaded"),
    [
        ("head.epochs", 20.0, 20),
        ("image_size", 32.0, 32),
        ("image_size", "auto", "auto"),
        ("lr", 1, 1.0),
        ("data.group_by", "^(.)", "^(.)"),
        ("data.group_by", None, None),
        ("export.formats", ["onnx", "keras"], ("onnx", "keras")),
        ("evaluate.gates", {}, {}),
        ("data.label_by", r"(?P<label>\w+)_(?P<split>\w+)/", r"(?P<label>\w+)_(?P<split>\w+)/"),
        (
            "data.class_map",
            {"Cat": "cat", "0": None, "ü/b": "ü"},
            '{"Cat": "cat", "0": null, "ü/b": "ü"}',
        ),
    ],
)
def test_what_fits_arrives_as_its_type(write, key, value, loaded):
    found = parameters.load(write({key: value})).flat()[key]
    assert (found, type(found)) == (loaded, type(loaded))


def test_classes_may_be_numbers(write):
    given = parameters.load(write({"data.class_map": {0: "zero", "one": 1, 2: None}}))
    assert given.data.class_map == {"0": "zero", "one": "1", "2": None}


def test_a_params_yaml_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin").write_bytes("data: ä".encode("latin-1"))
    for name, words in (
        ("folder", r"folder: cannot be read \(Is a directory\)"),
        ("latin", "not UTF-8 text|not valid YAML"),
    ):
        with pytest.raises(GraftError, match=words) as error:
            parameters.load(tmp_path / name)
        assert "\n" not in str(error.value)


def test_gates_are_numbers_each_under_its_own_key_in_mlflow(write):
    given = parameters.load(write({"evaluate.gates": {"accuracy": 1, "min_class_recall": 0.8}}))
    assert given.evaluate.gates == {"accuracy": 1.0, "min_class_recall": 0.8}
    assert isinstance(given.evaluate.gates["accuracy"], float)
    assert given.flat()["evaluate.gates.min_class_recall"] == 0.8


def test_params_do_not_change_once_read():
    given = parameters.load(ROOT / "params.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        given.data.path = "elsewhere"


@pytest.mark.parametrize(
    ("text", "words"),
    [("lr: [", "not valid YAML"), ("", "must be a block"), ("- 1", "must be a block")],
)
def test_a_file_that_is_no_block_of_keys(tmp_path, text, words):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(GraftError, match=words) as error:
        parameters.load(tmp_path / "params.yaml")
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(GraftError, match="no such file; run from the root of the project"):
        parameters.load(tmp_path / "params.yaml")


def test_dvc_yaml_declares_only_keys_that_exist():
    flat = parameters.load(ROOT / "params.yaml").flat()
    blocks = {key.split(".")[0] for key in flat}
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    for name, stage in stages.items():
        for key in stage.get("params", []):
            assert key in flat or key in blocks, (name, key)


def blocks(kind=parameters.Params):
    yield kind
    for field in kind.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, parameters.Block):
            yield from blocks(field.annotation)


@pytest.mark.parametrize("kind", blocks(), ids=lambda kind: kind.__name__)
def test_every_field_is_described_and_none_has_a_default(kind):
    for name, field in kind.model_fields.items():
        assert field.description, name
        assert field.is_required(), name


# What people, scripts and other tools put where a value belongs.
VALUES = [None, True, False, -1, 0, 1, 2, 0.5, 1.5, -0.5, 1e300, 10**30, float("nan"), float("inf"),
          "", " ", "x", "auto", "../up", "a\nb", "c,d", "'\"", "<b>&", "$(reboot)",
          "grün 🦙 \u202e", "x" * 255, "(", [], ["x"], [[]], {}, {"x": 1}, {1: None},
          datetime.date(2026, 11, 28), b"bytes"]  # fmt: skip


@pytest.mark.parametrize("key", parameters.fields())
def test_any_value_of_any_key_is_taken_or_refused_in_one_line_that_names_the_key(key, monkeypatch):
    whole = YAML(typ="safe").load(ROOT / "params.yaml")
    for value in VALUES:
        tree = copy.deepcopy(whole)
        *blocks, last = key.split(".")
        block = tree[blocks[0]] if blocks else tree
        block[last] = value
        monkeypatch.setattr(parameters, "_read", lambda path, tree=tree: tree)
        try:
            loaded = parameters.load("params.yaml").flat()
        except GraftError as error:
            assert str(error).startswith("params.yaml: ") and key in str(error), (value, str(error))
            assert len(str(error)) < 1000 and (
                not isinstance(value, str) or "\n" not in str(error)
            ), (value, str(error))
        else:
            json.dumps(loaded)  # as dvc.lock, MLflow and model.json keep it
