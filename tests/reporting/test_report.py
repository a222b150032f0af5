"""The files of a stage: all that they hold follows from their arguments, and predictions.csv proves the figures."""

import csv
import dataclasses
import html.parser
import json
import re
import warnings

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sk

from stages.reporting import card, metrics, report

PNG = {
    "confusion_matrix", "confusion_matrix_normalised", "curves", "grad_cam", "head_against_fine_tuned", "model_graph",
    "per_class", "precision_recall", "prediction_grid", "reliability", "roc", "top_confusions", "worst_mistakes",
}  # fmt: skip
CSV = {"per_class", "precision_recall", "reliability", "roc", "top_confusions", "worst_mistakes"}
CLASSES = ["daisy", "path", 'a "b", <c> & d']


def photo(i):
    return np.random.default_rng(i).integers(0, 256, (16, 16, 3)).astype(np.uint8)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def arguments(simulate, curves, model):
    y, p = simulate(90, 3, signal=1.5, sharpness=2)
    facts = card.Facts(
        name="Flowers & <friends>",
        model={"backbone": "tiny", "parameters": 603, "calibrated": True},
        counts={"train": {"daisy": 5, "path": 7}, "test": dict.fromkeys(CLASSES, 30)},
        problems=[{"path": f"daisy/{k}.jpg", "problem": "truncated", "action": "set aside"} for k in range(50)],
        digests={"data": "ab12"},
        load="import keras",
    )
    return {
        "paths": [f"{CLASSES[k]}/photo {i}.jpg" for i, k in enumerate(y)],
        "y": y,
        "probabilities": metrics.apply_temperature(p, 2),
        "classes": CLASSES,
        "groups": ["" if i % 3 else f"g{i // 9}" for i in range(90)],
        "image": photo,
        "temperature": 2.0,
        "calibrated": True,
        "head_probabilities": simulate(90, 3, signal=1)[1],
        "curves": curves,
        "unfrozen_at": 3,
        "model": model,
        "facts": facts,
        "resamples": 200,
        "seed": 7,
    }


@pytest.fixture(scope="module")
def written(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return folder, report.write_evaluation(folder, **arguments)


def test_everything_is_written(written):
    folder, _ = written
    top = {"metrics.json", "predictions.csv", "report.json", "report.txt", "confusion_matrix.csv", "card.html"}
    plots = {f"plots/{name}.png" for name in PNG} | {f"plots/{name}.csv" for name in CSV}
    assert set(files(folder)) == top | plots
    assert not any(b"\r\n" in content for name, content in files(folder).items() if not name.endswith(".png"))


def test_written_twice_is_the_same_bytes(written, arguments, tmp_path):
    report.write_evaluation(tmp_path, **arguments)
    assert files(tmp_path) == files(written[0])


def test_figures_follow_from_predictions_csv(written, arguments):
    folder, evaluation = written
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "label", "predicted", "confidence", "daisy", "class:path", CLASSES[2], "group", "head_predicted"]
    index = {name: k for k, name in enumerate(CLASSES)}
    y = np.array([index[row[1]] for row in rows])
    p = np.array([[float(v) for v in row[4:7]] for row in rows])
    predicted, head = p.argmax(axis=1), np.array([index[row[8]] for row in rows])
    assert [index[row[2]] for row in rows] == predicted.tolist()
    assert [float(row[3]) for row in rows] == p.max(axis=1).tolist()
    assert p.sum(axis=1) == pytest.approx(np.ones(90), abs=1e-15)
    bare = p**2 / (p**2).sum(axis=1, keepdims=True)

    def ece(q):
        confidence, right = q.max(axis=1), q.argmax(axis=1) == y
        bins = np.ceil(confidence * 15)
        return sum(abs((right[bins == b] - confidence[bins == b]).sum()) for b in range(1, 16)) / 90

    only_head, only_tuned = ((head == y) & (predicted != y)).sum(), ((head != y) & (predicted == y)).sum()
    expected = {
        "n": 90,
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
        "macro_f1": sk.f1_score(y, predicted, average="macro"),
        "weighted_f1": sk.f1_score(y, predicted, average="weighted"),
        "loss": -np.log(p[np.arange(90), y]).mean(),
        "ece": ece(p),
        "roc_auc": sk.roc_auc_score(y, p, multi_class="ovr"),
        "average_precision": sk.average_precision_score(np.eye(3)[y], p),
        "min_class_recall": sk.recall_score(y, predicted, average=None).min(),
        "temperature": 2.0,
        "ece_uncalibrated": ece(bare),
        "ece_calibrated": ece(p),
        "loss_uncalibrated": sk.log_loss(y, bare),
        "loss_calibrated": sk.log_loss(y, p),
        "head_accuracy": sk.accuracy_score(y, head),
        "head_difference": (only_tuned - only_head) / 90,
    }
    read = report.read_predictions(folder / "predictions.csv")
    again = metrics.summary(read.y, read.probabilities, read.classes, groups=read.groups, resamples=200, seed=7)
    ends = {key: again[key] for key in again if key.endswith(("_low", "_high"))}
    paired = metrics.compare(y, head, predicted, groups=read.groups, resamples=200, seed=7)
    ends |= {"head_difference_low": paired.low, "head_difference_high": paired.high}
    ends |= {"head_p_value": paired.p_value}
    ends |= dict(zip(("ece_by_chance", "ece_by_chance_high"), metrics.chance_calibration_error(read.probabilities, seed=7)))
    assert binomtest(int(only_tuned), int(only_tuned + only_head)).pvalue == pytest.approx(paired.p_value, abs=0.05)
    figures = json.loads((folder / "metrics.json").read_text())
    assert set(figures) == set(expected) | set(ends)
    for key, value in {**expected, **ends}.items():
        assert figures[key] == pytest.approx(value, abs=1e-9), key
    assert figures == evaluation.metrics

    content = json.loads((folder / "report.json").read_text())
    assert content["confusion_matrix"] == sk.confusion_matrix(y, predicted).tolist()
    independent = sk.classification_report(y, predicted, output_dict=True)
    for k, row in enumerate(content["classes"]):
        theirs = independent[str(k)]
        assert (row["precision"], row["recall"], row["f1"], row["support"]) == pytest.approx(
            (theirs["precision"], theirs["recall"], theirs["f1-score"], theirs["support"]), abs=1e-9
        )
        assert row["roc_auc"] == pytest.approx(sk.roc_auc_score(y == k, p[:, k]), abs=1e-9)
    assert content["summary"] == {key: figures[key] for key in content["summary"]}


