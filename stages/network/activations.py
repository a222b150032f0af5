"""Activations at a cut: read from the memo where it has them, computed by the frozen trunk in one pass where not.

An entry of the memo holds one view of one list of images at one cut.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Protocol

import numpy as np

from stages.console import Progress, log, warn
from stages.network import engines
from stages.network.augmentation import Views

FORMAT = 1  # raise it when the meaning of an entry changes
HALF = np.finfo(np.float16).max


class Images(Protocol):
    """A list of images that can be read again and again.

    sha256: of each file. size: side S in pixels after resizing. resize: the rule of resizing, a part of the values' identity.
    read: from positions in the list to the pictures in that order, in batches uint8 (b, S, S, 3).
    """

    sha256: Sequence[str]
    size: int
    resize: str

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]: ...


class Activations:
    """What training reads: activations (n, *shape) in `views` views, float16, or uint8 at a cut at the input."""

    def __init__(self, views, shape, dtype, read):
        self.views, self.shape, self.dtype, self._read = views, tuple(shape), np.dtype(dtype), read

    def take(self, indices, view=0):
        """Activations (b, *shape) of the images at `indices`, int (b,), in `view`: one number, or one per image, int (b,)."""
        indices = np.asarray(indices)
        view = np.broadcast_to(view, indices.shape)
        taken = np.empty((len(indices), *self.shape), self.dtype)
        for v in np.unique(view):
            chosen = view == v
            taken[chosen] = self._read(indices[chosen], int(v))
        return taken


def recall(model, cuts, images, *, augmentation, views, engine, memo, label):
    """Activations of `images` at each of `cuts`, out of the memo where it has them, computed in one pass where not.

    images: see Images. model: the classifier; cuts: Keras tensors of it (see `classifier.find_cut`).
    views: how many views of each image, at least 1.
    engine: name of what runs the trunk (see `engines`). label: what the log calls the images.
    Where the memo cannot hold them, by its bound or for want of disk, they are computed whenever they are asked for: slower,
    no less right.
    Returns a list of Activations, one per cut.
    """
    source = Views(augmentation, len(images))
    views = 1 if augmentation.is_identity else views
    keys = {
        (c, v): _key(model, cut, images, augmentation=augmentation, view=v, engine=engine)
        for c, cut in enumerate(cuts)
        for v in range(views)
    }
    found = {}

    def look():
        for place, key in keys.items():
            if place not in found and (array := memo.open(key)) is not None:
                found[place] = array
        return [place for place in keys if place not in found]

    if not look():
        log(f"{label}: activations of {len(images)} images x {views} views reused")
        return [_remembered([found[c, v] for v in range(views)]) for c in range(len(cuts))]
    with memo.lock(hashlib.sha256("".join(keys.values()).encode()).hexdigest()[:32]):
        missing = look()  # another process may have computed them while this one waited
        needed = sum(len(images) * _row_bytes(cuts[c]) for c, _ in missing)
        if missing and not memo.make_room(needed):
            warn(
                f"{label}: {needed / 1e9:.1f} GB of activations do not fit into the memo (cache.max_gb, or the disk); "
                "computing them anew each epoch"
            )
            return [_streamed(model, cut, images, source, views, engine) for cut in cuts]
        if missing:
            _compute(model, cuts, images, source, missing, keys, engine, memo, label)
            look()
    return [_remembered([found[c, v] for v in range(views)]) for c in range(len(cuts))]


def _remembered(arrays):
    return Activations(len(arrays), arrays[0].shape[1:], arrays[0].dtype, lambda indices, view: arrays[view][indices])


def _streamed(model, cut, images, source, views, engine):
    run = engines.start(model, [cut], engine)

    def read(indices, view):
        rows, done = [], 0
        for batch in images.read(indices):
            these = indices[done : done + len(batch)]
            rows.append(_stored(run(source.make(batch, these, view))[0]))
            done += len(batch)
        return np.concatenate(rows)

    return Activations(views, cut.shape[1:], _dtype(cut), read)


def _compute(model, cuts, images, source, missing, keys, engine, memo, label):
    wanted = sorted({c for c, _ in missing})
    views = sorted({v for _, v in missing})
    started = time.monotonic()
    run = engines.start(model, [cuts[c] for c in wanted], engine)
    with contextlib.ExitStack() as stack:
        writers = {
            (c, v): stack.enter_context(
                memo.writer(
                    keys[c, v],
                    (len(images), *cuts[c].shape[1:]),
                    _dtype(cuts[c]),
                    {"cut": _layer(cuts[c]).name, "images": len(images), "size": images.size, "view": v, "engine": engine},
                )
            )
            for c, v in missing
        }
        progress = stack.enter_context(Progress(f"{label}: trunk", len(images) * len(views)))
        start = 0
        for batch in images.read(range(len(images))):
            indices = np.arange(start, start + len(batch))
            for v in views:
                for c, values in zip(wanted, run(source.make(batch, indices, v))):
                    if (c, v) in writers:
                        writers[c, v](_stored(values))
                progress.advance(len(batch))
            start += len(batch)
    seconds = time.monotonic() - started
    total = len(images) * len(views)
    log(
        f"{label}: activations of {len(images)} images x {len(views)} views computed by {engine} in {seconds:.1f} s, "
        f"{total / seconds:.0f} images/s"
    )


def _stored(values):
    return values if values.dtype == np.uint8 else np.clip(values, -HALF, HALF).astype(np.float16)


def _layer(cut):
    return cut._keras_history.operation


def _dtype(cut):
    return np.dtype(np.uint8) if cut.dtype == "uint8" else np.dtype(np.float16)


def _row_bytes(cut):
    return int(np.prod(cut.shape[1:])) * _dtype(cut).itemsize


def _key(model, cut, images, *, augmentation, view, engine):
    """SHA-256 over everything that determines the values of one entry."""
    plain = view == 0 or augmentation.is_identity
    facts = {
        "format": FORMAT,
        "trunk": trunk_digest(model, cut),
        "images": hashlib.sha256("\n".join(images.sha256).encode()).hexdigest(),
        "size": images.size,
        "resize": images.resize,
        "augmentation": None if plain else asdict(augmentation),
        "view": 0 if plain else view,
        "engine": engines.identity(engine),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def trunk_digest(model, cut):
    """SHA-256 of topology, settings and weights of everything at and below `cut`; the names of layers play no part."""
    layers = model.layers[: model.layers.index(_layer(cut)) + 1]
    position = {layer.name: i for i, layer in enumerate(layers)}
    digest = hashlib.sha256()
    for layer in layers:
        settings = {k: v for k, v in layer.get_config().items() if k not in ("name", "trainable", "dtype")}
        parents = [
            position[p.operation.name]
            for node in layer._inbound_nodes
            for p in node.parent_nodes
            if p.operation.name in position
        ]
        digest.update(json.dumps([type(layer).__name__, parents, settings], sort_keys=True, default=str).encode())
        for weight in layer.get_weights():
            digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()
