"""What MLflow gets to see of a pipeline: one *pipeline run* per experiment, with one nested *stage run* per executed stage.

    with runs.stage_run("fine-tune", params, inputs={"manifest": manifest}, outputs=[weights, report]) as run:
        run.log_epoch({"epoch": 0, "lr": 1e-4, "train_loss": 0.7, …})
        run.log_metrics({"accuracy": 0.93})

No stage reads MLflow to compute its outputs: runs are linked by the digests of files, never by ids in files.
"""

import contextlib
import functools
import getpass
import hashlib
import json
import logging
import os
import signal
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import paths
from stages.console import GraftError, warn
from stages.tracking.facts import DataFacts, data_facts, digest, flat_metrics, matches_lock, stage_keys

PROBE_SECONDS = 5  # a server that does not answer /health within this is called unreachable
LOCK_SECONDS = 300  # longer than a queue of workers needs, the first of which makes the database (3 s; 25 s where many compete)
BATCH = 100  # params and tags in one request, MLflow's limit
METRICS_PER_BATCH = 1000
ABOUT = (
    "One row is one experiment (`dvc repro`, `dvc exp run`); unfolded, it shows the stages that ran. "
    "Columns `evaluate/…` are test results. Only rows of experiments: filter by `tags.kind = 'pipeline'`."
)
REPORTS = {".json", ".csv", ".txt", ".png", ".svg", ".html", ".md"}  # outputs that are worth a look in the UI; weights are not


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

    try:
        with lock():
            return _open(MlflowClient, uri, params.tracking.experiment)
    except _store_errors() as error:
        raise GraftError(f"MLflow at {_shown(uri)}: {_first_line(error)}") from error


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


def _store_errors():
    """What MLflow raises when a store fails: its own exceptions, and those of the database under it."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError


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


def _first_line(error):
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


def pipeline_name(params):
    """`$DVC_EXP_NAME`; for `dvc repro`, which has none: `repro-` and 8 digits of the digest of all params."""
    return os.environ.get("DVC_EXP_NAME") or f"repro-{params_digest(params)[:8]}"


def params_digest(params):
    return hashlib.sha256(json.dumps(params.flat(), sort_keys=True).encode()).hexdigest()


def shown(value):
    """A parameter's value as MLflow stores it: as one would write it in params.yaml."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(shown, value)) + "]"
    if value is None or isinstance(value, (bool, dict)):
        return json.dumps(value, sort_keys=True)
    return str(value)


def run_tags(**tags):
    """Tags that every run has, as MLflow's UI expects them, and `tags` that are not None."""
    tags["mlflow.user"] = user()
    tags["mlflow.source.type"] = "LOCAL"
    tags["mlflow.source.git.commit"] = git_commit()
    return {key: str(value) for key, value in tags.items() if value is not None}


def user():
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a passwd entry
        return "unknown"


@functools.cache
def git_commit():
    """The commit that is checked out here, or None outside git."""
    try:
        return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def pipeline_run(connection, params):
    """Id of the pipeline run of this experiment: found by name, or created with all params.

    A run of the same name with other params (`dvc exp run -n NAME -f`) is tagged `superseded_by` and left alone,
    since MLflow's params cannot change.
    """
    client, name, wanted = connection.client, pipeline_name(params), params_digest(params)
    with lock():
        old = [r for r in connection.search(kind="pipeline", pipeline=name) if "superseded_by" not in r.data.tags]
        same = [r for r in old if r.data.tags.get("params.digest") == wanted]
        if same:
            return same[0].info.run_id
        tags = run_tags(kind="pipeline", pipeline=name, **{"params.digest": wanted, "mlflow.source.name": "dvc.yaml"})
        run_id = client.create_run(connection.experiment_id, tags=tags, run_name=name).info.run_id
        log_params(client, run_id, params.flat())
        for run in old:
            client.set_tag(run.info.run_id, "superseded_by", run_id)
        return run_id


def log_params(client, run_id, values):
    from mlflow.entities import Param

    items = [Param(key, shown(value)) for key, value in values.items()]
    for start in range(0, len(items), BATCH):
        client.log_batch(run_id, params=items[start : start + BATCH])


def log_tags(client, run_id, tags):
    from mlflow.entities import RunTag

    items = [RunTag(key, str(value)) for key, value in tags.items()]
    for start in range(0, len(items), BATCH):
        client.log_batch(run_id, tags=items[start : start + BATCH])


