import numpy as np
import pytest

from graft.reporting import drift as report
from graft.second_look import drift

CLASSES = ("a", "b", "c")


def photos(n, shares, seed, *, moved=0.0):
    """(features (n, 8), calibrated probabilities (n, 3) where the shares are equal, labels): three
    clouds."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=shares)
    centres = np.eye(3, 8) * 2.5
    x = centres[labels] + rng.normal(size=(n, 8))
    z = x @ centres.T - np.square(centres).sum(axis=1) / 2
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return x + moved, p / p.sum(axis=1, keepdims=True), labels


def found(known, new, p_values=None):
    some = np.linspace(0, 1, len(new[0])) if p_values is None else p_values
    return drift.compare((known[0], new[0]), (known[1], new[1]), some, classes=CLASSES, seed=1)


def test_photos_of_the_same_kind_are_not_told_apart():
    result = found(photos(300, [1 / 3] * 3, 0), photos(200, [1 / 3] * 3, 1))
    assert result.p_value > 0.05 and 0.4 < result.auroc < 0.6
    assert all(abs(share.now - share.before) < 0.1 for share in result.shares)
    assert result.unknown == pytest.approx(0.05, abs=0.01)


def test_photos_that_look_different_are():
    result = found(photos(300, [1 / 3] * 3, 0), photos(200, [1 / 3] * 3, 1, moved=1.0))
    assert result.p_value == pytest.approx(1 / 201) and result.auroc > 0.9
    assert "look different" in report.verdict(result)


def test_other_shares_of_the_classes_are_found_and_the_expected_accuracy_is_the_true_one():
    new = photos(1500, [0.7, 0.25, 0.05], 1)
    result = found(photos(600, [1 / 3] * 3, 0), new)
    for share, true in zip(result.shares, np.bincount(new[2]) / 1500):
        assert share.low - 0.01 <= true <= share.high + 0.01 and share.now == pytest.approx(
            true, abs=0.04
        )
    adapted = new[1] * [share.now / share.before for share in result.shares]
    assert result.accuracy == pytest.approx((adapted.argmax(axis=1) == new[2]).mean(), abs=0.03)
    assert result.accuracy_low < result.accuracy < result.accuracy_high


def test_the_same_photos_give_the_same_figures_and_the_page_holds_names_escaped():
    both = photos(60, [1 / 3] * 3, 0), photos(40, [1 / 3] * 3, 1)
    assert found(*both) == found(*both)
    page = report.page(found(*both), name="<b>new & other")
    assert "&lt;b&gt;new &amp; other" in page and "<b>" not in page
    assert [name for name in CLASSES if f"\n{name} " in report.text(found(*both))] == list(CLASSES)


def test_a_class_without_photos_and_features_that_never_change():
    known, new = photos(60, [0.5, 0.5, 0], 0), photos(40, [0.5, 0.5, 0], 1)
    for x, p, _ in (known, new):
        x[:] = 1.0
        p[:, 2] = 0
    result = found(known, new)
    assert result.auroc == pytest.approx(0.5, abs=1e-6) and result.p_value == 1
    assert result.shares[2].now == 0
