"""Measure every exported format on this machine: accuracy, agreement, size, time per photo,
memory."""

import argparse
import json
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from graft import params, runtimes
from graft.dataset import images, manifest
from graft.description import FILES
from graft.reporting import format_table
from graft.scoring.predictions import Predictions
from graft.serving import benchmark as formats
from graft.serving import parity
from graft.system import files, paths
from graft.system.console import GraftError, log
from graft.system.prefetch import processors
from graft.tracking import runs, store

PAGE, FIGURES = "benchmark.html", "benchmark.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", help=f"folder for {PAGE} and {FIGURES} (default: the terminal and MLflow alone)"
    )
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="to time each batch size (default: %(default)s)"
    )
    parser.add_argument(
        "--photos",
        type=int,
        default=50,
        help="to look at from the photo, at most (default: %(default)s)",
    )
    # One format, as JSON: the process of its own.
    parser.add_argument("--only", choices=FILES, help=argparse.SUPPRESS)


def benchmark(args: argparse.Namespace) -> None:
    """`graft benchmark [--output FOLDER]`: a row per format in data/export, kept with export's run
    in MLflow as well.

    Times change from run to run, so nothing is written below data/. Raises GraftError where there
    is nothing exported, where FOLDER lies below data/, and where a format cannot be run.
    """
    if args.only:
        measured = formats.measure(
            args.only, paths.EXPORT, _reference, seconds=args.seconds, photos=args.photos
        )
        print(json.dumps(asdict(measured)))
        return
    output = args.output and Path(args.output)
    if output and output.resolve().is_relative_to(paths.EXPORT.parent.resolve()):
        raise GraftError(
            f"--output {output}: times change from run to run, and are no output of DVC; name a "
            "folder elsewhere"
        )
    there = [
        format
        for format, name in FILES.items()
        if (paths.EXPORT / name).exists() and format not in parity.UNCHECKED
    ]
    if not there:
        raise GraftError(f"{paths.EXPORT}: no exported model in it; run `dvc repro export` first")
    rows = []
    for number, format in enumerate(there, 1):
        log(f"{format}, {number} of {len(there)}: timed in a process of its own")
        rows.append(_in_a_process(format, args))
    log(format_table.text(rows))
    about = {
        "processor": f"{runtimes.instruction_set()}, {processors()} in use",
        "system": platform.platform(),
        "Python": platform.python_version(),
        "data": params.load().data.path,
    }
    page = format_table.page(rows, about)
    if output:
        files.write_text(output / PAGE, page)
        files.write_json(output / FIGURES, {row.format: asdict(row) for row in rows})
        log(f"written to {output / PAGE}")
    _record(rows, page)


def _in_a_process(format, args):
    command = [sys.executable, "-m", "graft.commands.main", "benchmark", "--only", format]
    options = ["--seconds", str(args.seconds), "--photos", str(args.photos)]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it was killed"])[-1].removeprefix("error: ")
        raise GraftError(f"{format} cannot be measured: {said}")
    return formats.Measured(**json.loads(done.stdout.splitlines()[-1]))


def _reference(description):
    (test,) = images.image_sets(manifest.read(), params.load().data.path, description, "test")
    evaluated = Predictions.read(paths.EVALUATE / "predictions.csv")
    return test, parity.decided(evaluated, test)


def _record(rows, page):
    """With the run that exported these files, where MLflow knows it."""
    given = params.load()
    connection = store.connect(given)
    with store.failures(connection.uri):
        run = runs.find_made(connection, given, "export")
        if run is None:
            log(
                "not recorded: MLflow knows no run that exported these files; `graft publish` "
                "records it"
            )
            return
        run.log_text(page, PAGE)
        run.log_metrics({"benchmark": {row.format: _figures(row) for row in rows}})
    log(f"recorded with export of {run.pipeline_name}")


def _figures(row):
    times = {
        f"batch_{batch}": {"p50_ms": p50, "p95_ms": p95} for batch, (p50, p95) in row.ms.items()
    }
    return {
        "accuracy": row.accuracy,
        "agreement": row.agreement,
        "photo_agreement": row.photo_agreement,
        "memory_mb": row.memory_mb,
        "of_predict": row.of_predict,
        "bytes": row.bytes,
        **times,
    }
