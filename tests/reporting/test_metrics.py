"""Figures against values worked out by hand or by another road; degenerate test sets; do the intervals cover."""

import warnings

import numpy as np
import pytest
from scipy.special import log_softmax

from stages.reporting import metrics

NAMES = [f"class {k}" for k in range(100)]


def one_hot(predicted, n_classes, confidence=0.7):
    p = np.full((len(predicted), n_classes), (1 - confidence) / (n_classes - 1))
    p[np.arange(len(predicted)), predicted] = confidence
    return p


# Newcombe 1998, table I, method 3.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718), (20, 20, 0.8389, 1)],
)
def test_wilson_equals_published_intervals(successes, n, low, high):
    assert metrics.wilson(successes, n) == pytest.approx((low, high), abs=6e-5)


def test_summary_and_report_by_hand():
    #            a  a  a  a  b  b  c  c  c  c
    y = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
    predicted = [0, 0, 0, 1, 1, 1, 2, 2, 0, 1]
    report = metrics.classification_report(y, one_hot(predicted, 3), ["a", "b", "c"])
    assert report["confusion_matrix"] == [[3, 1, 0], [0, 2, 0], [1, 1, 2]]
    rows = {row["class"]: row for row in report["classes"]}
    f1 = {"a": 2 * 3 / (4 + 4), "b": 2 * 2 / (2 + 4), "c": 2 * 2 / (4 + 2)}
    for name, precision, recall in (("a", 3 / 4, 3 / 4), ("b", 2 / 4, 2 / 2), ("c", 2 / 2, 2 / 4)):
        assert (rows[name]["precision"], rows[name]["recall"], rows[name]["f1"]) == pytest.approx((precision, recall, f1[name]))
        for figure in ("precision", "recall", "f1"):
            assert rows[name][f"{figure}_low"] <= rows[name][figure] <= rows[name][f"{figure}_high"]
    assert [row["support"] for row in report["classes"]] == [4, 2, 4]
    assert [row["predicted"] for row in report["classes"]] == [4, 4, 2]
    assert (rows["b"]["recall_low"], rows["b"]["recall_high"]) == pytest.approx(metrics.wilson(2, 2))
    jaccard = np.array(metrics.wilson(3, 5))  # of class a: 3 right among 5 that are or were called a
    assert (rows["a"]["f1_low"], rows["a"]["f1_high"]) == pytest.approx(tuple(2 * jaccard / (1 + jaccard)))
    summary = report["summary"]
    assert summary["n"] == 10
    assert summary["accuracy"] == pytest.approx(0.7)
    assert (summary["accuracy_low"], summary["accuracy_high"]) == pytest.approx(metrics.wilson(7, 10))
    assert summary["balanced_accuracy"] == pytest.approx((3 / 4 + 1 + 1 / 2) / 3)
    assert summary["macro_f1"] == pytest.approx(sum(f1.values()) / 3)
    assert summary["weighted_f1"] == pytest.approx(0.4 * f1["a"] + 0.2 * f1["b"] + 0.4 * f1["c"])
    assert summary["loss"] == pytest.approx(-(7 * np.log(0.7) + 3 * np.log(0.15)) / 10)
    assert summary["ece"] == pytest.approx(0.0)
    assert summary["min_class_recall"] == 0.5
    assert "top_3_accuracy" not in summary


@pytest.mark.parametrize(("n_classes", "keys"), [(3, []), (4, [3]), (5, [3]), (6, [3, 5])])
def test_top_k_where_there_are_more_classes(simulate, n_classes, keys):
    y, p = simulate(200, n_classes)
    summary = metrics.summary(y, p, NAMES[:n_classes], resamples=10)
    assert [k for k in (3, 5) if f"top_{k}_accuracy" in summary] == keys
    for k in keys:
        expected = np.mean([label in np.argsort(-row)[:k] for label, row in zip(y, p)])
        assert summary[f"top_{k}_accuracy"] == pytest.approx(expected, abs=1e-12)


def test_calibration_error_by_a_plain_loop(simulate):
    y, p = simulate(500, 4, sharpness=3)
    p = metrics.normalise(p)
    expected = 0.0
    for k in range(15):
        held = [i for i in range(500) if k / 15 < p[i].max() <= (k + 1) / 15]
        if held:
            accuracy = np.mean([p[i].argmax() == y[i] for i in held])
            expected += len(held) / 500 * abs(accuracy - np.mean([p[i].max() for i in held]))
    assert expected > 0.02
    assert metrics.expected_calibration_error(y, p) == pytest.approx(expected, abs=1e-12)
    rows = metrics.reliability(y, p)
    assert sum(row["n"] for row in rows) == 500
    nothing = dict.fromkeys(("confidence", "accuracy", "accuracy_low", "accuracy_high"))
    assert rows[0] == {"low": 0, "high": 1 / 15, "n": 0, **nothing}


