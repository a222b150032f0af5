"""What a model knows: p-values that are what they claim on photos of the classes, and small on
others."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graft import known


def draw(n, *, classes=3, d=60, seed=0, shift=0.0):
    """(features, labels, logits) of n photos: classes about centres of their own, in 12 of d
    directions."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = np.random.default_rng(9).normal(size=(classes, d)) * 3
    basis = np.random.default_rng(8).normal(size=(12, d))
    x = centres[labels] + rng.normal(size=(n, 12)) @ basis + 0.2 * rng.normal(size=(n, d)) + shift
    return x.astype(np.float32), labels, x @ centres.T / 10


@pytest.fixture(scope="module")
def fitted():
    x, labels, _ = draw(300)
    val, _, logits = draw(200, seed=1)
    return known.fit(x, labels, val, logits, classes=3)


def test_p_values_of_known_photos_are_what_they_claim(fitted):
    x, _, logits = draw(2000, seed=2)
    p = fitted.p_values(x, logits)
    for limit in (0.01, 0.05, 0.5):
        assert (p < limit).mean() == pytest.approx(limit, abs=0.01 + limit / 2)
    assert (p.min(), p.max()) > (0, 0.9)


@pytest.mark.parametrize("strange", ["elsewhere", "off the axes", "unsure"])
def test_each_of_the_three_scores_notices_something_of_its_own(fitted, strange):
    x, _, logits = draw(100, seed=3)
    if strange == "elsewhere":
        x = x.mean(axis=0) + (x - x.mean(axis=0)) * -4
    elif strange == "off the axes":
        x = x + np.random.default_rng(0).normal(size=x.shape) * 4
    else:
        logits = np.zeros_like(logits)
    assert np.median(fitted.p_values(x, logits)) < 0.01


def test_the_file_is_small_the_same_twice_and_read_as_written(fitted, tmp_path):
    wide = np.random.default_rng(0).normal(size=(300, 2048)).astype(np.float32)
    big = known.fit(
        wide, np.arange(300) % 100, wide[:150], np.zeros((150, 100)), classes=100, shallow=256
    )
    full = known.fit(
        wide[:, :900],
        np.arange(300) % 5,
        wide[:150, :900],
        np.zeros((150, 5)),
        classes=5,
        shallow=256,
    )
    for model, name in ((fitted, "a"), (big, "b"), (full, "c")):
        model.write(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        model.write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
        assert len(content) < 100_000
    x, _, logits = draw(20, seed=4)
    assert np.array_equal(
        known.Known.read(tmp_path / "a").p_values(x, logits), fitted.p_values(x, logits)
    )


@pytest.mark.parametrize(
    ("n", "m", "classes"),
    [(3, 1, 3), (4, 2, 2), (200, 30, 100)],
    ids=["one each", "two classes", "100"],
)
def test_few_photos_give_p_values_all_the_same(n, m, classes):
    x, labels, _ = draw(n, classes=classes)
    val, _, logits = draw(m, classes=classes, seed=1)
    p = known.fit(x, labels, val, logits, classes=classes).p_values(val, logits)
    assert np.isfinite(p).all()
    assert ((p > 0) & (p <= 1)).all()


def test_what_only_the_shallowest_depth_shows_is_noticed():
    def with_textures(n, seed, noise=0.05):
        x, labels, logits = draw(n, seed=seed)
        rng = np.random.default_rng(seed)
        low = rng.normal(size=(n, 3)) @ np.random.default_rng(7).normal(
            size=(3, 20)
        ) + noise * rng.normal(size=(n, 20))
        return np.concatenate([low, x], axis=1).astype(np.float32), labels, logits

    x, labels, _ = with_textures(300, 0)
    val, _, logits = with_textures(200, 1)
    strange, _, strange_logits = with_textures(100, 3, noise=0.4)
    without, knows = (
        known.fit(x, labels, val, logits, classes=3, shallow=width) for width in (0, 20)
    )
    assert (without.middle.shape, knows.middle.shape) == ((3,), (4,))
    assert (
        np.median(knows.p_values(strange, strange_logits))
        < np.median(without.p_values(strange, strange_logits)) / 2
    )


def test_a_file_of_before_is_read(fitted, tmp_path):
    fields = {name: value for name, value in vars(fitted).items() if not name.startswith("shallow")}
    np.savez(tmp_path / "old.npz", **fields)
    x, _, logits = draw(20, seed=4)
    assert np.array_equal(
        known.Known.read(tmp_path / "old.npz").p_values(x, logits), fitted.p_values(x, logits)
    )


@pytest.mark.parametrize("shallow", [1, 2, 5])
def test_a_class_without_training_photos_and_constant_features_do_no_harm(shallow):
    x = np.ones((6, 5), np.float32)
    model = known.fit(
        x, np.array([0, 0, 0, 2, 2, 2]), x[:2], np.zeros((2, 3)), classes=3, shallow=shallow
    )
    assert np.isfinite(model.p_values(x, np.zeros((6, 3)))).all()


def test_it_travels_alone():
    """As the registered model loads it: from its file, in a process that knows nothing of the
    project."""
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('k', {str(Path(known.__file__))!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(module.FILE, [name for name in sys.modules if name.startswith(('graft', 'scipy', "
        "'sklearn'))])"
    )
    out = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out == "known.npz []\n"
