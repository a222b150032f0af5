"""Which labels are suspect, and that those are left alone that nothing speaks against."""

import numpy as np

from graft.scoring.predictions import Predictions
from graft.second_look import suspects
from graft.second_look.evidence import Evidence

CLASSES = ("a", "b", "c")


def evidence(labels, probabilities, *, splits=None, groups=(), problems=(), folds=5):
    n = len(labels)
    paths = tuple(f"{CLASSES[k]}/{i}.jpg" for i, k in enumerate(labels))
    p = Predictions(paths, np.array(labels), np.array(probabilities), CLASSES, groups or paths)
    return Evidence(
        p, np.zeros((n, 2), np.float16), tuple(splits or ["train"] * n), problems, folds
    )


SURE = {k: [0.9 if j == k else 0.05 for j in range(3)] for k in range(3)}


def test_contradicted_labels_come_the_least_probable_first():
    given = evidence(
        [0, 0, 1, 1, 2, 2],
        [SURE[0], [0.2, 0.75, 0.05], SURE[1], [0.94, 0.01, 0.05], SURE[2], [0.3, 0.3, 0.4]],
    )
    found = suspects.find(given)
    assert [(s.path, s.label, s.likelier, s.kind) for s in found] == [
        ("b/3.jpg", "b", "a", "contradicted"),
        ("a/1.jpg", "a", "b", "contradicted"),
    ]
    assert (found[0].label_probability, found[0].likelier_probability) == (0.01, 0.94)


def test_a_class_that_the_head_is_never_sure_of_asks_for_less():
    """0.5 for b is much where b's own photos get 0.45, and little where they get 0.9."""
    others = [SURE[0], SURE[2], SURE[2]]
    unsure = suspects.find(
        evidence(
            [0, 2, 2, 1, 1, 0], [*others, [0.3, 0.45, 0.25], [0.3, 0.45, 0.25], [0.3, 0.5, 0.2]]
        )
    )
    sure = suspects.find(evidence([0, 2, 2, 1, 1, 0], [*others, SURE[1], SURE[1], [0.3, 0.5, 0.2]]))
    assert [s.path for s in unsure] == ["a/5.jpg"]
    assert sure == []


def test_near_duplicates_under_two_labels_come_first():
    rows = [
        {
            "problem": "near_duplicate",
            "path": "a/0.jpg",
            "action": "kept, grouped with b/1.jpg; b/1.jpg has another label",
        },
        {
            "problem": "near_duplicate",
            "path": "b/1.jpg",
            "action": "kept, grouped with a/0.jpg; a/0.jpg has another label",
        },
        {"problem": "near_duplicate", "path": "c/2.jpg", "action": "kept, grouped with c/3.jpg"},
        {"problem": "truncated", "path": "gone.jpg", "action": "set aside"},
    ]
    given = evidence(
        [0, 1, 2, 2],
        [SURE[0], SURE[1], SURE[2], SURE[2]],
        groups=("g", "g", "h", "h"),
        problems=rows,
    )
    found = suspects.find(given)
    assert [(s.kind, s.path, s.likelier, s.other) for s in found] == [
        ("near-duplicate", "a/0.jpg", "b", "b/1.jpg"),
        ("near-duplicate", "b/1.jpg", "a", "a/0.jpg"),
    ]


def test_the_only_photo_of_a_class_is_not_contradicted_by_heads_that_never_saw_the_class():
    given = [[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.99, 0.01, 0.0]]
    assert suspects.find(evidence([0, 0, 1], given)) == []
    one_group = evidence([0, 0, 1, 1], [*given, given[2]], groups=("x", "y", "z", "z"))
    assert suspects.find(one_group) == []
    assert len(suspects.find(evidence([0, 0, 1, 1], [*given, [0.4, 0.6, 0.0]]))) == 1


def test_without_folds_no_label_is_contradicted():
    assert suspects.find(evidence([0, 1], [SURE[1], SURE[0]], folds=0)) == []