# --- degenerate test sets -----------------------------------------------------------------------------------------------------

DEGENERATE = {  # y, predicted, classes, figures
    "one class only, all right": (
        [0, 0, 0], [0, 0, 0], 2, {"accuracy": 1, "accuracy_low": 0.4385, "macro_f1": 1, "macro_f1_low": 0.4385}
    ),
    "three images, all wrong": (
        [0, 1, 2], [1, 2, 0], 3, {"accuracy": 0, "accuracy_high": 0.5615, "macro_f1": 0, "macro_f1_high": 0.5615}
    ),
    "a class missing, and predicted": (
        [0, 0, 1, 1], [0, 2, 1, 1], 3, {"balanced_accuracy": 0.75, "macro_f1": (2 / 3 + 1) / 3}
    ),
    "a class missing, and not predicted": (
        [0, 0, 1, 1], [0, 1, 1, 1], 3, {"balanced_accuracy": 0.75, "macro_f1": (2 / 3 + 0.8) / 2}
    ),
    "a class never predicted": (
        [0, 1, 2, 2], [0, 1, 1, 1], 3, {"balanced_accuracy": 2 / 3, "macro_f1": 0.5, "min_class_recall": 0}
    ),
    "one image": ([1], [1], 2, {"accuracy": 1, "accuracy_low": 0.2065, "balanced_accuracy": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("groups", [None, "one"])
def test_degenerate_sets_have_defined_values_and_warn_of_nothing(name, groups):
    y, predicted, n_classes, expected = DEGENERATE[name]
    groups = groups and ["same"] * len(y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p, names = one_hot(predicted, n_classes), NAMES[:n_classes]
        report = metrics.classification_report(y, p, names, groups=groups, resamples=200)
        metrics.report_text(report)
    summary = report["summary"]
    for key, value in expected.items():
        if groups is None or not key.endswith(("_low", "_high")):
            assert summary[key] == pytest.approx(value, abs=6e-5), key
    assert all(np.isfinite(value) for value in summary.values())
    for figure in ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1"):
        assert 0 <= summary[f"{figure}_low"] <= summary[figure] <= summary[f"{figure}_high"] <= 1
    for row in report["classes"]:
        assert (row["recall_low"] is None) == (row["support"] == 0)
        assert (row["precision_low"] is None) == (row["predicted"] == 0)
        assert (row["roc_auc"] is None) == (row["support"] in (0, len(y)))
        if not row["support"] or not row["predicted"]:
            assert row["f1"] == 0
    assert ("roc_auc" in summary) == any(0 < row["support"] < len(y) for row in report["classes"])


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        ([], np.zeros((0, 2)), "no images to evaluate"),
        ([0], [[0.5, 0.5], [1, 0]], r"y must have shape \(2,\)"),
        ([0, 2], [[0.5, 0.5], [1, 0]], r"y must lie in 0 … 1, not 0 … 2"),
        ([0], [[np.nan, 1]], "row 0 is not a distribution"),
        ([0, 0], [[1, 0], [0, 0]], "row 1 is not a distribution"),
        ([0], [[1.5, -0.5]], "row 0 is not a distribution"),
        ([0], [1.0], "C >= 2"),
    ],
)
def test_refuses(y, p, message):
    with pytest.raises(ValueError, match=message):
        metrics.summary(y, p, ["a", "b"])
    with pytest.raises(ValueError, match="3 class names for 2 columns"):
        metrics.summary([0], [[0.5, 0.5]], ["a", "b", "c"])


# --- intervals ----------------------------------------------------------------------------------------------------------------


def test_accuracy_interval_covers_the_truth():
    rng, held = np.random.default_rng(0), 0
    for _ in range(500):
        y = rng.integers(0, 4, 150)
        predicted = np.where(rng.random(150) < 0.85, y, (y + 1) % 4)
        summary = metrics.summary(y, one_hot(predicted, 4), NAMES[:4], resamples=2)
        held += summary["accuracy_low"] <= 0.85 <= summary["accuracy_high"]
    assert 0.93 <= held / 500 <= 0.97


def test_grouped_intervals_cover_where_images_of_a_group_err_together():
    rng = np.random.default_rng(1)
    held = {"accuracy": 0, "balanced_accuracy": 0, "without groups": 0}
    groups = [f"g{k // 4}" for k in range(240)]
    for _ in range(300):
        y = np.repeat(rng.integers(0, 3, 60), 4)
        predicted = np.where(np.repeat(rng.random(60) < 0.8, 4), y, (y + 1) % 3)
        summary = metrics.summary(y, one_hot(predicted, 3), NAMES[:3], groups=groups, resamples=400)
        for figure in ("accuracy", "balanced_accuracy"):
            held[figure] += summary[f"{figure}_low"] <= 0.8 <= summary[f"{figure}_high"]
        low, high = metrics.wilson((y == predicted).sum(), 240)
        held["without groups"] += low <= 0.8 <= high
    assert held["accuracy"] / 300 > 0.92
    assert held["balanced_accuracy"] / 300 > 0.90
    assert held["without groups"] / 300 < 0.80  # what the groups are for


def test_bootstrap_equals_the_plain_one(simulate):
    from sklearn.metrics import balanced_accuracy_score, f1_score

    y, p = simulate(300, 5)
    groups = np.random.default_rng(3).integers(0, 90, 300).astype(str)
    predicted, rng = p.argmax(axis=1), np.random.default_rng(5)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    values = []
    for _ in range(600):
        some = np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])
        values.append(
            (
                balanced_accuracy_score(y[some], predicted[some]),
                f1_score(y[some], predicted[some], average="macro"),
                f1_score(y[some], predicted[some], average="weighted"),
            )
        )
    summary = metrics.summary(y, p, NAMES[:5], groups=groups, resamples=4000)
    for figure, column in zip(("balanced_accuracy", "macro_f1", "weighted_f1"), np.array(values).T):
        interval = (summary[f"{figure}_low"], summary[f"{figure}_high"])
        assert interval == pytest.approx(tuple(np.quantile(column, [0.025, 0.975])), abs=0.012)


