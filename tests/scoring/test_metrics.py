"""Figures against values worked out by hand or by another road; degenerate test sets; do the
intervals cover."""

import dataclasses
import itertools
import warnings

import numpy as np
import pytest

from graft.scoring import metrics
from graft.scoring.predictions import Predictions
from graft.scoring.statistics import wilson


def certain(labels, predicted, n_classes, *, confidence=0.7, groups=()):
    """Predictions that put `confidence` on `predicted` and share the rest evenly."""
    p = np.full((len(predicted), n_classes), (1 - confidence) / (n_classes - 1))
    p[np.arange(len(predicted)), predicted] = confidence
    return Predictions(
        [str(i) for i in range(len(p))], labels, p, [f"class {k}" for k in range(n_classes)], groups
    )


def test_summary_and_report_by_hand():
    #          a  a  a  a  b  b  c  c  c  c
    labels = [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    found = dataclasses.replace(certain(labels, [0, 0, 0, 1, 1, 1, 2, 2, 0, 1], 3), classes="abc")
    report = metrics.classification_report(found)
    assert report["confusion_matrix"] == [[3, 1, 0], [0, 2, 0], [1, 1, 2]]
    rows = {row["class"]: row for row in report["classes"]}
    f1 = {"a": 2 * 3 / (4 + 4), "b": 2 * 2 / (2 + 4), "c": 2 * 2 / (4 + 2)}
    for name, precision, recall in (("a", 3 / 4, 3 / 4), ("b", 2 / 4, 2 / 2), ("c", 2 / 2, 2 / 4)):
        assert (rows[name]["precision"], rows[name]["recall"], rows[name]["f1"]) == pytest.approx(
            (precision, recall, f1[name])
        )
        for figure in ("precision", "recall", "f1"):
            assert rows[name][f"{figure}_low"] <= rows[name][figure] <= rows[name][f"{figure}_high"]
    assert [row["support"] for row in report["classes"]] == [4, 2, 4]
    assert [row["predicted"] for row in report["classes"]] == [4, 4, 2]
    assert (rows["b"]["recall_low"], rows["b"]["recall_high"]) == pytest.approx(wilson(2, 2))
    jaccard = np.array(wilson(3, 5))  # of class a: 3 right among 5 that are or were called a
    assert (rows["a"]["f1_low"], rows["a"]["f1_high"]) == pytest.approx(
        tuple(2 * jaccard / (1 + jaccard))
    )
    summary = report["summary"]
    assert summary == metrics.summary(found)
    assert summary["n"] == 10
    assert summary["accuracy"] == pytest.approx(0.7)
    assert (summary["accuracy_low"], summary["accuracy_high"]) == pytest.approx(wilson(7, 10))
    assert summary["balanced_accuracy"] == pytest.approx((3 / 4 + 1 + 1 / 2) / 3)
    assert summary["macro_f1"] == pytest.approx(sum(f1.values()) / 3)
    assert summary["weighted_f1"] == pytest.approx(0.4 * f1["a"] + 0.2 * f1["b"] + 0.4 * f1["c"])
    assert summary["loss"] == pytest.approx(-(7 * np.log(0.7) + 3 * np.log(0.15)) / 10)
    assert summary["ece"] == pytest.approx(0.0)
    assert summary["min_class_recall"] == 0.5
    assert "top_3_accuracy" not in summary


def test_figures_equal_those_of_scikit_learn(simulate):
    from sklearn import metrics as sk

    found = simulate(400, 6, signal=1)
    labels, predicted, p = found.labels, found.predicted, found.probabilities
    report = metrics.classification_report(found, resamples=10)
    assert report["confusion_matrix"] == sk.confusion_matrix(labels, predicted).tolist()
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "weighted_f1": sk.f1_score(labels, predicted, average="weighted"),
        "loss": sk.log_loss(labels, p),
        "roc_auc": sk.roc_auc_score(labels, p, multi_class="ovr"),
        "average_precision": sk.average_precision_score(np.eye(6)[labels], p),
        "min_class_recall": sk.recall_score(labels, predicted, average=None).min(),
    }
    assert {key: report["summary"][key] for key in expected} == pytest.approx(expected, abs=1e-12)
    theirs = sk.classification_report(labels, predicted, output_dict=True)
    for k, row in enumerate(report["classes"]):
        names = ("precision", "recall", "f1-score", "support")
        assert [row[name.removesuffix("-score")] for name in names] == pytest.approx(
            [theirs[str(k)][name] for name in names]
        )
        assert row["roc_auc"] == pytest.approx(sk.roc_auc_score(labels == k, p[:, k]))


