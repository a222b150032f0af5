import numpy as np
import pytest

from graft.second_look import unknown


def test_what_is_told_apart_and_what_is_not():
    known = np.linspace(0.001, 1, 200)
    apart, same = (
        unknown.judge("x", known, np.full(50, 1e-5)),
        unknown.judge("y", known, known[::4]),
    )
    assert (apart.auroc, apart.caught, apart.unknown, apart.known) == (1, 1, 50, 200)
    assert 0.9 < apart.auroc_low < 1 == apart.auroc_high
    assert apart.caught_low > 0.9
    assert same.auroc == pytest.approx(0.5, abs=0.01)
    assert same.auroc_low < 0.5 < same.auroc_high
    assert same.caught == pytest.approx(0.05, abs=0.02)


def test_the_interval_of_the_area_holds_it_nineteen_times_in_twenty():
    """Normal scores a distance apart, whose area is known: P(a > b) = Phi(1 / sqrt 2)."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        verdict = unknown.judge("x", rng.normal(1, 1, 60), rng.normal(0, 1, 40))
        held += verdict.auroc_low <= 0.76025 <= verdict.auroc_high
    assert 0.92 < held / 300 < 0.98


def test_pictures_of_nothing_are_drawn_by_seed():
    photos = np.random.default_rng(0).integers(0, 256, (3, 35, 35, 3), dtype=np.uint8)
    first, again, other = (unknown.far(photos, seed=s) for s in (1, 1, 2))
    assert list(first) == ["noise", "flat colours", "shuffled blocks"]
    for kind, pictures in first.items():
        assert pictures.shape == photos.shape and pictures.dtype == np.uint8
        assert np.array_equal(pictures, again[kind])
        assert not np.array_equal(pictures, other[kind])
    assert (first["flat colours"].std(axis=(1, 2)) == 0).all()
    inner = first["shuffled blocks"][0, :34, :34].reshape(-1, 3)
    assert sorted(map(tuple, inner)) == sorted(map(tuple, photos[0, :34, :34].reshape(-1, 3)))
