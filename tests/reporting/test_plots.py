"""What the pictures show: their artists, their words, their bytes."""

import re

import matplotlib
import numpy as np
import pytest

from stages.reporting import metrics
from stages.reporting.plots import (
    ConfusionMatrixDisplay,
    CurvesDisplay,
    HeadAgainstTunedDisplay,
    ModelGraphDisplay,
    PerClassDisplay,
    PhotosDisplay,
    PrecisionRecallDisplay,
    ReliabilityDisplay,
    RocDisplay,
    Tile,
    graph,
    style,
)


def words(display):
    """All visible text of a figure, in the order of its artists."""
    from matplotlib.text import Text

    return [text.get_text() for text in display.figure_.findobj(Text) if text.get_text() and text.get_visible()]


def names(n):
    return [f"class {k}" for k in range(n)]


def every_display(simulate, curves, n_classes):
    y, p = simulate(40 * n_classes, n_classes)
    classes = names(n_classes)
    report = metrics.classification_report(y, p, classes, resamples=10)
    return [
        CurvesDisplay(curves, unfrozen_at=3),
        ConfusionMatrixDisplay.from_predictions(y, p, classes),
        PerClassDisplay(report["classes"]),
        HeadAgainstTunedDisplay.from_predictions(y, simulate(40 * n_classes, n_classes, signal=1.5)[1], p, classes),
        RocDisplay.from_predictions(y, p, classes),
        PrecisionRecallDisplay.from_predictions(y, p, classes),
        ReliabilityDisplay.from_predictions(y, p),
    ]


@pytest.mark.parametrize("n_classes", [2, 10, 100])
def test_every_picture_stays_within_bounds_and_returns_itself(simulate, curves, n_classes):
    for display in every_display(simulate, curves, n_classes):
        assert display.plot() is display
        width, height = display.figure_.get_size_inches() * style.DPI
        assert width <= 1400 and height <= 1400
        assert len(words(display)) <= 230
        assert len(display.figure_.axes) <= 2


def test_the_same_picture_is_the_same_bytes_whatever_the_settings(simulate, curves):
    first = [(style.png(d.plot().figure_), style.svg(d.figure_)) for d in every_display(simulate, curves, 3)]
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.fonttype": "path", "figure.dpi": 33}):
        again = [(style.png(d.plot().figure_), style.svg(d.figure_)) for d in every_display(simulate, curves, 3)]
    assert first == again
    assert all(png.startswith(b"\x89PNG") and b"Software" not in png for png, _ in first)


def test_axes_that_are_given_are_drawn_on(curves):
    fig = style.figure(4, 4)
    ax = fig.subplots(2)
    assert CurvesDisplay(curves).plot(ax=ax).figure_ is fig
    single = fig.add_subplot()
    assert ConfusionMatrixDisplay(np.eye(2), ["a", "b"]).plot(ax=single).ax_ is single


def test_curves_mark_the_unfreezing_and_the_best_epochs(curves):
    display = CurvesDisplay(curves, unfrozen_at=3).plot()
    assert [name for name, _ in display.phases] == ["head", "fine-tuning"]
    accuracy, loss = display.ax_
    lines = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in loss.lines if line.get_color() == style.RIGHT}
    assert lines[(1, 2, 3)] == (1.4, 1.1, 1.2) and lines[(4, 5)] == (0.9, 0.8)
    assert lines[(2,)] == (1.1,) and lines[(5,)] == (0.8,)  # least validation loss, head and fine-tuning
    assert any(list(line.get_xdata()) == [3.5, 3.5] for line in accuracy.lines)
    assert "unfrozen" in words(display)
    assert "unfrozen" not in words(CurvesDisplay(curves).plot())


