"""Names of classes and photos that would do harm where they were believed: they come back from
tables as they were, and reach no page unescaped. They come from folders, tables of labels and other
people's data sets."""

import dataclasses
import html.parser
from pathlib import Path

import numpy as np
import pytest

from graft import params as parameters
from graft.dataset import labels, layout, manifest
from graft.dataset.labels import Place
from graft.dataset.manifest import Manifest, ManifestRow
from graft.reporting import drift as drift_page
from graft.reporting import plots, report, review, second_look
from graft.reporting.evaluation import write_evaluation
from graft.scoring.calibration import Calibration
from graft.scoring.predictions import Predictions
from graft.scoring.results import Results
from graft.second_look import drift
from graft.second_look.evidence import Evidence
from graft.system import files
from graft.system.console import GraftError

# What a table of labels may say, the first four of which are no name of a folder.
NAMES = (
    "../up", "/etc/passwd", "..", "a/b", "a\nb", "a\r\nb", "a,b", 'say "x"', "it's",
    "; rm -rf $HOME", "$(touch x)", "`x` & | > y", "<script>alert(1)</script>",
    "</style></svg><img src=x onerror=alert(1)>", "&lt;b&gt; &amp;", "]]>-->", "{{ 7 * 7 }}{% x %}",
    "=1+1", "@SUM(A1)", "-x", "#a", "$x^2$ \\frac", "%s %d {0}", "🦙 llama", "\u202eevil\u202c",
    "\u200fشجرة", "x" * 255, "ä" * 127, " a ", "a\tb", "\\N", "nan", "null", "1e5",
)  # fmt: skip
ROOT = Path(__file__).parents[2]
FOLDERS = [name for name in NAMES if "/" not in name and name != ".."]


class Page(html.parser.HTMLParser):
    """What a browser would make of a page: its elements, the names of its attributes, what it would
    load, its text."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.attributes, self.sources, self.text, self.within = [], set(), [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.within = tag
        self.attributes |= {name for name, _ in attributes}
        self.sources += [value for name, value in attributes if name == "src"]
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, data):
        if self.within == "script":
            self.scripts[-1] += data
        else:
            self.text.append(data)


def is_safe(page, *, scripts=0):
    """Whether nothing in the page is a name's; scripts: of its own."""
    parsed = Page(page)
    assert len(parsed.scripts) == scripts
    assert not any("alert(1)" in script for script in parsed.scripts)
    assert not [name for name in parsed.attributes if name.startswith("on")]
    assert all(source.startswith("data:image/") for source in parsed.sources)
    return " ".join(parsed.text)


def spaced(text):
    return " ".join(text.split())


def test_tables_give_back_what_they_were_given(tmp_path):
    files.write_csv(tmp_path / "x.csv", ["name", "n"], ((name, n) for n, name in enumerate(NAMES)))
    assert [row["name"] for row in files.read_csv(tmp_path / "x.csv")] == list(NAMES)


def test_predictions_and_manifests_give_back_what_they_were_given(tmp_path):
    classes = tuple(sorted(NAMES))
    paths = tuple(f"{name}/{n}.jpg" for n, name in enumerate(classes))
    made = Predictions(
        paths,
        np.arange(len(classes)),
        np.full((len(classes), len(classes)), 1 / len(classes)),
        classes,
    )
    made.write(tmp_path / "predictions.csv")
    again = Predictions.read(tmp_path / "predictions.csv")
    assert (tuple(again.classes), tuple(again.paths), again.labels.tolist()) == (
        classes,
        paths,
        made.labels.tolist(),
    )
    rows = tuple(ManifestRow(path, name, "train", "", 8, 8) for path, name in zip(paths, classes))
    manifest.write(Manifest(rows, classes), tmp_path)
    assert manifest.read(tmp_path).rows == rows and manifest.read(tmp_path).classes == classes


