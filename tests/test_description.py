import json
import typing

import pytest

from graft import params
from graft.description import FILES, INPUT, OUTPUT, Description
from graft.system.console import GraftError

DESCRIPTION = Description("mobilenet_v2", 0.35, 96, ("a", "b c", "ä"), 0, 0.2, "squashed")


def test_it_comes_back_as_it_was():
    tuned = DESCRIPTION.replace(trainable_layers=50, temperature=1.25, calibrated=True)
    assert Description.from_json(tuned.to_json(), "model.json") == tuned
    assert tuned.replace(trainable_layers=0, temperature=1.0, calibrated=False) == DESCRIPTION


def test_the_text_says_what_goes_in_and_what_comes_out():
    text = DESCRIPTION.to_json()
    tree = json.loads(text)
    assert (tree["input"], tree["output"], tree["version"]) == (INPUT, OUTPUT, 2)
    assert (tree["classes"], tree["temperature"], tree["calibrated"]) == (
        ["a", "b c", "ä"],
        1.0,
        False,
    )
    assert '"ä"' in text and text.startswith('{\n  "backbone"') and text.endswith("}\n")


def test_models_of_before_have_the_limit_on_pixels_that_was_fixed_then():
    from graft import pixels

    tree = json.loads(DESCRIPTION.replace(max_megapixels=200.0).to_json())
    assert tree.pop("max_megapixels") == 200.0
    assert (
        Description.from_json(json.dumps(tree), "model.json").max_megapixels
        == pixels.MAX_MEGAPIXELS
    )


def test_what_a_later_version_adds_is_passed_over():
    tree = json.loads(DESCRIPTION.to_json()) | {"something": "new"}
    assert Description.from_json(json.dumps(tree), "model.json") == DESCRIPTION


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"classes": ["a"]}',
        DESCRIPTION.to_json().replace('"classes"', '"labels"'),
    ],
    ids=["empty", "cut off", "list", "null", "fields missing", "no classes"],
)
def test_a_damaged_description_is_named(text):
    with pytest.raises(
        GraftError, match=r"^here/model\.json: not the description of a classifier, or damaged: "
    ):
        Description.from_json(text, "here/model.json")


def test_labels_are_a_line_each():
    assert DESCRIPTION.labels_text() == "a\nb c\nä\n"
    assert DESCRIPTION.replace(classes=("two\nlines", "b")).labels_text() == "two lines\nb\n"


def test_every_format_has_its_file_and_no_two_the_same():
    assert set(FILES) == set(typing.get_args(params.Format))
    assert len(set(FILES.values())) == len(FILES)
