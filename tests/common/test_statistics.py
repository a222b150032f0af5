import numpy as np
import pytest

from stages.common.statistics import compare


def correct(both, only_first, only_second, neither):
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


@pytest.mark.parametrize(
    ("table", "difference", "p_value"),
    [
        ((80, 0, 0, 20), 0.0, 1.0),  # alike
        ((80, 5, 5, 10), 0.0, 1.0),
        ((80, 0, 5, 15), 0.05, 2 * 0.5**5),  # 0.0625: five of five
        ((80, 0, 6, 14), 0.06, 2 * 0.5**6),
        ((80, 1, 9, 10), 0.08, 2 * (1 + 10) * 0.5**10),  # binomial tail: P(X <= 1 of 10), twice
        ((80, 9, 1, 10), -0.08, 2 * (1 + 10) * 0.5**10),
        ((1, 0, 0, 0), 0.0, 1.0),
    ],
)
def test_mcnemar(table, difference, p_value):
    found = compare(*correct(*table))
    assert found.n == sum(table) and found.difference == pytest.approx(difference, abs=1e-12)
    assert found.p_value == pytest.approx(p_value, rel=1e-12)
    assert (found.only_first, found.only_second) == table[1:3]
    assert found.second - found.first == pytest.approx(difference, abs=1e-12)
    assert found.low <= found.difference <= found.high


def test_interval_is_that_of_a_plain_paired_bootstrap():
    first, second = correct(300, 20, 45, 35)
    found = compare(first, second, resamples=20_000)
    delta = np.array(second, int) - np.array(first, int)
    rng = np.random.default_rng(1)
    means = delta[rng.integers(0, len(delta), (20_000, len(delta)))].mean(axis=1)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.0026)  # one image
    assert found == compare(first, second, resamples=20_000)  # seeded
    assert compare(first, second, resamples=101) != compare(first, second, resamples=101, seed=1)


def test_interval_covers():
    """In 400 simulated test sets the 95% interval of the difference holds the true one in 92-98%."""
    rng, truth, held = np.random.default_rng(0), 0.06, 0
    for _ in range(400):
        kind = rng.choice(4, 250, p=[0.8, 0.04, 0.1, 0.06])
        found = compare((kind == 0) | (kind == 1), (kind == 0) | (kind == 2), resamples=1000)
        held += found.low <= truth <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_groups_are_resampled_together():
    """Ten copies of each of 20 images carry the information of 20 images."""
    first, second = (np.array(c) for c in correct(14, 1, 4, 1))
    few = compare(first, second, resamples=4000)
    copies = [f"g{i}" for i in range(20) for _ in range(10)]
    many = compare(first.repeat(10), second.repeat(10), groups=copies, resamples=4000)
    assert (many.low, many.high) == pytest.approx((few.low, few.high))
    alone = compare(first.repeat(10), second.repeat(10), groups=[""] * 200, resamples=4000)
    assert alone.high - alone.low < 0.4 * (many.high - many.low)


@pytest.mark.parametrize(
    ("first", "second", "groups"), [([], [], None), ([True], [True, False], None), ([True], [True], ["a", "b"])]
)
def test_unequal_lengths_are_refused(first, second, groups):
    with pytest.raises(ValueError):
        compare(first, second, groups=groups)


def test_a_photo_that_is_there_ten_times_is_one_witness():
    first, second = np.ones(60, bool), np.arange(60) >= 10
    assert compare(first, second).p_value < 0.01
    grouped = compare(first, second, groups=["one"] * 10 + [""] * 50)
    assert (grouped.test, grouped.p_value) == ("sign flips over groups", 1.0)