def test_folders_and_tables_of_labels_give_classes_of_these_names(tmp_path):
    for name in FOLDERS:
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.jpg").touch()
    walked = layout.walk(tmp_path / "photos")
    assert sorted(file.path for file in walked.files) == sorted(f"{name}/1.jpg" for name in FOLDERS)
    # Those with | or { would be several labels; what cannot be printed is refused.
    single = [
        name
        for name in FOLDERS
        if "|" not in name and not name.startswith("{") and name.isprintable()
    ]
    table = {f"{n}.jpg": Place(name) for n, name in enumerate(single)}
    labels.write_table(tmp_path / "photos" / "labels.csv", table)
    data = parameters.load(ROOT / "params.yaml").data.model_copy(update={"labels": "labels.csv"})
    read = labels.read(tmp_path / "photos", [*table, "labels.csv"], data)
    assert {path: place.label for path, place in read.rows.items()} == {
        path: p.label.strip() for path, p in table.items()
    }
    for name in (name for name in NAMES if not name.isprintable()):
        labels.write_table(tmp_path / "photos" / "labels.csv", {"0.jpg": Place(name)})
        with pytest.raises(GraftError, match="cannot be printed") as error:
            labels.read(tmp_path / "photos", ["0.jpg", "labels.csv"], data)
        assert str(error.value).isprintable()


@pytest.fixture(scope="module")
def predictions(simulate):
    """predictions(names): of three photos of each class."""

    def make(names):
        made = simulate(3 * len(names), len(names), signal=1, classes=sorted(names))
        return dataclasses.replace(
            made, paths=tuple(f"{names[n % len(names)]}/{n}.jpg" for n in range(len(made)))
        )

    return make


def test_the_card_shows_them_as_text(
    predictions, history, about, arguments, images, tmp_path, monkeypatch
):
    # Of 3 classes.
    monkeypatch.setattr(
        plots.grad_cam, "grad_cam", lambda _, photos, targets: np.zeros(photos.shape[:3])
    )
    names = NAMES[10:17]
    made = predictions(names)
    told = dataclasses.replace(
        about,
        counts={"train": dict.fromkeys(NAMES, 5)},
        problems=[{"path": p, "problem": p, "action": p} for p in NAMES],
    )
    results = Results(made, made, Calibration(2.0, applied=True), history)
    page = write_evaluation(tmp_path, results, images=images, **arguments | {"about": told}).page
    text = spaced(is_safe(page))
    assert [name for name in names if spaced(name) not in text] == []
    matrix = files.read_csv(tmp_path / "confusion_matrix.csv")
    assert {value for row in matrix for value in row.values()} | set(matrix[0]) >= set(names)
    assert "<script>" in report.report_text(files.read_json(tmp_path / "report.json"))


def test_the_second_look_shows_them_as_text(predictions, images, tmp_path):
    predictions = predictions(NAMES)
    labels_, n = predictions.labels, len(predictions)
    features = (
        np.eye(len(NAMES))[labels_] + np.random.default_rng(0).normal(size=(n, len(NAMES))) / 9
    )
    sure = np.eye(len(NAMES))[labels_] * 0.9 + 0.1 / len(NAMES)
    wrong = np.where(np.arange(n) < n // 3, (labels_ + 1) % len(NAMES), labels_)
    made = Evidence(
        Predictions(predictions.paths, wrong, sure, predictions.classes),
        features.astype(np.float16),
        ("train",) * n,
    )
    section = second_look.write(tmp_path, made, images=images, seed=1).section
    assert "<script>alert(1)</script>" in spaced(is_safe(section))


def test_the_review_and_drift_pages_show_them_as_text():
    black = np.zeros((4, 4, 3), np.uint8)
    doubts = [
        review.Doubt(f"{name}/1.jpg", name, NAMES[n - 1], 0.5, "uncertain", "train", black)
        for n, name in enumerate(NAMES)
    ]
    page = review.page(doubts, NAMES, name=NAMES[12])
    is_safe(page, scripts=page.count("<script"))
    shares = tuple(drift.Share(name, 0.5, 0.5, 0.4, 0.6) for name in NAMES)
    found = drift.Drift(10, 10, 0.5, 0.5, shares, 0.1, 0.9, 0.8, 1.0)
    for name in NAMES:
        is_safe(drift_page.page(found, name=name))
    assert "<script>alert(1)</script>" in spaced(is_safe(drift_page.page(found, name="x")))
