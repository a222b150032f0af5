"""Features computed block by block: at most 512 images in, their rows as segments in the cache,
their keys out.

A block is computed by one function, wherever that is: in this process, or on machines that see the
same folders. What it writes is named by what is in it, whole or absent; so blocks may come in any
order, be done twice, or be begun and lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from graft import pixels, runtimes
from graft.features.cache import ROWS, Space
from graft.features.views import Augmentation
from graft.system.console import GraftError, warn
from graft.system.prefetch import prefetch, processors

HALF = np.finfo(np.float16).max
# After which a file that another machine has written is there, whatever NFS remembers of a folder.
SEEN_SECONDS = 60


class Images(Protocol):
    """A list of images that can be read again and again: `sha256` of each file, `paths` to name
    them, `size` in pixels, `resize`, the rule of resizing; `read` gives the images at some
    positions, in that order, in batches uint8 (b, S, S, 3), each by the resizer that `by` names;
    `select` those at some positions as a list of their own."""

    @property
    def sha256(self) -> Sequence[str]: ...
    @property
    def paths(self) -> Sequence[str]: ...
    @property
    def size(self) -> int: ...
    @property
    def resize(self) -> str: ...

    def __len__(self) -> int: ...

    def read(
        self, indices: Sequence[int] | np.ndarray, by: Sequence[str | None] | None = None
    ) -> Iterator[np.ndarray]: ...

    def select(self, indices: Sequence[int] | np.ndarray) -> Images: ...


@dataclass(frozen=True)
class Block:
    """missing: bool (cuts, views, n), which rows of the n `images` are to be computed."""

    images: Images
    missing: np.ndarray


@dataclass(frozen=True)
class Done:
    """What became of a block. names: SHA-256 of its images. segments: files that hold their rows.
    clipped: {cut: (views with values that half precision does not hold, path of the first)}. full:
    {(cut, view): why its rows found no room}."""

    names: tuple[str, ...]
    segments: tuple[Path, ...]
    clipped: dict[str, tuple[int, str]]
    full: dict[tuple[int, int], str]


@dataclass(frozen=True)
class Work:
    """What the blocks of one pass share; with a Block it can be sent to another machine.

    cuts: their names, in the order of the program's outputs. spaces: per cut, per view. size,
    resize: of the images. keep: segments that must not make room for new ones, beside those that a
    process has written itself.
    """

    program: runtimes.Program
    cuts: tuple[str, ...]
    spaces: tuple[tuple[Space, ...], ...]
    augmentation: Augmentation
    size: int
    resize: str
    keep: set[Path] = field(default_factory=set)

    def identity(self) -> list[str]:
        """What rows depend on where they are computed: runtime, versions, instruction set, decoded
        and augmented pixels."""
        probe = pixels.probe(self.size, self.resize)
        digest = hashlib.sha256(probe.tobytes() + self.augmentation.probe(probe)).hexdigest()
        return [*runtimes.computer(self.program.runtime), f"pixels {digest[:12]}"]

    def start(self) -> Callable[[Block], Done]:
        """The function of a block, its runtime ready."""
        run = self.program.start()
        return lambda block: compute(self, run, block)


def cut_into_blocks(
    images: Images, missing: np.ndarray, full: Iterable[tuple[int, int]] = ()
) -> Iterator[Block]:
    """Blocks of the images that lack a row: missing, bool (cuts, views, n). full: (cut, view) pairs
    of which no more rows are wanted; may grow meanwhile."""
    todo = np.flatnonzero(missing.any(axis=(0, 1)))
    for start in range(0, len(todo), ROWS):
        chosen = todo[start : start + ROWS]
        wanted = missing[:, :, chosen]
        for cut, view in full:
            wanted[cut, view] = False
        if wanted.any():
            yield Block(images.select(chosen), wanted)


def compute(
    work: Work, run: runtimes.Run, block: Block, advance: Callable[[int], None] = lambda views: None
) -> Done:
    """Compute the missing rows of a block and write them to the cache. advance: told the number of
    views as they are done.

    Raises GraftError for an image that has changed, and where the frozen layers give no finite
    numbers.
    """
    images, names, halves = (
        block.images,
        tuple(block.images.sha256),
        Halves(block.images, work.cuts),
    )
    pairs = [(int(c), int(v)) for c, v in np.argwhere(block.missing.any(axis=2))]
    with contextlib.ExitStack() as stack:
        writers = {
            (c, v): stack.enter_context(work.spaces[c][v].writer(keep=frozenset(work.keep)))
            for c, v in pairs
        }
        for indices, batch in read(images, range(len(images))):
            for view in sorted({v for _, v in pairs}):
                chosen = block.missing[:, view, indices].any(axis=0)
                if chosen.any():
                    positions = indices[chosen]
                    values = halves(
                        run(augmented(batch[chosen], positions, images, view, work.augmentation)),
                        positions,
                    )
                    _append(
                        {c: writers[c, v] for c, v in pairs if v == view},
                        names,
                        block.missing[:, view],
                        positions,
                        values,
                    )
                    advance(int(chosen.sum()))
    segments = tuple(path for writer in writers.values() for path in writer.segments)
    work.keep.update(segments)
    full = {pair: writer.full for pair, writer in writers.items() if writer.full}
    return Done(names, segments, halves.clipped, full)


def read(
    images: Images, indices: Sequence[int] | np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(indices, batch) of the images at `indices`, in that order."""
    start = 0
    for batch in images.read(indices):
        yield np.asarray(indices[start : start + len(batch)]), batch
        start += len(batch)


