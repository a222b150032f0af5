import itertools

import numpy as np
import pytest

from graft.scoring.predictions import Predictions
from graft.second_look import segments
from graft.second_look.evidence import Evidence


@pytest.fixture
def correct():
    return np.random.default_rng(0).random(600) < 0.9


def test_the_dark_are_weak_where_it_fails_in_the_dark_and_nothing_else_is(correct):
    rng = np.random.default_rng(1)
    brightness = rng.uniform(0, 255, 600)
    correct = correct & ~((brightness < 51) & (rng.random(600) < 0.5))
    others = {"contrast": rng.random(600), "aspect": rng.random(600)}
    found = segments.find(
        correct, {"brightness": brightness, **others}, {"folder": ["ab"[i % 2] for i in range(600)]}
    )
    assert [(s.kind, s.name) for s in found if s.weak] == [("brightness", "dark")]
    dark = brightness <= np.quantile(brightness, 0.2)
    assert found[0].photos == dark.sum() == len(found[0].indices)
    assert found[0].accuracy == pytest.approx(correct[dark].mean())
    assert found[0].rest_accuracy == pytest.approx(correct[~dark].mean())


def test_chance_alone_is_called_weak_less_than_once_in_twenty():
    """Whole searches over noise, of which one in twenty may find anything."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(100):
        measures = {name: rng.random(300) for name in "abcd"}
        kinds = {"k": rng.choice(list("uvwxyz"), 300)}
        hits += any(s.weak for s in segments.find(rng.random(300) < 0.8, measures, kinds))
    assert hits <= 10


def test_the_correction_is_holms(correct):
    measures = {name: np.random.default_rng(k).random(600) for k, name in enumerate("abc")}
    found = segments.find(correct, measures, {})
    values = [s.p for s in found]
    assert values == sorted(values)
    assert found[0].corrected == pytest.approx(min(1, 6 * values[0]))
    assert all(a.corrected <= b.corrected <= 1 for a, b in itertools.pairwise(found))


def test_what_was_not_measured_is_in_no_segment(correct):
    values = np.random.default_rng(0).random(600)
    values[100:] = np.nan
    (low, high) = segments.find(correct, {"a": values}, {})
    assert max(low.indices.max(), high.indices.max()) < 100


def test_pictures_are_measured():
    class Pictures:
        def read(self, indices):
            flat, dark, grid = (
                np.full((16, 16, 3), 200),
                np.full((16, 16, 3), 10),
                np.indices((16, 16)).sum(0) % 2 * 255,
            )
            red = np.full((16, 16, 3), (200, 0, 0))
            yield np.stack([flat, dark, np.repeat(grid[..., None], 3, 2), red]).astype(np.uint8)[
                indices
            ]

    found = segments.measure(Pictures(), np.arange(4), 6)
    assert found["brightness"][:2].tolist() == [200, 10]
    assert found["sharpness"][2] > 1 > found["sharpness"][0] == 0
    assert found["contrast"][2] > 100
    assert (found["colour"][0], found["colour"][3]) == (0, 200)
    assert np.isnan(found["brightness"][4:]).all()


def test_clusters_are_the_same_twice_and_few_photos_have_none():
    x = np.random.default_rng(0).normal(size=(200, 30)).astype(np.float16)
    assert segments.clusters(x, seed=1) == segments.clusters(x, seed=1)
    assert len(set(segments.clusters(x, seed=1))) > 3
    assert set(segments.clusters(x[:10], seed=1)) == {""}


def test_few_mistakes_call_for_no_search():
    p = Predictions(
        tuple(f"a/{i}.png" for i in range(30)),
        np.zeros(30, int),
        np.tile([0.9, 0.1], (30, 1)),
        ("a", "b"),
    )
    evidence = Evidence(p, np.zeros((30, 3), np.float16), ("train",) * 30)
    assert segments.of_evidence(evidence, None, seed=0) == []


def test_folders_and_file_types_are_segments(simulate):
    p = simulate(200, 3, signal=1)
    paths = tuple(
        f"a/{'old' if i % 2 else 'new'}/{i}.{'JPG' if i < 100 else 'png'}" for i in range(200)
    )
    given = Predictions(paths, p.labels, p.probabilities, p.classes)

    class Pictures:
        def read(self, indices):
            yield np.random.default_rng(0).integers(0, 256, (len(indices), 8, 8, 3), dtype=np.uint8)

    evidence = Evidence(
        given, np.random.default_rng(0).normal(size=(200, 5)).astype(np.float16), ("train",) * 200
    )
    kinds = {(s.kind, s.name) for s in segments.of_evidence(evidence, Pictures(), seed=0)}
    assert {
        ("sub-folder", "a/old"),
        ("sub-folder", "a/new"),
        ("file type", ".jpg"),
        ("file type", ".png"),
    } <= kinds
    assert ("brightness", "dark") in kinds
