"""Features at a cut: read from the cache where it has them, computed by the frozen layers in one
pass where not."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from graft import pixels, runtimes
from graft.features.blocks import (
    Halves,
    Images,
    Work,
    augmented,
    compute,
    cut_into_blocks,
    read,
    report_clipped,
    wait_for,
)
from graft.features.cache import FeatureCache, Rows, warn_of_no_room
from graft.features.views import Augmentation
from graft.system.console import Progress, log, warn

if TYPE_CHECKING:
    import keras

    from graft.params import Params

FORMAT = 3  # raise it when the meaning of a row changes
MANY = 500  # views from which on it is worth telling how long they take


class Cut(Protocol):
    """Keras tensors of the network, and the digest of all that computes them (see
    `network.cut`)."""

    @property
    def tensors(self) -> tuple: ...
    @property
    def digest(self) -> str: ...
    @property
    def name(self) -> str: ...


Some = TypeVar("Some", bound=Images)


class Features(Generic[Some]):
    """What training reads: features (n, *shape) of `images` in `views` views, float16, or uint8
    where the cut is the input."""

    def __init__(
        self, images: Some, rows: list[Rows], compute: Callable[[np.ndarray, int], np.ndarray]
    ):
        self.images, self._rows, self._compute = images, rows, compute
        self.views, self.shape, self.dtype = len(rows), rows[0].space.shape, rows[0].space.dtype

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int] | np.ndarray, view: int | np.ndarray = 0) -> np.ndarray:
        """Features (b, *shape) of the images at `indices`, int (b,), in `view`: one number, or one
        per image, int (b,)."""
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
    """augmentation: the pool of views. runtime: of the frozen layers (see `runtimes`). cache: where
    features are kept. announce: called before many views are computed here, with the rate of the
    frozen layers, images/s. executor: where blocks of images are computed: local, in this process;
    ray, on a cluster (see `system.cluster`). It changes no byte."""

    augmentation: Augmentation
    runtime: str
    cache: FeatureCache
    announce: Callable[[float], None] | None = None
    executor: str = "local"

    @classmethod
    def of(
        cls, params: Params, runtime: str, announce: Callable[[float], None] | None = None
    ) -> FeatureExtractor:
        """From params.yaml, whose `features.runtime` may say auto: `runtime` is what that came out
        as."""
        a = params.augment
        augmentation = Augmentation(
            a.flip, a.rotation, a.zoom, a.translation, a.contrast, params.seed, a.resizers
        )
        return cls(
            augmentation,
            runtime,
            FeatureCache(max_gb=params.cache.max_gb),
            announce,
            params.features.executor,
        )

    def extract(
        self,
        model: keras.Model,
        cuts: Sequence[Cut],
        images: Some,
        *,
        views: int = 1,
        label: str = "train",
    ) -> list[Features[Some]]:
        """Features of `images` at each of `cuts` of `model`; what is missing in the cache is
        computed in one pass.

        views: of each image, at least 1. label: what the log calls the images. What the cache has
        no room for is computed whenever it is asked for: slower, no less right. Raises GraftError
        where the frozen layers give no finite numbers.
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
        found = {
            cut.digest: Features(images, held, self._on_demand(model, cut, images))
            for cut, held in zip(distinct, rows)
        }
        return [found[cut.digest] for cut in cuts]

    def _space(self, cut, images, view):
        """Everything that determines the values of a row but the image itself, as a key."""
        (tensor,) = cut.tensors
        probe = pixels.probe(images.size, images.resize)
        plain = view == 0 or self.augmentation.is_identity
        seen = b"" if plain else self.augmentation.probe(probe)
        identity = {
            "format": FORMAT,
            "cut": cut.digest,
            "size": images.size,
            "resize": images.resize,
            "view": 0 if plain else view,
            "augmentation": None if plain else asdict(self.augmentation),
            # Pixels and not digests of code: a comment voids nothing, another JPEG library does.
            "probe": hashlib.sha256(probe.tobytes() + seen).hexdigest(),
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
                    f"{label}: {needed / 1e9:.1f} GB of features at {spaces[c][0].about['cut']} "
                    "exceed cache.max_gb; they are computed anew in each epoch"
                )
        return kept

    def _fill(self, model, cuts, images, spaces, rows, missing, label):
        """Compute the rows of the (cut, view) pairs in `missing` and hand them to the cache."""
        wanted = sorted({c for c, _ in missing})
        lacking = np.zeros((len(wanted), len(spaces[0]), len(images)), bool)
        for c, v in missing:
            lacking[wanted.index(c), v] = rows[c][v].missing
        total, started = int(lacking.any(axis=0).sum()), time.monotonic()
        work = Work(
            runtimes.prepare(model, [cuts[c].tensors[0] for c in wanted], self.runtime),
            tuple(cuts[c].name for c in wanted),
            tuple(tuple(spaces[c]) for c in wanted),
            self.augmentation,
            images.size,
            images.resize,
            {path for per_cut in rows for found in per_cut for path in found.files},
        )
        full: dict[tuple[int, int], str] = {}
        execute = self._on_cluster if self.executor == "ray" else self._here
        with Progress(f"{label}: features", total) as progress:
            done = []
            for each in execute(work, cut_into_blocks(images, lacking, full), total, progress):
                full |= each.full
                done.append(replace(each, names=(), segments=()))
        report_clipped(done)
        seconds = time.monotonic() - started
        log(
            f"{label}: features of {lacking.any(axis=(0, 1)).sum()} of {len(images)} images "
            f"computed, {total} views by {self.runtime} in {seconds:.1f} s, {total / seconds:.0f} "
            "images/s"
        )

    def _here(self, work, blocks, total, progress):
        """The Done of each block, computed in this process."""
        run = work.program.start()
        if self.announce and total >= MANY:
            self.announce(runtimes.rate(run, work.size))
        for block in blocks:
            yield compute(work, run, block, progress.advance)

    def _on_cluster(self, work, blocks, total, progress):
        """The Done of each block, computed on a cluster. What it says of room, its workers have
        said where nobody reads."""
        from graft.system import cluster

        warned = set()
        with cluster.connect() as workers:
            for block, done in workers.run(work, blocks):
                wait_for(done.segments)
                for pair, why in done.full.items():
                    if pair not in warned:
                        warn_of_no_room(why)
                    warned.add(pair)
                progress.advance(int(block.missing.any(axis=0).sum()))
                yield done

    def _on_demand(self, model, cut, images):
        """compute(indices, view) for what the cache does not hold; the runtime starts when it is
        first needed."""
        started = []

        def compute(indices, view):
            if not started:
                started.extend(
                    (runtimes.start(model, cut.tensors, self.runtime), Halves(images, [cut.name]))
                )
            run, halves = started
            parts = [
                halves(run(augmented(batch, these, images, view, self.augmentation)), these)[0]
                for these, batch in read(images, indices)
            ]
            return np.concatenate(parts)

        return compute


def _dtype(tensor):
    return np.dtype(np.uint8) if tensor.dtype == "uint8" else np.dtype(np.float16)
