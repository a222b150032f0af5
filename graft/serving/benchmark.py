"""What an exported format costs on this machine, and what it is worth."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graft.description import Description
from graft.serving import parity, photo_parity, readers
from graft.system.environment import quiet_tensorflow

if TYPE_CHECKING:
    import keras

BATCHES = (1, 32)
NEEDS_TENSORFLOW = ("keras", "h5", "saved_model")


@dataclass(frozen=True)
class Measured:
    """One format. bytes: of its file or folder. n: test photos; accuracy: share classified right;
    agreement: share with the original's top class, from the pixels of training. photos,
    photo_agreement, worst: from the photo, the smallest agreement and the resizer that gives it
    (`graft.resizers`). ms: {batch: (median, p95)}, milliseconds per photo from pixels to
    probabilities. memory_mb: most that a process needs which does nothing else, in 10^6 bytes.
    of_predict: `beside_predict`."""

    format: str
    bytes: int
    n: int
    accuracy: float
    agreement: float
    photos: int
    photo_agreement: float
    worst: str
    ms: dict[str, tuple[float, float]]
    memory_mb: float
    of_predict: float


def measure(
    format: str,
    folder: Path,
    reference: Callable[[Description], tuple[Any, parity.Reference]],
    *,
    seconds: float,
    photos: int,
) -> Measured:
    """One format of an export folder, in this process, which should have done nothing before: times
    and memory come first.

    reference: gives (ImageSet of the test photos, what the original says of some of them). seconds:
    for each batch size. photos: most to look at from the photo.
    """
    if format in NEEDS_TENSORFLOW:
        quiet_tensorflow()
    loaded = readers.load(format, folder)
    size = loaded.description.image_size
    noise = np.random.default_rng(0).integers(0, 256, (max(BATCHES), size, size, 3), dtype=np.uint8)
    ms = {str(batch): times(loaded, noise[:batch], seconds) for batch in BATCHES}
    memory = round(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024)
        / 1e6,
        1,
    )
    quiet_tensorflow()
    share = beside_predict(
        loaded, loaded.network or readers.load("keras", folder).network, noise[:1], seconds
    )
    test, against = reference(loaded.description)
    pixels = parity.check(loaded, against)
    worst = min(photo_parity.check(loaded, against, test, most=photos), key=lambda c: c.agreement)
    values = (
        pixels.bytes,
        pixels.n,
        pixels.accuracy,
        pixels.agreement,
        worst.n,
        worst.agreement,
        worst.resizer,
    )
    return Measured(format, *values, ms, memory, share)


def times(loaded: readers.Loaded, images: np.ndarray, seconds: float) -> tuple[float, float]:
    """(median, p95) of milliseconds per image, over as many calls as fit, after one that prepares;
    at least three."""
    loaded(images)
    taken: list[float] = []
    started = time.perf_counter()
    while len(taken) < 3 or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        loaded(images)
        taken.append((time.perf_counter() - before) * 1e3 / len(images))
    p50, p95 = np.percentile(taken, (50, 95))
    return round(float(p50), 3), round(float(p95), 3)


def beside_predict(
    loaded: readers.Loaded, network: keras.Model, image: np.ndarray, seconds: float
) -> float:
    """Median time of `loaded` on one photo, over that of `network.predict`, Keras' own way, on the
    same.

    image: uint8 (1, S, S, 3). The two take turns, so that what else the machine does meets both; at
    least three turns.
    """
    ways = (loaded, lambda pixels: network.predict(pixels, verbose=0))
    taken: list[list[float]] = []
    started = time.perf_counter()
    while len(taken) < 4 or time.perf_counter() - started < seconds:
        turn = []
        for way in ways:
            before = time.perf_counter()
            way(image)
            turn.append(time.perf_counter() - before)
        taken.append(turn)
    own, predict = np.median(taken[1:], axis=0)  # the first prepares
    return round(float(own / predict), 4)
