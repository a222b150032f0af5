"""Numbers of an evaluation, each with a 95% interval where one is wanted. scikit-learn computes the
point estimates.

Values where a figure has no natural one, as in scikit-learn with `zero_division=0`:
- precision of a class that is never predicted, recall of a class without images, F1 of both: 0,
  without an interval (None);
- macro F1 averages the classes that occur as a label or as a prediction; balanced accuracy and
  `min_class_recall` those that have images;
- ROC-AUC needs images of the class and of another one, average precision images of the class: else
  None in the report, and the mean over classes leaves such a class out; a mean over nothing is left
  out of the summary;
- where all images are right, or all wrong, the bootstrap has nothing to vary: its intervals are
  then that of the accuracy.
"""

import numpy as np

from graft.scoring.calibration import expected_calibration_error
from graft.scoring.predictions import Predictions
from graft.scoring.statistics import bootstrap_counts, group_ids, percentile_interval, wilson

TOP_K = (3, 5)


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """int64 (C, C): row = true class, column = predicted class."""
    count = len(predictions.classes)
    pairs = predictions.labels * count + predictions.predicted
    return np.bincount(pairs, minlength=count**2).reshape(count, count)


def log_loss(predictions: Predictions) -> float:
    """Mean negative log-likelihood in nats; a probability of 0 counts as float64's epsilon, as in
    scikit-learn."""
    of_label, epsilon = (
        predictions.probabilities[np.arange(len(predictions)), predictions.labels],
        np.finfo(np.float64).eps,
    )
    return float(-np.log(of_label.clip(epsilon, 1 - epsilon)).mean())


def summary(predictions: Predictions, *, resamples: int = 2000, seed: int = 0) -> dict[str, float]:
    """The figures of a model, in a fixed order; one that is not defined on these images is left
    out.

    `n`; `accuracy`, `balanced_accuracy`, `macro_f1`, `weighted_f1`, each with `_low` and `_high`
    (95%: Wilson for the accuracy, a seeded percentile bootstrap for the others); `top_3_accuracy`
    and `top_5_accuracy` where there are more classes than that; `loss` (mean negative
    log-likelihood, nats); `ece` (15 bins); `roc_auc` and `average_precision` (one-vs-rest, mean
    over classes); `min_class_recall`.
    """
    return classification_report(predictions, resamples=resamples, seed=seed)["summary"]


def classification_report(
    predictions: Predictions, *, resamples: int = 2000, seed: int = 0
) -> dict:
    """The content of `report.json`: {"classes": [...], "summary": summary(...), "confusion_matrix":
    [[int]]}.

    A class: `class`, `support` (images), `predicted` (predictions), `precision`, `recall`, `f1`,
    each with `_low` and `_high`, `roc_auc`, `average_precision`. Precision and recall are
    proportions and have Wilson intervals; so has F1, which is a monotone function 2J/(1+J) of the
    proportion J of right images among those that are or were called the class (Hand et al. 2021).
    """
    from sklearn import metrics as sk

    labels, predicted, every = (
        predictions.labels,
        predictions.predicted,
        np.arange(len(predictions.classes)),
    )
    group = group_ids(predictions.groups, len(predictions))
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, predicted, labels=every, average=None, zero_division=0
    )
    true, claimed = labels[:, None] == every, predicted[:, None] == every
    both = true & claimed
    figures = {
        "precision": (precision, *proportions(claimed, both, group)),
        "recall": (recall, *proportions(true, both, group)),
        "f1": (f1, *(2 * j / (1 + j) for j in proportions(true | claimed, both, group))),
    }
    ranking = _one_vs_rest(predictions)
    rows = []
    for c, name in enumerate(predictions.classes):
        row = {"class": name, "support": int(support[c]), "predicted": int(claimed[:, c].sum())}
        for figure, (point, low, high) in figures.items():
            ends = (None if np.isnan(end[c]) else float(end[c]) for end in (low, high))
            row |= zip((figure, f"{figure}_low", f"{figure}_high"), (float(point[c]), *ends))
        rows.append(row | {figure: values[c] for figure, values in ranking.items()})
    present, occurring = support > 0, true.any(axis=0) | claimed.any(axis=0)
    averages = {
        "balanced_accuracy": recall[present].mean(),
        "macro_f1": f1[occurring].mean(),
        "weighted_f1": np.average(f1[present], weights=support[present]),
    }
    totals = _summary(predictions, averages, ranking, group, resamples=resamples, seed=seed)
    totals["min_class_recall"] = float(recall[present].min())
    return {
        "classes": rows,
        "summary": totals,
        "confusion_matrix": confusion_matrix(predictions).tolist(),
    }


