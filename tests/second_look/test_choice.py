import numpy as np
import pytest

from graft.second_look import choice


def test_margins_are_the_lead_of_the_first_over_the_second():
    assert choice.margins(np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])) == pytest.approx([0.0, 0.5])


def test_the_least_certain_comes_first_and_twins_are_not_chosen_twice():
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(5, 40)), 4, axis=0) + 1e-3 * rng.normal(size=(20, 40))
    margin = np.full(20, 0.3)
    margin[6] = 0.01
    chosen = choice.telling(x, margin, 5)
    assert chosen[0] == 6
    assert sorted(chosen // 4) == [0, 1, 2, 3, 4]


def test_only_the_uncertain_are_spread_over():
    x = np.random.default_rng(0).normal(size=(200, 20))
    chosen = choice.telling(x, np.arange(200) / 200, 3)
    assert max(chosen) < 30
    assert len(set(chosen.tolist())) == 3


@pytest.mark.parametrize(("photos", "n", "chosen"), [(0, 5, 0), (3, 5, 3), (1, 1, 1), (5, 0, 0)])
def test_there_are_never_more_than_there_are(photos, n, chosen):
    x = np.random.default_rng(0).normal(size=(photos, 8))
    assert len(set(choice.telling(x, np.zeros(photos), n).tolist())) == chosen


def test_equal_photos_are_chosen_once_each():
    assert sorted(choice.telling(np.ones((4, 6)), np.zeros(4), 4)) == [0, 1, 2, 3]


def test_the_nearest_of_a_photo_is_itself():
    x = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float16)
    positions, similarities = choice.nearest(x, x[7], 3)
    assert positions[0] == 7
    assert similarities[0] == pytest.approx(1, abs=1e-3)
    assert similarities[0] >= similarities[1] >= similarities[2]


def test_what_is_alike_across_the_split_comes_most_alike_first(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 400))
    splits = ["train"] * 40 + ["val"] * 10 + ["test"] * 10
    x[45] = x[3] + 0.2 * rng.normal(size=400)
    x[55] = x[45] + 0.1 * rng.normal(size=400)
    x[4] = x[5]  # in one split
    found = choice.across(x, splits, least=0.8)
    assert [pair[1:] for pair in found] == [(45, 55), (3, 45), (3, 55)]
    one, similarity = choice.nearest(x, x[45], 3)
    assert one.tolist() == [45, 55, 3] and [pair[0] for pair in found[:2]] == pytest.approx(
        similarity[1:]
    )
    monkeypatch.setattr(choice, "BLOCK", 7)
    assert [pair[1:] for pair in choice.across(x, splits, least=0.8)] == [
        (45, 55),
        (3, 45),
        (3, 55),
    ]
    assert choice.across(x, splits, least=1.1) == choice.across(x[:1], splits[:1], least=0.0) == []
