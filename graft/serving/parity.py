"""What an exported format is worth: loaded again, compared with the original classifier on test
images, measured."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graft.description import Description
from graft.scoring.calibration import apply_temperature
from graft.scoring.predictions import Predictions
from graft.serving import readers
from graft.system.console import GraftError, warn

if TYPE_CHECKING:
    import keras

    from graft.dataset.images import ImageSet

# Test images that lossy formats are compared on, with what evaluate found; accuracy needs that
# many.
SAMPLE = 200
# Of these, that exact formats are compared on: C probabilities of each, to the fourth digit.
EXACT_SAMPLE = 64
# Largest allowed difference of a probability in a format that computes in float32, as the original
# does: they differ in the order of additions only, 3e-6 as measured. Half precision and 8 bits move
# probabilities; what counts there is the decision.
TOLERANCE = 1e-4
EXACT = (
    "keras",
    "h5",
    "saved_model",
    "tflite",
    "onnx",
    "onnx_any_size",
    "saved_model_any_size",
    "openvino",
)
UNCHECKED = ("coreml",)  # run by Apple's systems alone, wherever they are written
EIGHT_BITS = ("tflite_int8", "tflite_dynamic")
ALLOWANCE = 0.01  # by which formats of 8 bits may agree on fewer images than float16 must
# Where the original's two likeliest classes are this close, it has no clear opinion itself, and
# rounding to 8 bits settles which comes first: of 800 flowers, int8 gives 2.6% another top class
# than the original, and 1.0% clearly another.
TIE = 0.1
ROUNDING = 1e-9  # 97 of 100 is 0.97
# Photos, from which on a difference counts: one is no sign, the original itself may have no clear
# opinion of it.
SIGN = 1.5
# Per format, whichever ends first; `graft benchmark` takes its time.
LATENCY_RUNS, LATENCY_SECONDS = 10, 0.3


@dataclass(frozen=True)
class Check:
    """One format on n test images.

    bytes: of the file, or of a folder's files together. agreement: share of images with the
    original's top class. clear_disagreements: images with another top class, which the original
    holds for less likely by more than TIE. max_difference: largest absolute difference of a
    probability from the original's. accuracy: share classified right. reference_accuracy: of the
    original on the same images. latency_p50, latency_p95: seconds for a batch of one image, from
    pixels to probabilities.
    """

    format: str
    bytes: int
    n: int
    agreement: float
    clear_disagreements: int
    max_difference: float
    accuracy: float
    reference_accuracy: float
    latency_p50: float
    latency_p95: float


def spread(n: int, most: int) -> np.ndarray:
    """Up to `most` of n positions, evenly spread: int64, ascending. Rows by path are rows by class:
    each gets its share."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def some(image_set: ImageSet, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(pixels uint8 (n, S, S, 3), positions) of up to `most` images of an ImageSet, evenly
    spread."""
    positions = spread(len(image_set), most)
    return np.concatenate(list(image_set.read(positions))), positions


@dataclass(frozen=True, eq=False)
class Reference:
    """What the formats of a classifier are compared with, on n images.

    images: uint8 (n, S, S, 3). labels: int (n,), their classes. probabilities: (n, C), the
    original's. network: the keras.Model that is shipped, and what it says: (n, C) float32; None
    where only decisions count. call: what runs a network of its layers.
    """

    images: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    network: keras.Model | None = None
    shipped: np.ndarray | None = None
    call: readers.Loaded | None = None


def decided(said: Predictions, image_set: ImageSet) -> Reference:
    """Of up to SAMPLE images of an ImageSet, of all of which the original has `said` something
    already: for formats that are held to what they decide, and for the accuracy. Raises GraftError
    where that was said of other images."""
    images, positions = some(image_set, SAMPLE)
    return Reference(
        images, image_set.labels[positions], same_images(said, image_set).probabilities[positions]
    )


def reference(
    model: keras.Model, description: Description, network: keras.Model, among: Reference
) -> Reference:
    """Of up to EXACT_SAMPLE images `among` others, asked anew: no exported file and no frozen graph
    plays a part in it.

    model: the original, a keras.Model: softmax(log p / T). network: as it is shipped. The two share
    all layers but the last, and what lies below it is computed once.
    """
    import keras

    rows = spread(len(among.images), EXACT_SAMPLE)
    below = keras.Model(model.input, model.layers[-1].input)
    call = readers.Loaded(model.name, description, readers.keras_call(below))
    features = call(among.images[rows])
    own, shipped = (last(features).numpy() for last in (model.layers[-1], network.layers[-1]))
    own = apply_temperature(own, 1.0 if description.calibrated else description.temperature)
    return Reference(among.images[rows], among.labels[rows], own, network, shipped, call)


def check(loaded: readers.Loaded, against: Reference) -> Check:
    """Measure a format that `readers.load` has loaded again.

    A Keras file that holds the very network that was written, layer by layer and bit by bit, is not
    asked again what that says, and its time is that of what the reference was computed by, all
    layers but the last.
    """
    said, timed = against.shipped, against.call
    if (
        against.network is None
        or loaded.network is None
        or not _equal(loaded.network, against.network)
    ):
        said = timed = None
    probabilities = loaded(against.images) if said is None else said
    predicted, best = probabilities.argmax(axis=1), against.probabilities.argmax(axis=1)
    rows = np.arange(len(best))
    margin = against.probabilities[rows, best] - against.probabilities[rows, predicted]
    with np.errstate(invalid="ignore"):
        difference = np.abs(probabilities - against.probabilities).max()
    p50, p95 = _latency(timed or loaded, against.images[:1])
    return Check(
        format=loaded.format,
        bytes=_size(Path(loaded.name)),
        n=len(best),
        agreement=float((predicted == best).mean()),
        clear_disagreements=int((margin > TIE).sum()),
        max_difference=float(difference),
        accuracy=float((predicted == against.labels).mean()),
        reference_accuracy=float((best == against.labels).mean()),
        latency_p50=p50,
        latency_p95=p95,
    )


def _equal(a, b):
    """Whether two Keras models are built alike and have the same weights, bit for bit: they compute
    the same."""
    one, other = (json.dumps(model.get_config(), sort_keys=True, default=str) for model in (a, b))
    pairs = zip(a.get_weights(), b.get_weights(), strict=True) if one == other else ()
    return one == other and all(np.array_equal(mine, theirs) for mine, theirs in pairs)


def _size(path):
    return (
        sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        if path.is_dir()
        else path.stat().st_size
    )


def _latency(model, image):
    model(image)  # LiteRT allocates, TensorFlow traces
    seconds, started = [], time.perf_counter()
    while len(seconds) < LATENCY_RUNS and (
        not seconds or time.perf_counter() - started < LATENCY_SECONDS
    ):
        before = time.perf_counter()
        model(image)
        seconds.append(time.perf_counter() - before)
    return tuple(map(float, np.percentile(seconds, (50, 95))))


def is_below(agreement: float, n: int, least: float) -> bool:
    """Whether a share of n images is below `least`, by more than a single image."""
    return agreement < least - ROUNDING and (1 - agreement) * n > SIGN


def miss(c: Check, min_agreement: float, max_accuracy_drop: float) -> str:
    """What a format misses, in words with the figures; "" where it may be shipped.

    A format that computes in float32 must give the original's probabilities within TOLERANCE.
    Others must have its top class on a share of `min_agreement` of the images, those of 8 bits on
    ALLOWANCE less, and may lose `max_accuracy_drop` of accuracy; a single image is no miss.
    """
    wanted, drop = (
        min_agreement - ALLOWANCE * (c.format in EIGHT_BITS),
        c.reference_accuracy - c.accuracy,
    )
    if not math.isfinite(c.max_difference):
        return f"its probabilities are no numbers on {c.n} images"
    if c.format in EXACT:
        return (
            ""
            if c.max_difference <= TOLERANCE
            else f"a probability differs from the original's by {c.max_difference:.2g} on {c.n} "
            f"images, at most {TOLERANCE:.2g}"
        )
    if is_below(c.agreement, c.n, wanted):
        less = f" less {ALLOWANCE:g} for 8 bits" if c.format in EIGHT_BITS else ""
        return (
            f"agrees with the original on {c.agreement:.4f} of {c.n} images, at least "
            f"{wanted:.4g} (export.min_agreement{less})"
        )
    if drop > max_accuracy_drop + ROUNDING and drop * c.n > SIGN:
        return (
            f"loses {drop:.4f} of accuracy on {c.n} images, at most {max_accuracy_drop:.4g} "
            "(export.max_accuracy_drop)"
        )
    return ""


def verdict(
    format: str, folder: Path, image_set: ImageSet, said: Predictions, gates: dict[str, float]
) -> str:
    """`miss` of the file in `folder` on images of an ImageSet, of all of which the original has
    `said` something already.

    For formats that are held to what they decide. gates: of `miss`.
    """
    return miss(check(readers.load(format, folder), decided(said, image_set)), **gates)


def passed(
    checks: Sequence[Check], *, min_agreement: float, max_accuracy_drop: float, on_miss: str
) -> list[Check]:
    """Those of `checks` that may be shipped; a warning names each of the others, with what it
    misses and by how much.

    Raises GraftError, in one line, for the first that misses where `on_miss` is "fail", and for the
    Keras model always: it is what is registered.
    """
    good = []
    for c in checks:
        why = miss(c, min_agreement, max_accuracy_drop)
        if why and (on_miss == "fail" or c.format == "keras"):
            raise GraftError(f"export: {c.format}: {why}")
        if why:
            warn(f"export: {c.format} left out: {why}")
        else:
            good.append(c)
    return good


def require_evaluated(against: Reference, evaluated: Reference) -> None:
    """Raise GraftError unless the original answers as evaluate found it to, whose accuracy then is
    the exported model's.

    against: `reference` among `evaluated`, which is what evaluate has `decided`. Both run the same
    weights, but evaluate's runtime may round otherwise, in half precision on a GPU: an image near a
    boundary, within TIE of it, may fall on its other side.
    """
    found = evaluated.probabilities[spread(len(evaluated.images), EXACT_SAMPLE)].argmax(axis=1)
    own, rows = against.probabilities, np.arange(len(found))
    if others := int((own.max(axis=1) - own[rows, found] > TIE).sum()):
        raise GraftError(
            f"export: the model answers otherwise on {others} of {len(rows)} test images than "
            "evaluate found; run `dvc repro --force evaluate export`"
        )


def same_images(said: Predictions, image_set: ImageSet) -> Predictions:
    """`said`, which must be of the very images of an ImageSet. Raises GraftError where it is
    not."""
    if said.paths != tuple(image_set.paths) or said.classes != tuple(image_set.classes):
        raise GraftError(
            "export: predictions.csv is of other images than the split; run `dvc repro`"
        )
    return said


def figures(checks: Sequence[Check]) -> dict[str, dict[str, float]]:
    """{format: figures}, as checks.json holds them: no times, so that the same model gives the same
    bytes."""
    return {
        c.format: {
            "bytes": c.bytes,
            "n": c.n,
            "agreement": round(c.agreement, 6),
            "clear_disagreements": c.clear_disagreements,
            "max_difference": float(f"{c.max_difference:.2g}"),
            "accuracy": round(c.accuracy, 6),
        }
        for c in checks
    }


def latencies(checks: Sequence[Check]) -> dict[str, dict[str, float]]:
    """{format: {latency_p50_ms, latency_p95_ms}} for a batch of one."""
    return {
        c.format: {
            "latency_p50_ms": round(1e3 * c.latency_p50, 3),
            "latency_p95_ms": round(1e3 * c.latency_p95, 3),
        }
        for c in checks
    }


def table(checks: Sequence[Check]) -> str:
    """The checks as text, one line per format."""
    lines = [
        (
            f"{'format':20}  {'MB':>6}  {'n':>3}  {'agreement':>9}  {'difference':>10}  "
            f"{'accuracy':>8}  {'p50 ms':>7}  {'p95 ms':>7}"
        )
    ]
    lines += [
        f"{c.format:20}  {c.bytes / 1e6:6.2f}  {c.n:3d}  {c.agreement:9.4f}  "
        f"{c.max_difference:10.1e}  {c.accuracy:8.4f}  {1e3 * c.latency_p50:7.1f}  "
        f"{1e3 * c.latency_p95:7.1f}"
        for c in checks
    ]
    return "\n".join(lines)