def _summary(predictions, averages, ranking, group, *, resamples, seed):
    """The figures of `summary` but the last; `averages`: the point estimates that the bootstrap
    gives intervals."""
    from sklearn import metrics as sk

    correct, every = predictions.correct, np.arange(len(predictions.classes))
    low, high = (
        float(end[0])
        for end in proportions(np.ones((len(predictions), 1), bool), correct[:, None], group)
    )
    samples = _bootstrap_averages(predictions, group, resamples=resamples, seed=seed)
    figures = {
        "n": len(predictions),
        "accuracy": float(correct.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
    }
    for name, point in averages.items():
        ends = (
            percentile_interval(samples[name], float(point))
            if 0 < correct.sum() < len(correct)
            else (low, high)
        )
        figures |= zip((name, f"{name}_low", f"{name}_high"), (float(point), *ends))
    for k in TOP_K:
        if len(every) > k:
            share = sk.top_k_accuracy_score(
                predictions.labels, predictions.probabilities, k=k, labels=every
            )
            figures[f"top_{k}_accuracy"] = float(share)
    figures["loss"] = log_loss(predictions)
    figures["ece"] = expected_calibration_error(predictions)
    for name, values in ranking.items():
        if defined := [value for value in values if value is not None]:
            figures[name] = float(np.mean(defined))
    return figures


def _one_vs_rest(predictions):
    """{"roc_auc": C values, "average_precision": C values}, None where the figure is not
    defined."""
    from sklearn import metrics as sk

    areas, precisions = [], []
    for c, scores in enumerate(predictions.probabilities.T):
        positive = predictions.labels == c
        some = positive.any()
        areas.append(
            float(sk.roc_auc_score(positive, scores)) if some and not positive.all() else None
        )
        precisions.append(float(sk.average_precision_score(positive, scores)) if some else None)
    return {"roc_auc": areas, "average_precision": precisions}


def _bootstrap_averages(predictions, group, *, resamples, seed):
    """{name: (resamples,)} of balanced accuracy, macro F1 and weighted F1."""
    count = len(predictions.classes)
    pairs, pair = np.unique(predictions.labels * count + predictions.predicted, return_inverse=True)
    # One column per pair (true, predicted) that occurs, not per image: the averages depend on
    # nothing else.
    counts = bootstrap_counts(pair, len(pairs), group, resamples=resamples, seed=seed)
    true, claim = np.divmod(pairs, count)
    columns = np.eye(count)
    support, claimed = counts @ columns[true], counts @ columns[claim]
    hits = counts @ (columns[true] * (true == claim)[:, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = np.where(support > 0, hits / support, 0.0)
        f1 = np.where(support + claimed > 0, 2 * hits / (support + claimed), 0.0)
    return {
        "balanced_accuracy": recall.sum(axis=1) / (support > 0).sum(axis=1),
        "macro_f1": f1.sum(axis=1) / (support + claimed > 0).sum(axis=1),
        "weighted_f1": (support * f1).sum(axis=1) / support.sum(axis=1),
    }


def proportions(
    inside: np.ndarray, right: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """95% Wilson intervals (low, high), float64 (k,), of the proportion of `right` among `inside`,
    both bool (n, k); NaN where none is inside. `group`: int (n,), as `statistics.group_ids` gives
    it.

    With groups, n is divided by the design effect: the cluster-robust variance of the ratio over
    the binomial one (Korn & Graubard 1998), held between 1 and its largest value, that of images of
    a group which are all right or all wrong.
    """
    from scipy.sparse import csr_matrix

    total, hits = inside.sum(axis=0).astype(np.float64), right.sum(axis=0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = hits / total
    size, effect = int(group.max()) + 1, 1.0
    if size < len(group):
        member = csr_matrix(
            (np.ones(len(group)), (group, np.arange(len(group)))), shape=(size, len(group))
        )
        u, r = member @ inside.astype(np.float64), member @ right.astype(np.float64)
        count = (u > 0).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            largest = (u**2).sum(axis=0) / total
            robust = ((r - p * u) ** 2).sum(axis=0) / total**2 * count / (count - 1)
            effect = np.clip(robust / (p * (1 - p) / total), 1.0, largest)
        effect = np.where((count > 1) & (hits > 0) & (hits < total), effect, largest)
    n = total / effect
    low, high = wilson(p * n, n)
    return np.where(total > 0, low, np.nan), np.where(total > 0, high, np.nan)
