"""What the figures show: their artists and their words."""

import numpy as np
import pytest

from graft.figures import style
from graft.figures.calibration import ReliabilityDisplay
from graft.figures.classes import ConfusionMatrixDisplay, HeadAgainstTunedDisplay, PerClassDisplay
from graft.figures.curves import CurvesDisplay
from graft.figures.image_grid import ImageGridDisplay, PredictedImage
from graft.figures.ranking import PrecisionRecallDisplay, RocDisplay
from graft.scoring import metrics
from graft.scoring.calibration import apply_temperature, expected_calibration_error
from graft.scoring.history import History
from graft.scoring.predictions import Predictions


def words(display):
    """All visible text of a figure, in the order of its artists."""
    from matplotlib.text import Text

    return [
        text.get_text()
        for text in display.figure_.findobj(Text)
        if text.get_text() and text.get_visible()
    ]


@pytest.mark.parametrize("n_classes", [2, 10, 100])
def test_every_figure_stays_within_bounds_and_returns_itself(simulate, history, n_classes):
    found = simulate(40 * n_classes, n_classes)
    for display in (
        CurvesDisplay(history),
        ConfusionMatrixDisplay.from_predictions(found),
        PerClassDisplay(metrics.classification_report(found, resamples=10)["classes"]),
        HeadAgainstTunedDisplay.from_predictions(
            simulate(40 * n_classes, n_classes, signal=1.5), found
        ),
        RocDisplay.from_predictions(found),
        PrecisionRecallDisplay.from_predictions(found),
        ReliabilityDisplay.from_predictions(found),
    ):
        assert display.plot() is display
        width, height = display.figure_.get_size_inches() * style.DPI
        assert width <= 1400
        assert height <= 1400
        assert len(words(display)) <= 230
        assert len(display.figure_.axes) <= 2


def test_curves_mark_the_unfreezing_and_the_best_epochs(history):
    display = CurvesDisplay(history).plot()
    accuracy, loss = display.ax_
    lines = {
        tuple(line.get_xdata()): tuple(line.get_ydata())
        for line in loss.lines
        if line.get_color() == style.RIGHT
    }
    assert (lines[1, 2, 3], lines[4, 5]) == ((1.4, 1.1, 1.2), (0.9, 0.8))
    assert (lines[2,], lines[5,]) == ((1.1,), (0.8,))  # least validation loss, head and fine-tuning
    assert any(list(line.get_xdata()) == [3.5, 3.5] for line in accuracy.lines)
    assert "unfrozen" in words(display)


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_curves_of_a_head_alone(history, epochs, recwarn, tmp_path):
    display = CurvesDisplay(History(history.head[:epochs])).plot()
    style.png(display.figure_, tmp_path / "figure.png")
    assert "unfrozen" not in words(display)
    assert ("validation" in words(display)) == (epochs > 0)
    assert not recwarn.list


def test_confusion_matrix_writes_numbers_to_twenty_classes():
    matrix = np.array([[8, 2, 0], [0, 0, 0], [1, 0, 199]])
    drawn = ConfusionMatrixDisplay(matrix, ["a", "b", "c"]).plot()
    assert sorted(text.get_text() for text in drawn.ax_.texts) == ["1", "199", "2", "8"]
    shares = ConfusionMatrixDisplay(matrix, ["a", "b", "c"], normalise=True).plot()
    assert sorted(text.get_text() for text in shares.ax_.texts) == ["100", "20", "80", "<1"]
    assert not ConfusionMatrixDisplay(np.eye(21), list("abcdefghijklmnopqrstu")).plot().ax_.texts
    colours = drawn.ax_.images[0].get_array()
    assert colours[0, 2, 3] == colours[1].max(axis=0)[3] == 0  # nothing there: nothing drawn
    assert colours[0, 0, 2] > colours[0, 0, 0]  # right: blue
    assert colours[0, 1, 0] > colours[0, 1, 2]  # wrong: red


def test_per_class_bars_are_bounded_and_worst_first(simulate):
    rows = metrics.classification_report(simulate(3000, 100), resamples=10)["classes"]
    display = PerClassDisplay(rows).plot()
    widths = [bar.get_width() for bar in display.ax_.patches]
    assert len(widths) == 24
    assert widths == sorted(widths)
    assert widths[0] == min(row["f1"] for row in rows)
    assert "The 24 with the least F1 (images)" in words(display)


