import numpy as np
import pytest

from graft.second_look import layout


@pytest.fixture(scope="module")
def clusters():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(4, 40))[np.arange(120) % 4] * 4 + rng.normal(size=(120, 40))).astype(
        np.float16
    )


def test_what_is_alike_lies_together(clusters):
    found = layout.lay_out(clusters, np.array([], int), seed=0)
    distance = np.linalg.norm(found.points[:, None] - found.points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (distance.argmin(axis=1) % 4 == np.arange(120) % 4).mean() > 0.95
    assert found.method == "t-SNE"
    assert (found.points.min(), found.points.max()) == (0, 1)


def test_the_same_photos_lie_in_the_same_place(clusters):
    first, second = (layout.lay_out(clusters, np.array([5]), seed=3) for _ in range(2))
    assert np.array_equal(first.points, second.points)


def test_of_many_photos_some_are_shown_and_those_that_must_be_among_them(clusters, monkeypatch):
    monkeypatch.setattr(layout, "MAPPED", 30)
    found = layout.lay_out(clusters, np.array([7, 118]), seed=0)
    assert len(found.indices) == len(set(found.indices.tolist())) == 30
    assert {7, 118} <= set(found.indices.tolist())


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_photos_lie_on_their_principal_axes(n):
    x = np.random.default_rng(0).normal(size=(n, 12)).astype(np.float16)
    found = layout.lay_out(x, np.array([0]), seed=0)
    assert found.method == "PCA"
    assert np.isfinite(found.points).all()


def test_equal_photos_do_no_harm():
    found = layout.lay_out(np.ones((20, 12), np.float16), np.array([], int), seed=0)
    assert np.isfinite(found.points).all()


def test_principal_axes_are_the_same_from_rows_and_from_columns():
    x = np.random.default_rng(0).normal(size=(30, 30)).astype(np.float32) * np.linspace(1, 5, 30)
    wide, tall = layout.principal(x[:29], 3), layout.principal(np.concatenate([x[:29]] * 2), 3)
    assert np.allclose(np.abs(wide), np.abs(tall[:29]), atol=1e-2)


@pytest.mark.parametrize("most", [40, 100])  # fewer rows than features, and more
def test_axes_taken_from_some_photos_place_the_others_too(monkeypatch, most):
    rng = np.random.default_rng(0)
    features = (
        rng.normal(size=(400, 3)) * [9, 5, 2] @ rng.normal(size=(3, 60))
        + 0.01 * rng.normal(size=(400, 60))
    ).astype(np.float16)
    whole = layout.principal(features, 2)
    monkeypatch.setattr(layout, "MOST", most)
    found = layout.principal(features, 2)
    assert found.shape == (400, 2)
    assert min(abs(np.corrcoef(whole[:, k], found[:, k])[0, 1]) for k in range(2)) > 0.95