def test_confusion_matrix_writes_numbers_to_twenty_classes():
    matrix = np.array([[8, 2, 0], [0, 0, 0], [1, 0, 199]])
    drawn = ConfusionMatrixDisplay(matrix, ["a", "b", "c"]).plot()
    assert sorted(text.get_text() for text in drawn.ax_.texts) == ["1", "199", "2", "8"]
    shares = ConfusionMatrixDisplay(matrix, ["a", "b", "c"], normalise=True).plot()
    assert sorted(text.get_text() for text in shares.ax_.texts) == ["100", "20", "80", "<1"]
    assert not ConfusionMatrixDisplay(np.eye(21), names(21)).plot().ax_.texts
    colours = drawn.ax_.images[0].get_array()
    assert colours[0, 2, 3] == 0 and colours[1].max(axis=0)[3] == 0  # nothing there: nothing drawn
    assert colours[0, 0, 2] > colours[0, 0, 0] and colours[0, 1, 0] > colours[0, 1, 2]  # right blue, wrong red


def test_per_class_bars_are_bounded_and_worst_first(simulate):
    y, p = simulate(3000, 100)
    display = PerClassDisplay.from_predictions(y, p, names(100)).plot()
    widths = [bar.get_width() for bar in display.ax_.patches]
    assert len(widths) == 24
    assert widths == sorted(widths)
    assert widths[0] == min(row["f1"] for row in display.rows)
    assert "The 24 with the least F1 (images)" in words(display)


def test_head_against_tuned_tells_rise_from_fall():
    display = HeadAgainstTunedDisplay([0.5, 0.9, np.nan, 0.7], [0.8, 0.6, np.nan, 0.7], ["up", "down", "none", "same"]).plot()
    assert [tick.get_text() for tick in display.ax_.get_yticklabels()] == ["up", "same", "down"]
    rise, fall = display.ax_.collections
    assert [segment[:, 0].tolist() for segment in rise.get_segments()] == [[0.5, 0.8], [0.7, 0.7]]
    assert [segment[:, 0].tolist() for segment in fall.get_segments()] == [[0.9, 0.6]]


def test_roc_and_precision_recall(simulate):
    y, p = simulate(400, 3)
    report = metrics.classification_report(y, p, names(3), resamples=10)
    for display, key in ((RocDisplay, "roc_auc"), (PrecisionRecallDisplay, "average_precision")):
        drawn = display.from_predictions(y, p, names(3)).plot()
        for row in report["classes"]:
            assert f"{row['class']}  {row[key]:.3f}" in words(drawn)
    xs, ys, area = RocDisplay.from_predictions(y, p, names(3)).curves["class 0"]
    assert np.trapezoid(ys, xs) == pytest.approx(area, abs=2e-3)
    y, p = simulate(3000, 40)
    many = RocDisplay.from_predictions(y, p, names(40)).plot()
    assert len(many.ax_.get_legend().get_texts()) == 4  # all of them as one, and the three worst
    assert all(len(xs) <= 200 for xs, _, _ in many.curves.values())
    assert RocDisplay.from_predictions([0, 0], [[0.6, 0.4], [0.2, 0.8]], ["a", "b"]).plot().curves == {}


def test_reliability_shows_before_and_after(simulate):
    y, p = simulate(500, 4, sharpness=3)
    display = ReliabilityDisplay.from_predictions(y, metrics.apply_temperature(p, 3), uncalibrated=p).plot()
    legend = [text.get_text() for text in display.ax_[0].get_legend().get_texts()]
    errors = [metrics.expected_calibration_error(y, q) for q in (metrics.apply_temperature(p, 3), p)]
    assert legend == [f"calibrated, ECE {errors[0]:.3f}", f"uncalibrated, ECE {errors[1]:.3f}"]


def test_photos_say_right_and_wrong_with_and_without_colour():
    photo = np.full((20, 20, 3), 90, np.uint8)
    tiles = [Tile((photo,), "cat", "cat", 0.91), Tile((photo,), "dog", "cat", 0.66)]
    display = PhotosDisplay.from_tiles("Some", tiles).plot()
    assert [w for w in words(display) if "cat" in w or "dog" in w] == ["✓ cat 91%", "✗ cat 66%", "is dog"]
    canvas = display.ax_.images[0].get_array()
    blue, red = np.array([0x00, 0x72, 0xB2]), np.array([0xD5, 0x5E, 0x00])
    solid, dashed = ((canvas == colour).all(axis=2).sum() for colour in (blue, red))
    assert solid == 120 * 120 - 112 * 112
    assert 0.4 < dashed / solid < 0.6
    assert "none" in words(PhotosDisplay("Nothing", []).plot())


