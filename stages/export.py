"""The tuned model for use elsewhere: one self-contained classifier in several formats, each checked on test images."""

import itertools
import json
import shutil
from functools import partial

import numpy as np

from graft.dataset import images, manifest
from graft.network import classifier
from graft.run import run_stage
from graft.serving import parity, pyfunc, readers, writers
from graft.system import files, paths
from graft.system.console import log

REPRESENTATIVE_IMAGES = 128  # training images that set the ranges of tflite_int8


def export(params, run):
    folder, gates = paths.EXPORT, params.export.model_dump(include={"min_agreement", "max_accuracy_drop"})
    model, description = classifier.load(paths.FINE_TUNE)
    if not params.evaluate.calibrate:
        description = description.replace(temperature=1.0)
    train, val, test = images.image_sets(manifest.read(), params.data.path, description, "train", "val", "test")
    shipped, shipped_description = writers.self_contained(model, description)
    # The choice is made on other images than those that set the ranges, and than those that the formats are judged on.
    refuse = partial(parity.verdict, "tflite_int8", folder, val, (model, description), gates)
    with run.timed("convert"):
        representative = parity.some(train, REPRESENTATIVE_IMAGES)[0] if "tflite_int8" in params.export.formats else None
        wanted = (params.export.formats, shipped, shipped_description, folder)
        formats = writers.write(*wanted, representative=representative, refuse=refuse)
    with run.timed("check"):
        pixels, sample = parity.some(test, parity.SAMPLE)
        reference = parity.original(model, description, pixels)
        keras = readers.load("keras", folder)
        # One after the other: seven networks with their buffers would take gigabytes together.
        each = (keras if format == "keras" else readers.load(format, folder) for format in formats)
        checks = [parity.check(loaded, pixels, test.labels[sample], reference) for loaded in each]
        log(parity.table(checks))
        latencies = parity.latencies(checks)
        run.log_metrics({**parity.figures(checks), "latency": latencies})
        run.log_text(json.dumps(latencies, indent=2), "latency.json")
        kept = parity.figures(parity.passed(checks, on_miss=params.export.on_miss, **gates))
        writers.keep(folder, kept)
        shutil.copy(paths.KNOWN, folder)
        files.write_json(folder / "checks.json", kept)
        others = np.setdiff1d(np.arange(len(test)), sample)
        batches = itertools.chain([pixels], test.read(others))
        accuracy = parity.accuracy(keras, batches, test.labels[np.r_[sample, others]])
        parity.require_accuracy(accuracy, files.read_json(paths.EVALUATE / "metrics.json")["accuracy"], n=len(test))
    more = {"tags": {"formats": ", ".join(kept)}, "export": (folder, pyfunc.network_digest(model, description))}
    version = pyfunc.register(run, shipped, shipped_description, alias="exported", metrics={"accuracy": accuracy}, **more)
    log(f"export: {len(kept)} formats agree with the original, test accuracy {accuracy:.4f}, model version {version}")


if __name__ == "__main__":
    run_stage(export)
