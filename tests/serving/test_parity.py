import dataclasses
import math

import numpy as np
import pytest

from graft.description import FILES
from graft.scoring.predictions import Predictions
from graft.serving import parity, readers, writers
from graft.system.console import GraftError

from .conftest import CLASSES

GOOD = parity.Check("tflite", 1000, 100, 1.0, 0, 1e-6, 0.9, 0.9, 0.01, 0.02)
GATES = {"min_agreement": 0.98, "max_accuracy_drop": 0.015}


def test_spread_is_even_and_ends_at_the_ends():
    assert parity.spread(3, 200).tolist() == [0, 1, 2]
    assert parity.spread(9, 5).tolist() == [0, 2, 4, 6, 8]
    many = parity.spread(10_000, 200)
    assert (len(many), many[0], many[-1]) == (200, 0, 9999)
    assert set(np.diff(many)) == {50, 51}


HALF, EIGHT, DYNAMIC = (
    {"format": name} for name in ("tflite_fp16", "tflite_int8", "tflite_dynamic")
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        # What computes in float32 is held to the probabilities, whatever it decides.
        (
            {"max_difference": 2e-4},
            "a probability differs from the original's by 0.0002 on 100 images, at most 0.0001",
        ),
        (
            {"format": "onnx", "max_difference": 2e-4},
            "a probability differs from the original's by 0.0002",
        ),
        ({"max_difference": math.nan}, "its probabilities are no numbers on 100 images"),
        (EIGHT | {"max_difference": math.nan}, "its probabilities are no numbers"),
        # What rounds is held to what it decides: 0.057 in one probability once failed a whole
        # experiment.
        (HALF | {"max_difference": 0.057}, ""),
        (EIGHT | {"max_difference": 0.6}, ""),
        (HALF | {"agreement": 0.98}, ""),
        (
            HALF | {"agreement": 0.97},
            (
                "agrees with the original on 0.9700 of 100 images, at least 0.98 "
                "(export.min_agreement)"
            ),
        ),
        (EIGHT | {"agreement": 0.97}, ""),
        (DYNAMIC | {"agreement": 0.97}, ""),
        (
            EIGHT | {"agreement": 0.96},
            (
                "agrees with the original on 0.9600 of 100 images, at least 0.97 "
                "(export.min_agreement less 0.01 for 8 bits)"
            ),
        ),
        # Raw agreement: that the original had no clear opinion of an image does not count for it.
        (HALF | {"agreement": 0.8, "clear_disagreements": 0}, "agrees with the original on 0.8000"),
        (EIGHT | {"accuracy": 0.885}, ""),
        (
            EIGHT | {"accuracy": 0.88},
            "loses 0.0200 of accuracy on 100 images, at most 0.015 (export.max_accuracy_drop)",
        ),
        (HALF | {"accuracy": 0.95}, ""),
        # Of few images a single one is no sign.
        (EIGHT | {"n": 20, "agreement": 0.95, "accuracy": 0.85}, ""),
        (EIGHT | {"n": 20, "agreement": 0.9}, "agrees with the original on 0.9000 of 20 images"),
        (EIGHT | {"n": 20, "accuracy": 0.8}, "loses 0.1000 of accuracy on 20 images"),
    ],
)
def test_what_a_format_misses_is_said_with_its_figures(changes, expected):
    found = parity.miss(dataclasses.replace(GOOD, **changes), **GATES)
    assert found.startswith(expected) and bool(found) == bool(expected)


def test_a_lossy_format_does_not_fail_an_experiment(capsys):
    checks = [
        dataclasses.replace(GOOD, format="keras"),
        dataclasses.replace(GOOD, **HALF, agreement=0.9),
        GOOD,
    ]
    kept = parity.passed(checks, on_miss="drop", **GATES)
    assert [c.format for c in kept] == ["keras", "tflite"]
    said = "agrees with the original on 0.9000 of 100 images, at least 0.98 (export.min_agreement)"
    assert capsys.readouterr().err == f"warning: export: tflite_fp16 left out: {said}\n"
    with pytest.raises(
        GraftError, match=r"^export: tflite_fp16: agrees with the original on 0\.9000"
    ):
        parity.passed(checks, on_miss="fail", **GATES)


def test_the_keras_model_is_never_left_out():
    with pytest.raises(GraftError, match=r"^export: keras: a probability differs"):
        parity.passed(
            [dataclasses.replace(GOOD, format="keras", max_difference=1.0)], on_miss="drop", **GATES
        )


