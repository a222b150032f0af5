"""The tuned model for use elsewhere: one self-contained classifier in up to seven formats, each checked on test images."""

import itertools
import json

import numpy as np

from graft.dataset import images, manifest
from graft.network import classifier
from graft.run import run_stage
from graft.serving import parity, pyfunc, readers, writers
from graft.system import files, paths
from graft.system.console import log

REPRESENTATIVE_IMAGES = 64  # training images that set the ranges of int8; 3 s for MobileNetV2 at 160 px


def export(params, run):
    formats, folder = params.export.formats, paths.EXPORT
    model, description = classifier.load(paths.FINE_TUNE)
    if not params.evaluate.calibrate:
        description = description.replace(temperature=1.0)
    train, test = images.image_sets(manifest.read(), params.data.path, description, "train", "test")
    shipped, shipped_description = writers.self_contained(model, description)
    with run.timed("convert"):
        representative = _some(train, REPRESENTATIVE_IMAGES)[0] if "tflite_int8" in formats else None
        min_agreement = params.export.min_agreement
        writers.write(formats, shipped, shipped_description, folder, representative=representative, min_agreement=min_agreement)
    with run.timed("check"):
        pixels, sample = _some(test, parity.SAMPLE)
        reference = parity.original(model, description, pixels)
        keras = readers.load("keras", folder)
        # One after the other: seven networks with their buffers would take gigabytes together.
        each = (keras if format == "keras" else readers.load(format, folder) for format in formats)
        checks = [parity.check(loaded, pixels, test.labels[sample], reference) for loaded in each]
        log(parity.table(checks))
        figures, latencies = parity.figures(checks), parity.latencies(checks)
        run.log_metrics({**figures, "latency": latencies})
        run.log_text(json.dumps(latencies, indent=2), "latency.json")
        parity.require_agreement(checks, min_agreement)
        files.write_json(folder / "checks.json", figures)
        others = np.setdiff1d(np.arange(len(test)), sample)
        batches = itertools.chain([pixels], test.read(others))
        accuracy = parity.accuracy(keras, batches, test.labels[np.r_[sample, others]])
        parity.require_accuracy(accuracy, files.read_json(paths.EVALUATE / "metrics.json")["accuracy"], n=len(test))
    more = {"tags": {"formats": ", ".join(formats)}, "export": (folder, pyfunc.network_digest(model, description))}
    version = pyfunc.register(run, shipped, shipped_description, alias="exported", metrics={"accuracy": accuracy}, **more)
    log(f"export: {len(formats)} formats agree with the original, test accuracy {accuracy:.4f}, model version {version}")


def _some(image_set, most):
    """(pixels uint8 (n, S, S, 3), positions) of up to `most` images, evenly spread."""
    positions = parity.spread(len(image_set), most)
    return np.concatenate(list(image_set.read(positions))), positions


if __name__ == "__main__":
    run_stage(export, check=writers.check_available)
