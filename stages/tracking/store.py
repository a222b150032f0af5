"""The MLflow store: found, made where there is none, opened, locked, searched.

Processes of one clone share it, and several may meet a fresh one at once.
"""

import contextlib
import logging
import os
import sqlite3
import ssl
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import paths
from stages.console import GraftError, warn

PROBE_SECONDS = 5  # a server that does not answer /health within this is called unreachable
LOCK_SECONDS = 300  # longer than a queue of workers needs, the first of which makes the database (3 s; 25 s where many compete)
ABOUT = (
    "One row is one experiment (`dvc repro`, `dvc exp run`); unfolded, it shows the stages that ran. "
    "Columns `evaluate/…` are test results. Only rows of experiments: filter by `tags.kind = 'pipeline'`."
)


@dataclass(frozen=True)
class Connection:
    """A checked way to one MLflow store: `client` (MlflowClient), its `uri`, and the experiment that runs go to."""

    client: Any
    uri: str
    experiment_id: str

    def search(self, **tags):
        """Runs whose tags have these values, newest first."""
        return search_runs(self.client, self.experiment_id, tags)


def tracking_uri():
    """`$MLFLOW_TRACKING_URI`, else the SQLite database under the root of the clone.

    A relative SQLite path is taken from the root: in `dvc exp run --temp` and `--queue` the working folder is thrown away.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlruns/mlflow.db"
    if not uri.startswith("sqlite:///"):
        return uri
    return f"sqlite:///{paths.root().resolve() / uri.removeprefix('sqlite:///')}"


def connect(params):
    """Open the MLflow store and find or create the experiment `params.tracking.experiment`.

    Returns a Connection. Raises GraftError, within about ten seconds, when the store cannot be reached or used.
    """
    uri = tracking_uri()
    _probe(uri)
    quiet_mlflow()
    from mlflow import MlflowClient

    with failures(uri), lock():
        return _open(MlflowClient, uri, params.tracking.experiment)


def _open(client_class, uri, experiment):
    artifacts = None
    if uri.startswith("sqlite:///"):
        file = Path(uri.removeprefix("sqlite:///"))
        if not file.exists():
            _create_database(client_class, file)
        artifacts = (file.parent / "artifacts").as_uri()
    client = client_class(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        tags = {
            "mlflow.experimentKind": "custom_model_development",
            "mlflow.note.content": ABOUT,
        }  # else the UI opens in GenAI mode
        return Connection(client, uri, client.create_experiment(experiment, artifact_location=artifacts, tags=tags))
    if found.lifecycle_stage == "deleted":
        warn(f"experiment {experiment} had been deleted in MLflow: restored")
        client.restore_experiment(found.experiment_id)
    if artifacts and found.artifact_location != artifacts:
        _follow_a_move(file, found.artifact_location, artifacts)
    return Connection(client, uri, found.experiment_id)


def _create_database(client_class, file):
    """Make the tables in a file beside `file` and move it into place: a kill midway leaves nothing half done."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.new")
    draft.unlink(missing_ok=True)
    client_class(tracking_uri=f"sqlite:///{draft}").get_experiment("0")
    draft.replace(file)


def _follow_a_move(database, old, new):
    """Point the database at its artifacts again after the clone was moved or renamed.

    MLflow records absolute paths: left alone, new artifacts would go to the old place, and old models would not load.
    """
    if not old.startswith("file:") or local_path(old).exists() or not local_path(new).exists():
        return
    places = {"experiments": ["artifact_location"], "runs": ["artifact_uri"], "logged_models": ["artifact_location"],
              "model_versions": ["source", "storage_location"]}  # fmt: skip
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        for table, columns in places.items():
            for column in columns:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old), old),
                )
    warn(f"the clone was moved: MLflow looks for artifacts in {local_path(new)} now")


def local_path(uri):
    return Path(urllib.request.url2pathname(urllib.parse.urlparse(uri).path))


@contextlib.contextmanager
def failures(uri):
    """What MLflow raises when the store at `uri` fails, itself or the database under it, becomes a GraftError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise GraftError(f"MLflow at {_shown(uri)}: {first_line(error)}") from error


@contextlib.contextmanager
def lock(name="mlflow", seconds=LOCK_SECONDS):
    """One process at a time creates the database, the experiment and the pipeline run; `registry`: registers a version.

    Processes that meet a fresh SQLite database together break it (11 of 12 failed without the lock).
    """
    from filelock import FileLock, Timeout

    folder = paths.cache()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.lock"
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
            f"MLFLOW_TRACKING_URI={uri}: MLflow has no file store any more; use sqlite:///<path>/mlflow.db, or unset it"
        )
    if scheme not in ("http", "https"):
        return
    context = ssl._create_unverified_context() if scheme == "https" else None  # nothing secret is sent: is anyone there?
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=PROBE_SECONDS, context=context):
            return
    except urllib.error.HTTPError:
        return  # it answers; whether it lets us in shows at the first real request
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise GraftError(
            f"MLflow at {_shown(uri)} cannot be reached ({reason}); start it or unset MLFLOW_TRACKING_URI"
        ) from None


def _shown(uri):
    """`uri` without user name and password."""
    head, at, tail = uri.rpartition("@")
    return f"{head.partition('://')[0]}://{tail}" if at and "://" in head else uri


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]


def quiet_mlflow():
    """Environment for MLflow, to be set before its import; what the user has set stays."""
    for key, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # 2 + 4 + 8 s; the default of 7 stalls a stage for minutes
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(key, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def search_runs(client, experiment_id, tags, limit=1000):
    """Active runs of an experiment whose tags have these values, newest first."""
    clauses = [f"tags.`{key}` = {quoted(value)}" for key, value in tags.items()]
    return list(
        client.search_runs([experiment_id], " and ".join(clauses), max_results=limit, order_by=["attributes.start_time DESC"])
    )


def quoted(value):
    return f'"{value}"' if "'" in value else f"'{value}'"
