import dataclasses

import numpy as np
import pytest

from graft.scoring.predictions import Predictions
from graft.scoring.statistics import compare_paired, compare_predictions, wilson


def correct(both, only_first, only_second, neither):
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


# Newcombe 1998, table I, method 3.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1),
    ],
)
def test_wilson_equals_published_intervals(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(
    ("table", "difference", "p_value"),
    [
        ((80, 0, 0, 20), 0.0, 1.0),  # alike
        ((80, 5, 5, 10), 0.0, 1.0),
        ((80, 0, 5, 15), 0.05, 2 * 0.5**5),  # 0.0625: five of five
        ((80, 0, 6, 14), 0.06, 2 * 0.5**6),
        ((80, 1, 9, 10), 0.08, 2 * (1 + 10) * 0.5**10),  # binomial tail: P(X <= 1 of 10), twice
        ((80, 9, 1, 10), -0.08, 2 * (1 + 10) * 0.5**10),
        ((85, 2, 9, 4), 0.07, 2 * (1 + 11 + 55) / 2**11),
        ((1, 0, 0, 0), 0.0, 1.0),
    ],
)
def test_mcnemar(table, difference, p_value):
    found = compare_paired(*correct(*table))
    assert found.n == sum(table)
    assert found.difference == pytest.approx(difference, abs=1e-12)
    assert found.p_value == pytest.approx(p_value, rel=1e-12)
    assert found.test == "exact McNemar"
    assert (found.only_first, found.only_second) == table[1:3]
    assert found.second - found.first == pytest.approx(difference, abs=1e-12)
    assert found.low <= found.difference <= found.high


def test_interval_is_that_of_the_plain_standard_error_and_of_a_plain_paired_bootstrap():
    found = compare_paired(*correct(85, 2, 9, 4))
    half = 1.96 * np.sqrt(0.11 - 0.07**2) / 10
    assert (found.low, found.high) == pytest.approx((0.07 - half, 0.07 + half), abs=0.012)
    first, second = correct(300, 20, 45, 35)
    found = compare_paired(first, second, resamples=20_000)
    delta = np.array(second, int) - np.array(first, int)
    rng = np.random.default_rng(1)
    means = delta[rng.integers(0, len(delta), (20_000, len(delta)))].mean(axis=1)
    # One image.
    assert (found.low, found.high) == pytest.approx(
        tuple(np.percentile(means, [2.5, 97.5])), abs=0.0026
    )
    assert found == compare_paired(first, second, resamples=20_000)  # seeded
    assert compare_paired(first, second, resamples=101) != compare_paired(
        first, second, resamples=101, seed=1
    )


def test_interval_covers():
    """In 400 simulated test sets the 95% interval of the difference holds the true one in
    92-98%."""
    rng, truth, held = np.random.default_rng(0), 0.06, 0
    for _ in range(400):
        kind = rng.choice(4, 250, p=[0.8, 0.04, 0.1, 0.06])
        found = compare_paired((kind == 0) | (kind == 1), (kind == 0) | (kind == 2), resamples=1000)
        held += found.low <= truth <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_groups_are_resampled_together():
    """Ten copies of each of 20 images carry the information of 20 images."""
    first, second = (np.array(c) for c in correct(14, 1, 4, 1))
    few = compare_paired(first, second, resamples=4000)
    copies = [f"g{i}" for i in range(20) for _ in range(10)]
    many = compare_paired(first.repeat(10), second.repeat(10), groups=copies, resamples=4000)
    assert (many.low, many.high) == pytest.approx((few.low, few.high))
    alone = compare_paired(first.repeat(10), second.repeat(10), groups=[""] * 200, resamples=4000)
    assert alone.high - alone.low < 0.4 * (many.high - many.low)


@pytest.mark.parametrize(
    ("first", "second", "groups"),
    [([], [], None), ([True], [True, False], None), ([True], [True], ["a", "b"])],
)
def test_unequal_lengths_are_refused(first, second, groups):
    with pytest.raises(ValueError, match=r"vectors|groups must name 1 images, not 2"):
        compare_paired(first, second, groups=groups)


def test_a_photo_that_is_there_ten_times_is_one_witness():
    first, second = np.ones(60, bool), np.arange(60) >= 10
    assert compare_paired(first, second).p_value < 0.01
    grouped = compare_paired(first, second, groups=["one"] * 10 + [""] * 50)
    assert (grouped.test, grouped.p_value) == ("sign flips over groups", 1.0)
    assert grouped.low < -0.25


def test_equal_models_differ_by_no_more_than_so_many_images_can_tell():
    same = compare_paired([True] * 60, [True] * 60)
    assert (same.difference, same.p_value, same.low) == (0, 1, -same.high)
    assert same.high == pytest.approx(wilson(0, 60)[1])


def test_sign_flips_are_mcnemar_where_groups_are_single(simulate):
    first = simulate(200, 3, signal=1)
    other = first.replace_probabilities(
        np.roll(first.probabilities, 1, axis=0) * 0.6 + first.probabilities
    )
    single = compare_predictions(first, other)
    paired = compare_predictions(
        dataclasses.replace(first, groups=["twin", "twin"] + [""] * 198), other
    )
    assert paired.test != single.test
    assert paired.p_value == pytest.approx(single.p_value, abs=0.03)


def test_predictions_are_compared_by_path_whatever_their_order(simulate):
    groups = ["twin", "twin"] + [""] * 98
    first, second = (
        simulate(100, 3, signal=1, groups=groups),
        simulate(100, 3, signal=1.5, groups=groups),
    )
    found = compare_predictions(first, second)
    assert found == compare_paired(first.correct, second.correct, groups=groups)
    back = compare_predictions(second, first)
    assert (back.difference, back.p_value) == pytest.approx((-found.difference, found.p_value))
    order = np.random.default_rng(0).permutation(100)

    def shuffled(predictions):
        names = (predictions.paths, predictions.groups)
        paths, groups = ([some[i] for i in order] for some in names)
        return Predictions(
            paths,
            predictions.labels[order],
            predictions.probabilities[order],
            predictions.classes,
            groups,
        )

    assert compare_predictions(first, shuffled(second)) == found
    renamed = dataclasses.replace(second, classes=["class 2", "class 1", "class 0"])
    with pytest.raises(ValueError, match="other labels"):
        compare_predictions(first, renamed)
    fewer = Predictions(first.paths[1:], first.labels[1:], first.probabilities[1:], first.classes)
    with pytest.raises(ValueError, match="other images"):
        compare_predictions(first, fewer)