def test_predictions_read_back_as_they_were(written, arguments):
    read = report.read_predictions(written[0] / "predictions.csv")
    assert read.paths == tuple(arguments["paths"])
    assert read.classes == tuple(CLASSES)
    assert read.groups == tuple(arguments["groups"])
    assert (read.probabilities == metrics.normalise(arguments["probabilities"])).all()
    assert (read.y == arguments["y"]).all()
    assert (read.head_predicted == arguments["head_probabilities"].argmax(axis=1)).all()


@pytest.mark.parametrize("classes", [["group", "class:group"], ["label", "confidence"], ["predicted", "ça va, \n?"]])
def test_classes_called_like_columns(classes, tmp_path):
    p = np.array([[0.25, 0.75]])
    report.write_predictions(tmp_path / "p.csv", paths=["x"], y=[1], probabilities=p, classes=classes)
    read = report.read_predictions(tmp_path / "p.csv")
    assert (read.classes, read.y.tolist(), read.probabilities.tolist()) == (tuple(classes), [1], p.tolist())
    assert read.head_predicted is None and read.groups == ("",)


def test_curves_are_kept_without_their_times(curves, tmp_path):
    report.write_curves(tmp_path / "curves.csv", curves, unfrozen_at=3)
    text = (tmp_path / "curves.csv").read_text()
    assert text.splitlines()[0] == "epoch,phase,lr,train_loss,train_accuracy,val_loss,val_accuracy"
    assert text.splitlines()[4] == "3,fine-tune,0.0001,0.6,0.78,0.9,0.7"
    assert "9.87" not in text
    kept = [{key: value for key, value in row.items() if key != "seconds"} for row in curves]
    assert report.read_curves(tmp_path / "curves.csv") == (kept, 3)
    report.write_curves(tmp_path / "head.csv", curves[:2])
    assert report.read_curves(tmp_path / "head.csv") == (kept[:2], None)


def test_training_report(simulate, curves, model, tmp_path):
    y, p = simulate(60, 3)
    shared = {"y": y, "probabilities": p, "classes": CLASSES, "curves": curves, "resamples": 50}
    found = report.write_training_report(tmp_path / "a", unfrozen_at=3, model=model, **shared)
    report.write_training_report(tmp_path / "b", unfrozen_at=3, model=model, **shared)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    pictures = {"curves", "confusion_matrix", "confusion_matrix_normalised", "model_graph"}
    expected = {"report.json", "report.txt", "confusion_matrix.csv", "curves.csv"} | {f"plots/{name}.png" for name in pictures}
    assert set(files(tmp_path / "a")) == expected
    assert found == metrics.summary(y, p, CLASSES, resamples=50)
    rows = list(csv.reader((tmp_path / "a" / "confusion_matrix.csv").open(newline="")))
    assert rows[0] == ["actual", "predicted"]
    assert rows[1:] == [[CLASSES[a], CLASSES[b]] for a, b in zip(y, p.argmax(axis=1))]


