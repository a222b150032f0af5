"""The page: well-formed, whole in itself, and saying what was found."""

import dataclasses
import html.parser
import re

import pytest

from graft.reporting import model_card, plots
from graft.scoring.calibration import Calibration


class Page(html.parser.HTMLParser):
    """Checks that every element is closed where it was opened; collects what the page would
    load."""

    void = {"meta", "link", "img", "br", "path", "use", "rect"}

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.text = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in self.void:
            self.open.append(tag)
        self.loads += [
            v
            for k, v in attributes
            if k in ("src", "href", "xlink:href", "srcset") and not v.startswith("#")
        ]

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_data(self, data):
        self.text.append(data)


def text_of(page):
    return " ".join(" ".join(Page(page).text).split())


@pytest.fixture(scope="module")
def card(results, about, arguments, images, tmp_path_factory):
    return drawn(
        tmp_path_factory.mktemp("plots"),
        results,
        about,
        models=arguments["models"],
        images=images,
        seed=0,
    )


def drawn(folder, results, about, **options):
    """The arguments of `render`."""
    report, paired = results.report(resamples=10)
    drawn_ = plots.draw_evaluation(folder, results, report, **options)
    return {
        "about": about,
        "results": results,
        "report": report,
        "against_head": paired,
        "plots": drawn_,
    }


def rendered(card, **changes):
    return model_card.render(**{**card, **changes})


def test_card_needs_nothing_but_itself(written):
    folder, evaluation = written
    text = (folder / "card.html").read_text(encoding="utf-8")
    assert text == evaluation.page
    page = Page(text)
    assert page.loads
    assert all(address.startswith("data:image/") for address in page.loads)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert "width=device-width" in text
    assert not re.search(r"20\d\d-\d\d-\d\d", text)  # no date


def test_every_image_is_there_when_the_page_is_printed(written):
    """An image that loads when it is scrolled to is an empty frame on paper."""
    assert 'loading="lazy"' not in written[1].page


def test_card_says_what_was_found(written):
    _, evaluation = written
    text, found = text_of(evaluation.page), evaluation.report["summary"]
    for figure in (
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "balanced_accuracy",
        "macro_f1",
        "head_accuracy",
    ):
        assert f"{100 * found[figure]:.1f}%" in text
    assert f"{100 * found['ece_uncalibrated']:.1f} points" in text
    given = [
        'a "b", <c> & d',
        "truncated: 50 (set aside)",
        "… and 10 more",
        "import keras",
        "ab12",
        "images 102 classes 3",
    ]
    assert [words for words in given if words not in text] == []
    assert "git commit" not in text


def test_the_peak_rate_of_a_warm_up_is_not_its_first(written):
    text = text_of(written[1].page)
    assert (
        "epochs, head 3 epochs, fine-tuning 2 peak lr, head 0.001 peak lr, fine-tuning 0.0001"
        in text
    )


def test_provenance_and_params_are_put_into_the_page_that_is_there(written):
    _, evaluation = written
    provenance = {
        "git commit": "c0ffee",
        "MLflow": "http://127.0.0.1:5000/#/runs/1",
        "by": "javascript:alert(1)",
    }
    page = model_card.with_provenance(
        evaluation.page, params={"lr": "0.001", "<b>": "x"}, provenance=provenance
    )
    before, after = evaluation.page.split(model_card.PROVENANCE)
    assert page.startswith(before)
    assert page.endswith(after)
    text = text_of(page)
    assert "git commit c0ffee" in text
    assert "All parameters lr 0.001 <b> x" in text
    assert re.findall(r"<a [^>]*>", page) == ['<a href="http://127.0.0.1:5000/#/runs/1">']


def test_a_class_called_like_the_marker_moves_nothing(results, about, arguments, images, tmp_path):
    names = [model_card.PROVENANCE, "font: 12px", '" id="a" #c0ffee']
    predictions, head = (
        dataclasses.replace(some, classes=names) for some in (results.predictions, results.head)
    )
    renamed = dataclasses.replace(results, predictions=predictions, head=head)
    page = rendered(
        drawn(tmp_path, renamed, about, models=arguments["models"], images=images, seed=0)
    )
    assert page.count(model_card.PROVENANCE) == 1
    texts = Page(page).text
    for name in names:  # in the table, and in at least four figures
        assert sum(name in text for text in texts) > 5


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        (Calibration(), "did not call for temperature scaling"),
        (
            Calibration(2.0),
            (
                "The temperature fitted on the validation images, 2.000, is not applied; with it "
                "the error would be"
            ),
        ),
        (
            Calibration(2.0, applied=True),
            "The temperature, 2.000, was fitted on the validation images and is part of the model",
        ),
    ],
)
def test_card_tells_what_became_of_the_temperature(card, results, calibration, words):
    other = dataclasses.replace(results, calibration=calibration)
    assert words in text_of(rendered(card, results=other, report=other.report(resamples=10)[0]))


@pytest.mark.parametrize(("hidden_units", "shown"), [(0, "none"), (1280, "1,280")])
def test_card_describes_the_model(card, about, hidden_units, shown):
    described = dataclasses.replace(
        about, description=about.description.replace(hidden_units=hidden_units)
    )
    text = text_of(rendered(card, about=described))
    assert (
        "tiny & <small> for 3 classes Says which of 3 classes a photo shows: a new head grafted "
        "onto" in text
    )
    facts = "backbone tiny & <small> width (alpha) 0.35 input 96 x 96 RGB, uint8 resizing squash"
    assert f"{facts} dense layer {shown} dropout 0.25 unfrozen layers 20 temperature 1.2346" in text
    assert 'load_model("data/export/model.keras")' in text
    assert "uint8 RGB (n, 96, 96, 3)" in text


def test_no_problem_is_said(card, about):
    assert "No file was set aside." in text_of(
        rendered(card, about=dataclasses.replace(about, problems=[]))
    )
