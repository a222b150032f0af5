"""Compare new photos, of which nobody knows the labels, with those that the model was validated
on."""

import argparse
from dataclasses import asdict
from pathlib import Path

import numpy as np

from graft import params as parameters
from graft.commands.looking import Seen, look
from graft.dataset import manifest
from graft.known import Known
from graft.network.prediction import Inside
from graft.reporting import drift as report
from graft.second_look import drift as numbers
from graft.serving.predict import Sources
from graft.system import files, paths
from graft.system.console import GraftError, log, warn
from graft.tracking import runs, store

MOST = 1000  # photos of either kind that are looked at, evenly taken


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="+", help="new photos or folders")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("drift.html"),
        help="page to write (default: %(default)s)",
    )


def drift(args: argparse.Namespace) -> None:
    """`graft drift DIR`: on the terminal, as a page, and as a run of its own in MLflow.

    Raises GraftError where fewer than LEAST of the photos can be read, and where there is no
    fine-tuned model.
    """
    given = parameters.load()
    rows = manifest.read(paths.SPLIT).split("val")
    known = look(
        paths.FINE_TUNE, _some([Path(given.data.path) / path for path in rows.paths]), given
    )
    new = look(paths.FINE_TUNE, _some(list(Sources(args.source))), given)
    for file, why in new.problems:
        warn(f"{file}: {why}")
    before, now = _enough(known, "validation photos"), _enough(new, "new photos")
    found = numbers.compare(
        (before.features, now.features),
        (known.probabilities, new.probabilities),
        Known.read(paths.KNOWN).p_values(now.features, now.logits),
        classes=new.description.classes,
        seed=given.seed,
    )
    name = ", ".join(args.source)
    page = report.page(found, name=name)
    files.write_text(args.output, page)
    log(report.text(found))
    _record(given, found, page, name)
    log(f"drift: written to {args.output}")


def _some(photos: list[Path]) -> list[Path]:
    return (
        [
            photos[k]
            for k in np.unique(np.linspace(0, len(photos) - 1, min(len(photos), MOST)).astype(int))
        ]
        if photos
        else []
    )


def _enough(seen: Seen, what: str) -> Inside:
    if seen.inside is None or len(seen.files) < numbers.LEAST:
        raise GraftError(
            f"{len(seen.files)} {what} can be read, {numbers.LEAST} are needed to tell a "
            "difference from chance"
        )
    return seen.inside


def _record(given, found, page, name):
    """A run of its own: it belongs to no stage, and new photos come after every experiment."""
    connection = store.connect(given)
    with store.failures(connection.uri):
        client = connection.client
        run = client.create_run(
            connection.experiment_id, tags={"kind": "drift", "drift.photos": name}, run_name="drift"
        )
        shares = {share.name: share.now for share in found.shares}
        tree = {key: value for key, value in asdict(found).items() if key != "shares"} | {
            "share": shares
        }
        runs.log_batches(client, run.info.run_id, metrics=runs.metric_entities(tree))
        client.log_text(run.info.run_id, page, "drift.html")
        client.set_terminated(run.info.run_id)
