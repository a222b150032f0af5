"""The network's own measure of what it knows: from the features of its training photos, calibrated
on its validation photos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from graft.features.extractor import Features
from graft.known import Known, fit
from graft.network import classifier, head_solver, top_training
from graft.network.cut import Cut
from graft.network.prediction import Inside, inner, look_inside
from graft.network.top_training import LabelledImages

if TYPE_CHECKING:
    import keras

# Classes that are left out in turn, photos that the others are learnt from, at most.
LEFT_OUT, FEWER = 5, 1000
BATCH = 32
# To learn from, and to calibrate by, at most: the covariance of few dozen numbers needs no more.
PHOTOS = 1500


def acquaint(
    model: keras.Model, cut: Cut, train: Features[LabelledImages], val: Features[LabelledImages]
) -> Known:
    """What `model` knows, from its features at `cut`, of the images without augmentation."""
    indices = _some(len(train))
    seen, judged = (
        _inside(model, cut, *part) for part in ((train, indices), (val, _some(len(val))))
    )
    labels = np.asarray(train.images.labels)[indices]
    shape = {"classes": model.output.shape[1], "shallow": classifier.shallow_width(model)}
    return fit(seen.features, labels, judged.features, judged.logits, **shape)


def p_values(
    known: Known, model: keras.Model, pictures: Mapping[str, np.ndarray], *, runtime: str
) -> dict[str, np.ndarray]:
    """{kind: p-values} of {kind: pictures, uint8 (m, S, S, 3)}, in one pass."""
    stacks = list(pictures.values())
    batches = (
        stack[start : start + BATCH] for stack in stacks for start in range(0, len(stack), BATCH)
    )
    inside = look_inside(model, batches, runtime=runtime)
    values = known.p_values(inside.features, inside.logits)
    return dict(zip(pictures, np.split(values, np.cumsum([len(stack) for stack in stacks])[:-1])))


def without_a_class(
    features: np.ndarray,
    labels: np.ndarray,
    splits: Sequence[str],
    *,
    classes: int,
    seed: int,
    shallow: int = 0,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """What a network that never saw a class would say of it: (class, p-values of known photos, of
    that class's photos).

    features: (n, d), pooled, of a frozen backbone, which was trained on none of these; the first
    `shallow` of the shallowest depth. splits: n names. A head and a Known are made from training
    photos of the other classes and calibrated on validation photos of them; the known are their
    test photos. Of more than LEFT_OUT classes `seed` draws. Nothing comes for two classes: to leave
    one out leaves none to choose from.
    """
    if classes < 3:
        return
    part, rng = np.asarray(splits), np.random.default_rng(seed)
    for k in sorted(rng.choice(classes, min(classes, LEFT_OUT), replace=False).tolist()):
        others = np.flatnonzero(np.arange(classes) != k)
        train, val, test = (
            np.flatnonzero((part == name) & (labels != k)) for name in ("train", "val", "test")
        )
        train = train[_some(len(train), FEWER)]
        unknown = np.flatnonzero(labels == k)
        if not (len(train) and len(val) and len(test) and len(unknown)):
            continue
        renumbered = np.searchsorted(others, labels)
        kernel, bias = head_solver.linear(features[train], renumbered[train], classes=len(others))

        def logits(at, kernel=kernel, bias=bias):
            return features[at].astype(np.float32) @ kernel + bias

        shape = {"classes": len(others), "shallow": shallow}
        known = fit(features[train], renumbered[train], features[val], logits(val), **shape)
        yield (
            k,
            known.p_values(features[test], logits(test)),
            known.p_values(features[unknown], logits(unknown)),
        )


def _some(n, most=PHOTOS):
    return np.linspace(0, n - 1, min(n, most)).astype(int)


def _inside(model, cut, features, indices):
    import keras

    return Inside.of(
        model, top_training.predict(keras.Model(cut.tensors[0], inner(model)), features, indices)
    )
