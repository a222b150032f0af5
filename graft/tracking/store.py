"""The MLflow store: found, made where there is none, opened, locked, searched.

Processes of one clone share it, and several may meet a fresh one at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graft.system import paths
from graft.system.console import GraftError, warn
from graft.system.environment import quiet_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DATABASE = "sqlite:///"
PROBE_SECONDS = 5  # a server that does not answer /health within this is called unreachable
LOCK_SECONDS = 300  # longer than a queue of workers needs, the first of which makes the database (3 s; 25 s where many compete)
CLOCK_SECONDS = 2  # by which the start of one process may seem to differ: clocks are set
VIEW = "graft"  # name of the view that the UI is opened with
COLUMNS = (
    "metrics.`fine-tune/accuracy`", "metrics.`evaluate/accuracy`", "metrics.`evaluate/head_accuracy`",
    "metrics.`evaluate/macro_f1`", "metrics.`evaluate/ece`", "params.`lr`", "params.`seed`", "params.`backbone.name`",
    "params.`data.path`", "tags.`champion.decision`",
)  # fmt: skip
BARS = ("fine-tune/accuracy", "evaluate/accuracy")  # charts of that view, and after them a grid of each kind of image:
GRIDS = {"test photos": 16, "worst mistakes": 12, "Grad-CAM": 12}  # first part of the images' keys, and how many there are
ABOUT = (
    "One row is one experiment (`dvc repro`, `dvc exp run`); unfolded, it shows the stages that ran. "
    "Columns `fine-tune/…` are results on validation images, by which experiments are compared; `evaluate/…` are test results. "
    "Only rows of experiments: filter by `tags.kind = 'pipeline'`."
)


@dataclass(frozen=True)
class Connection:
    """A checked way to one MLflow store: `client`, its `uri`, and the experiment that runs go to."""

    client: MlflowClient
    uri: str
    experiment_id: str

    def search(self, *, limit: int = 1000, **tags: str) -> list[Run]:
        """Active runs whose tags have these values, newest first."""
        clauses = " and ".join(f"tags.`{key}` = {quoted(value)}" for key, value in tags.items())
        newest_first = ["attributes.start_time DESC"]
        return list(self.client.search_runs([self.experiment_id], clauses, max_results=limit, order_by=newest_first))


def quoted(value: str) -> str:
    """`value` as MLflow's search takes it."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def tracking_uri() -> str:
    """`$MLFLOW_TRACKING_URI`, else the SQLite database under the root of the clone.

    A relative SQLite path is taken from the root: in `dvc exp run --temp` and `--queue` the working folder is thrown away.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"{DATABASE}mlruns/mlflow.db"
    if not uri.startswith(DATABASE):
        return uri
    return f"{DATABASE}{paths.root().resolve() / uri.removeprefix(DATABASE)}"


def connect(params) -> Connection:
    """Open the MLflow store and find or create the experiment `params.tracking.experiment`.

    Raises GraftError, within about ten seconds, when the store cannot be reached or used.
    """
    uri = tracking_uri()
    _probe(uri)
    quiet_mlflow()
    from mlflow import MlflowClient

    with failures(uri), lock():
        connection = _open(MlflowClient, uri, params.tracking.experiment)
        _end_killed(connection)
    return connection


def _open(client_class, uri, experiment):
    artifacts = None
    if uri.startswith(DATABASE):
        file = Path(uri.removeprefix(DATABASE))
        if not file.exists():
            _create_database(client_class, file)
        artifacts = (file.parent / "artifacts").as_uri()
    client = client_class(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    key, view = f"mlflow.sharedViewState.{VIEW}", _view()
    if found is None:
        # Without the first tag the UI opens on its pages for language models.
        tags = {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": ABOUT, key: view}
        return Connection(client, uri, client.create_experiment(experiment, artifact_location=artifacts, tags=tags))
    if found.lifecycle_stage == "deleted":
        warn(f"experiment {experiment} had been deleted in MLflow: restored")
        client.restore_experiment(found.experiment_id)
    if artifacts and found.artifact_location != artifacts:
        _follow_a_move(file, found.artifact_location, artifacts)
    if found.tags.get(key) != view:
        client.set_experiment_tag(found.experiment_id, key, view)
    return Connection(client, uri, found.experiment_id)


def _view() -> str:
    """What MLflow's UI shows of an experiment at the address that ends in `?viewStateShareKey=graft`: rows of experiments, the
    best on validation images first, and of their hundred columns the ten that people compare.
    """
    best_first = {"orderByKey": COLUMNS[0], "orderByAsc": False}
    # Without an order of its own the table would sort the columns by name: test figures before validation figures.
    columns = {"selectedColumns": COLUMNS, "columnOrder": COLUMNS}
    return json.dumps({"searchFilter": "tags.kind = 'pipeline'", **best_first, **columns, **_charts()})


def _charts():
    """What that view shows once one changes from table to charts: both accuracies, and the photos, a column per experiment."""

    def chart(section, **more):
        return {"uuid": section, "metricSectionId": section, "deleted": False, "isGenerated": False, **more}

    def section(name, columns, height):
        shown = {"display": True, "isReordered": True, "columns": columns, "cardHeight": height}
        return {"uuid": name, "name": f"{name}, side by side", "deleted": False, "isGenerated": False, **shown}

    charts = [chart("accuracy", type="BAR", metricKey=key) | {"uuid": key} for key in BARS]
    for key, count in GRIDS.items():
        names = [f"{key}/{number:02}" for number in range(1, count + 1)]
        charts.append(chart(key, type="IMAGE", imageKeys=names, step=0, showRunParams=False))
    sections = [section("accuracy", 2, 260), *(section(key, 1, 620) for key in GRIDS)]
    # Reordered: MLflow keeps this order, and puts its own sections behind it.
    return {"compareRunCharts": charts, "compareRunSections": sections, "isAccordionReordered": True}


def process_tags() -> dict[str, str]:
    """By which a later process tells whether this one still runs: host, process id, when it started (seconds since 1970)."""
    import psutil

    started = psutil.Process().create_time()
    return {"process.host": socket.gethostname(), "process.id": str(os.getpid()), "process.started": f"{started:.3f}"}


def _end_killed(connection):
    """Mark the runs KILLED whose process on this host is gone (SIGKILL, out of memory, power): they would run for ever."""
    client, here = connection.client, f"tags.`process.host` = {quoted(socket.gethostname())}"
    running = client.search_runs([connection.experiment_id], f"attributes.status = 'RUNNING' and {here}")
    killed = [run for run in running if not _alive(run.data.tags)]
    rows = [run for run in killed if run.data.tags.get("kind") == "pipeline"]
    for run in (run for run in killed if run not in rows):
        last = [client.get_metric_history(run.info.run_id, key)[-1].timestamp for key in run.data.metrics]
        client.set_terminated(run.info.run_id, "KILLED", max(last, default=run.info.start_time))
    for row in rows:  # whose time is that of their stages
        end_row(connection, row.info.run_id, "KILLED")


def end_row(connection: Connection, run_id: str, status: str) -> None:
    """End the row of an experiment: its duration is that of the work behind it, not of the days between."""
    stages = connection.search(**{"mlflow.parentRunId": run_id})
    current = [each.info for each in stages if each.info.end_time and "superseded_by" not in each.data.tags]
    worked = sum(info.end_time - info.start_time for info in current)
    began = connection.client.get_run(run_id).info.start_time
    connection.client.set_terminated(run_id, status, began + worked)


def _alive(tags):
    import psutil

    try:
        started = psutil.Process(int(tags["process.id"])).create_time()
    except psutil.NoSuchProcess:
        return False
    return abs(started - float(tags["process.started"])) < CLOCK_SECONDS


def _create_database(client_class, file):
    """Make the tables in a file beside `file` and move it into place: a kill midway leaves nothing half done."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.new")
    draft.unlink(missing_ok=True)
    client_class(tracking_uri=f"{DATABASE}{draft}").get_experiment("0")
    draft.replace(file)


