"""The tuned model for use elsewhere: one classifier in several formats, each checked on images."""

import json
import shutil
from functools import partial

from graft.dataset import images, manifest
from graft.network import classifier
from graft.run import run_stage
from graft.scoring.predictions import Predictions
from graft.serving import parity, photo_parity, pyfunc, readers, writers
from graft.system import files, paths
from graft.system.console import log

REPRESENTATIVE_IMAGES = 32  # of training, for tflite_int8's ranges; more change nothing


def export(params, run):
    folder = paths.EXPORT
    gates = params.export.model_dump(include={"min_agreement", "max_accuracy_drop"})
    model, description = classifier.load(paths.FINE_TUNE)
    if not params.evaluate.calibrate:
        description = description.replace(temperature=1.0)
    sets = images.image_sets(manifest.read(), params.data.path, description, "train", "val", "test")
    train, val, test = sets
    validated = Predictions.read(paths.FINE_TUNE / "predictions.csv")
    evaluated = Predictions.read(paths.EVALUATE / "predictions.csv")
    shipped, shipped_description = writers.self_contained(model, description)
    # Chosen on other images than those that set the ranges, and those that formats are judged on.
    refuse = partial(parity.verdict, "tflite_int8", folder, val, validated, gates)
    with run.timed("convert"):
        ranges = "tflite_int8" in params.export.formats
        representative = parity.some(train, REPRESENTATIVE_IMAGES)[0] if ranges else None
        wanted = (params.export.formats, shipped, shipped_description, folder)
        formats = writers.write(*wanted, representative=representative, refuse=refuse)
    with run.timed("check"):
        decided = parity.decided(evaluated, test)
        exact = parity.reference(model, description, shipped, decided)
        parity.require_evaluated(exact, decided)
        # One after the other: seven networks with their buffers would take gigabytes together.
        run_here = [format for format in formats if format not in parity.UNCHECKED]
        against = {format: exact if format in parity.EXACT else decided for format in run_here}
        checks = [parity.check(readers.load(name, folder), against[name]) for name in run_here]
        log(parity.table(checks))
        latencies = parity.latencies(checks)
        photos = photo_parity.check_formats(folder, formats, decided, test)
        log(photo_parity.table(photos))
        resized = {photo_parity.KEY: photo_parity.figures(photos)}
        run.log_metrics({**parity.figures(checks), **resized, "latency": latencies})
        run.log_text(json.dumps(latencies, indent=2), "latency.json")
        kept = parity.figures(parity.passed(checks, on_miss=params.export.on_miss, **gates))
        writers.keep(folder, {*kept, *parity.UNCHECKED})
        shutil.copy(paths.KNOWN, folder)
        files.write_json(folder / "checks.json", kept | resized)
    accuracy = float(evaluated.correct.mean())
    photo_parity.warn_below(photos, params.export.min_agreement)
    tags = photo_parity.version_tags(kept | resized, params.export.min_agreement)
    more = {"tags": tags, "export": (folder, pyfunc.network_digest(model, description))}
    version = pyfunc.register(
        run, shipped, shipped_description, alias="exported", metrics={"accuracy": accuracy}, **more
    )
    log(
        f"export: {len(kept)} formats agree with the original, test accuracy {accuracy:.4f}, "
        f"model version {version}"
    )


if __name__ == "__main__":
    run_stage(export)