def metric_entities(values, step=0):
    """MLflow metrics for the numbers in a (nested) dict; texts, lists and None are left out."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(key, float(value), now, step) for key, value in flat_metrics(values).items()]


def dataset_input(facts, context):
    """An MLflow dataset: what the UI's Dataset column shows."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=facts.name,
        digest=facts.digest[:12],  # MLflow takes at most 36 characters, the column shows few
        source_type="local",
        source=json.dumps({"uri": facts.path}),
        profile=json.dumps(facts.counts),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


class StageRun:
    """The MLflow run of one executed stage; made by `stage_run`.

    `run_id`, `pipeline_id`, `pipeline_name`, `facts` (of the data set) and `connection` are for the registry; stages only log.
    """

    def __init__(self, connection, params, stage, run_id, pipeline_id, facts):
        self.connection, self.client, self.facts = connection, connection.client, facts
        self.params, self.stage, self.run_id, self.pipeline_id = params, stage, run_id, pipeline_id
        self.pipeline_name = pipeline_name(params)
        self._pending = []  # metrics that the store did not take yet
        self._logged = set()  # artifacts that the stage logged itself: its word counts, and nothing is sent twice

    def log_params(self, values):
        """Params beside those that dvc.yaml declares for the stage, e.g. what `auto` came out as."""
        log_params(self.client, self.run_id, values)

    def log_metrics(self, values, *, step=0):
        """Every number of a (nested) dict, nested keys joined by "/"; texts, lists and None are left out."""
        self._send(metric_entities(values, step))
        self._flush()

    def log_epoch(self, row):
        """One row of curves.csv while training goes on, as one request: `train_loss` becomes `train/loss` at step `epoch`.

        A store that fails for a while does not stop the training: the values are sent again with the next epoch.
        """
        values = {curve_name(key): value for key, value in row.items() if key != "epoch"}
        self._send(metric_entities(values, int(row["epoch"])))
        try:
            self._flush()
        except Exception as error:  # an epoch of training is worth more than its log line
            warn(f"MLflow did not take epoch {row['epoch']}, sent again later: {_first_line(error)}")

    def log_curve(self, rows):
        """All rows of curves.csv at once, see `log_epoch`; for a stage that resumed or did not log while it trained."""
        for row in rows:
            values = {curve_name(key): value for key, value in row.items() if key != "epoch"}
            self._send(metric_entities(values, int(row["epoch"])))
        self._flush()

    def log_artifact(self, path, folder=None):
        """One file, into `folder` of the run's artifacts."""
        self.client.log_artifact(self.run_id, str(path), folder)
        self._logged.add(f"{folder}/{Path(path).name}" if folder else Path(path).name)

    def log_artifacts(self, path, folder=None):
        """A folder's content, into `folder` of the run's artifacts."""
        self.client.log_artifacts(self.run_id, str(path), folder)

    def log_text(self, text, name):
        self.client.log_text(self.run_id, text, name)
        self._logged.add(name)

    def set_tags(self, tags):
        log_tags(self.client, self.run_id, tags)

    def log_dataset(self, *, name, digest, path, counts, context="training"):
        """A data set in the run's Dataset column. `counts`: a dict of numbers, e.g. images per split."""
        facts = DataFacts(name=name, path=str(path), digest=digest, test_digest="", counts=dict(counts))
        self.client.log_inputs(self.run_id, datasets=[dataset_input(facts, context)])

    @contextlib.contextmanager
    def timed(self, what):
        """Log the seconds that the block takes as metric `seconds/<what>`."""
        started = time.monotonic()
        yield
        self._send(metric_entities({f"seconds/{what}": time.monotonic() - started}))

    def _send(self, metrics):
        self._pending.extend(metrics)

    def _flush(self):
        while self._pending:
            self.client.log_batch(self.run_id, metrics=self._pending[:METRICS_PER_BATCH])
            del self._pending[:METRICS_PER_BATCH]


def curve_name(key):
    """`train_loss` -> `train/loss`, `val_accuracy` -> `val/accuracy`, `lr` and others as they are."""
    split, _, rest = key.partition("_")
    return f"{split}/{rest}" if split in ("train", "val", "test") and rest else "seconds/epoch" if key == "seconds" else key


