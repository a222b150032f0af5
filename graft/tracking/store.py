"""The MLflow store: found, made where there is none, opened, locked, searched.

Processes of one clone share it, and several may meet a fresh one at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import socket
import ssl
import threading
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

    from graft.params import Params

DATABASE = "sqlite:///"
PROBE_SECONDS = 2.5  # a server that does not answer within this is called unreachable
# What is asked: /health answers even where the database is gone.
API = "/api/2.0/mlflow/experiments/search?max_results=1"
# Longer than a queue of workers needs, the first of which makes the database (3 s; 25 s where many
# compete).
LOCK_SECONDS = 300
CLOCK_SECONDS = 2  # by which the start of one process may seem to differ: clocks are set
VIEW = "graft"  # name of the view that the UI is opened with
COLUMNS = (
    "metrics.`fine-tune/accuracy`",
    "metrics.`evaluate/accuracy`",
    "metrics.`evaluate/head_accuracy`",
    "metrics.`evaluate/macro_f1`",
    "metrics.`evaluate/ece`",
    "params.`lr`",
    "params.`seed`",
    "params.`backbone.name`",
    "params.`data.path`",
    "tags.`champion.decision`",
)
# Charts of that view, and after them a grid of each kind of image:
BARS = ("fine-tune/accuracy", "evaluate/accuracy")
GRIDS = {
    "test photos": 16,
    "worst mistakes": 12,
    "Grad-CAM": 12,
    "suspect labels": 16,
}  # first part of the images' keys, and how many there are
ABOUT = (
    "One row is one experiment (`dvc repro`, `dvc exp run`); unfolded, it shows the stages that "
    "ran. Columns `fine-tune/…` are results on validation images, by which experiments are "
    "compared; `evaluate/…` are test results. Only rows of experiments: filter by "
    "`tags.kind = 'pipeline'`."
)


class Away(GraftError):
    """The server went away in the middle of a stage, and this cannot be done without it."""


@dataclass(frozen=True)
class Connection:
    """A checked way to one MLflow store: `client`, its `uri`, and the experiment that runs go
    to."""

    client: MlflowClient
    uri: str
    experiment_id: str

    def search(self, *, limit: int = 1000, **tags: str) -> list[Run]:
        """Active runs whose tags have these values, newest first."""
        clauses = " and ".join(f"tags.`{key}` = {quoted(value)}" for key, value in tags.items())
        newest_first = ["attributes.start_time DESC"]
        return list(
            self.client.search_runs(
                [self.experiment_id], clauses, max_results=limit, order_by=newest_first
            )
        )


def quoted(value: str) -> str:
    """`value` as MLflow's search takes it."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def tracking_uri() -> str:
    """`$MLFLOW_TRACKING_URI`, else the SQLite database under the root of the clone; of a server's
    without user and password.

    A relative SQLite path is taken from the root: in `dvc exp run --temp` and `--queue` the working
    folder is thrown away.
    """
    return _without_credentials(
        _absolute(
            os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"{DATABASE}mlruns/mlflow.db"
        )
    )


def registry_uri() -> str:
    """`$MLFLOW_REGISTRY_URI`, resolved as `tracking_uri` is, which it is by default."""
    given = os.environ.get("MLFLOW_REGISTRY_URI", "").strip()
    return _without_credentials(_absolute(given)) if given else tracking_uri()


def _absolute(uri):
    return (
        f"{DATABASE}{paths.root().resolve() / uri.removeprefix(DATABASE)}"
        if uri.startswith(DATABASE)
        else uri
    )


def use() -> str:
    """The one way to the store: MLflow, imported here, takes it for its own in this process.
    Returns `tracking_uri`.

    A server's user and password go where MLflow looks for them, and are in no address any more: it
    shows addresses in errors. Raises GraftError when the store cannot be reached.
    """
    uri, registry = tracking_uri(), registry_uri()
    _probe(uri)
    if registry != uri:
        _probe(registry)
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"):
        user, password = _credentials(os.environ.get(name, "").strip())
        if user is not None:
            os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = (
                user,
                password or "",
            )
    quiet_mlflow()
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(registry)
    return uri