DEGENERATE = {
    "three images": ([0, 1, 0], [[0.2, 0.7, 0.1], [0.9, 0.05, 0.05], [0.4, 0.6, 0]]),
    "one class, all right, certain": ([1, 1, 1, 1], [[0, 1, 0]] * 4),
    "a class missing, another never predicted": ([0, 1, 1, 0] * 5, [[0.6, 0.1, 0.3], [0.5, 0.2, 0.3]] * 10),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_test_sets_are_written_without_a_warning(name, arguments, tmp_path):
    y, p = DEGENERATE[name]
    shared = {**arguments, "paths": [str(i) for i in range(len(y))], "groups": None, "head_probabilities": np.array(p)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = report.write_evaluation(tmp_path, **{**shared, "y": y, "probabilities": np.array(p)})
    assert found.metrics["head_difference"] == 0 and found.metrics["head_p_value"] == 1
    assert f"tested on {len(y)} images" in (tmp_path / "card.html").read_text()
    assert {path.stem for path in (tmp_path / "plots").glob("*.png")} == PNG


def test_a_hundred_classes(simulate, tmp_path):
    y, p = simulate(2000, 100, signal=4)
    classes = [f"kind {k}" for k in range(100)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = report.write_evaluation(
            tmp_path, paths=[f"{i}" for i in range(2000)], y=y, probabilities=p, classes=classes, image=photo, resamples=50
        )
    page = (tmp_path / "card.html").read_text()
    assert len(page) < 5_000_000
    assert "most often confused" in page and all(f"<td>{name}</td>" in page for name in classes)
    assert found.metrics["accuracy"] == (p.argmax(axis=1) == y).mean()
    assert not (tmp_path / "plots" / "curves.png").exists()


# --- the card -----------------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Checks that every element is closed where it was opened; collects what the page would load."""

    void = {"meta", "link", "img", "br", "path", "use", "rect"}

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.text = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in self.void:
            self.open.append(tag)
        self.loads += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset") and not v.startswith("#")]

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_data(self, data):
        self.text.append(data)


def test_card_needs_nothing_but_itself(written):
    text = (written[0] / "card.html").read_text()
    page = Page(text)
    assert page.loads and all(address.startswith("data:image/") for address in page.loads)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "prefers-color-scheme: dark" in text and "@media print" in text and "width=device-width" in text
    assert not re.search(r"20\d\d-\d\d-\d\d", text)  # no date


def test_card_says_what_was_found(written):
    folder, evaluation = written
    text = " ".join(" ".join(Page((folder / "card.html").read_text()).text).split())
    found = evaluation.metrics
    for figure in ("accuracy", "accuracy_low", "accuracy_high", "balanced_accuracy", "macro_f1", "head_accuracy"):
        assert f"{100 * found[figure]:.1f}%" in text
    assert f"{100 * found['ece_uncalibrated']:.1f} points" in text
    given = ("Flowers & <friends>", CLASSES[2], "603", "truncated: 50 (set aside)", "… and 10 more", "import keras", "ab12")
    assert [words for words in given if words not in text] == []
    assert "git commit" not in text


def test_card_with_provenance(written):
    _, evaluation = written
    plain = card.render_card(evaluation.card)
    assert plain == (written[0] / "card.html").read_text()
    page = card.render_card(evaluation.card, provenance={"git commit": "c0ffee", "MLflow": "http://127.0.0.1:5000/#/runs/1"})
    assert "c0ffee" in page and '<a href="http://127.0.0.1:5000/#/runs/1">' in page
    unsafe = card.render_card(evaluation.card, provenance={"MLflow": "javascript:alert(1)"})
    assert "<a " not in unsafe


def test_card_without_facts_and_not_calibrated(written):
    _, evaluation = written
    page = card.render_card(dataclasses.replace(evaluation.card, facts=card.Facts(), calibrated=False))
    Page(page)
    assert "is not applied; with it the error would be" in page
    assert 'id="data"' not in page and 'id="provenance"' not in page