@contextlib.contextmanager
def stage_run(stage, params, *, inputs=None, outputs=()):
    """Record one execution of `stage`; yields a StageRun.

    inputs: {name: path} of the files (or small folders) that the stage reads; their digests lead to the runs that made them.
    outputs: paths that the stage writes; at a clean end they are digested, and those that are reports (tables, texts, pictures,
    folders of them) become artifacts, laid out as in the stage's folder, unless the stage logged one of that name itself.

    Connects before any work. Ends FINISHED; FAILED with the message as tag `error` when the block raises; KILLED on Ctrl-C
    and SIGTERM. Raises GraftError when the store cannot be reached.
    """
    started = time.monotonic()
    connection = connect(params)
    inputs = {name: Path(path) for name, path in (inputs or {}).items()}
    try:
        run = _start(connection, params, stage, inputs)
        with _sigterm_interrupts():
            try:
                yield run
                _finish(run, [Path(p) for p in outputs], started)
            except BaseException as error:
                with contextlib.suppress(Exception):  # the error itself is what counts
                    _fail(run, error)
                raise
    except _store_errors() as error:
        raise GraftError(f"MLflow at {_shown(connection.uri)}: {_first_line(error)}") from error


def _start(connection, params, stage, inputs):
    client = connection.client
    pipeline_id = pipeline_run(connection, params)
    facts = data_facts(params) if stage != "split" else None
    sources = _sources(connection, inputs)
    tags = run_tags(
        kind="stage",
        stage=stage,
        pipeline=pipeline_name(params),
        **{"mlflow.parentRunId": pipeline_id, "mlflow.source.name": _source_name()},
        **{"mlflow.note.content": _note(connection, sources)} if sources else {},
        **_data_tags(facts),
    )
    for name, path in inputs.items():
        if path.exists():
            tags[f"input.{name}"] = digest(path)
    tags.update({f"input.{name}.run": source.info.run_id for name, source in sources.items()})
    earlier = connection.search(**{"mlflow.parentRunId": pipeline_id, "stage": stage})
    run_id = client.create_run(connection.experiment_id, tags=tags, run_name=stage).info.run_id
    for run in earlier:
        if "superseded_by" not in run.data.tags:
            client.set_tag(run.info.run_id, "superseded_by", run_id)
        if run.info.status == "RUNNING":  # its process was killed outright
            client.set_terminated(run.info.run_id, "KILLED")
    log_params(client, run_id, stage_keys(stage, params))
    client.update_run(pipeline_id, status="RUNNING")
    if facts is not None:
        client.log_inputs(run_id, datasets=[dataset_input(facts, "testing" if stage in ("evaluate", "export") else "training")])
    return StageRun(connection, params, stage, run_id, pipeline_id, facts)


def _sources(connection, inputs):
    """{input: the newest stage run that made this very content}."""
    found = {}
    for name, path in inputs.items():
        if path.exists():
            tags = {f"output.{path.as_posix()}": digest(path)}
            runs = search_runs(connection.client, connection.experiment_id, tags, limit=1)
            if runs:
                found[name] = runs[0]
    return found


def _note(connection, sources):
    """Markdown for the run's description: links to where its inputs came from."""
    lines = {}
    for run in sources.values():
        lines.setdefault(run.info.run_id, f"[{run.data.tags['stage']} of {run.data.tags['pipeline']}]"
                         f"(#/experiments/{connection.experiment_id}/runs/{run.info.run_id})")  # fmt: skip
    return "Made from " + ", ".join(lines.values())


def _finish(run, outputs, started):
    client, folder = run.client, paths.STAGES.get(run.stage)
    if folder and (metrics := folder / "metrics.json").exists() and metrics not in outputs:
        outputs = [*outputs, metrics]  # what later experiments find this run by when DVC skips the stage
    tags = {f"output.{path.as_posix()}": digest(path) for path in outputs if path.exists()}
    for path in outputs:
        _log_report(run, path, folder)
    run.facts = facts = run.facts or data_facts(run.params)
    tags.update(_data_tags(facts))
    run.set_tags(tags)
    run.log_metrics({"seconds/total": time.monotonic() - started})
    client.set_terminated(run.run_id, "FINISHED")
    if facts is not None and run.stage == "split":
        client.log_inputs(run.run_id, datasets=[dataset_input(facts, "training")])
    _update_pipeline(run, facts)