def _credentials(uri):
    """(user, password) of a server's address, None where it has none."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return None, None
    return urllib.parse.unquote(parts.username), parts.password and urllib.parse.unquote(
        parts.password
    )


def _without_credentials(uri):
    return shown(uri) if uri.startswith(("http://", "https://")) else uri


def connect(params: Params) -> Connection:
    """Open the MLflow store and find or create the experiment `params.tracking.experiment`.

    Raises GraftError, within about three seconds, when the store cannot be reached or used.
    """
    uri = use()
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
    elif not uri.startswith(("http", "databricks")):
        # MLflow would take the working folder, which --temp throws away.
        artifacts = (paths.root().resolve() / "mlruns" / "artifacts").as_uri()
    client = client_class(tracking_uri=uri, registry_uri=registry_uri())
    found = client.get_experiment_by_name(experiment)
    if found is not None and found.lifecycle_stage == "deleted":
        warn(f"experiment {experiment} had been deleted in MLflow: restored")
        client.restore_experiment(found.experiment_id)
    if (
        found is not None
        and uri.startswith(DATABASE)
        and not _same_place(found.artifact_location, artifacts)
    ):
        found = _part_from_original(client, found, artifacts)
    key, view = f"mlflow.sharedViewState.{VIEW}", _view()
    if found is None:
        # Without the first tag the UI opens on its pages for language models.
        tags = {
            "mlflow.experimentKind": "custom_model_development",
            "mlflow.note.content": ABOUT,
            key: view,
        }
        return Connection(
            client,
            uri,
            _create_experiment(client, experiment, artifact_location=artifacts, tags=tags),
        )
    if found.tags.get(key) != view:
        client.set_experiment_tag(found.experiment_id, key, view)
    return Connection(client, uri, found.experiment_id)


def _create_experiment(client, name, **about):
    from mlflow.exceptions import MlflowException

    try:
        return client.create_experiment(name, **about)
    except MlflowException as error:  # another clone was faster
        found = (
            client.get_experiment_by_name(name)
            if error.error_code == "RESOURCE_ALREADY_EXISTS"
            else None
        )
        if found is None:
            raise
        return found.experiment_id


def _view() -> str:
    """What MLflow's UI shows of an experiment at the address that ends in
    `?viewStateShareKey=graft`: rows of experiments, the best on validation images first, and of
    their hundred columns the ten that people compare.
    """
    best_first = {"orderByKey": COLUMNS[0], "orderByAsc": False}
    # Without an order of its own the table would sort the columns by name: test figures before
    # validation figures.
    columns = {"selectedColumns": COLUMNS, "columnOrder": COLUMNS}
    return json.dumps(
        {"searchFilter": "tags.kind = 'pipeline'", **best_first, **columns, **_charts()}
    )


def _charts():
    """What that view shows once one changes from table to charts: both accuracies, and the photos,
    a column per experiment."""

    def chart(section, **more):
        return {
            "uuid": section,
            "metricSectionId": section,
            "deleted": False,
            "isGenerated": False,
            **more,
        }

    def section(name, columns, height):
        shown = {"display": True, "isReordered": True, "columns": columns, "cardHeight": height}
        return {
            "uuid": name,
            "name": f"{name}, side by side",
            "deleted": False,
            "isGenerated": False,
            **shown,
        }

    charts = [chart("accuracy", type="BAR", metricKey=key) | {"uuid": key} for key in BARS]
    for key, count in GRIDS.items():
        names = [f"{key}/{number:02}" for number in range(1, count + 1)]
        charts.append(chart(key, type="IMAGE", imageKeys=names, step=0, showRunParams=False))
    sections = [section("accuracy", 2, 260), *(section(key, 1, 620) for key in GRIDS)]
    # Reordered: MLflow keeps this order, and puts its own sections behind it.
    return {
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
    }


def process_tags() -> dict[str, str]:
    """By which a later process tells whether this one still runs: host, process id, when it started
    (seconds since 1970)."""
    import psutil

    started = psutil.Process().create_time()
    return {
        "process.host": socket.gethostname(),
        "process.id": str(os.getpid()),
        "process.started": f"{started:.3f}",
    }


def _end_killed(connection):
    """Mark the runs KILLED whose process on this host is gone (SIGKILL, out of memory, power): they
    would run for ever."""
    client, here = connection.client, f"tags.`process.host` = {quoted(socket.gethostname())}"
    running = client.search_runs(
        [connection.experiment_id], f"attributes.status = 'RUNNING' and {here}"
    )
    killed = [run for run in running if not _alive(run.data.tags) and _unchanged(client, run)]
    rows = [run for run in killed if run.data.tags.get("kind") == "pipeline"]
    for run in (run for run in killed if run not in rows):
        last = [
            client.get_metric_history(run.info.run_id, key)[-1].timestamp
            for key in run.data.metrics
        ]
        client.set_terminated(run.info.run_id, "KILLED", max(last, default=run.info.start_time))
    for row in rows:  # whose time is that of their stages
        end_row(connection, row.info.run_id, "KILLED")


def _unchanged(client, run):
    """Whether a run whose process is gone is as it was when it was listed: it may have ended in
    between, or gone on."""
    now = client.get_run(run.info.run_id)
    return now.info.status == "RUNNING" and all(
        now.data.tags.get(key) == run.data.tags[key] for key in process_tags()
    )


def end_row(connection: Connection, run_id: str, status: str) -> None:
    """End the row of an experiment: its duration is that of the work behind it, not of the days
    between."""
    stages = connection.search(limit=1000, **{"mlflow.parentRunId": run_id})
    current = [
        each.info for each in stages if each.info.end_time and "superseded_by" not in each.data.tags
    ]
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
    """Make the tables in a file beside `file` and move it into place: a kill midway leaves nothing
    half done."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.new")
    draft.unlink(missing_ok=True)
    client_class(tracking_uri=f"{DATABASE}{draft}").get_experiment("0")
    draft.replace(file)