@dataclasses.dataclass
class Shown:
    """An ImageSet in memory."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple = CLASSES

    @property
    def paths(self):
        return tuple(map(str, range(len(self.images))))

    def __len__(self):
        return len(self.images)

    def read(self, positions):
        yield self.images[positions]


@pytest.mark.parametrize(
    ("wrong", "margin", "refused"),
    [(0, 0.5, False), (3, 0.05, False), (1, 0.15, True), (3, 0.5, True)],
)
def test_evaluate_must_have_found_the_same_but_for_near_ties(wrong, margin, refused):
    """wrong: images of 20 of which evaluate found another class, which the original holds for less
    likely by `margin`."""
    own = np.tile([0.5 + margin / 2, 0.5 - margin / 2, 0.0], (20, 1))
    found = own.copy()
    found[:wrong] = found[:wrong, [1, 0, 2]]
    shown = Shown(np.zeros((20, 4, 4, 3), np.uint8), np.zeros(20, int))
    evaluated = parity.decided(Predictions(shown.paths, shown.labels, found, CLASSES), shown)
    against = parity.Reference(shown.images, shown.labels, own)
    if not refused:
        parity.require_evaluated(against, evaluated)
        return
    with pytest.raises(
        GraftError,
        match=rf"^export: the model answers otherwise on {wrong} of 20 test images than evaluate ",
    ):
        parity.require_evaluated(against, evaluated)


def test_check_measures_a_file(exported, images, expected):
    labels = expected.argmax(1)
    labels[:6] = (labels[:6] + 1) % 3  # six of the 24 are wrong by the labels
    against = parity.Reference(images, labels, expected)
    found = parity.check(readers.load("tflite", exported), against)
    assert found.bytes == (exported / "model.tflite").stat().st_size
    assert (found.n, found.agreement, found.clear_disagreements, found.accuracy) == (
        24,
        1.0,
        0,
        0.75,
    )
    assert found.reference_accuracy == 0.75
    assert 0 < found.max_difference < 1e-4
    assert 0 < found.latency_p50 <= found.latency_p95
    folder = parity.check(readers.load("saved_model", exported), against)
    assert folder.bytes == sum(
        p.stat().st_size for p in (exported / "saved_model").rglob("*") if p.is_file()
    )


def test_disagreement_is_counted_and_ties_apart(exported, images, expected):
    """A reference whose classes 0 and 1 change places disagrees where they matter."""
    other = expected[:, [1, 0, 2]]
    found = parity.check(
        readers.load("tflite", exported), parity.Reference(images, expected.argmax(1), other)
    )
    moved = expected.argmax(1) != other.argmax(1)
    margin = other.max(1) - other[np.arange(24), expected.argmax(1)]
    assert moved.sum() > (margin > 0.1).sum() > 2
    assert found.agreement == pytest.approx(1 - moved.mean())
    assert found.clear_disagreements == (margin > 0.1).sum()
    assert found.reference_accuracy == pytest.approx(1 - moved.mean())


def test_the_reference_applies_the_temperature_that_is_not_applied_yet(trained, images, expected):
    model, description = trained
    network, _ = writers.self_contained(model, description)
    shown = parity.Reference(images, np.arange(24) % 3, expected)
    against = parity.reference(model, description, network, shown)
    # A graph may fuse what is computed step by step otherwise: the last bits differ, and the
    # temperature spreads them.
    np.testing.assert_allclose(against.probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(against.shipped, expected, atol=1e-5)
    np.testing.assert_array_equal(against.labels, shown.labels)
    for plain in (description.replace(temperature=1.0), description.replace(calibrated=True)):
        found = parity.reference(model, plain, model, shown).probabilities
        np.testing.assert_allclose(found, model(images, training=False), atol=1e-5)


def test_exact_formats_are_compared_on_some_of_the_images_and_the_two_agree_on_which(
    trained, images, expected, monkeypatch
):
    monkeypatch.setattr(parity, "EXACT_SAMPLE", 5)
    turned = expected[:, [1, 2, 0]]
    among = parity.Reference(images, np.arange(24), turned)
    against = parity.reference(*trained, trained[0], among)
    assert against.labels.tolist() == [0, 6, 12, 17, 23]
    np.testing.assert_allclose(against.probabilities, expected[against.labels], atol=1e-5)
    parity.require_evaluated(against, dataclasses.replace(among, probabilities=expected))
    others = int(
        (expected.max(1) - expected[np.arange(24), turned.argmax(1)] > parity.TIE)[
            against.labels
        ].sum()
    )
    assert others > 0
    with pytest.raises(GraftError, match=rf"otherwise on {others} of 5 "):
        parity.require_evaluated(against, among)


def test_figures_hold_no_times():
    other = dataclasses.replace(GOOD, latency_p50=9.0, latency_p95=9.9)
    figures = {
        "bytes": 1000,
        "n": 100,
        "agreement": 1.0,
        "clear_disagreements": 0,
        "max_difference": 1e-6,
        "accuracy": 0.9,
    }
    assert parity.figures([GOOD]) == parity.figures([other]) == {"tflite": figures}
    assert parity.latencies([other]) == {
        "tflite": {"latency_p50_ms": 9000.0, "latency_p95_ms": 9900.0}
    }


def test_table_has_a_line_per_format():
    lines = parity.table([dataclasses.replace(GOOD, format=name) for name in FILES]).splitlines()
    assert len(lines) == 1 + len(FILES)
    assert len({len(line) for line in lines}) == 1
    assert lines[4].split() == [
        "tflite",
        "0.00",
        "100",
        "1.0000",
        "1.0e-06",
        "0.9000",
        "10.0",
        "20.0",
    ]
