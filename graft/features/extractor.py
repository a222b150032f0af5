"""Features at a cut: read from the cache where it has them, computed by the frozen layers in one pass where not."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from graft import pixels, runtimes
from graft.features.cache import FeatureCache, Rows
from graft.features.views import Augmentation
from graft.system.console import GraftError, Progress, log, warn
from graft.system.prefetch import prefetch, processors

if TYPE_CHECKING:
    import keras

    from graft.params import Params

FORMAT = 3  # raise it when the meaning of a row changes
HALF = np.finfo(np.float16).max
MANY = 500  # views from which on it is worth telling how long they take


class Images(Protocol):
    """A list of images that can be read again and again: `sha256` of each file, `paths` to name them, `size` in pixels,
    `resize`, the rule of resizing; `read` gives the images at some positions, in that order, in batches uint8 (b, S, S, 3)."""

    @property
    def sha256(self) -> Sequence[str]: ...
    @property
    def paths(self) -> Sequence[str]: ...
    @property
    def size(self) -> int: ...
    @property
    def resize(self) -> str: ...

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]: ...


class Cut(Protocol):
    """Keras tensors of the network, and the digest of all that computes them (see `network.cut`)."""

    @property
    def tensors(self) -> tuple: ...
    @property
    def digest(self) -> str: ...
    @property
    def name(self) -> str: ...


Some = TypeVar("Some", bound=Images)


class Features(Generic[Some]):
    """What training reads: features (n, *shape) of `images` in `views` views, float16, or uint8 where the cut is the input."""

    def __init__(self, images: Some, rows: list[Rows], compute: Callable[[np.ndarray, int], np.ndarray]):
        self.images, self._rows, self._compute = images, rows, compute
        self.views, self.shape, self.dtype = len(rows), rows[0].space.shape, rows[0].space.dtype

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int] | np.ndarray, view: int | np.ndarray = 0) -> np.ndarray:
        """Features (b, *shape) of the images at `indices`, int (b,), in `view`: one number, or one per image, int (b,)."""
        wanted = np.asarray(indices)
        views = np.broadcast_to(view, wanted.shape)
        taken = np.empty((len(wanted), *self.shape), self.dtype)
        for v in np.unique(views):
            chosen = np.flatnonzero(views == v)
            part = np.empty((len(chosen), *self.shape), self.dtype)
            there = self._rows[v].read(wanted[chosen], part)
            if not there.all():
                part[~there] = self._compute(wanted[chosen][~there], int(v))
            taken[chosen] = part
        return taken


@dataclass(frozen=True)
class FeatureExtractor:
    """augmentation: the pool of views. runtime: of the frozen layers (see `runtimes`). cache: where features are kept.
    announce: called before many views are computed, with the rate of the frozen layers, images/s."""

    augmentation: Augmentation
    runtime: str
    cache: FeatureCache
    announce: Callable[[float], None] | None = None

    @classmethod
    def of(cls, params: Params, runtime: str, announce: Callable[[float], None] | None = None) -> FeatureExtractor:
        """From params.yaml, whose `features.runtime` may say auto: `runtime` is what that came out as."""
        a = params.augment
        augmentation = Augmentation(a.flip, a.rotation, a.zoom, a.translation, a.contrast, params.seed)
        return cls(augmentation, runtime, FeatureCache(max_gb=params.cache.max_gb), announce)

    def extract(
        self, model: keras.Model, cuts: Sequence[Cut], images: Some, *, views: int = 1, label: str = "train"
    ) -> list[Features[Some]]:
        """Features of `images` at each of `cuts` of `model`; what is missing in the cache is computed in one pass.

        views: of each image, at least 1. label: what the log calls the images. What the cache has no room for is computed
        whenever it is asked for: slower, no less right. Raises GraftError where the frozen layers give no finite numbers.
        """
        views = 1 if self.augmentation.is_identity else max(1, views)
        distinct = list({cut.digest: cut for cut in cuts}.values())
        spaces = [[self._space(cut, images, v) for v in range(views)] for cut in distinct]
        rows = [[space.find(images.sha256) for space in per_cut] for per_cut in spaces]
        kept = self._affordable(spaces, len(images), label)
        missing = [(c, v) for c in kept for v in range(views) if rows[c][v].missing.any()]
        if missing:
            with self.cache.lock(spaces[kept[0]][0].folder.name[:32]):
                for c, v in missing:  # another process may have computed them while this one waited
                    rows[c][v] = spaces[c][v].find(images.sha256)
                missing = [(c, v) for c, v in missing if rows[c][v].missing.any()]
                if missing:
                    self._fill(model, distinct, images, spaces, rows, missing, label)
        if not missing and len(kept) == len(distinct):
            log(f"{label}: cached features of {len(images)} images x {views} views")
        for c, v in missing:
            rows[c][v] = spaces[c][v].find(images.sha256)
        found = {cut.digest: Features(images, held, self._on_demand(model, cut, images)) for cut, held in zip(distinct, rows)}
        return [found[cut.digest] for cut in cuts]

    def _space(self, cut, images, view):
        """Everything that determines the values of a row but the image itself, as a key."""
        (tensor,) = cut.tensors
        probe = pixels.probe(images.size, images.resize)
        plain = view == 0 or self.augmentation.is_identity
        seen = probe if plain else self.augmentation.view(probe, "probe", view)
        identity = {
            "format": FORMAT,
            "cut": cut.digest,
            "size": images.size,
            "resize": images.resize,
            "view": 0 if plain else view,
            "augmentation": None if plain else asdict(self.augmentation),
            # Pixels and not digests of code: a comment voids nothing, another JPEG library does.
            "probe": hashlib.sha256(probe.tobytes() + seen.tobytes()).hexdigest(),
            "runtime": runtimes.identity(self.runtime),
        }
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        about = {"cut": cut.name, "size": images.size, "view": view, "runtime": self.runtime}
        return self.cache.space(key, tensor.shape[1:], _dtype(tensor), about)

    def _affordable(self, spaces, n, label):
        """Positions of the cuts whose features the cache may hold together, the smallest first."""
        left, kept = self.cache.max_bytes, []
        for c in sorted(range(len(spaces)), key=lambda c: spaces[c][0].row_bytes):
            needed = n * sum(space.row_bytes for space in spaces[c])
            if needed <= left:
                left -= needed
                kept.append(c)
            else:
                warn(
                    f"{label}: {needed / 1e9:.1f} GB of features at {spaces[c][0].about['cut']} exceed cache.max_gb; "
                    "they are computed anew in each epoch"
                )
        return kept

    def _fill(self, model, cuts, images, spaces, rows, missing, label):
        """Compute the rows of the (cut, view) pairs in `missing` and hand them to the cache."""
        wanted = sorted({c for c, _ in missing})
        needed = {v: np.any([rows[c][v].missing for c, w in missing if w == v], axis=0) for _, v in missing}
        todo = np.flatnonzero(np.any(list(needed.values()), axis=0))
        total, started = int(sum(mask.sum() for mask in needed.values())), time.monotonic()
        run = runtimes.start(model, [cuts[c].tensors[0] for c in wanted], self.runtime)
        if self.announce and total >= MANY:
            self.announce(runtimes.rate(run, images.size))
        keep = frozenset(path for per_cut in rows for found in per_cut for path in found.files)
        halves = _Halves(images, [cuts[c].name for c in wanted])
        with contextlib.ExitStack() as stack:
            writers = {(c, v): stack.enter_context(spaces[c][v].writer(keep=keep)) for c, v in missing}
            progress = stack.enter_context(Progress(f"{label}: features", total))
            for indices, batch in _read(images, todo):
                for v, mask in needed.items():
                    chosen = mask[indices]
                    if not chosen.any():
                        continue
                    values = halves(run(self._views(batch[chosen], indices[chosen], images, v)), indices[chosen])
                    for c, computed in zip(wanted, values):
                        _append(writers.get((c, v)), rows[c][v].missing, images.sha256, indices[chosen], computed)
                    progress.advance(int(chosen.sum()))
        halves.report()
        seconds = time.monotonic() - started
        log(
            f"{label}: features of {len(todo)} of {len(images)} images computed, {total} views by {self.runtime} in "
            f"{seconds:.1f} s, {total / seconds:.0f} images/s"
        )

    def _views(self, batch, indices, images, view):
        if view == 0 or self.augmentation.is_identity:
            return batch
        pairs = zip(batch, (images.sha256[i] for i in indices))
        made = prefetch(lambda pair: self.augmentation.view(*pair, view), pairs, workers=processors(), depth=len(batch) + 1)
        return np.array(list(made), np.uint8).reshape(batch.shape)

    def _on_demand(self, model, cut, images):
        """compute(indices, view) for what the cache does not hold; the runtime starts when it is first needed."""
        started = []

        def compute(indices, view):
            if not started:
                started.extend((runtimes.start(model, cut.tensors, self.runtime), _Halves(images, [cut.name])))
            run, halves = started
            parts = [halves(run(self._views(batch, these, images, view)), these)[0] for these, batch in _read(images, indices)]
            return np.concatenate(parts)

        return compute


def _read(images, indices):
    """(indices, batch) of the images at `indices`, in that order."""
    start = 0
    for batch in images.read(indices):
        yield np.asarray(indices[start : start + len(batch)]), batch
        start += len(batch)


def _append(writer, missing, names, indices, values):
    for i, row in zip(indices, values):
        if writer is not None and missing[i]:
            writer.append(names[i], row)


class _Halves:
    """Makes values what is kept: half precision, pixels as they are. Counts what half precision cannot hold."""

    def __init__(self, images, names):
        self.images, self.names, self.clipped = images, names, {}

    def __call__(self, values, indices):
        return [self._half(array, name, indices) for array, name in zip(values, self.names)]

    def _half(self, values, name, indices):
        if values.dtype == np.uint8:
            return values
        flat = np.abs(values.reshape(len(values), -1)).max(axis=1)
        if not np.isfinite(flat).all():
            first = self.images.paths[indices[int(np.flatnonzero(~np.isfinite(flat))[0])]]
            raise GraftError(
                f"the frozen layers up to {name} give values that are not finite for {first}: the backbone's weights hold "
                "such values or do not fit its scaling; check backbone.weights"
            )
        beyond = flat > HALF
        if beyond.any():
            count, first = self.clipped.get(name, (0, self.images.paths[indices[int(np.flatnonzero(beyond)[0])]]))
            self.clipped[name] = count + int(beyond.sum()), first
        return np.clip(values, -HALF, HALF).astype(np.float16)

    def report(self):
        for name, (count, first) in self.clipped.items():
            warn(f"features at {name} exceed half precision (65504) in {count} views, first of {first}: clipped to it")


def _dtype(tensor):
    return np.dtype(np.uint8) if tensor.dtype == "uint8" else np.dtype(np.float16)
