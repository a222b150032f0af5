"""The memo: what the frozen trunk makes of an image is computed once and then read from disk, by every experiment of a clone.

An entry holds one view of one list of images at one cut. Its key is made of all that determines the values, so an entry is never
stale, only unused; the least recently used go when the bound is reached. An entry is written beside its place and renamed into it,
so it is whole or absent; its bytes are checked against their SHA-256 when it is opened, and computed again if they differ.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from stages import paths
from stages.console import Progress, log, warn
from stages.network import engines
from stages.network.augmentation import Views

FORMAT = 1  # raise it when the meaning of an entry changes
BATCH = 64
SPARE = 1 << 30  # bytes of disk that the memo leaves to everyone else
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
    """What training reads: `take(indices, view)` gives the activations (b, …) of those images, float16 (uint8 at a cut at the input)."""

    def __init__(self, views, shape, dtype, take):
        self.views, self.shape, self.dtype, self.take = views, tuple(shape), np.dtype(dtype), take


class Memo:
    """Entries under one folder: `<key>.npy`, and `<key>.json` that describes it and whose presence says that it is whole."""

    def __init__(self, folder=None, *, max_gb):
        self.folder = Path(folder) if folder is not None else paths.cache() / "activations"
        self.max_bytes = int(max_gb * 1e9)

    def entries(self):
        """Descriptions, least recently used first: dicts with key, bytes, used (seconds since the epoch) and what was described."""
        found = []
        for path in self.folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError):  # another process may be removing it
                found.append({"key": path.stem, "used": path.stat().st_mtime, **json.loads(path.read_text(encoding="utf-8"))})
        return sorted(found, key=lambda entry: entry["used"])

    def open(self, key):
        """The entry as a read-only memory map, or None. A damaged entry is removed."""
        data, description = self.folder / f"{key}.npy", self.folder / f"{key}.json"
        try:
            expected = json.loads(description.read_text(encoding="utf-8"))["sha256"]
            array = np.load(data, mmap_mode="r", allow_pickle=False)
            if _sha256(array) != expected:
                raise ValueError("its bytes do not match their SHA-256")
            os.utime(description)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, OSError, EOFError) as error:
            warn(f"activations {key[:12]}: damaged ({error}); computed again")
            self.remove(key)
            return None
        return array

    def remove(self, key):
        for path in (self.folder / f"{key}.json", self.folder / f"{key}.npy"):  # the description first: no half entry is left
            path.unlink(missing_ok=True)

    def clear(self):
        """Remove every entry and every left-over of a killed process. Returns (entries, bytes) that went."""
        entries = self.entries()
        for entry in entries:
            self.remove(entry["key"])
        for path in self.folder.glob("*"):
            if path.suffix in (".npy", ".json", ".part"):
                path.unlink(missing_ok=True)
        return len(entries), sum(entry["bytes"] for entry in entries)

    def make_room(self, needed):
        """Remove least recently used entries until `needed` bytes fit. Returns False if they cannot, by the bound or the disk."""
        if needed > self.max_bytes:
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("*.part"):  # of a process that was killed; a living one touches its file all the time
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink()
        entries = self.entries()
        held = sum(entry["bytes"] for entry in entries)
        for entry in entries:
            if held + needed <= self.max_bytes and self._free() >= needed + SPARE:
                break
            self.remove(entry["key"])
            held -= entry["bytes"]
        return self._free() >= needed + SPARE

    def _free(self):
        return shutil.disk_usage(self.folder).free

    @contextlib.contextmanager
    def writer(self, key, shape, dtype, description):
        """Yields a function that appends rows; at a clean end, and not before, the entry is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        handle, part = tempfile.mkstemp(suffix=".part", dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": tuple(shape)}
                )

                def append(rows):
                    rows = np.ascontiguousarray(rows, dtype=dtype)
                    file.write(rows.data)
                    digest.update(rows.data)

                yield append
                file.flush()
                size = file.tell()
            Path(part).replace(self.folder / f"{key}.npy")
            text = json.dumps({**description, "bytes": size, "sha256": digest.hexdigest()}, indent=1)
            temporary = self.folder / f"{key}.{os.getpid()}.part"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self.folder / f"{key}.json")
        finally:
            Path(part).unlink(missing_ok=True)

    def lock(self, name):
        from filelock import FileLock

        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "locks" / f"{name}.lock")


def _sha256(array):
    digest, flat = hashlib.sha256(), array.reshape(-1)
    step = (1 << 24) // array.itemsize
    for start in range(0, len(flat), step):
        digest.update(np.ascontiguousarray(flat[start : start + step]).data)
    return digest.hexdigest()


def recall(model, cuts, images, *, augmentation, views, engine, memo, label):
    """Activations of `images` at each of `cuts`, out of the memo where it has them, computed in one pass where not.

    images: see Images. model: the classifier; cuts: Keras tensors of it (see `classifier.find_cut`). views: how many views of each image, at least 1.
    engine: name of what runs the trunk (see `engines`). label: what the log calls the images.
    Where the memo cannot hold them, by its bound or for want of disk, they are computed whenever they are asked for: slower, no less right.
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
            warn(f"{label}: {needed / 1e9:.1f} GB of activations do not fit into the memo (cache.max_gb, or the disk); computing them anew each epoch")
            return [_streamed(model, cut, images, source, views, engine) for cut in cuts]
        if missing:
            _compute(model, cuts, images, source, missing, keys, engine, memo, label)
            look()
    return [_remembered([found[c, v] for v in range(views)]) for c in range(len(cuts))]


def _remembered(arrays):
    return Activations(len(arrays), arrays[0].shape[1:], arrays[0].dtype, lambda indices, view: arrays[view][indices])


def _streamed(model, cut, images, source, views, engine):
    run = engines.start(model, [cut], engine)

    def take(indices, view):
        indices = np.asarray(indices)
        rows, done = [], 0
        for batch in images.read(indices):
            these = indices[done : done + len(batch)]
            rows.append(_stored(run(source.make(batch, these, view))[0]))
            done += len(batch)
        return np.concatenate(rows)

    return Activations(views, cut.shape[1:], _dtype(cut), take)


def _compute(model, cuts, images, source, missing, keys, engine, memo, label):
    wanted = sorted({c for c, _ in missing})
    views = sorted({v for _, v in missing})
    started = time.monotonic()
    run = engines.start(model, [cuts[c] for c in wanted], engine)
    with contextlib.ExitStack() as stack:
        writers = {
            (c, v): stack.enter_context(
                memo.writer(keys[c, v], (len(images), *cuts[c].shape[1:]), _dtype(cuts[c]),
                            {"cut": _layer(cuts[c]).name, "images": len(images), "size": images.size, "view": v, "engine": engine})
            )
            for c, v in missing
        }  # fmt: skip
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
    log(f"{label}: activations of {len(images)} images x {len(views)} views computed by {engine} in {seconds:.1f} s, {total / seconds:.0f} images/s")


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
        "augmentation": None if plain else [augmentation.flip, augmentation.rotation, augmentation.zoom, augmentation.contrast, augmentation.seed],
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
        parents = [position[p.operation.name] for node in layer._inbound_nodes for p in node.parent_nodes if p.operation.name in position]
        digest.update(json.dumps([type(layer).__name__, parents, settings], sort_keys=True, default=str).encode())
        for weight in layer.get_weights():
            digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()
