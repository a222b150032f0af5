"""What a killed training goes on from: one file per training, outside DVC's outputs, which DVC
deletes before a stage runs."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import time
import zipfile
from typing import Any

import numpy as np

from graft.system import files, paths
from graft.system.console import warn
from graft.system.prefetch import processors

KEPT_SECONDS = 14 * 24 * 3600  # a checkpoint that nobody went on from for so long is removed


class Checkpoint:
    """stage: its name. identity: everything that determines the training; only the very same
    training is ever continued."""

    def __init__(self, stage: str, identity: dict):
        import keras
        import tensorflow as tf

        precision = keras.mixed_precision.dtype_policy().name
        versions = [tf.__version__, keras.__version__, np.__version__, precision, processors()]
        key = hashlib.sha256(
            json.dumps([identity, versions], sort_keys=True, default=str).encode()
        ).hexdigest()[:32]
        self.path = paths.cache() / "checkpoints" / f"{stage}-{key}.npz"
        self.full = False

    def save(self, state: dict, arrays: dict[str, list[np.ndarray]]) -> None:
        """Write atomically; where that cannot be done, the training goes on after one warning.
        state: what JSON can hold."""
        flat: dict[str, Any] = {
            f"{name}/{i}": array for name, group in arrays.items() for i, array in enumerate(group)
        }
        try:
            with files.whole(self.path, shared=True) as part, part.open("wb") as file:
                np.savez(file, state=np.array(json.dumps(state)), **flat)
        except OSError as error:
            if not self.full:
                self.full = True
                warn(
                    f"checkpoint: {error.strerror or error}; going on without it, a killed "
                    "training would not resume from here"
                )

    def load(
        self, like: dict[str, list[np.ndarray]]
    ) -> tuple[dict, dict[str, list[np.ndarray]]] | None:
        """(state, arrays) as saved; None without a checkpoint whose arrays have the shapes and
        dtypes of `like`."""
        self._remove_old()
        try:
            with np.load(self.path, allow_pickle=False) as held:
                state = json.loads(str(held["state"]))
                arrays = {
                    name: [held[f"{name}/{i}"] for i in range(len(group))]
                    for name, group in like.items()
                }
                complete = len(held.files) == 1 + sum(map(len, like.values()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            return self._set_aside(f"cannot be read ({error})")
        fits = complete and all(
            array.shape == other.shape and array.dtype == other.dtype
            for name, group in like.items()
            for array, other in zip(arrays[name], group)
        )
        return (
            (state, arrays)
            if fits
            else self._set_aside("holds arrays of another shape or precision")
        )

    def of(self, part: str) -> Checkpoint:
        """The checkpoint of a part of this training, which `remove` removes too. part: letters,
        digits, dots."""
        other = copy.copy(self)
        other.path = self.path.with_name(f"{self.path.stem}-{part}.npz")
        return other

    def remove(self) -> None:
        for path in self.path.parent.glob(f"{self.path.stem}*.npz"):
            path.unlink(missing_ok=True)

    def _set_aside(self, why):
        warn(f"checkpoint {self.path.name} {why}: set aside, training begins anew")
        self.path.replace(self.path.with_suffix(".unfit"))

    def _remove_old(self):
        files.sweep(self.path.parent)
        for path in self.path.parent.glob("*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                    path.unlink()