def _follow_a_move(database, old, new):
    """Point the database at its artifacts again after the clone was moved or renamed.

    MLflow records absolute paths: left alone, new artifacts would go to the old place, and old models would not load.
    """
    if not old.startswith("file:") or local_path(old).exists() or not local_path(new).exists():
        return
    places = [
        ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"),
        ("model_versions", "source"), ("model_versions", "storage_location"),
    ]  # fmt: skip
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        for table, column in places:
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (new, len(old) + 1, len(old), old),
            )
    warn(f"the clone was moved: MLflow looks for artifacts in {local_path(new)} now")


def local_path(uri: str) -> Path:
    """The path that a `file:` address means."""
    return Path(urllib.request.url2pathname(urllib.parse.urlparse(uri).path))


@contextlib.contextmanager
def failures(uri: str) -> Iterator[None]:
    """What MLflow raises when the store at `uri` fails, itself or the database under it, becomes a GraftError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise GraftError(f"MLflow at {shown(uri)}: {first_line(error)}") from error


@contextlib.contextmanager
def lock(name: str = "mlflow", seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """One process at a time creates the database, the experiment and the pipeline run, or does what `name` stands for.

    Processes that meet a fresh SQLite database together break it (11 of 12 failed without the lock). Raises GraftError
    after `seconds`.
    """
    from filelock import FileLock, Timeout

    file = paths.cache() / f"{name}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(file, timeout=seconds)
    try:
        held.acquire()
    except Timeout:
        raise GraftError(f"{file}: another process has held this lock for {seconds} s; end it, then try again") from None
    try:
        yield
    finally:
        held.release()


def _probe(uri):
    """Raise GraftError when nothing answers at `uri`: MLflow itself would retry for minutes first."""
    scheme = uri.partition(":")[0]
    if scheme == "file" or ("://" not in uri and scheme != "databricks"):
        raise GraftError(
            f"MLFLOW_TRACKING_URI={uri}: MLflow has no file store any more; use {DATABASE}<path>/mlflow.db, or unset it"
        )
    if scheme not in ("http", "https"):
        return
    context = ssl._create_unverified_context() if scheme == "https" else None  # nothing secret is sent: is anyone there?
    try:
        with urllib.request.urlopen(f"{shown(uri).rstrip('/')}/health", timeout=PROBE_SECONDS, context=context):
            return
    except urllib.error.HTTPError:
        return  # it answers; whether it lets us in shows at the first real request
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise GraftError(
            f"MLflow at {shown(uri)} cannot be reached ({reason}); start it or unset MLFLOW_TRACKING_URI"
        ) from None


def shown(uri: str) -> str:
    """`uri` without user name and password."""
    head, at, tail = uri.rpartition("@")
    return f"{head.partition('://')[0]}://{tail}" if at and "://" in head else uri


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
