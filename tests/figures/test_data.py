import numpy as np
import pytest

from graft.figures import data, style
from graft.figures.data import ClassBalanceDisplay, DuplicatesDisplay, SamplesDisplay, SizesDisplay


def counts(train, val, test):
    return {"train": train, "val": val, "test": test}


def image(side):
    return np.zeros((side, side, 3), np.uint8)


def test_class_balance():
    names = ["class 0", "class 1", "class 2"]
    ax = (
        ClassBalanceDisplay(
            counts(dict.fromkeys(names, 4), dict.fromkeys(names, 3), dict.fromkeys(names, 3))
        )
        .plot()
        .ax_
    )
    assert [bar.get_width() for bar in ax.patches] == [4] * 3 + [3] * 6
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "train 12",
        "val 9",
        "test 9",
    ]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == names


def test_of_more_than_100_classes_the_largest_are_shown():
    names = [f"c{k}" for k in range(150)]
    none = dict.fromkeys(names, 0)
    display = ClassBalanceDisplay(
        counts({name: k + 1 for k, name in enumerate(names)}, none, none)
    ).plot()
    assert [t.get_text() for t in display.ax_.get_yticklabels()] == names[50:]
    assert "100 largest of 150" in display.ax_.get_title(loc="left")


def test_names_are_drawn_as_they_are(tmp_path):
    names = {"$5 and $10": 3, "a name that is a good deal longer than that": 3}
    display = ClassBalanceDisplay(counts(names, names, names)).plot()
    style.png(display.figure_, tmp_path / "x.png")
    assert [t.get_text() for t in display.ax_.get_yticklabels()] == [
        "$5 and $10",
        "a name that …r than that",
    ]


@pytest.mark.parametrize("classes, each", [(2, 8), (12, 8), (13, 4), (100, 4)])
def test_samples(classes, each):
    assert SamplesDisplay.each(classes) == each
    images = [image(SamplesDisplay.SIDE)] * each
    display = SamplesDisplay({f"class {c}": images for c in range(classes)}).plot()
    assert max(display.figure_.get_size_inches() * style.DPI) < 2400
    assert len(display.ax_.texts) == classes
    sheet = display.ax_.images[0].get_array()
    # None covers another.
    assert (sheet == 0).all(axis=-1).sum() == classes * each * SamplesDisplay.SIDE**2


def test_sizes():
    display = SizesDisplay([400, 400, 300, 500], [300, 300, 400, 500]).plot()
    assert len(display.ax_[0].collections[0].get_offsets()) == 3  # two are the same size
    bars = dict(
        zip(
            [t.get_text() for t in display.ax_[1].get_xticklabels()],
            [p.get_height() for p in display.ax_[1].patches],
        )
    )
    assert (bars["4:3"], bars["3:4"], bars["1:1"]) == (0.5, 0.25, 0.25) and sum(bars.values()) == 1


def test_one_size_is_written_out():
    (text,) = SizesDisplay([8, 8], [6, 6]).plot().ax_[0].texts
    assert text.get_text() == "all 8 x 6"


@pytest.mark.parametrize("images, total", [((2, 2), 2), ((2,) * 24, 30), ((4, 4, 4, 2), 4)])
def test_duplicates(images, total):
    groups = [
        (f"group {k}", [(f"class {k} · train", image(DuplicatesDisplay.SIDE))] * n)
        for k, n in enumerate(images)
    ]
    display = DuplicatesDisplay(groups, total=total).plot()
    texts = [text.get_text() for text in display.ax_.texts]
    assert texts[:2] == ["group 0", "class 0 · train"] and len(texts) == len(images) + sum(images)
    sheet = display.ax_.images[0].get_array()
    assert (sheet == 0).all(axis=-1).sum() == sum(images) * DuplicatesDisplay.SIDE**2
    title = display.ax_.get_title(loc="left")
    assert title == (
        "Duplicates" if total == len(images) else "Duplicates, the first 24 of 30 groups"
    )


def test_largest_keep_their_order():
    assert data.largest([3, 1, 2]) == [0, 1, 2] and data.largest(range(102)) == list(range(2, 102))
