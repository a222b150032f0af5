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
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from stages import paths
from stages.console import GraftError, warn
from stages.tracking import store
from stages.tracking.facts import DataFacts, data_facts, digest, flat_metrics, matches_lock, stage_keys

BATCH = 100  # params and tags in one request, MLflow's limit
METRICS_PER_BATCH = 1000
REPORTS = {".json", ".csv", ".txt", ".png", ".svg", ".html", ".md"}  # outputs that are worth a look in the UI; weights are not


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
    with store.lock():
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
            warn(f"MLflow did not take epoch {row['epoch']}, sent again later: {store.first_line(error)}")

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
    connection = store.connect(params)
    inputs = {name: Path(path) for name, path in (inputs or {}).items()}
    with store.failures(connection.uri):
        run = _start(connection, params, stage, inputs)
        with _sigterm_interrupts():
            try:
                yield run
                _finish(run, [Path(p) for p in outputs], started)
            except BaseException as error:
                with contextlib.suppress(Exception):  # the error itself is what counts
                    _fail(run, error)
                raise


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
            runs = store.search_runs(connection.client, connection.experiment_id, tags, limit=1)
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
    text = "interrupted" if interrupted else store.first_line(error)
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
