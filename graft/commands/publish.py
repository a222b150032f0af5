"""Record in MLflow, and register, what data/ holds: for a new server, after dvc pull, after a loss
of mlruns."""

import argparse
from itertools import takewhile

from graft import params
from graft.dataset import images
from graft.network import classifier
from graft.scoring.history import History
from graft.serving import photo_parity, pyfunc, writers
from graft.system import files, paths
from graft.system.console import GraftError, log, warn
from graft.system.environment import quiet_tensorflow
from graft.tracking import dvc_lock, runs, spool, store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def publish(args: argparse.Namespace) -> None:
    """`graft publish`: what is recorded and registered already, by digest, stays as it is. Nothing
    is computed anew.

    Raises GraftError where `data/` does not hold what params.yaml, the code and dvc.lock say.
    """
    given = params.load()
    stages = list(takewhile(lambda stage: dvc_lock.matches_lock(stage, "outs"), paths.STAGES))
    if not stages:
        raise GraftError(
            "data/split is not what dvc.lock records for this data, code and params.yaml; "
            "`dvc repro` makes it"
        )
    quiet_tensorflow()
    connection = store.connect(given)
    with store.failures(connection.uri):
        spool.send(connection.client, connection.uri)
        for stage in stages:
            _publish(connection, given, stage)
    if rest := [stage for stage in paths.STAGES if stage not in stages]:
        warn(
            f"not published, since not as dvc.lock records it: {', '.join(rest)}; `dvc repro` "
            "makes it"
        )


def _publish(connection, given, stage):
    run = runs.find_made(connection, given, stage)
    if run is not None:
        _register(run)
        runs.update_pipeline(run)
        log(f"{stage}: recorded already, in {run.pipeline_name}")
        return
    with runs.stage_run(stage, given) as run:
        run.set_tags({"published": "true"})
        run.log_metrics(runs.figures(paths.STAGES[stage]))
        curves = paths.STAGES[stage] / "curves.csv"
        history = History.read(curves) if curves.exists() else History()
        for row in history.head if stage == "train-head" else history.fine_tuning:
            run.log_epoch(row)
        _register(run)
    log(f"{stage}: recorded in {run.pipeline_name}")


def _register(run):
    """The versions that the stage's recipe registers, from the files that it left."""
    if run.stage in ("split", "second-look"):
        return
    head, tuned = (classifier.load(folder) for folder in (paths.TRAIN_HEAD, paths.FINE_TUNE))
    if run.stage == "train-head":
        pyfunc.register(run, *head, alias="head")
    elif run.stage == "fine-tune":
        pyfunc.register(run, *tuned, alias="fine-tuned")
    elif run.stage == "evaluate":
        figures = files.read_json(paths.EVALUATE / "report.json")["summary"]
        pyfunc.contest(run, head, tuned, figures, images.image_sets, once=True)
    else:
        model, description = tuned
        if not run.params.evaluate.calibrate:
            description = description.replace(temperature=1.0)
        checks = files.read_json(paths.EXPORT / "checks.json")
        more = {
            "metrics": {"accuracy": files.read_json(paths.EVALUATE / "metrics.json")["accuracy"]}
        }
        tags = photo_parity.version_tags(checks, run.params.export.min_agreement)
        more |= {"tags": tags, "export": (paths.EXPORT, pyfunc.network_digest(model, description))}
        pyfunc.register(run, *writers.self_contained(model, description), alias="exported", **more)
