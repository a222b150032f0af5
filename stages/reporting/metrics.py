"""Numbers of an evaluation, each with a 95% interval where one is wanted. scikit-learn computes the point estimates.

    summary(y, probabilities, classes, *, groups=None, resamples=2000, seed=0) -> dict       metrics.json
    classification_report(y, probabilities, classes, *, groups=None, resamples=2000, seed=0) -> dict       report.json
    report_text(report) -> str                                                               report.txt
    confusion_matrix(y, probabilities) -> int64 (C, C)         rows: true class, columns: predicted class
    reliability(y, probabilities, *, bins=15) -> list of dict, expected_calibration_error(y, probabilities, *, bins=15) -> float
    chance_calibration_error(probabilities, *, bins=15) -> (mean, 95% quantile)    what a perfectly calibrated model would show
    fit_temperature(log_probabilities, y) -> float, apply_temperature(probabilities, temperature) -> float64 (n, C)
    compare(y, a, b, *, groups=None, resamples=2000, seed=0) -> Comparison                   two models, the same images
    normalise(probabilities) -> float64 (n, C), wilson(successes, n) -> (low, high)

Everywhere: `y` int (n,) class indices; `probabilities` float (n, C), non-negative, rows that sum to 1 up to float32
rounding (they are normalised in float64 first, and the file of predictions holds exactly those values); `classes` C
names; `groups` n strings or None, images of one group (near-duplicates, one photographer) are resampled together, "" is
an image on its own.

Values where a figure has no natural one, as in scikit-learn with `zero_division=0`:
- precision of a class that is never predicted, recall of a class without images, F1 of both: 0, without an interval (None);
- macro F1 averages the classes that occur as a label or as a prediction; balanced accuracy and `min_class_recall` those
  that have images;
- ROC-AUC needs images of the class and of another one, average precision images of the class: else None in the report,
  and the mean over classes leaves such a class out; a mean over nothing is left out of the summary;
- where all images are right, or all wrong, the bootstrap has nothing to vary: its intervals are then that of the accuracy.
"""

import unicodedata

import numpy as np

from stages.common import statistics
from stages.common.statistics import CHUNK, Z, bootstrap_counts, group_ids, percentile_interval, wilson

BINS = 15  # of the calibration error, as in Guo et al. 2017
TEMPERATURES = (0.05, 20.0)
PRIOR = 0.5  # standard deviation of log(temperature): a handful of validation images, all right, must not send it to 0
TOP_K = (3, 5)


# --- inputs -------------------------------------------------------------------------------------------------------------------


def normalise(probabilities):
    """float64 (n, C), each row divided by its sum. Raises ValueError for another shape, a negative, NaN or all-zero row."""
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or p.shape[1] < 2:
        raise ValueError(f"probabilities must have shape (n, C) with C >= 2, not {p.shape}")
    total = p.sum(axis=1, keepdims=True)
    bad = ~np.isfinite(total[:, 0]) | (total[:, 0] <= 0) | (p < 0).any(axis=1)
    if bad.any():
        raise ValueError(f"probabilities: row {int(np.flatnonzero(bad)[0])} is not a distribution")
    return p / total


def _checked(y, probabilities, classes=None):
    p = normalise(probabilities)
    if classes is not None and len(classes) != p.shape[1]:
        raise ValueError(f"{len(classes)} class names for {p.shape[1]} columns of probabilities")
    y = np.asarray(y, np.int64)
    if y.shape != (len(p),):
        raise ValueError(f"y must have shape ({len(p)},) like the probabilities, not {y.shape}")
    if not len(y):
        raise ValueError("no images to evaluate")
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(f"y must lie in 0 … {p.shape[1] - 1}, not {y.min()} … {y.max()}")
    return y, p


# --- proportions --------------------------------------------------------------------------------------------------------------