def augmented(
    batch: np.ndarray, indices: np.ndarray, images: Images, view: int, augmentation: Augmentation
) -> np.ndarray:
    """View `view` of a batch uint8 (b, S, S, 3), the images at `indices`; of the same shape."""
    if view == 0 or augmentation.is_identity:
        return batch
    names = images.sha256
    if augmentation.is_mixed:
        by = [augmentation.resizer(names[i], view) for i in indices]
        batch = np.concatenate(list(images.read(indices, by)))
    pairs = zip(batch, (names[i] for i in indices))
    made = prefetch(
        lambda pair: augmentation.view(*pair, view),
        pairs,
        workers=processors(),
        depth=len(batch) + 1,
    )
    return np.array(list(made), np.uint8).reshape(batch.shape)


def _append(writers, names, missing, positions, values):
    """missing: bool (cuts, n)."""
    for cut, rows in enumerate(values):
        for i, row in zip(positions, rows):
            if missing[cut, i]:
                writers[cut].append(names[i], row)


class Halves:
    """Makes values what is kept: half precision, pixels as they are. `clipped` counts what half
    precision cannot hold."""

    def __init__(self, images: Images, names: Sequence[str]):
        self.images, self.names = images, names
        self.clipped: dict[str, tuple[int, str]] = {}

    def __call__(self, values: Sequence[np.ndarray], indices: np.ndarray) -> list[np.ndarray]:
        return [self._half(array, name, indices) for array, name in zip(values, self.names)]

    def _half(self, values, name, indices):
        if values.dtype == np.uint8:
            return values
        flat = np.abs(values.reshape(len(values), -1)).max(axis=1)
        if not np.isfinite(flat).all():
            first = self.images.paths[indices[int(np.flatnonzero(~np.isfinite(flat))[0])]]
            raise GraftError(
                f"the frozen layers up to {name} give values that are not finite for {first}: the "
                "backbone's weights hold such values or do not fit its scaling; check "
                "backbone.weights"
            )
        beyond = flat > HALF
        if beyond.any():
            count, first = self.clipped.get(
                name, (0, self.images.paths[indices[int(np.flatnonzero(beyond)[0])]])
            )
            self.clipped[name] = count + int(beyond.sum()), first
        return np.clip(values, -HALF, HALF).astype(np.float16)


def wait_for(segments: Iterable[Path]) -> None:
    """Return when files that another machine has written are seen here. Raises GraftError where
    they do not come."""
    for path in segments:
        until = time.monotonic() + SEEN_SECONDS
        while not path.exists():
            if time.monotonic() > until:
                raise GraftError(
                    f"ray: {path}, which a worker has written, is not here: the feature cache "
                    "must lie in a folder that all machines share"
                )
            time.sleep(0.2)


def report_clipped(done: Iterable[Done]) -> None:
    """Warn of what half precision could not hold."""
    total: dict[str, tuple[int, str]] = {}
    for each in done:
        for name, (count, first) in each.clipped.items():
            before, path = total.get(name, (0, first))
            total[name] = before + count, path
    for name, (count, first) in total.items():
        warn(
            f"features at {name} exceed half precision (65504) in {count} views, first of "
            f"{first}: clipped to it"
        )
