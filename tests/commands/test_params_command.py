import shutil
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Le
from pydantic import Field, create_model

from graft import params as parameters
from graft.commands import main, params_
from graft.system.console import GraftError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "parameters.md"


@pytest.fixture
def project(clone):
    """A clone with the project's dvc.yaml."""
    shutil.copy(ROOT / "dvc.yaml", clone)
    return clone


def test_the_page_is_what_the_descriptions_say(project, capsys):
    main.main(["params", "--markdown"])
    assert PAGE.read_text(encoding="utf-8") == capsys.readouterr().out, (
        "graft params --markdown > docs/parameters.md"
    )


def test_every_parameter_is_explained_once_in_the_order_of_the_file(project):
    rows = params_.rows()
    assert [row.key for row in rows] == list(parameters.load().flat())
    for row in rows:
        assert row.meaning and row.kind and row.default, row.key
    assert [
        name
        for name in ("README.md", "docs/parameters.md")
        if "`fine_tune.warmup` |" in (ROOT / name).read_text()
    ] == ["docs/parameters.md"]


def test_the_command_prints_all_one_or_a_block(project, capsys):
    main.main(["params"])
    everything = capsys.readouterr().out
    main.main(["params", "evaluate"])
    block = capsys.readouterr().out
    main.main(["params", "evaluate.bootstrap"])
    one = capsys.readouterr().out
    assert one in block and block in everything
    assert one == (
        "evaluate.bootstrap: 2000    (whole number from 100 to 100000)\n"
        "    resamples behind the 95% intervals\n"
        "    runs again: evaluate, export\n"
    )
    assert [line.split(":")[0] for line in block.splitlines() if not line.startswith(" ")] == [
        "evaluate.calibrate",
        "evaluate.bootstrap",
        "evaluate.folds",
        "evaluate.gates",
    ]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("fine_tune.epoch", "did you mean fine_tune.epochs?"),
        ("finetune.layers", "did you mean fine_tune.layers?"),
        ("dropout", "did you mean head.dropout?"),
        ("fine", "`graft params` lists all"),
        ("", "`graft params` lists all"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(project, capsys, key, words):
    with pytest.raises(SystemExit):
        main.main(["params", key])
    assert capsys.readouterr().err == f"error: no parameter {key}; {words}\n"


@pytest.mark.parametrize(
    ("key", "stages"),
    [
        ("lr", "fine-tune, evaluate, export"),
        ("data.path", "all stages"),
        ("head.lr", "train-head, second-look, fine-tune, evaluate, export"),
        ("evaluate.calibrate", "evaluate, export"),
        ("export.formats", "export"),
        ("tracking.model", "nothing"),
    ],
)
def test_what_runs_again_is_what_dvc_yaml_says(project, key, stages):
    (row,) = (row for row in params_.rows() if row.key == key)
    assert row.runs_again == stages


@pytest.mark.parametrize(
    ("annotation", "limits", "words"),
    [
        (bool, {}, "true or false"),
        (float, {"gt": 0, "lt": 1}, "number above 0 and below 1"),
        (parameters.Whole, {"ge": 1}, "whole number at least 1"),
        (parameters.Whole, {"ge": -1, "le": 16}, "whole number from -1 to 16"),
        (Literal["a", "b"], {}, "a | b"),
        (parameters.Word | None, {}, "word, or null"),
        (
            Annotated[int, Ge(16), Le(64)] | Literal["auto"],
            {},
            "whole number from 16 to 64, or auto",
        ),
        (tuple[Literal["a", "b"], ...], {}, "list of a | b"),
        (dict[Literal["a", "b"], Annotated[float, Ge(0)]], {}, "block of a | b: number at least 0"),
    ],
)
def test_a_type_in_words(annotation, limits, words):
    model = create_model("Model", field=(annotation, Field(**limits)))
    assert params_.kind(model.model_fields["field"]) == words


def test_params_yaml_must_be_right_to_be_explained(project):
    (project / "params.yaml").write_text("lr: fast")
    with pytest.raises(GraftError, match=r"params\.yaml"):
        params_.rows()