def _proportions(inside, right, group):
    """Proportion of `right` among `inside`, both bool (n, k), with Wilson intervals: three float64 (k,), NaN where none
    is inside.

    With groups, n is divided by the design effect: the cluster-robust variance of the ratio over the binomial one (Korn &
    Graubard 1998), held between 1 and its largest value, that of images of a group which are all right or all wrong.
    """
    total, hits = inside.sum(axis=0).astype(np.float64), right.sum(axis=0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = hits / total
    size = int(group.max()) + 1
    effect = np.ones_like(total)
    if size < len(group):
        member = _membership(group, size)
        u, r = member @ inside.astype(np.float64), member @ right.astype(np.float64)
        count = (u > 0).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            largest = (u**2).sum(axis=0) / total
            robust = ((r - p * u) ** 2).sum(axis=0) / total**2 * count / (count - 1)
            effect = np.clip(robust / (p * (1 - p) / total), 1.0, largest)
        effect = np.where((count > 1) & (hits > 0) & (hits < total), effect, largest)
    n = total / effect
    low, high = wilson(p * n, n)
    return p, np.where(total > 0, low, np.nan), np.where(total > 0, high, np.nan)


def _membership(group, size):
    from scipy.sparse import csr_matrix

    return csr_matrix((np.ones(len(group)), (group, np.arange(len(group)))), shape=(size, len(group)))


# --- bootstrap ----------------------------------------------------------------------------------------------------------------


def _bootstrap_averages(y, predicted, n_classes, group, *, resamples, seed):
    """{name: (resamples,)} of balanced accuracy, macro F1 and weighted F1."""
    pairs, pair = np.unique(y * n_classes + predicted, return_inverse=True)
    # One column per pair (true, predicted) that occurs, not per image: the averages depend on nothing else.
    counts = bootstrap_counts(pair, len(pairs), group, resamples=resamples, seed=seed)
    true, guess = pairs // n_classes, pairs % n_classes
    columns = np.eye(n_classes)
    support, claimed = counts @ columns[true], counts @ columns[guess]
    hits = counts @ (columns[true] * (true == guess)[:, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = np.where(support > 0, hits / support, 0.0)
        f1 = np.where(support + claimed > 0, 2 * hits / (support + claimed), 0.0)
    return {
        "balanced_accuracy": recall.sum(axis=1) / (support > 0).sum(axis=1),
        "macro_f1": f1.sum(axis=1) / (support + claimed > 0).sum(axis=1),
        "weighted_f1": (support * f1).sum(axis=1) / support.sum(axis=1),
    }


# --- calibration --------------------------------------------------------------------------------------------------------------


def apply_temperature(probabilities, temperature):
    """softmax(log(p) / temperature) in float64; `1 / temperature` undoes it. temperature > 0; above 1 softens."""
    if not temperature > 0 or not np.isfinite(temperature):
        raise ValueError(f"temperature must be above 0, not {temperature}")
    p = normalise(probabilities)
    if temperature == 1:
        return p
    # Relative to the row's largest, so that a sharp temperature cannot underflow the whole row.
    with np.errstate(under="ignore"):
        return normalise((p / p.max(axis=1, keepdims=True)) ** (1.0 / temperature))


def fit_temperature(log_probabilities, y):
    """The temperature in [0.05, 20] that minimises the log loss of softmax(log_probabilities / T) (Guo et al. 2017).

    `log_probabilities` float (n, C): logits or logarithms of probabilities of *validation* images; -inf is allowed. `y` int
    (n,). Apply the result with `apply_temperature`. Exactly 1.0 where the images do not call for another (likelihood-ratio
    test at 5%): there scaling would follow chance, and the calibration error of other images rises as often as it falls. A
    log-normal prior (sd 0.5), weighing as much as a fraction of one image, keeps T finite where every image is right.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    z, y = np.asarray(log_probabilities, np.float64), np.asarray(y, np.int64)
    if not len(y):
        return 1.0
    z = np.maximum(z - z.max(axis=1, keepdims=True), np.log(np.finfo(np.float32).tiny))
    right = z[np.arange(len(y)), y]

    def loss(log_t):
        return float((logsumexp(z / np.exp(log_t), axis=1) - right / np.exp(log_t)).sum())

    def cost(log_t):
        return loss(log_t) + (log_t / PRIOR) ** 2 / 2

    best = minimize_scalar(cost, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-8}).x
    return float(np.exp(best)) if 2 * (loss(0.0) - loss(best)) > Z**2 else 1.0


def reliability(y, probabilities, *, bins=BINS):
    """One dict per bin (low, high] of the confidence: `low`, `high`, `n`, mean `confidence`, `accuracy` with its interval.

    Confidence, accuracy and interval are None where n is 0.
    """
    y, p = _checked(y, probabilities)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    edges, bin_of = _bins(confidence, bins)
    n = np.bincount(bin_of, minlength=bins)
    sums = [np.bincount(bin_of, weights=v, minlength=bins) for v in (confidence, right)]
    low, high = wilson(sums[1], n)
    return [
        {
            "low": float(edges[k]),
            "high": float(edges[k + 1]),
            "n": int(n[k]),
            "confidence": float(sums[0][k] / n[k]) if n[k] else None,
            "accuracy": float(sums[1][k] / n[k]) if n[k] else None,
            "accuracy_low": float(low[k]) if n[k] else None,
            "accuracy_high": float(high[k]) if n[k] else None,
        }
        for k in range(bins)
    ]


def _bins(confidence, bins):
    """Edges of equal-width bins (low, high], float (bins + 1,), and the bin of each confidence, int (n,)."""
    edges = np.linspace(0, 1, bins + 1)
    return edges, np.digitize(confidence, edges[1:-1], right=True)


def expected_calibration_error(y, probabilities, *, bins=BINS):
    """Mean |accuracy - confidence| over equal-width bins of the confidence, weighted by images (Guo et al. 2017)."""
    rows = [row for row in reliability(y, probabilities, bins=bins) if row["n"]]
    return float(sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / sum(row["n"] for row in rows))


def chance_calibration_error(probabilities, *, bins=BINS, resamples=1000, seed=0):
    """(mean, 95% quantile) of the calibration error that perfectly calibrated confidences would show on so few images.

    Each resample draws which images are right from their confidences (consistency resampling, Bröcker and Smith 2007). An
    error within that range says nothing against the model; on 467 photos of flowers (accuracy 0.92) the mean was 0.03.
    """
    confidence = normalise(probabilities).max(axis=1)
    _, bin_of = _bins(confidence, bins)
    order = np.argsort(bin_of, kind="stable")
    confidence, starts = confidence[order], np.flatnonzero(np.diff(bin_of[order], prepend=-1))
    rng, n = np.random.default_rng(seed), len(confidence)
    step = max(1, CHUNK // n)
    errors = []
    for start in range(0, resamples, step):
        right = rng.random((min(step, resamples - start), n)) < confidence
        gaps = np.add.reduceat(right - confidence, starts, axis=1)
        errors.append(np.abs(gaps).sum(axis=1) / n)
    errors = np.concatenate(errors)
    return float(errors.mean()), float(np.quantile(errors, 0.95))


def log_loss(y, probabilities):
    """Mean negative log-likelihood in nats; a probability of 0 counts as float64's epsilon, as in scikit-learn."""
    from sklearn import metrics as sk

    y, p = _checked(y, probabilities)
    return float(sk.log_loss(y, p, labels=np.arange(p.shape[1])))


# --- what the files hold ------------------------------------------------------------------------------------------------------


def confusion_matrix(y, probabilities):
    """int64 (C, C): row = true class, column = predicted class (the first of equal probabilities)."""
    from sklearn import metrics as sk

    y, p = _checked(y, probabilities)
    return sk.confusion_matrix(y, p.argmax(axis=1), labels=np.arange(p.shape[1])).astype(np.int64)


def summary(y, probabilities, classes, *, groups=None, resamples=2000, seed=0):
    """The figures of `metrics.json`, in a fixed order; a figure that is not defined on these images is left out.

    `n`; `accuracy`, `balanced_accuracy`, `macro_f1`, `weighted_f1`, each with `_low` and `_high` (95%: Wilson for the
    accuracy, a seeded percentile bootstrap for the others); `top_3_accuracy` and `top_5_accuracy` where there are more
    classes than that; `loss` (mean negative log-likelihood, nats); `ece` (15 bins); `roc_auc` and `average_precision`
    (one-vs-rest, mean over classes); `min_class_recall`.
    """
    y, p = _checked(y, probabilities, classes)
    return _summary(y, p, _one_vs_rest(y, p), group_ids(groups, len(y)), resamples=resamples, seed=seed)


def _summary(y, p, ranking, group, *, resamples, seed):
    from sklearn import metrics as sk

    predicted, labels = p.argmax(axis=1), np.arange(p.shape[1])
    right = predicted == y
    _, low, high = _proportions(np.ones((len(y), 1), bool), right[:, None], group)
    present, occurring = np.unique(y), np.union1d(y, predicted)
    recalls = sk.recall_score(y, predicted, labels=present, average=None, zero_division=0)
    points = {
        "balanced_accuracy": float(recalls.mean()),
        "macro_f1": float(sk.f1_score(y, predicted, labels=occurring, average="macro", zero_division=0)),
        "weighted_f1": float(sk.f1_score(y, predicted, labels=present, average="weighted", zero_division=0)),
    }
    samples = _bootstrap_averages(y, predicted, len(labels), group, resamples=resamples, seed=seed)
    figures = {
        "n": len(y),
        "accuracy": float(sk.accuracy_score(y, predicted)),
        "accuracy_low": float(low[0]),
        "accuracy_high": float(high[0]),
    }
    for name, point in points.items():
        ends = percentile_interval(samples[name], point) if 0 < right.sum() < len(y) else (float(low[0]), float(high[0]))
        figures.update({name: point, f"{name}_low": ends[0], f"{name}_high": ends[1]})
    for k in TOP_K:
        if len(labels) > k:
            figures[f"top_{k}_accuracy"] = float(sk.top_k_accuracy_score(y, p, k=k, labels=labels))
    figures["loss"] = log_loss(y, p)
    figures["ece"] = expected_calibration_error(y, p)
    for name, values in ranking.items():
        defined = [v for v in values if v is not None]
        if defined:
            figures[name] = float(np.mean(defined))
    figures["min_class_recall"] = float(recalls.min())
    return figures


def _one_vs_rest(y, p):
    """{"roc_auc": C values, "average_precision": C values}, None where the figure is not defined."""
    from sklearn import metrics as sk

    areas, precisions = [], []
    for c in range(p.shape[1]):
        positive = y == c
        some = positive.any()
        areas.append(float(sk.roc_auc_score(positive, p[:, c])) if some and not positive.all() else None)
        precisions.append(float(sk.average_precision_score(positive, p[:, c])) if some else None)
    return {"roc_auc": areas, "average_precision": precisions}


def classification_report(y, probabilities, classes, *, groups=None, resamples=2000, seed=0):
    """The content of `report.json`: {"classes": [...], "summary": summary(...), "confusion_matrix": [[int]]}.

    A class: `class`, `support` (images), `predicted` (predictions), `precision`, `recall`, `f1`, each with `_low` and `_high`,
    `roc_auc`, `average_precision`. Precision and recall are proportions and have Wilson intervals; so has F1, which is a
    monotone function 2J/(1+J) of the proportion J of right images among those that are or were called the class (Hand et
    al. 2021).
    """
    from sklearn import metrics as sk

    y, p = _checked(y, probabilities, classes)
    predicted, labels = p.argmax(axis=1), np.arange(p.shape[1])
    group = group_ids(groups, len(y))
    points = sk.precision_recall_fscore_support(y, predicted, labels=labels, average=None, zero_division=0)
    true, claimed = y[:, None] == labels, predicted[:, None] == labels
    both = true & claimed
    intervals = {
        "precision": _proportions(claimed, both, group)[1:],
        "recall": _proportions(true, both, group)[1:],
        "f1": [2 * j / (1 + j) for j in _proportions(true | claimed, both, group)[1:]],
    }
    ranking = _one_vs_rest(y, p)
    rows = []
    for c, name in enumerate(classes):
        row = {"class": str(name), "support": int(points[3][c]), "predicted": int(claimed[:, c].sum())}
        for k, figure in enumerate(("precision", "recall", "f1")):
            ends = [None if np.isnan(end[c]) else float(end[c]) for end in intervals[figure]]
            row.update({figure: float(points[k][c]), f"{figure}_low": ends[0], f"{figure}_high": ends[1]})
        rows.append({**row, **{figure: values[c] for figure, values in ranking.items()}})
    figures = _summary(y, p, ranking, group, resamples=resamples, seed=seed)
    return {"classes": rows, "summary": figures, "confusion_matrix": confusion_matrix(y, p).tolist()}


def report_text(report):
    """`report.txt`: the report as a table for people, figures to three places with their 95% intervals."""

    def figure(row, name):
        low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
        interval = "[     –      ]" if low is None else f"[{low:.3f}, {high:.3f}]"
        return f"{row[name]:.3f} {interval}"

    averages = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1")
    names = {name: name.replace("_", " ").replace("f1", "F1") for name in averages}
    width = max(_width(text) for text in [*names.values(), *(row["class"] for row in report["classes"])])
    lines = [_pad("", width) + f"  {'precision':<20}  {'recall':<20}  {'F1':<20}  support"]
    for row in report["classes"]:
        figures = "  ".join(figure(row, name) for name in ("precision", "recall", "f1"))
        lines.append(f"{_pad(row['class'], width)}  {figures}  {row['support']:7d}")
    totals = report["summary"]
    lines.append("")
    lines += [f"{_pad(text, width)}  {figure(totals, name)}" for name, text in names.items()]
    others = [name for name in totals if name != "n" and not any(name.startswith(known) for known in names)]
    lines += [f"{_pad(name.replace('_', ' '), width)}  {totals[name]:.3f}" for name in others]
    lines += ["", f"{totals['n']} images; [low, high]: 95% intervals."]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _width(text):
    """Columns that a terminal gives `text`: two for a wide East Asian character, none for a combining one."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _pad(text, width):
    return text + " " * (width - _width(text))


# --- two models on the same images --------------------------------------------------------------------------------------------


def compare(y, a, b, **options):
    """`statistics.compare` of two models, each given by probabilities (n, C) or predicted class indices (n,)."""
    y = np.asarray(y, np.int64)
    right = []
    for model in (a, b):
        model = np.asarray(model)
        predicted = model.argmax(axis=1) if model.ndim == 2 else model
        if predicted.shape != y.shape:
            raise ValueError(f"{len(predicted)} predictions for {len(y)} images")
        right.append(predicted == y)
    return statistics.compare(*right, **options)
