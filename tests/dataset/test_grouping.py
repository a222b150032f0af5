import pytest

from graft.dataset import grouping
from graft.dataset.scan import Problem, ScannedImage
from graft.system.console import GraftError


def image(path, label, sha256="a", given="", fingerprint=None):
    return ScannedImage(path, label, given, sha256, 10, 10, fingerprint)


@pytest.mark.parametrize("images, kept, problems, leaks", [
    ([("c/1", "c", "x"), ("c/2", "c", "y")], ["c/1", "c/2"], [], []),
    ([("c/2", "c", "x"), ("c/1", "c", "x"), ("d/1", "d", "y")], ["c/1", "d/1"],
     [("c/2", "duplicate_in_class", "c/1")], []),
    ([("c/1", "c", "x"), ("d/1", "d", "x"), ("c/2", "c", "y"), ("d/2", "d", "z")], ["c/2", "d/2"],
     [("c/1", "duplicate_across_classes", "d/1"), ("d/1", "duplicate_across_classes", "c/1")], []),
    ([("train/c/1", "c", "x", "train"), ("test/c/1", "c", "x", "test")], ["test/c/1"],
     [("train/c/1", "duplicate_in_class", "test/c/1")], [("train/c/1", "test/c/1")]),
    ([("train/c/1", "c", "x", "train"), ("val/c/9", "c", "x", "val")], ["val/c/9"],
     [("train/c/1", "duplicate_in_class", "val/c/9")], [("train/c/1", "val/c/9")]),
])  # fmt: skip
def test_copies(images, kept, problems, leaks):
    got = grouping.set_aside_copies([image(*row) for row in images])
    assert [p.path for p in got[0]] == kept
    assert [(p.path, p.problem, p.other) for p in got[1]] == problems and got[2] == leaks


def test_a_class_that_is_a_copy_of_another():
    with pytest.raises(GraftError, match="every image of class 'c' is also in another class"):
        grouping.set_aside_copies(
            [image("c/1", "c", "x"), image("d/1", "d", "x"), image("d/2", "d", "y")]
        )


def test_group_by_joins_what_the_expression_captures():
    images = [image(f"c/{name}.jpg", "c", name) for name in ("p1_a", "p1_b", "p2_a", "p3_a", "x")]
    got = grouping.group(images, [(2, 3)], group_by=r"/(p\d)_")
    assert got.groups == {
        "c/p1_a.jpg": "by-p1",
        "c/p1_b.jpg": "by-p1",
        "c/p2_a.jpg": "by-p2",
        "c/p3_a.jpg": "by-p2",
    }
    assert got.orders == {
        "c/p1_a.jpg": "p1",
        "c/p1_b.jpg": "p1",
        "c/p2_a.jpg": "p2",
        "c/p3_a.jpg": "p3",
    }
    assert [(p.path, p.problem) for p in got.problems] == [
        ("c/p2_a.jpg", "near_duplicate"),
        ("c/p3_a.jpg", "near_duplicate"),
    ]
    with pytest.raises(GraftError, match="captures nothing in any path"):
        grouping.group(images, [], group_by="(patient)")


def test_a_near_duplicate_with_another_label_is_pointed_out():
    images = [image("c/1", "c", "x"), image("d/1", "d", "y")]
    (first, second) = grouping.group(images, [(0, 1)]).problems
    assert first.action == "kept, grouped with d/1; d/1 has another label" and second.other == "c/1"


@pytest.mark.parametrize(
    "pairs, expected",
    [
        ([], []),
        ([("a", "a")], []),
        ([("a", "b"), ("b", "a")], [["a", "b"]]),
        ([("c", "d"), ("a", "b"), ("d", "b")], [["a", "b", "c", "d"]]),
        ([("z", "y"), ("a", "b")], [["a", "b"], ["y", "z"]]),
    ],
)
def test_linked(pairs, expected):
    assert grouping.linked(pairs) == expected


def test_duplicates_come_the_gravest_first():
    problems = [
        Problem("c/1", "near_duplicate", "kept", "c/2"),
        Problem("c/2", "near_duplicate", "kept", "c/1"),
        Problem("d/9", "duplicate_across_classes", "set aside", "c/3"),
        Problem("d/0", "empty", "set aside"),
    ]
    assert grouping.duplicates(problems) == [
        ("duplicate_across_classes", ["c/3", "d/9"]),
        ("near_duplicate", ["c/1", "c/2"]),
    ]


def test_a_crowd_of_near_duplicates_is_warned_of(capsys):
    images = [image(f"c/{k:02d}", "c", str(k)) for k in range(30)]
    grouping.group(images, [(k, k + 1) for k in range(19)])
    assert capsys.readouterr().err == ""
    grouping.group(images, [(k, k + 1) for k in range(25)])
    assert "26 images are joined as near-duplicates, c/00 among them" in capsys.readouterr().err
