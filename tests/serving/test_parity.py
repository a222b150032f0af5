import dataclasses
import math

import numpy as np
import pytest

from graft.description import FILES
from graft.serving import parity, readers
from graft.system.console import GraftError

GOOD = parity.Check("tflite", 1000, 100, 1.0, 0, 1e-6, 0.9, 0.01, 0.02)


def test_spread_is_even_and_ends_at_the_ends():
    assert parity.spread(3, 200).tolist() == [0, 1, 2]
    assert parity.spread(9, 5).tolist() == [0, 2, 4, 6, 8]
    many = parity.spread(10_000, 200)
    assert (len(many), many[0], many[-1]) == (200, 0, 9999)
    assert set(np.diff(many)) == {50, 51}


@pytest.mark.parametrize(
    ("n", "min_agreement", "expected"),
    [(200, 0.98, 9), (100, 0.98, 6), (49, 0.98, 4), (3, 0.98, 1), (3, 1.0, 0), (200, 1.0, 0), (10, 0.5, 9), (5, 0.0, 5)],
)
def test_allowed_disagreements(n, min_agreement, expected):
    assert parity.allowed(n, min_agreement) == expected


@pytest.mark.parametrize(
    ("changes", "min_agreement", "expected"),
    [
        ({}, 0.98, None),
        ({"agreement": 0.93, "clear_disagreements": 6}, 0.98, None),
        ({"n": 3, "agreement": 2 / 3, "clear_disagreements": 1}, 0.98, None),
        ({"n": 3, "agreement": 1 / 3, "clear_disagreements": 2}, 0.98, "clearly another class than the original's on 2 of 3"),
        ({"agreement": 0.93, "clear_disagreements": 7}, 0.98, "on 7 of 100 test images (agreement 0.9300)"),
        ({"agreement": 0.99, "clear_disagreements": 1}, 1.0, "lower export.min_agreement (1.0) or drop the format"),
        (
            {"max_difference": 2e-4},
            0.98,
            "a probability differs from the original's by 0.0002 (at most 0.0001 on 100 test images)",
        ),
        ({"max_difference": math.nan}, 0.98, "by nan"),
        ({"format": "tflite_fp16", "max_difference": 0.04}, 0.98, None),
        ({"format": "tflite_fp16", "max_difference": 0.06}, 0.98, "export: tflite_fp16: a probability differs"),
        ({"format": "tflite_int8", "max_difference": 0.6}, 0.98, None),
        ({"format": "tflite_int8", "max_difference": math.nan}, 0.98, "by nan"),
    ],
)
def test_require_agreement_names_format_and_figure(changes, min_agreement, expected):
    checks = [GOOD, dataclasses.replace(GOOD, **changes)]
    if expected is None:
        parity.require_agreement(checks, min_agreement)
        return
    with pytest.raises(GraftError) as refused:
        parity.require_agreement(checks, min_agreement)
    assert expected in str(refused.value)
    assert str(refused.value).startswith(f"export: {changes.get('format', 'tflite')}: ")


@pytest.mark.parametrize(("accuracy", "expected", "n"), [(0.95, 0.95, 20), (0.95, 0.9, 20), (0.951, 0.947, 1000)])
def test_require_accuracy_lets_an_image_near_a_boundary_fall_on_its_other_side(accuracy, expected, n):
    parity.require_accuracy(accuracy, expected, n=n)


@pytest.mark.parametrize(("accuracy", "expected", "n"), [(0.95, 0.85, 20), (0.95, 1.05, 20), (0.951, 0.945, 1000)])
def test_require_accuracy_refuses_more(accuracy, expected, n):
    with pytest.raises(GraftError, match=rf"^export: keras: accuracy {accuracy:.4f} on {n} test images, but evaluate found "):
        parity.require_accuracy(accuracy, expected, n=n)


def test_check_measures_a_file(exported, images, expected):
    labels = expected.argmax(1)
    labels[:6] = (labels[:6] + 1) % 3  # six of the 24 are wrong by the labels
    loaded = readers.load("tflite", exported)
    found = parity.check(loaded, images, labels, expected)
    assert found.bytes == (exported / "model.tflite").stat().st_size
    assert (found.n, found.agreement, found.clear_disagreements, found.accuracy) == (24, 1.0, 0, 0.75)
    assert 0 < found.max_difference < 1e-4
    assert 0 < found.latency_p50 <= found.latency_p95
    assert parity.accuracy(loaded, [images[:5], images[5:]], labels) == 0.75
    folder = parity.check(readers.load("saved_model", exported), images, labels, expected)
    assert folder.bytes == sum(p.stat().st_size for p in (exported / "saved_model").rglob("*") if p.is_file())


def test_disagreement_is_counted_and_ties_apart(exported, images, expected):
    """A reference whose classes 0 and 1 change places disagrees where they matter."""
    other = expected[:, [1, 0, 2]]
    found = parity.check(readers.load("tflite", exported), images, expected.argmax(1), other)
    moved = expected.argmax(1) != other.argmax(1)
    margin = other.max(1) - other[np.arange(24), expected.argmax(1)]
    assert moved.sum() > (margin > 0.1).sum() > 2
    assert found.agreement == pytest.approx(1 - moved.mean())
    assert found.clear_disagreements == (margin > 0.1).sum()
    with pytest.raises(GraftError, match="clearly another class"):
        parity.require_agreement([dataclasses.replace(found, max_difference=0.0)], 0.98)


def test_original_applies_the_temperature_that_is_not_applied_yet(trained, images, expected):
    model, description = trained
    # A graph may fuse what is computed step by step otherwise: the last bits differ, and the temperature spreads them.
    np.testing.assert_allclose(parity.original(model, description, images), expected, atol=1e-5)
    for plain in (description.replace(temperature=1.0), description.replace(calibrated=True)):
        np.testing.assert_allclose(parity.original(model, plain, images), model(images, training=False), atol=1e-5)


def test_figures_hold_no_times():
    other = dataclasses.replace(GOOD, latency_p50=9.0, latency_p95=9.9)
    figures = {"bytes": 1000, "n": 100, "agreement": 1.0, "clear_disagreements": 0, "max_difference": 1e-6, "accuracy": 0.9}
    assert parity.figures([GOOD]) == parity.figures([other]) == {"tflite": figures}
    assert parity.latencies([other]) == {"tflite": {"latency_p50_ms": 9000.0, "latency_p95_ms": 9900.0}}


def test_table_has_a_line_per_format():
    lines = parity.table([dataclasses.replace(GOOD, format=name) for name in FILES]).splitlines()
    assert len(lines) == 8
    assert len({len(line) for line in lines}) == 1
    assert lines[4].split() == ["tflite", "0.00", "1.0000", "1.0e-06", "0.9000", "10.0", "20.0"]
