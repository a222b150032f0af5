"""How a figure becomes bytes and a part of a page."""

import re

import matplotlib
import numpy as np
import pytest

from graft.figures import style
from graft.figures.classes import ConfusionMatrixDisplay
from graft.figures.curves import CurvesDisplay


def test_the_same_figure_is_the_same_bytes_whatever_the_settings(history, tmp_path):
    def drawn():
        figure = CurvesDisplay(history).plot().figure_
        style.png(figure, tmp_path / "figure.png")
        return (tmp_path / "figure.png").read_bytes(), style.svg(figure)

    first = drawn()
    with matplotlib.rc_context(
        {"font.size": 20, "axes.facecolor": "red", "svg.fonttype": "path", "figure.dpi": 33}
    ):
        again = drawn()
    assert first == again
    assert first[0].startswith(b"\x89PNG")
    assert b"Software" not in first[0]


def test_axes_that_are_given_are_drawn_on(history):
    fig = style.figure(4, 4)
    ax = fig.subplots(2)
    assert CurvesDisplay(history).plot(ax=ax).figure_ is fig
    single = fig.add_subplot()
    assert ConfusionMatrixDisplay(np.eye(2), ["a", "b"]).plot(ax=single).ax_ is single


def test_names_of_any_script_and_length_are_drawn(recwarn, tmp_path):
    classes = ["猫", "$x^2$ & <b>", "a very long name of a class that goes on and on"]
    display = ConfusionMatrixDisplay(np.eye(3, dtype=int), classes).plot()
    style.png(display.figure_, tmp_path / "figure.png")
    element = style.svg(display.figure_)
    assert "猫" in element
    assert "$x^2$ &amp; &lt;b&gt;" in element
    assert "a very l… and on" in element
    assert not recwarn.list


def test_svg_takes_the_colours_of_the_page(history):
    element = style.svg(CurvesDisplay(history).plot().figure_)
    assert element.startswith('<svg viewBox="0 0 ')
    assert "var(--ink)" in element
    assert "var(--right)" in element
    assert style.INK not in element
    assert style.RIGHT not in element
    assert not re.search(
        r"<metadata|<\?xml|font-family| (width|height)=\"[\d.]+pt", element.split(">")[0]
    )
    assert "<text" in element


@pytest.mark.parametrize(
    "name",
    [
        "font: 12px",
        "font-family: x;",
        'a id="a"',
        "#c0ffee",
        style.RIGHT,
        "url(#a)",
        "--> &lt;",
        "<metadata>",
    ],
)
def test_a_class_may_be_called_like_what_svg_rewrites(name):
    """Its text comes through, and the tags are those of a figure of a class with a harmless
    name."""
    from xml.etree import ElementTree

    def element(name):
        return style.svg(ConfusionMatrixDisplay(np.eye(2, dtype=int), [name, "b"]).plot().figure_)

    tree = ElementTree.fromstring(element(name).replace("xlink:href", "href"))
    assert name in [text.text for text in tree.iter("text")]
    harmless = element("x" * len(name))
    tags = [re.sub(r'"[^"]*"', '""', tag) for tag in style.TAG.findall(element(name))]
    assert tags == [re.sub(r'"[^"]*"', '""', tag) for tag in style.TAG.findall(harmless)]


def test_ids_stay_where_they_are_referred_to(history):
    """One page holds many figures: an id that nothing refers to would only collide."""
    element = style.svg(CurvesDisplay(history).plot().figure_)
    ids = set(re.findall(r' id="([^"]*)"', element))
    assert ids
    assert ids <= set(re.findall(r"#([\w.-]+)", element))


@pytest.mark.parametrize(
    ("name", "limit", "expected"),
    [
        ("short", 22, "short"),
        ("a\nb  c", 22, "a b c"),
        ("abcdefghijklmnopqrstuvwxyz", 9, "abcd…wxyz"),
    ],
)
def test_short(name, limit, expected):
    assert style.short(name, limit) == expected