def _same_place(one, other):
    """Whether two addresses mean one folder, a link from where the project was included; what is no
    folder is left alone."""
    return not one.startswith("file:") or local_path(one).resolve() == local_path(other).resolve()


def _part_from_original(client, found, own):
    """Set an experiment aside whose artifacts lie in the folder of another clone, of which this one
    is a copy, or was once.

    MLflow records absolute paths, and an experiment keeps its folder: new artifacts would go into
    the original's. Returns the experiment that this place had before, if the project came back to
    it, else None.
    """
    old, name = local_path(found.artifact_location), found.name
    aside = f"{name}, at {old.parent}"
    client.rename_experiment(found.experiment_id, aside)
    back = client.get_experiment_by_name(f"{name}, at {local_path(own).parent}")
    if back is not None:
        client.rename_experiment(back.experiment_id, name)
    link = (
        f"mkdir -p {shlex.quote(str(old.parent))} && ln -s {shlex.quote(str(local_path(own)))} "
        f"{shlex.quote(str(old))}"
    )
    hint = "" if old.exists() else f"; `{link}` lets its UI show them"
    warn(
        "this project was copied or moved: MLflow knows artifacts of earlier runs under "
        f"{old}{hint}; those runs are in the experiment {aside!r} now, new ones go to "
        f"{local_path(own)}"
    )
    return back


def relocated(uri: str) -> str:
    """The artifact address `uri`, or where the same files lie in this project if it was moved or
    copied since."""
    address = tracking_uri()
    if not uri.startswith("file:") or not address.startswith(DATABASE):
        return uri
    own, parts = Path(address.removeprefix(DATABASE)).parent / "artifacts", local_path(uri).parts
    tails = (Path(*parts[k + 1 :]) for k, part in enumerate(parts[:-1]) if part == "artifacts")
    return next(((own / tail).as_uri() for tail in tails if (own / tail).exists()), uri)


def local_path(uri: str) -> Path:
    """The path that a `file:` address means."""
    return Path(urllib.request.url2pathname(urllib.parse.urlparse(uri).path))


