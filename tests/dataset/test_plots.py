import numpy as np
import pytest
from PIL import Image

from stages.dataset import plots
from stages.dataset.inventory import Problem
from stages.dataset.loading import Manifest, Row

from .pictures import encoded, scene, write


def data(root, classes, each):
    """Manifest of `classes` x `each` pictures; only the first few are written to disk."""
    names = [f"class {c}" for c in range(classes)]
    rows = []
    for name in names:
        for k in range(each):
            split = ("test", "val", "train", "train")[k % 4]
            rows.append(Row(f"{name}/{k}.jpg", name, split, f"{k:04d}", 40 + k, 30))
            if k < 8:
                write(root / name / f"{k}.jpg", encoded(scene(k, 40, 30)))
    return Manifest(tuple(rows), tuple(sorted(names)))


def test_class_balance(tmp_path):
    display = plots.ClassBalanceDisplay.from_manifest(data(tmp_path, 3, 10))
    assert display.counts.tolist() == [[4, 3, 3]] * 3
    ax = display.plot().ax_
    assert [bar.get_width() for bar in ax.patches] == [4] * 3 + [3] * 6
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["train 12", "val 9", "test 9"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["class 0", "class 1", "class 2"]


@pytest.mark.parametrize("classes, per_class", [(2, 8), (12, 8), (13, 4), (130, 4)])
def test_samples(tmp_path, classes, per_class):
    display = plots.SamplesDisplay.from_manifest(data(tmp_path, classes, 9), root=tmp_path)
    assert len(display) == min(classes, 100) and {len(tiles) for tiles in display.samples.values()} == {per_class}
    figure = display.plot().figure_
    assert max(figure.get_size_inches() * plots.DPI) < 2400
    assert len(display.ax_.texts) == len(display)


def test_of_more_than_100_classes_the_largest_are_shown():
    counts = np.zeros((150, 3), int)
    counts[:, 0] = np.arange(150) + 1
    display = plots.ClassBalanceDisplay(counts, [f"c{k}" for k in range(150)]).plot()
    assert [t.get_text() for t in display.ax_.get_yticklabels()] == [f"c{k}" for k in range(50, 150)]
    assert "100 largest of 150" in display.ax_.get_title(loc="left")


def test_sizes():
    display = plots.SizesDisplay([400, 400, 300, 500], [300, 300, 400, 500]).plot()
    assert len(display.ax_[0].collections[0].get_offsets()) == 3  # two are the same size
    bars = dict(zip([t.get_text() for t in display.ax_[1].get_xticklabels()], [p.get_height() for p in display.ax_[1].patches]))
    assert (bars["4:3"], bars["3:4"], bars["1:1"]) == (0.5, 0.25, 0.25) and sum(bars.values()) == 1


@pytest.mark.parametrize("pairs, expected", [
    ([], []), ([("a", "b"), ("b", "a")], [["a", "b"]]), ([("c", "d"), ("a", "b"), ("d", "b")], [["a", "b", "c", "d"]]),
    ([("z", "y"), ("a", "b")], [["a", "b"], ["y", "z"]]),
])  # fmt: skip
def test_linked(pairs, expected):
    assert plots._linked(pairs) == expected


def test_duplicates(tmp_path):
    manifest = data(tmp_path, 2, 4)
    problems = [
        Problem("class 0/1.jpg", "near_duplicate", "kept", "class 0/2.jpg"),
        Problem("class 0/2.jpg", "near_duplicate", "kept", "class 0/1.jpg"),
        Problem("class 1/9.jpg", "duplicate_across_classes", "set aside", "class 0/3.jpg"),
        Problem("class 1/0.jpg", "empty", "set aside"),
    ]
    display = plots.DuplicatesDisplay.from_problems(problems, manifest, root=tmp_path)
    assert [(title, [caption for caption, _ in tiles]) for title, tiles in display.groups] == [
        ("same bytes, two labels", ["class 0 · train", "class 1 · set aside"]),
        ("near-duplicates", ["class 0 · val", "class 0 · train"]),
    ]
    texts = [text.get_text() for text in display.plot().ax_.texts]
    assert texts[0] == "same bytes, two labels" and len(texts) == 6


def test_written_twice_the_bytes_are_the_same(tmp_path):
    manifest = data(tmp_path / "data", 2, 5)
    problems = [Problem("class 0/1.jpg", "near_duplicate", "kept", "class 0/2.jpg")]
    for name in ("one", "two"):
        plots.write(tmp_path / name, root=tmp_path / "data", manifest=manifest, problems=problems)
    made = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert sorted(made) == ["class_balance.png", "duplicates.png", "samples.png", "sizes.png"]
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    assert b"Matplotlib" not in made["sizes.png"] and Image.open(tmp_path / "one" / "sizes.png").width > 600
    plots.write(tmp_path / "three", root=tmp_path / "data", manifest=manifest, problems=[])
    assert not (tmp_path / "three" / "duplicates.png").exists()


def test_names_are_drawn_as_they_are(tmp_path):
    counts = [[3, 1, 1], [3, 1, 1]]
    display = plots.ClassBalanceDisplay(counts, ["$5 and $10", "a name that is a good deal longer than that"]).plot()
    display.figure_.savefig(tmp_path / "x.png")
    assert [t.get_text() for t in display.ax_.get_yticklabels()] == ["$5 and $10", "a name that …r than that"]
