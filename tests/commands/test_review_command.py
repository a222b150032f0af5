import csv
import html
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from graft.commands import main, review
from graft.dataset import manifest
from graft.dataset.manifest import Manifest, ManifestRow
from graft.reporting import review as report
from graft.scoring.predictions import Predictions
from graft.second_look import suspects
from graft.system import files, paths
from graft.system.console import GraftError

CLASSES = ("cat", "dog", "<b>&")
HOSTILE = 'cat/a ü, "x" <b>.png'
# How sure the head is of the label, and of another class, per photo; the second is suspect.
SAID = {
    HOSTILE: (0.5, 0.4),
    "cat/2.png": (0.1, 0.8),
    "dog/3.png": (0.9, 0.05),
    "dog/4.png": (0.45, 0.45),
}


@pytest.fixture
def looked(clone):
    """data/raw/pets, split and looked at: four photos, one suspect."""
    rng, root = np.random.default_rng(0), clone / "data/raw/pets"
    text = (
        (clone / "params.yaml")
        .read_text(encoding="utf-8")
        .replace("data/raw/fashion", "data/raw/pets")
    )
    (clone / "params.yaml").write_text(text, encoding="utf-8")
    rows, probabilities = [], []
    for name, (own, other) in SAID.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(root / name)
        rows.append(
            ManifestRow(name, name.split("/")[0], "test" if "4" in name else "train", "", 12, 9)
        )
        k = CLASSES.index(rows[-1].label)
        probabilities.append(
            [own if j == k else other if j == 1 - k else 1 - own - other for j in range(3)]
        )
    manifest.write(Manifest(tuple(rows), tuple(sorted(CLASSES))), paths.SPLIT)
    order = [CLASSES.index(name) for name in sorted(CLASSES)]
    labels = [sorted(CLASSES).index(row.label) for row in rows]
    paths.SECOND_LOOK.mkdir(parents=True)
    Predictions(
        tuple(SAID), labels, np.array(probabilities)[:, order], tuple(sorted(CLASSES))
    ).write(paths.SECOND_LOOK / "oof.csv")
    row = (suspects.CONTRADICTED, "cat/2.png", "train", "cat", "dog", 0.1, 0.8, "")
    files.write_csv(paths.SECOND_LOOK / "suspects.csv", suspects.COLUMNS, [row])
    return root


def test_suspects_come_first_then_the_uncertain_ones_the_least_sure_before_the_others(looked):
    found = review.chosen(manifest.read(paths.SPLIT), 3)
    assert [(path, why, likelier) for path, _, likelier, _, why, _ in found] == [
        ("cat/2.png", "contradicted", "dog"),
        ("dog/4.png", "uncertain", "cat"),
        (HOSTILE, "uncertain", "dog"),
    ]
    assert len(review.chosen(manifest.read(paths.SPLIT), 99)) == 4


def test_the_page_holds_every_photo_and_no_text_of_theirs_unescaped(looked, capsys):
    (looked / "dog/3.png").unlink()
    main.main(["review"])
    page = (looked.parents[2] / "review.html").read_text(encoding="utf-8")
    shown = [html.unescape(path) for path in re.findall(r'data-path="(.*?)"', page)]
    assert shown == ["cat/2.png", "dog/4.png", HOSTILE]
    assert page.count('src="data:image/jpeg;base64,') == 3 and "<b>" not in page
    assert page.count("test photo<br>") == 1 and "http://" not in page and "https://" not in page
    assert "dog/3.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"), [(["-n", "0"], "-n 0: at least 1"), ([], "suspects.csv: no such file")]
)
def test_what_cannot_be_reviewed_is_one_line(looked, arguments, words):
    (paths.SECOND_LOOK / "suspects.csv").unlink()
    with pytest.raises(GraftError, match=words):
        review.review(main.parser().parse_args(["review", *arguments]))


def test_a_second_look_at_another_split_is_refused(looked):
    rows = manifest.read(paths.SPLIT)
    manifest.write(Manifest(rows.rows[1:], rows.classes), paths.SPLIT)
    with pytest.raises(GraftError, match="is not of this split"):
        review.chosen(manifest.read(paths.SPLIT), 5)


KEYS = """<script>
const event = key => new KeyboardEvent("keydown", { key, bubbles: true });
const press = (card, key) => card.dispatchEvent(event(key));
press(cards[0], "Enter");
press(document.activeElement, "ArrowRight");
press(document.activeElement, "d");
cards[2].querySelector("button").click();
cards[2].querySelector("button").click();
const told = Object.assign(document.createElement("pre"), { textContent: table(), id: "told" });
document.body.append(told);
</script>"""


@pytest.mark.slow
def test_labels_are_chosen_by_keyboard_and_come_back_unchanged_from_the_table(tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    black = np.zeros((8, 8, 3), np.uint8)
    doubts = [
        report.Doubt(path, "cat", "<b>&", 0.9, "uncertain", "train", black)
        for path in (HOSTILE, "b.png", "c.png")
    ]
    page = tmp_path / "review.html"
    page.write_text(
        report.page(doubts, CLASSES, name="pets").replace("</body>", f"{KEYS}</body>"),
        encoding="utf-8",
    )
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    done = subprocess.run(
        [browser, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    (told,) = re.findall(r'<pre id="told">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert list(csv.reader(io.StringIO(html.unescape(told)))) == [
        ["path", "label"],
        [HOSTILE, "<b>&"],
        ["b.png", "dog"],
    ]
    assert "2 labels changed" in done.stdout