@contextlib.contextmanager
def failures(uri: str) -> Iterator[None]:
    """What MLflow raises when the store at `uri` fails, itself or the database under it, becomes a
    GraftError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise GraftError(f"MLflow at {shown(uri)}: {first_line(error)}") from error


@contextlib.contextmanager
def lock(name: str = "mlflow", seconds: float = LOCK_SECONDS) -> Iterator[Path]:
    """One process at a time creates the database, the experiment and the pipeline run, or does what
    `name` stands for.

    Yields the file that is locked.

    Processes that meet a fresh SQLite database together break it (11 of 12 failed without the
    lock). Raises GraftError after `seconds`.
    """
    from filelock import FileLock, Timeout

    file = paths.cache() / f"{name}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(file, timeout=seconds)
    try:
        held.acquire()
    except Timeout:
        raise GraftError(
            f"{file}: another process has held this lock for {seconds} s; end it, then try again"
        ) from None
    try:
        yield file
    finally:
        held.release()


def _probe(uri):
    """Raise GraftError when nothing answers at `uri`: MLflow itself would retry for minutes
    first."""
    scheme = uri.partition(":")[0]
    if scheme == "file" or ("://" not in uri and scheme != "databricks"):
        raise GraftError(
            f"MLFLOW_TRACKING_URI={uri}: MLflow has no file store any more; use "
            f"{DATABASE}<path>/mlflow.db, or unset it"
        )
    ask = (
        _ask_server
        if scheme in ("http", "https")
        else _ask_database
        if scheme.startswith(("postgresql", "mysql"))
        else None
    )
    if ask is None:
        return
    answer: list[object] = []
    # In a thread: a name with several addresses would wait for each in turn.
    waiting = threading.Thread(target=lambda: answer.append(ask(uri)), daemon=True)
    waiting.start()
    waiting.join(PROBE_SECONDS + 0.3)
    problem = answer[0] if answer else "no answer"
    if problem:
        raise GraftError(
            f"MLflow at {shown(uri)} cannot be reached ({problem}); start it or unset "
            "MLFLOW_TRACKING_URI"
        ) from None


def is_away(uri: str) -> bool:
    """Whether the server at `uri` does not answer now."""
    try:
        _probe(uri)
    except GraftError:
        return True
    return False


def _ask_server(uri):
    """Why an MLflow server cannot be used, None where it can. Nothing secret is sent: is anyone
    there?"""
    context = ssl._create_unverified_context() if uri.startswith("https:") else None
    try:
        with urllib.request.urlopen(
            f"{shown(uri).rstrip('/')}{API}", timeout=PROBE_SECONDS, context=context
        ):
            return None
    except urllib.error.HTTPError as error:
        # It answers; whether it lets us in shows at the first real request.
        return f"it answers {error.code} {error.reason}" if error.code >= 500 else None
    except Exception as error:  # a name that is none, a refused connection, half an answer
        return first_line(getattr(error, "reason", error))


def _ask_database(uri):
    """Why a database server cannot be used, None where it can: MLflow itself would try ten times,
    for minutes."""
    from sqlalchemy import create_engine

    try:
        engine = create_engine(uri, connect_args={"connect_timeout": max(1, round(PROBE_SECONDS))})
        with engine.connect():
            return None
    except ImportError as error:
        return f"it needs the package {error.name}"
    except Exception as error:  # of the driver's
        return first_line(getattr(error, "orig", None) or error)


def shown(uri: str) -> str:
    """`uri` without user name and password."""
    head, at, tail = uri.rpartition("@")
    plain = f"{head.partition('://')[0]}://{tail}" if at and "://" in head else uri
    return re.sub(r"(?i)(password|passwd|token)=[^&]*", r"\1=***", plain)


def first_line(error: object) -> str:
    """The first line of what an error says, at most 500 characters, without any password that this
    process was given."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text[:500]


def _secrets():
    found = {os.environ.get("MLFLOW_TRACKING_PASSWORD"), os.environ.get("MLFLOW_TRACKING_TOKEN")}
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        with contextlib.suppress(ValueError):
            password = urllib.parse.urlsplit(os.environ.get(name, "")).password
            found |= {password, urllib.parse.unquote(password or "")}
    return {secret for secret in found if secret and len(secret) > 2}