def test_names_of_any_script_and_length_are_drawn(recwarn):
    classes = ["猫", "$x^2$ & <b>", "a very long name of a class that goes on and on"]
    display = ConfusionMatrixDisplay(np.eye(3, dtype=int), classes).plot()
    assert style.png(display.figure_)
    element = style.svg(display.figure_)
    assert "猫" in element and "$x^2$ &amp; &lt;b&gt;" in element and "a very l… and on" in element
    assert not recwarn.list


def test_svg_takes_the_colours_of_the_page(curves):
    element = style.svg(CurvesDisplay(curves, unfrozen_at=3).plot().figure_)
    assert element.startswith('<svg viewBox="0 0 ')
    assert "var(--ink)" in element and "var(--right)" in element
    assert style.INK not in element and style.RIGHT not in element
    assert not re.search(r"<metadata|<\?xml|font-family| (width|height)=\"[\d.]+pt", element.split(">")[0])
    assert "<text" in element


def test_short():
    assert style.short("short") == "short"
    assert style.short("a\nb  c") == "a b c"
    assert style.short("abcdefghijklmnopqrstuvwxyz", 9) == "abcd…wxyz"


def test_graph_of_a_model_with_a_residual_block(model):
    found = graph.blocks(model)
    assert [(b.name, b.shape, b.joins) for b in found] == [
        ("image", (16, 16, 3), ""),
        ("scaling", (16, 16, 3), ""),
        ("stem", (8, 8, 4), ""),
        ("block_1", (8, 8, 4), "add"),
        ("top", (4, 4, 8), ""),
        ("pooling", (8,), ""),
        ("dropout", (8,), ""),
        ("probabilities", (3,), ""),
    ]
    expected = {"stem": 112, "block_1": 148 + 20, "top": 296, "probabilities": 27}
    assert {b.name: b.parameters for b in found if b.parameters} == expected
    assert sum(expected.values()) == model.count_params()
    assert {b.name: b.trained for b in found if b.trained} == {"block_1": 168, "probabilities": 27}
    only = graph.blocks(model, trainable={"probabilities"})
    assert {b.name: b.trained for b in only if b.trained} == {"probabilities": 27}
    display = ModelGraphDisplay(found).plot()
    assert {"Model: 603 parameters, 195 trained  ●", "8 × 8 × 4", "168  ●", "296"} <= set(words(display))


def test_graph_merges_what_would_be_too_long():
    long = [graph.Block(f"block_{k}", 2, (8, 8, 4 + k), 10, 10 if k > 50 else 0) for k in range(60)]
    merged = graph._merged([*long, graph.Block("pooling", 1, (63,), 0, 0)])
    assert [(b.name, b.layers, b.shape, b.parameters, b.trained) for b in merged] == [
        ("block_0 … block_50", 102, (8, 8, 54), 510, 0),
        ("block_51 … block_59", 18, (8, 8, 63), 90, 90),
        ("pooling", 1, (63,), 0, 0),
    ]


@pytest.mark.parametrize(("name", "blocks"), [("MobileNetV2", 17), ("MobileNetV3Small", 11), ("InceptionV3", 11)])
def test_graph_of_a_backbone(name, blocks):
    keras = pytest.importorskip("keras")
    shape = {"input_shape": (96, 96, 3), "include_top": False, "weights": None}
    model = getattr(keras.applications, name)(**shape)
    found = graph.blocks(model)
    assert sum(b.parameters for b in found) == model.count_params()
    assert sum(b.name.startswith(("block_", "expanded_conv", "mixed")) for b in found) == blocks