def test_head_against_tuned_tells_rise_from_fall():
    display = HeadAgainstTunedDisplay(
        [0.5, 0.9, np.nan, 0.7], [0.8, 0.6, np.nan, 0.7], ["up", "down", "none", "same"]
    ).plot()
    assert [tick.get_text() for tick in display.ax_.get_yticklabels()] == ["up", "same", "down"]
    rise, fall = display.ax_.collections
    assert [segment[:, 0].tolist() for segment in rise.get_segments()] == [[0.5, 0.8], [0.7, 0.7]]
    assert [segment[:, 0].tolist() for segment in fall.get_segments()] == [[0.9, 0.6]]


def test_no_axis_of_recalls_leads_beyond_1():
    display = HeadAgainstTunedDisplay([1.0, 1.0], [1.0, 1.0], ["a", "b"]).plot()
    low, high = display.ax_.get_xlim()
    assert 0 <= low < 1 < high < 1.02


def test_head_against_tuned_shows_the_largest_changes_of_many_classes():
    head, tuned = np.full(40, 0.5), np.full(40, 0.5)
    tuned[3], tuned[30] = 0.9, 0.1
    display = HeadAgainstTunedDisplay(head, tuned, [f"c{k}" for k in range(40)]).plot()
    assert [tick.get_text() for tick in display.ax_.get_yticklabels()] == ["c3", "c30"]
    assert "The 2 largest changes" in words(display)


def test_roc_and_precision_recall(simulate):
    found = simulate(400, 3, classes=["class 0", "_class", "class 2"])
    rows = metrics.classification_report(found, resamples=10)["classes"]
    for display, key in ((RocDisplay, "roc_auc"), (PrecisionRecallDisplay, "average_precision")):
        drawn = display.from_predictions(found).plot()
        for row in rows:
            assert f"{row[key]:.3f}  {row['class']}" in [
                text.get_text() for text in drawn.ax_.get_legend().get_texts()
            ]
    xs, ys, area = RocDisplay.from_predictions(found).curves["class 0"]
    assert np.trapezoid(ys, xs) == pytest.approx(area, abs=2e-3)
    many = RocDisplay.from_predictions(simulate(3000, 40)).plot()
    assert len(many.ax_.get_legend().get_texts()) == 4  # all of them as one, and the three worst
    assert all(len(xs) <= 200 for xs, _, _ in many.curves.values())
    one = Predictions("xy", [0, 0], [[0.6, 0.4], [0.2, 0.8]], "ab")
    assert RocDisplay.from_predictions(one).plot().curves == {}


def test_reliability_shows_before_and_after(simulate):
    bare = simulate(500, 4, sharpness=3)
    scaled = bare.replace_probabilities(apply_temperature(bare.probabilities, 3))
    display = ReliabilityDisplay.from_predictions(scaled, uncalibrated=bare).plot()
    legend = [text.get_text() for text in display.ax_[0].get_legend().get_texts()]
    errors = [expected_calibration_error(some) for some in (scaled, bare)]
    assert legend == [f"calibrated, ECE {errors[0]:.3f}", f"uncalibrated, ECE {errors[1]:.3f}"]


def test_images_say_right_and_wrong_with_and_without_colour():
    pixels = np.full((20, 20, 3), 90, np.uint8)
    images = [
        PredictedImage((pixels,), "cat", "cat", 0.91),
        PredictedImage((pixels,), "dog", "cat", 0.66),
    ]
    display = ImageGridDisplay.from_images("Some", images).plot()
    assert [w for w in words(display) if "cat" in w or "dog" in w] == [
        "✓ cat 91%",
        "✗ cat 66%",
        "is dog",
    ]
    canvas = display.ax_.images[0].get_array()
    blue, red = np.array([0x00, 0x72, 0xB2]), np.array([0xCC, 0x33, 0x11])
    solid, dashed = ((canvas == colour).all(axis=2).sum() for colour in (blue, red))
    assert solid == 120 * 120 - 112 * 112
    assert 0.4 < dashed / solid < 0.6
    assert "none" in words(ImageGridDisplay("Nothing", []).plot())