def _log_report(run, path, folder):
    """Log `path` as artifact if it is a report, at its place relative to the stage's folder."""
    inside = path.relative_to(folder) if folder and path.is_relative_to(folder) else Path(path.name)
    if path.is_dir():
        if any(p.suffix in REPORTS for p in path.iterdir()):
            run.log_artifacts(path, inside.as_posix())
    elif path.suffix in REPORTS and path.exists() and inside.as_posix() not in run._logged:
        run.log_artifact(path, inside.parent.as_posix() if inside.parent != Path() else None)


def _update_pipeline(run, facts):
    """Final metrics of all stages, also of those that DVC skipped, the runs that made them, and what the data were.

    Metrics of stages before this one are valid: DVC has seen to it. Those of later ones only if dvc.lock says that
    everything they were made from is as it is now; else they are about to be made anew.
    """
    client, seen = run.client, run.client.get_run(run.pipeline_id)
    names = list(paths.STAGES)
    position = names.index(run.stage) if run.stage in names else -1
    metrics, tags = {}, {f"run.{run.stage}": run.run_id}
    for number, (stage, folder) in enumerate(paths.STAGES.items()):
        file = folder / "metrics.json"
        if not file.exists() or (number > position and not matches_lock(stage)):
            continue
        metrics[stage] = json.loads(file.read_text(encoding="utf-8"))
        if f"run.{stage}" not in {**seen.data.tags, **tags}:  # DVC skipped it: an earlier experiment ran it
            made = _sources(run.connection, {stage: file})
            tags.update({f"run.{stage}": source.info.run_id for source in made.values()})
    new = [m for m in metric_entities(metrics) if seen.data.metrics.get(m.key) != m.value]
    for start in range(0, len(new), METRICS_PER_BATCH):
        client.log_batch(run.pipeline_id, metrics=new[start : start + METRICS_PER_BATCH])
    executed = set(seen.data.tags.get("stages", "").split(", ")) | {run.stage}
    tags["stages"] = ", ".join([s for s in names if s in executed] + sorted(executed - set(names) - {""}))
    tags["mlflow.note.content"] = _overview(run, {**seen.data.tags, **tags}, names)
    log_tags(client, run.pipeline_id, {**tags, **run_tags(), **_data_tags(facts)})
    if facts is not None and seen.data.tags.get("data.digest") != facts.digest[:12]:
        client.log_inputs(run.pipeline_id, datasets=[dataset_input(facts, "training")])
    client.set_terminated(run.pipeline_id, "FINISHED")


def _overview(run, tags, names):
    """Markdown for the pipeline run's description: which run made each stage's results, and whether it was made here."""
    executed = tags["stages"].split(", ")
    parts = [
        f"[{stage}](#/experiments/{run.connection.experiment_id}/runs/{tags[f'run.{stage}']})"
        + ("" if stage in executed else " (unchanged, from an earlier experiment)")
        for stage in names
        if f"run.{stage}" in tags
    ]
    return "Stages: " + ", ".join(parts)


def _data_tags(facts):
    """`data.*` and `test.digest` tags; `data.digest` covers paths, labels, splits and bytes of all images."""
    if facts is None:
        return {}
    return {"data.path": facts.path, "data.digest": facts.digest[:12], "test.digest": facts.test_digest,
            **{f"data.{key}": str(value) for key, value in facts.counts.items()}}  # fmt: skip


def _fail(run, error):
    interrupted = isinstance(error, KeyboardInterrupt)
    status = "KILLED" if interrupted else "FAILED"
    text = "interrupted" if interrupted else _first_line(error)
    run.set_tags({"error": text if interrupted or isinstance(error, GraftError) else f"{type(error).__name__}: {text}"})
    with contextlib.suppress(Exception):
        run._flush()
    for run_id in (run.run_id, run.pipeline_id):
        run.client.set_terminated(run_id, status)


@contextlib.contextmanager
def _sigterm_interrupts():
    """Let SIGTERM (`dvc queue kill`, a batch system's time limit) end a run as Ctrl-C does."""

    def interrupt(*_):
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _source_name():
    """`stages/fine_tune.py`: the script relative to the working folder."""
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path("python")
    with contextlib.suppress(ValueError, OSError):
        return script.resolve().relative_to(Path.cwd()).as_posix()
    return script.name
