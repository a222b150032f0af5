import numpy as np
import pytest

from graft.network import head_solver
from graft.network.cut import Cut


class Seen:
    """Features of n images in `views` views, with the images that they are of."""

    def __init__(self, values, labels, classes, groups=None):
        self.values, self.views = values, len(values)

        class Images:
            pass

        self.images = Images()
        self.images.labels, self.images.classes = np.asarray(labels), classes
        self.images.paths = tuple(f"{k}.png" for k in range(len(labels)))
        self.images.groups = groups or self.images.paths
        self.shape, self.dtype = values.shape[2:], values.dtype

    def __len__(self):
        return self.values.shape[1]

    def take(self, indices, view=0):
        return self.values[view][indices]


def draw(n, *, views=1, classes=3, d=12, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = np.random.default_rng(9).normal(size=(classes, d))
    values = centres[labels] + spread * rng.normal(size=(views, n, d)) * np.linspace(0.1, 3, d) + 5
    return Seen(values.astype(np.float16), labels, tuple("abc"[:classes]))


def classifier(d, classes):
    """(model from pooled features to probabilities, its cut, as the solver takes them)."""
    import keras

    features = keras.Input((d,), name="pooling")
    model = keras.Model(
        features, keras.layers.Dense(classes, activation="softmax", name="probabilities")(features)
    )
    return model, Cut((model.input,), "pooling", -1, "", ((d,),))


@pytest.mark.parametrize(("n", "d"), [(60, 12), (30, 50)])
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_the_optimum_is_scikit_learns(monkeypatch, n, d, strength):
    from sklearn.linear_model import LogisticRegression

    monkeypatch.setattr(head_solver, "GRID", (strength,))
    train, val = draw(n, d=d), draw(12, d=d, seed=1)
    model, cut = classifier(d, 3)
    found = head_solver.solve(model, cut, train, val, balanced=False)
    x = train.values[0].astype(np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    peer = LogisticRegression(C=strength, max_iter=10_000, tol=1e-10).fit(
        (x - mean) / scale, train.images.labels
    )
    expected = peer.predict_proba((val.values[0].astype(np.float64) - mean) / scale)
    assert np.abs(found.predictions.probabilities - expected).max() < 2e-3


def test_an_image_counts_once_however_many_views_it_has(monkeypatch):
    monkeypatch.setattr(head_solver, "GRID", (0.1,))
    one, val = draw(60), draw(12, seed=1)
    twice = Seen(np.concatenate([one.values, one.values]), one.images.labels, one.images.classes)
    results = []
    for train in (one, twice):
        model, cut = classifier(12, 3)
        results.append(
            head_solver.solve(model, cut, train, val, balanced=False).predictions.probabilities
        )
    assert np.allclose(*results, atol=1e-4)


def test_the_same_features_give_the_same_bits():
    weights = []
    for _ in range(2):
        model, cut = classifier(12, 3)
        head_solver.solve(model, cut, draw(60, views=2), draw(20, seed=1), balanced=True)
        weights.append(model.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(*weights))


def test_noise_calls_for_a_stronger_penalty_than_clear_features(capsys):
    def strength(spread):
        model, cut = classifier(12, 3)
        head_solver.solve(
            model, cut, draw(90, spread=spread), draw(30, seed=1, spread=spread), balanced=False
        )
        return float(capsys.readouterr().out.split("C = ")[1].split(",")[0])

    assert strength(8.0) < strength(0.3)


def test_balanced_weights_lift_the_recall_of_a_rare_class():
    rng = np.random.default_rng(0)
    labels = np.array([0] * 90 + [1] * 10)
    values = (labels[:, None] * 1.0 + rng.normal(size=(100, 3)))[None].astype(np.float16)
    train, val = Seen(values, labels, ("a", "b")), Seen(values[:, ::2], labels[::2], ("a", "b"))
    recall = {}
    for balanced in (False, True):
        model, cut = classifier(3, 2)
        found = head_solver.solve(model, cut, train, val, balanced=balanced).predictions
        recall[balanced] = found.correct[found.labels == 1].mean()
    assert recall[True] > recall[False]


def test_groups_are_not_divided_between_folds():
    train, val = draw(60), draw(20, seed=1)
    groups = np.array([str(k // 4) for k in range(60)] + [f"v{k}" for k in range(20)])
    ones = np.ones(60, np.float32), np.ones(20, np.float32)
    rows, seen = (
        head_solver._Rows(np.arange(len(s))[:, None].astype(np.float32), s.images.labels, w, 3)
        for s, w in zip((train, val), ones)
    )
    seen = head_solver._Rows(seen.x + 60, seen.labels, seen.weights, 3)
    parts = head_solver._parts(rows, seen, groups, 60)
    assert len(parts) == head_solver.FOLDS
    for fit, judge in parts:
        apart = {groups[int(k)] for k in fit.x[:, 0]} & {groups[int(k)] for k in judge.x[:, 0]}
        assert not apart
    assert sorted(int(k) for _, judge in parts for k in judge.x[:, 0]) == list(range(80))


def test_curves_are_iterations_without_a_rate():
    model, cut = classifier(12, 3)
    found = head_solver.solve(model, cut, draw(90), draw(30, seed=1), balanced=False)
    assert 2 <= len(found.history.rows) <= head_solver.CURVE_ROWS
    assert {row["lr"] for row in found.history.rows} == {None}
    assert found.history.rows[-1]["train_loss"] < found.history.rows[0]["train_loss"]
    last = found.history.rows[-1]
    assert last["val_accuracy"] == pytest.approx(found.predictions.correct.mean())


def test_no_image_is_judged_by_a_head_that_saw_one_of_its_group():
    """Labels by chance: only who has seen an image's twin can know its label."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(60, 200)), 2, axis=0).astype(np.float16)
    labels = np.repeat(rng.integers(0, 2, 60), 2)
    apart = head_solver.out_of_fold(
        x, labels, [f"g{i}" for i in range(120)], classes=2, folds=5, balanced=True
    )
    together = head_solver.out_of_fold(
        x, labels, [f"g{i // 2}" for i in range(120)], classes=2, folds=5, balanced=True
    )
    assert (apart.argmax(1) == labels).mean() > 0.75
    assert (together.argmax(1) == labels).mean() < 0.65


def test_out_of_fold_probabilities_are_those_of_clear_classes_and_the_same_twice():
    seen = draw(90, spread=0.3)
    labels = seen.images.labels
    given = (seen.take(np.arange(90)), labels, [str(i) for i in range(90)])
    p = head_solver.out_of_fold(*given, classes=3, folds=5, balanced=True)
    assert p.shape == (90, 3)
    assert p.sum(axis=1) == pytest.approx(np.ones(90))
    assert (p.argmax(1) == labels).mean() > 0.95
    assert np.array_equal(p, head_solver.out_of_fold(*given, classes=3, folds=5, balanced=True))


@pytest.mark.parametrize(
    ("labels", "classes", "folds"),
    [([0] * 9 + [1], 2, 5), (list(range(100)) * 2, 100, 2), ([0, 1], 2, 5), ([0] * 6, 2, 3)],
    ids=["a class of one", "100 classes", "two images", "one class"],
)
def test_few_images_of_a_class_are_judged_all_the_same(labels, classes, folds):
    x = np.random.default_rng(1).normal(size=(len(labels), 20)).astype(np.float16)
    groups = [str(i) for i in range(len(labels))]
    p = head_solver.out_of_fold(
        x, np.array(labels), groups, classes=classes, folds=folds, balanced=True
    )
    assert np.isfinite(p).all()
    assert p.sum(axis=1) == pytest.approx(np.ones(len(labels)))


@pytest.mark.parametrize(
    ("groups", "folds"), [("aaaa", 5), ("abcd", 0)], ids=["one group", "no folds"]
)
def test_what_cannot_be_judged_gets_equal_shares(groups, folds):
    x = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float16)
    p = head_solver.out_of_fold(
        x, np.array([0, 1, 0, 1]), list(groups), classes=2, folds=folds, balanced=True
    )
    assert (p == 0.5).all()


def test_of_many_images_some_are_solved_on_and_stand_for_the_others(monkeypatch):
    labels = np.repeat([0, 1, 2], [500, 60, 5])
    assert [part.tolist() for part in head_solver._some(labels, 4)] == [
        list(range(565)),
        [1, 1, 1, 1],
    ]
    monkeypatch.setattr(head_solver, "MOST", 130)
    chosen, stand = head_solver._some(labels, 4)
    assert np.bincount(labels[chosen]).tolist() == [65, 60, 5] and (np.diff(chosen) > 0).all()
    assert stand.tolist() == [500 / 65, 1, 1, 0]


def test_a_head_that_is_solved_on_some_images_says_nearly_the_same(monkeypatch):
    train, val = draw(1200, views=2), draw(300, seed=1)

    def said():
        model, cut = classifier(12, 3)
        return head_solver.solve(model, cut, train, val, balanced=False).predictions

    whole = said()
    monkeypatch.setattr(head_solver, "MOST", 600)
    part = said()
    assert len(part) == 300 and (part.predicted == whole.predicted).mean() > 0.95


def test_every_image_is_judged_out_of_fold_by_heads_that_were_solved_on_some(monkeypatch):
    seen, options = draw(900), {"classes": 3, "folds": 3, "balanced": True}
    arguments = (seen.values[0], seen.images.labels, seen.images.groups)
    whole = head_solver.out_of_fold(*arguments, **options)
    monkeypatch.setattr(head_solver, "MOST", 450)
    monkeypatch.setattr(head_solver, "BLOCK", 100)
    part = head_solver.out_of_fold(*arguments, **options)
    assert np.abs(part.sum(axis=1) - 1).max() < 1e-9
    assert (part.argmax(axis=1) == whole.argmax(axis=1)).mean() > 0.95