def test_groups_of_single_images_change_nothing_and_the_seed_decides(simulate):
    y, p = simulate(120, 4)
    plain = metrics.summary(y, p, NAMES[:4], resamples=300, seed=1)
    assert metrics.summary(y, p, NAMES[:4], groups=[""] * 120, resamples=300, seed=1) == plain
    assert metrics.summary(y, p, NAMES[:4], groups=[f"{k}" for k in range(120)], resamples=300, seed=1) == plain
    assert metrics.summary(y, p, NAMES[:4], resamples=300, seed=2)["macro_f1_low"] != plain["macro_f1_low"]


# --- temperature --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
def test_temperature_is_found_again(truth):
    rng = np.random.default_rng(0)
    z = rng.normal(scale=2, size=(4000, 6))
    p = np.exp(log_softmax(z, axis=1))
    y = (p.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    fitted = metrics.fit_temperature(log_softmax(z * truth, axis=1), y)
    assert fitted == pytest.approx(truth, rel=0.06)
    reported = np.exp(log_softmax(z * truth, axis=1))
    scaled = metrics.apply_temperature(reported, fitted)
    assert metrics.log_loss(y, scaled) <= metrics.log_loss(y, reported) + 1e-9
    if truth != 1:
        assert metrics.expected_calibration_error(y, scaled) < metrics.expected_calibration_error(y, reported)


def test_temperature_of_hard_cases():
    sure, labels = np.log(one_hot([0, 1, 0] * 50, 2, confidence=0.9)), [0, 1, 0] * 50
    assert metrics.fit_temperature(np.zeros((0, 3)), []) == 1.0
    assert metrics.fit_temperature(sure[:3], labels[:3]) == 1.0  # too few to tell
    assert 0.2 < metrics.fit_temperature(sure, labels) < 0.6  # all right: sharper, yet not without end
    with np.errstate(divide="ignore"):
        certain = np.log(np.eye(2)[[0, 1, 1]])
    assert 1 < metrics.fit_temperature(certain, [0, 1, 0]) <= 20  # certain and once wrong
    assert metrics.fit_temperature(sure + 5, labels) == pytest.approx(metrics.fit_temperature(sure, labels))


def test_temperature_stays_where_the_images_do_not_call_for_another():
    changed = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        log_p = log_softmax(rng.normal(scale=2, size=(120, 4)), axis=1)
        y = (np.exp(log_p).cumsum(axis=1) > rng.random((120, 1))).argmax(axis=1)
        changed += metrics.fit_temperature(log_p, y) != 1.0
    assert changed <= 12  # a test at 5%, 100 times


def test_apply_temperature():
    p = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    assert metrics.apply_temperature(p, 2)[0] == pytest.approx(np.sqrt(p[0]) / np.sqrt(p[0]).sum())
    assert metrics.apply_temperature(p, 2)[1].tolist() == [1, 0, 0]
    assert metrics.apply_temperature(metrics.apply_temperature(p, 2.3), 1 / 2.3) == pytest.approx(p, abs=1e-12)
    assert np.isfinite(metrics.apply_temperature([[1e-30, 1e-32, 1e-31]], 0.05)).all()
    for wrong in (0, -1, np.inf, np.nan):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            metrics.apply_temperature(p, wrong)


def test_chance_explains_the_calibration_error_of_a_calibrated_model_and_not_of_an_overconfident_one():
    """In 300 data sets drawn from the confidences the error's mean is as said, and 5% lie above the quantile."""
    rng = np.random.default_rng(3)
    p = rng.dirichlet([4, 1, 1], 400)
    mean, high = metrics.chance_calibration_error(p)
    errors = []
    for _ in range(300):
        y = (rng.random((400, 1)) > p.cumsum(axis=1)).sum(axis=1)
        errors.append(metrics.expected_calibration_error(np.minimum(y, 2), p))
    assert np.mean(errors) == pytest.approx(mean, rel=0.03)
    assert 0.02 <= np.mean(np.array(errors) > high) <= 0.09
    boasting = metrics.apply_temperature(p, 0.4)
    assert metrics.expected_calibration_error(np.minimum(y, 2), boasting) > metrics.chance_calibration_error(boasting)[1]


def test_chance_leaves_no_error_where_the_confidence_is_certain():
    assert metrics.chance_calibration_error(np.eye(3)[[0, 1, 2, 0]]) == (0, 0)


# --- comparison ---------------------------------------------------------------------------------------------------------------


def test_compare_is_mcnemars_exact_test():
    y = np.zeros(100, int)
    a, b = np.zeros(100, int), np.zeros(100, int)
    a[:9], b[9:11], a[11:15], b[11:15] = 1, 1, 1, 1  # 9 only b has right, 2 only a, 4 none
    found = metrics.compare(y, a, b)
    assert (found.only_first, found.only_second, found.n) == (2, 9, 100)
    assert (found.first, found.second, found.difference) == pytest.approx((0.87, 0.94, 0.07))
    assert found.p_value == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    assert found.test == "exact McNemar"
    # The plain standard error of a paired difference, 1.96 times, either way.
    half = 1.96 * np.sqrt(0.11 - 0.07**2) / 10
    assert (found.low, found.high) == pytest.approx((0.07 - half, 0.07 + half), abs=0.012)
    assert metrics.compare(y, one_hot(a, 2), one_hot(b, 2)) == found
    back = metrics.compare(y, b, a)
    assert (back.difference, back.p_value) == pytest.approx((-0.07, found.p_value))


def test_compare_knows_groups_and_equal_models():
    y = np.zeros(60, int)
    a = np.zeros(60, int)
    b = np.where(np.arange(60) < 10, 1, 0)  # ten images lost, but they are one photo ten times
    assert metrics.compare(y, a, b).p_value < 0.01
    grouped = metrics.compare(y, a, b, groups=["one"] * 10 + [""] * 50)
    assert (grouped.test, grouped.p_value) == ("sign flips over groups", 1.0)
    assert grouped.low < -0.25
    same = metrics.compare(y, a, a)
    assert (same.difference, same.p_value, same.low) == (0, 1, -same.high)
    assert same.high == pytest.approx(metrics.wilson(0, 60)[1])
    with pytest.raises(ValueError, match="59 predictions for 60 images"):
        metrics.compare(y, a[:59], b)


def test_sign_flips_are_mcnemar_where_groups_are_single(simulate):
    y, p = simulate(200, 3, signal=1)
    other = np.roll(p, 1, axis=0) * 0.6 + p
    single = metrics.compare(y, p, other)
    paired = metrics.compare(y, p, other, groups=["twin", "twin"] + [""] * 198)
    assert paired.test != single.test
    assert paired.p_value == pytest.approx(single.p_value, abs=0.03)


def test_report_text_is_aligned_whatever_the_script():
    report = metrics.classification_report([0, 1, 2], one_hot([0, 1, 1], 3), ["猫", "dog", "é" + "\u0301"], resamples=10)
    lines = metrics.report_text(report).splitlines()
    assert lines[1].startswith("猫" + " " * 17) and lines[2].startswith("dog" + " " * 16)
    assert lines[1].endswith("      1") and "1.000 [0.207, 1.000]" in lines[1]
    assert "[     –      ]" in lines[3]
    assert "accuracy           0.667 [0.208, 0.939]" in lines
