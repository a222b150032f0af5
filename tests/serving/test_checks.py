import dataclasses
import json
import math

import numpy as np
import pytest

from stages.serving import checks, formats

GOOD = checks.Check("tflite", 1000, 100, 1.0, 0, 1e-6, 0.9, 0.01, 0.02)


def test_sample_is_spread_evenly_and_ends_at_the_ends():
    assert checks.sample(3).tolist() == [0, 1, 2]
    assert checks.sample(9, 5).tolist() == [0, 2, 4, 6, 8]
    many = checks.sample(10_000)
    assert (len(many), many[0], many[-1]) == (200, 0, 9999)
    assert set(np.diff(many)) == {50, 51}


@pytest.mark.parametrize(
    ("n", "min_agreement", "expected"),
    [(200, 0.98, 9), (100, 0.98, 6), (49, 0.98, 4), (3, 0.98, 1), (3, 1.0, 0), (200, 1.0, 0), (10, 0.5, 9), (5, 0.0, 5)],
)
def test_allowed_disagreements(n, min_agreement, expected):
    assert checks.allowed(n, min_agreement) == expected


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
def test_verdict_names_format_and_figure(changes, min_agreement, expected):
    found = checks.problem(dataclasses.replace(GOOD, **changes), min_agreement)
    if expected is None:
        assert found is None
    else:
        assert expected in found
        assert found.startswith(f"export: {changes.get('format', 'tflite')}: ")


def test_check_measures_a_file(exported, pictures, expected):
    y = expected.argmax(1)
    y[:6] = (y[:6] + 1) % 3  # six of the 24 are wrong by the labels
    found = checks.check(formats.load("tflite", exported), exported, images=pictures, y=y, reference=expected)
    assert found.bytes == (exported / "model.tflite").stat().st_size
    assert (found.n, found.agreement, found.clear_disagreements, found.accuracy) == (24, 1.0, 0, 0.75)
    assert 0 < found.max_difference < 1e-4
    assert 0 < found.latency_p50 <= found.latency_p95
    folder = checks.check(formats.load("saved_model", exported), exported, images=pictures, y=y, reference=expected)
    assert folder.bytes == sum(p.stat().st_size for p in (exported / "saved_model").rglob("*") if p.is_file())


def test_disagreement_is_counted_and_ties_apart(exported, pictures, expected):
    """A reference whose classes 0 and 1 change places disagrees where they matter."""
    other = expected[:, [1, 0, 2]]
    found = checks.check(formats.load("tflite", exported), exported, images=pictures, y=expected.argmax(1), reference=other)
    moved = expected.argmax(1) != other.argmax(1)
    margin = other.max(1) - other[np.arange(24), expected.argmax(1)]
    assert moved.sum() > (margin > 0.1).sum() > 2
    assert found.agreement == pytest.approx(1 - moved.mean())
    assert found.clear_disagreements == (margin > 0.1).sum()
    assert checks.problem(dataclasses.replace(found, max_difference=0.0), 0.98) is not None


def test_original_applies_the_temperature(trained, pictures, expected):
    model, _ = trained
    # A graph may fuse what is computed step by step otherwise: the last bits differ, and the temperature spreads them.
    np.testing.assert_allclose(checks.original(model, pictures, 2.0), expected, atol=1e-5)
    np.testing.assert_allclose(checks.original(model, pictures), model(pictures, training=False), atol=1e-5)


def test_checks_json_holds_no_times(tmp_path):
    other = dataclasses.replace(GOOD, latency_p50=9.0, latency_p95=9.9)
    for name, check in (("a", GOOD), ("b", other)):
        checks.write(tmp_path / name, [check])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text()) == {
        "tflite": {
            "bytes": 1000, "n": 100, "agreement": 1.0, "clear_disagreements": 0, "max_difference": 1e-6, "accuracy": 0.9,
        }
    }  # fmt: skip
    assert checks.latencies([other]) == {"tflite": {"latency_p50_ms": 9000.0, "latency_p95_ms": 9900.0}}


def test_table_has_a_line_per_format():
    lines = checks.table([dataclasses.replace(GOOD, format=name) for name in formats.FILES]).splitlines()
    assert len(lines) == 8
    assert len({len(line) for line in lines}) == 1
    assert lines[4].split() == ["tflite", "0.00", "1.0000", "1.0e-06", "0.9000", "10.0", "20.0"]