@pytest.mark.parametrize(("n_classes", "keys"), [(3, []), (4, [3]), (5, [3]), (6, [3, 5])])
def test_top_k_where_there_are_more_classes(simulate, n_classes, keys):
    found = simulate(200, n_classes)
    summary = metrics.summary(found, resamples=10)
    assert [k for k in (3, 5) if f"top_{k}_accuracy" in summary] == keys
    for k in keys:
        expected = np.mean(
            [label in np.argsort(-row)[:k] for label, row in zip(found.labels, found.probabilities)]
        )
        assert summary[f"top_{k}_accuracy"] == pytest.approx(expected, abs=1e-12)


# --- degenerate test sets -------------------------------------------------------------------------

DEGENERATE = {  # labels, predicted, classes, figures
    "one class only, all right": (
        [0, 0, 0], [0, 0, 0], 2, {"accuracy": 1, "accuracy_low": 0.4385, "macro_f1": 1,
                                  "macro_f1_low": 0.4385}
    ),
    "three images, all wrong": (
        [0, 1, 2], [1, 2, 0], 3, {"accuracy": 0, "accuracy_high": 0.5615, "macro_f1": 0,
                                  "macro_f1_high": 0.5615}
    ),
    "a class missing, and predicted": (
        [0, 0, 1, 1], [0, 2, 1, 1], 3, {"balanced_accuracy": 0.75, "macro_f1": (2 / 3 + 1) / 3}
    ),
    "a class missing, and not predicted": (
        [0, 0, 1, 1], [0, 1, 1, 1], 3, {"balanced_accuracy": 0.75, "macro_f1": (2 / 3 + 0.8) / 2}
    ),
    "a class never predicted": (
        [0, 1, 2, 2], [0, 1, 1, 1], 3,
        {"balanced_accuracy": 2 / 3, "macro_f1": 0.5, "min_class_recall": 0}
    ),
    "one image": ([1], [1], 2, {"accuracy": 1, "accuracy_low": 0.2065, "balanced_accuracy": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("grouped", [False, True])
def test_degenerate_sets_have_defined_values_and_warn_of_nothing(name, grouped):
    labels, predicted, n_classes, expected = DEGENERATE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = certain(
            labels, predicted, n_classes, groups=["same"] * len(labels) if grouped else ()
        )
        report = metrics.classification_report(found, resamples=200)
    summary = report["summary"]
    for key, value in expected.items():
        if not grouped or not key.endswith(("_low", "_high")):
            assert summary[key] == pytest.approx(value, abs=6e-5), key
    assert all(np.isfinite(value) for value in summary.values())
    for figure in ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1"):
        assert 0 <= summary[f"{figure}_low"] <= summary[figure] <= summary[f"{figure}_high"] <= 1
    for row in report["classes"]:
        assert (row["recall_low"] is None) == (row["support"] == 0)
        assert (row["precision_low"] is None) == (row["predicted"] == 0)
        assert (row["roc_auc"] is None) == (row["support"] in (0, len(labels)))
        if not row["support"] or not row["predicted"]:
            assert row["f1"] == 0
    assert ("roc_auc" in summary) == any(
        0 < row["support"] < len(labels) for row in report["classes"]
    )


# --- intervals ------------------------------------------------------------------------------------


def test_accuracy_interval_covers_the_truth():
    rng, held = np.random.default_rng(0), 0
    for _ in range(500):
        labels = rng.integers(0, 4, 150)
        predicted = np.where(rng.random(150) < 0.85, labels, (labels + 1) % 4)
        summary = metrics.summary(certain(labels, predicted, 4), resamples=2)
        held += summary["accuracy_low"] <= 0.85 <= summary["accuracy_high"]
    assert 0.93 <= held / 500 <= 0.97


def test_grouped_intervals_cover_where_images_of_a_group_err_together():
    rng = np.random.default_rng(1)
    held = {"accuracy": 0, "balanced_accuracy": 0, "without groups": 0}
    groups = [f"g{k // 4}" for k in range(240)]
    for _ in range(300):
        labels = np.repeat(rng.integers(0, 3, 60), 4)
        predicted = np.where(np.repeat(rng.random(60) < 0.8, 4), labels, (labels + 1) % 3)
        summary = metrics.summary(certain(labels, predicted, 3, groups=groups), resamples=400)
        for figure in ("accuracy", "balanced_accuracy"):
            held[figure] += summary[f"{figure}_low"] <= 0.8 <= summary[f"{figure}_high"]
        low, high = wilson((labels == predicted).sum(), 240)
        held["without groups"] += low <= 0.8 <= high
    assert held["accuracy"] / 300 > 0.92
    assert held["balanced_accuracy"] / 300 > 0.90
    assert held["without groups"] / 300 < 0.80  # what the groups are for


def test_bootstrap_equals_the_plain_one(simulate):
    from sklearn.metrics import balanced_accuracy_score, f1_score

    groups = np.random.default_rng(3).integers(0, 90, 300).astype(str)
    found = simulate(300, 5, groups=groups)
    labels, predicted, rng = found.labels, found.predicted, np.random.default_rng(5)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    values = []
    for _ in range(600):
        some = np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])
        values.append(
            (
                balanced_accuracy_score(labels[some], predicted[some]),
                f1_score(labels[some], predicted[some], average="macro"),
                f1_score(labels[some], predicted[some], average="weighted"),
            )
        )
    summary = metrics.summary(found, resamples=4000)
    for figure, column in zip(("balanced_accuracy", "macro_f1", "weighted_f1"), np.array(values).T):
        interval = (summary[f"{figure}_low"], summary[f"{figure}_high"])
        assert interval == pytest.approx(tuple(np.quantile(column, [0.025, 0.975])), abs=0.012)


def test_a_class_that_one_image_of_a_resample_speaks_of_counts_in_its_average():
    """By hand, for each resample of three images: macro F1 over the classes that are there or were
    claimed."""
    labels, predicted = np.array([0, 0, 1]), np.array([0, 2, 1])
    found = certain(labels, predicted, 3)
    values = []
    for some in itertools.product(range(3), repeat=3):
        true, claimed = labels[list(some)], predicted[list(some)]
        classes = np.union1d(true, claimed)
        hits = [((true == k) & (claimed == k)).sum() for k in classes]
        sizes = [(true == k).sum() + (claimed == k).sum() for k in classes]
        values.append(np.mean(2 * np.array(hits) / sizes))
    averages = metrics._bootstrap_averages(found, np.arange(3), resamples=4000, seed=0)["macro_f1"]
    assert set(np.round(averages, 9)) == set(np.round(values, 9))


def test_groups_of_single_images_change_nothing_and_the_seed_decides(simulate):
    found = simulate(120, 4)
    plain = metrics.summary(found, resamples=300, seed=1)
    alone = dataclasses.replace(found, groups=[f"{k}" for k in range(120)])
    assert metrics.summary(alone, resamples=300, seed=1) == plain
    assert metrics.summary(found, resamples=300, seed=2)["macro_f1_low"] != plain["macro_f1_low"]


def test_photos_of_one_group_alone_count_as_one():
    """A class of one patient: between what is right and what is wrong of it there is nothing to
    tell the spread by."""
    group = np.array([0, 0, 0, 0, 0, 0, 1, 2, 2])
    inside = np.stack([group == 0, group > 0], axis=1)
    right = inside & np.array([1, 1, 1, 0, 0, 0, 1, 0, 1], bool)[:, None]
    low, high = metrics.proportions(inside, right, group)
    assert (low[0], high[0]) == pytest.approx(wilson(0.5, 1))
    assert np.isfinite([low, high]).all()


def test_the_interval_of_a_proportion_follows_the_spread_between_groups():
    """The design effect, group by group: squared residuals of the ratio, over what single images
    would give."""
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(12), rng.integers(1, 9, 12))
    inside = rng.random((len(group), 1)) < 0.9
    right = inside & (rng.random((len(group), 1)) < np.linspace(0.2, 0.95, 12)[group][:, None])
    n, p = inside.sum(), right.sum() / inside.sum()
    of = [
        (inside[group == g].sum(), right[group == g].sum()) for g in np.unique(group[inside[:, 0]])
    ]
    robust = sum((hits - p * size) ** 2 for size, hits in of) / n**2 * len(of) / (len(of) - 1)
    effect = robust / (p * (1 - p) / n)
    assert 1 < effect < sum(size**2 for size, _ in of) / n  # neither bound decides here
    low, high = metrics.proportions(inside, right, group)
    assert (low[0], high[0]) == pytest.approx(wilson(p * n / effect, n / effect))
