"""What an exported format is worth: loaded again, compared with the original classifier on test images, measured."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.serving import formats

SAMPLE = 200  # test images that the formats are compared on; 7 formats of MobileNetV2 at 160 px take 4 s for them
# Largest allowed difference of a probability. The float32 formats differ in the order of additions only, 3e-6 as measured;
# half precision moves probabilities by up to 6e-3. int8 rounds every activation to 256 steps: its agreement is what counts.
TOLERANCE = {
    "keras": 1e-4, "h5": 1e-4, "saved_model": 1e-4, "tflite": 1e-4, "tflite_fp16": 0.05, "tflite_int8": math.inf, "onnx": 1e-4,
}  # fmt: skip
# Where the original's two likeliest classes are this close, it has no clear opinion itself, and rounding to 8 bits settles
# which comes first: of 800 flowers, int8 gives 2.6% another top class than the original, and 1.0% clearly another.
TIE = 0.1
LATENCY_RUNS, LATENCY_SECONDS = 30, 0.3  # per format, whichever ends first


@dataclass(frozen=True)
class Check:
    """One format on n test images.

    bytes: of the file, or of a folder's files together. agreement: share of images with the original's top class.
    clear_disagreements: images with another top class, which the original holds for less likely by more than TIE.
    max_difference: largest absolute difference of a probability from the original's. accuracy: share classified right.
    latency_p50, latency_p95: seconds for a batch of one image, from pixels to probabilities.
    """

    format: str
    bytes: int
    n: int
    agreement: float
    clear_disagreements: int
    max_difference: float
    accuracy: float
    latency_p50: float
    latency_p95: float


def sample(n, most=SAMPLE):
    """Up to `most` of n positions, evenly spread: int64, ascending. Rows by path are rows by class: each gets its share."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def original(model, images, temperature=1.0):
    """Probabilities, float64 (n, C), of the classifier itself: softmax(log p / T). No exported file plays a part in it."""
    import tensorflow as tf

    # As a graph: called eagerly, the model keeps every layer's output until it is done, 1.3 GB for 32 images at 160 px.
    signature = [tf.TensorSpec((None, *images.shape[1:]), tf.uint8)]
    call = tf.function(lambda batch: model(batch, training=False), input_signature=signature, autograph=False)
    parts = [call(images[i : i + formats.CHUNK]).numpy() for i in range(0, len(images), formats.CHUNK)]
    p = np.concatenate(parts).astype(np.float64)
    scaled = np.maximum(p, np.finfo(np.float32).tiny) ** (1 / temperature)
    return scaled / scaled.sum(axis=1, keepdims=True)


def check(model, folder, *, images, y, reference):
    """Measure `model`, a format that `formats.load` has loaded again from `folder`.

    images: uint8 (n, S, S, 3). y: int (n,), their classes. reference: (n, C), see `original`.
    """
    probabilities = model(images)
    predicted, best, rows = probabilities.argmax(axis=1), reference.argmax(axis=1), np.arange(len(images))
    margin = reference[rows, best] - reference[rows, predicted]
    with np.errstate(invalid="ignore"):
        difference = np.abs(probabilities - reference).max()
    p50, p95 = _latency(model, images[:1])
    return Check(
        format=model.format,
        bytes=_size(Path(folder) / formats.FILES[model.format]),
        n=len(images),
        agreement=float((predicted == best).mean()),
        clear_disagreements=int((margin > TIE).sum()),
        max_difference=float(difference),
        accuracy=float((predicted == y).mean()),
        latency_p50=p50,
        latency_p95=p95,
    )


def _size(path):
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def _latency(model, image):
    model(image)  # LiteRT allocates, TensorFlow traces
    seconds, started = [], time.perf_counter()
    while len(seconds) < LATENCY_RUNS and (not seconds or time.perf_counter() - started < LATENCY_SECONDS):
        before = time.perf_counter()
        model(image)
        seconds.append(time.perf_counter() - before)
    return tuple(map(float, np.percentile(seconds, (50, 95))))


def allowed(n, min_agreement):
    """How many of n images a format may classify clearly otherwise than the original.

    One more would contradict a share of `min_agreement`: of a format that agrees that often, less than 1 in 100 samples of n
    images would show as many (one-sided binomial test). 9 of 200 for 0.98, 4 of 49, 1 of 3; min_agreement 1 allows none. The
    share itself would fail sound formats on small test sets: 2 of 49 are more than 2 in 100, and say next to nothing.
    """
    from scipy.stats import binom

    return int(binom.ppf(0.99, n, 1 - min_agreement)) if min_agreement < 1 else 0


def problem(check, min_agreement):
    """Why the format must not be shipped, in one line that names it and the figure; None if it may."""
    if not check.max_difference <= TOLERANCE[check.format]:  # also where it is NaN
        figure = f"a probability differs from the original's by {check.max_difference:.2g}"
        return f"export: {check.format}: {figure} (at most {TOLERANCE[check.format]:.2g} on {check.n} test images)"
    if check.clear_disagreements > allowed(check.n, min_agreement):
        return (
            f"export: {check.format}: clearly another class than the original's on {check.clear_disagreements} of {check.n} "
            f"test images (agreement {check.agreement:.4f}); lower export.min_agreement ({min_agreement}) or drop the format"
        )
    return None


def as_dict(checks):
    """{format: figures}, as checks.json holds them: no times, so that the same model gives the same bytes."""
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


def latencies(checks):
    """{format: {latency_p50_ms, latency_p95_ms}} for a batch of one."""
    return {
        c.format: {"latency_p50_ms": round(1e3 * c.latency_p50, 3), "latency_p95_ms": round(1e3 * c.latency_p95, 3)}
        for c in checks
    }


def write(path, checks):
    Path(path).write_text(json.dumps(as_dict(checks), indent=2) + "\n", encoding="utf-8", newline="\n")


def table(checks):
    """The checks as text, one line per format."""
    lines = [f"{'format':12}  {'MB':>6}  {'agreement':>9}  {'difference':>10}  {'accuracy':>8}  {'p50 ms':>7}  {'p95 ms':>7}"]
    lines += [
        f"{c.format:12}  {c.bytes / 1e6:6.2f}  {c.agreement:9.4f}  {c.max_difference:10.1e}  {c.accuracy:8.4f}  "
        f"{1e3 * c.latency_p50:7.1f}  {1e3 * c.latency_p95:7.1f}"
        for c in checks
    ]
    return "\n".join(lines)
