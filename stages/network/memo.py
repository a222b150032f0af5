"""The memo: what the frozen trunk makes of an image is computed once and then read from disk, by every experiment of a clone.

An entry's key is made of all that determines its values, so an entry is never stale, only unused; the least recently used go
when the bound is reached. An entry is written beside its place and renamed into it, so it is whole or absent; its bytes are
checked against their SHA-256 when it is opened, and computed again if they differ.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from stages import paths
from stages.console import warn

SPARE = 1 << 30  # bytes of disk that the memo leaves to everyone else


class Memo:
    """Entries under one folder: `<key>.npy`, and `<key>.json` that describes it and whose presence says that it is whole."""

    def __init__(self, folder=None, *, max_gb):
        self.folder = Path(folder) if folder is not None else paths.cache() / "activations"
        self.max_bytes = int(max_gb * 1e9)

    def entries(self):
        """Descriptions, least recently used first: dicts with key, bytes, used (a Unix time) and what was described."""
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
        """Remove least recently used entries until `needed` bytes fit. False if they cannot, by the bound or the disk."""
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
                    file,
                    {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": tuple(shape)},
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
