"""What MLflow gets to see of a pipeline: one *pipeline run* per experiment, with one nested *stage run* per executed stage.

    with runs.stage_run("fine-tune", params) as run:
        run.log_epoch({"epoch": 0, "lr": 1e-4, "train_loss": 0.7, …})
        run.log_metrics({"accuracy": 0.93})

No stage reads MLflow to compute its outputs: runs are linked by the digests of files, never by ids in files.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.dataset.manifest import DatasetInfo, dataset_info
from graft.scoring.predictions import Predictions
from graft.system import files, paths
from graft.system.console import GraftError, warn
from graft.tracking import dvc_lock, store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

BATCH = {"params": 100, "tags": 100, "metrics": 1000}  # in one request, MLflow's limits
REPORTS = {".json", ".csv", ".txt", ".png", ".svg", ".html", ".md"}  # outputs that are worth a look in the UI; weights are not


def pipeline_name(params) -> str:
    """`$DVC_EXP_NAME`; for `dvc repro`, which has none: `repro-` and 8 digits of the digest of all params."""
    return os.environ.get("DVC_EXP_NAME") or f"repro-{params_digest(params)[:8]}"


def params_digest(params) -> str:
    return hashlib.sha256(json.dumps(params.flat(), sort_keys=True).encode()).hexdigest()


def shown(value: object) -> str:
    """A parameter's value as MLflow stores it: as one would write it in params.yaml."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(shown, value)) + "]"
    if value is None or isinstance(value, (bool, dict)):
        return json.dumps(value, sort_keys=True)
    return str(value)


def user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a passwd entry
        return "unknown"


@functools.cache
def git_commit() -> str | None:
    """The commit that is checked out here, or None outside git."""
    try:
        return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def flat_metrics(values: Mapping, prefix: str = "") -> dict[str, float]:
    """{'a/b': number} of a nested dict; bools, texts, lists and None are left out."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flat_metrics(value, f"{prefix}{key}/"))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[prefix + key] = value
    return flat


def metric_entities(values: Mapping, step: int = 0) -> list[Metric]:
    """MLflow metrics for the numbers in a (nested) dict, see `flat_metrics`."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(key, float(value), now, step) for key, value in flat_metrics(values).items()]


def log_batches(
    client: MlflowClient,
    run_id: str,
    *,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, object] | None = None,
    metrics: Sequence[Metric] = (),
) -> None:
    """Log any number of params, tags (their values become text) and Metric entities."""
    from mlflow.entities import Param, RunTag

    texts = [RunTag(key, str(value)) for key, value in (tags or {}).items()]
    values = [Param(key, shown(value)) for key, value in (params or {}).items()]
    for kind, items in (("params", values), ("tags", texts), ("metrics", metrics)):
        for start in range(0, len(items), BATCH[kind]):
            client.log_batch(run_id, **{kind: items[start : start + BATCH[kind]]})


def read_predictions(client: MlflowClient, run_id: str | None, name: str) -> Predictions | None:
    """The table of predictions that a run has as artifact `name`; None where there is none, or none that can be read."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Predictions.read(client.download_artifacts(run_id, name, folder))
        except (MlflowException, OSError, GraftError):
            return None


@dataclass(eq=False)
class StageRun:
    """The MLflow run of one executed stage; made by `stage_run`.

    stage: its name in dvc.yaml. run_id, pipeline_id: of MLflow. digests: {path relative to `data/`: SHA-256} of what the
    stage reads there, computed once. dataset: of the manifest; None where there is none, and until split has written it.
    """

    connection: store.Connection
    params: Any  # graft.params.Params, which this room does not import
    stage: str
    run_id: str
    pipeline_id: str
    digests: dict[str, str]
    dataset: DatasetInfo | None
    _pending: list[Metric] = field(default_factory=list, init=False)  # metrics that the store did not take yet
    _logged: set[str] = field(default_factory=set, init=False)  # artifacts that the stage logged itself: nothing is sent twice

    @property
    def client(self) -> MlflowClient:
        return self.connection.client

    @functools.cached_property
    def pipeline_name(self) -> str:
        return pipeline_name(self.params)

    @property
    def identity(self) -> dict[str, dict]:
        """What the stage's outputs follow from, its code apart: the params that dvc.yaml declares, and `digests`."""
        return {"params": dvc_lock.stage_keys(self.stage, self.params), "inputs": self.digests}

    @property
    def provenance(self) -> dict[str, str]:
        """What changes from run to run, for a person: label -> value."""
        return {"git commit": git_commit() or "none", "pipeline run": self.pipeline_name, "MLflow run": self.run_id}

    @property
    def shown_params(self) -> dict[str, str]:
        """Every parameter under its dotted key, as one would write it in params.yaml."""
        return {key: shown(value) for key, value in self.params.flat().items()}

    def log_metrics(self, values: Mapping, *, step: int = 0) -> None:
        """Every number of a (nested) dict, nested keys joined by "/"; texts, lists and None are left out."""
        self._pending += metric_entities(values, step)
        self._flush()

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """One row of curves.csv while training goes on, as one request: `train_loss` becomes `train/loss` at step `epoch`.

        A store that fails for a while does not stop the training: the values are sent again with the next epoch.
        """
        try:
            self.log_metrics(
                {_curve_name(k): v for k, v in row.items() if k != "epoch" and v is not None}, step=int(row["epoch"])
            )
        except Exception as error:  # an epoch of training is worth more than its log line
            warn(f"MLflow did not take epoch {row['epoch']}, sent again later: {store.first_line(error)}")

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """One file, into `folder` of the run's artifacts."""
        self.client.log_artifact(self.run_id, str(path), folder)
        self._logged.add(f"{folder}/{Path(path).name}" if folder else Path(path).name)

    def log_artifacts(self, path: Path | str, folder: str | None = None) -> None:
        """A folder's content, into `folder` of the run's artifacts."""
        self.client.log_artifacts(self.run_id, str(path), folder)

    def log_text(self, text: str, name: str) -> None:
        self.client.log_text(self.run_id, text, name)
        self._logged.add(name)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        log_batches(self.client, self.run_id, tags=tags)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Log the seconds that the block takes as metric `seconds/<what>`."""
        started = time.monotonic()
        yield
        self._pending += metric_entities({f"seconds/{what}": time.monotonic() - started})

    def _flush(self):
        log_batches(self.client, self.run_id, metrics=self._pending)
        self._pending.clear()


def _curve_name(key):
    """`train_loss` -> `train/loss`, `val_accuracy` -> `val/accuracy`, `lr` and others as they are."""
    split, _, rest = key.partition("_")
    return f"{split}/{rest}" if split in ("train", "val", "test") and rest else "seconds/epoch" if key == "seconds" else key


@contextlib.contextmanager
def stage_run(stage: str, params) -> Iterator[StageRun]:
    """Record one execution of `stage`; yields a StageRun.

    What the stage reads and writes is what dvc.yaml declares below `data/`. The digests of its inputs lead to the runs that
    made them. At a clean end its outputs are digested, and those that are reports (tables, texts, figures, folders of them)
    become artifacts, laid out as in the stage's folder, unless the stage logged one of that name itself.

    Connects before any work. Ends FINISHED; FAILED with the message as tag `error` when the block raises; KILLED on Ctrl-C
    and SIGTERM. Raises GraftError when the store cannot be reached.
    """
    started = time.monotonic()
    connection = store.connect(params)
    inputs, outputs = dvc_lock.stage_files(stage)
    with store.failures(connection.uri):
        run = _start(connection, params, stage, inputs)
        with _sigterm_interrupts():
            try:
                yield run
                _finish(run, outputs, started)
            except BaseException as error:
                with contextlib.suppress(Exception):  # the error itself is what counts
                    _fail(run, error)
                raise


def _start(connection, params, stage, inputs):
    client, pipeline_id = connection.client, _pipeline_run(connection, params)
    dataset = dataset_info(params.data.path) if stage != "split" else None
    known = {paths.SPLIT / "manifest.csv": dataset.digest} if dataset else {}
    digests = {name: known.get(path) or files.sha256(path) for name, path in inputs.items() if path.exists()}
    makers = {name: maker for name in digests if (maker := _maker(connection, inputs[name], digests[name]))}
    tags = _run_tags(kind="stage", stage=stage, pipeline=pipeline_name(params), **_data_tags(dataset))
    tags |= {"mlflow.parentRunId": pipeline_id, "mlflow.source.name": f"stages/{stage.replace('-', '_')}.py"}
    tags |= {f"input.{name}": digest for name, digest in digests.items()}
    tags |= {f"input.{name}.run": maker.info.run_id for name, maker in makers.items()}
    if makers:
        tags["mlflow.note.content"] = _note(connection, makers.values())
    earlier = _current(connection.search(**{"mlflow.parentRunId": pipeline_id, "stage": stage}))
    run_id = client.create_run(connection.experiment_id, tags=tags, run_name=stage).info.run_id
    log_batches(client, run_id, params=dvc_lock.stage_keys(stage, params))
    for run in earlier:
        client.set_tag(run.info.run_id, "superseded_by", run_id)
        if run.info.status == "RUNNING":  # its process was killed outright
            client.set_terminated(run.info.run_id, "KILLED")
    client.update_run(pipeline_id, status="RUNNING")
    if dataset is not None:
        _log_dataset(client, run_id, dataset, "testing" if stage in ("evaluate", "export") else "training")
    return StageRun(connection, params, stage, run_id, pipeline_id, digests, dataset)


def _pipeline_run(connection, params):
    """Id of the pipeline run of this experiment: found by name, or created with all params.

    A run of the same name with other params (`dvc exp run -n NAME -f`) is tagged `superseded_by` and left alone,
    since MLflow's params cannot change.
    """
    client, name, wanted = connection.client, pipeline_name(params), params_digest(params)
    with store.lock():
        old = _current(connection.search(kind="pipeline", pipeline=name))
        same = [r for r in old if r.data.tags.get("params.digest") == wanted]
        if same:
            return same[0].info.run_id
        tags = _run_tags(kind="pipeline", pipeline=name, **{"params.digest": wanted, "mlflow.source.name": "dvc.yaml"})
        run_id = client.create_run(connection.experiment_id, tags=tags, run_name=name).info.run_id
        log_batches(client, run_id, params=params.flat())
        for run in old:
            client.set_tag(run.info.run_id, "superseded_by", run_id)
        return run_id


def _current(runs):
    return [run for run in runs if "superseded_by" not in run.data.tags]


def _run_tags(**tags):
    """`tags`, and those that every run has, as MLflow's UI expects them."""
    commit = {"mlflow.source.git.commit": git_commit()} if git_commit() else {}
    return {**tags, "mlflow.user": user(), "mlflow.source.type": "LOCAL", **commit}


def _maker(connection, path, digest) -> Run | None:
    """The newest stage run that made this very content of `path`."""
    return next(iter(connection.search(limit=1, **{f"output.{path.as_posix()}": digest})), None)


def _note(connection, makers):
    """Markdown for the run's description: links to where its inputs came from."""
    lines = {
        run.info.run_id: f"[{run.data.tags['stage']} of {run.data.tags['pipeline']}]{_link(connection, run.info.run_id)}"
        for run in makers
    }
    return "Made from " + ", ".join(lines.values())


def _link(connection, run_id):
    return f"(#/experiments/{connection.experiment_id}/runs/{run_id})"


def _finish(run, outputs, started):
    folder = paths.STAGES.get(run.stage)
    if folder in outputs:  # export's is one output: its parts are digested and shown one by one
        outputs = [path for path in outputs if path != folder] + sorted(folder.glob("*"))
    tags = {f"output.{path.as_posix()}": files.sha256(path) for path in outputs if path.exists()}
    for path in outputs:
        _log_report(run, path, folder)
    run.dataset = run.dataset or dataset_info(run.params.data.path)
    run.set_tags(tags | _data_tags(run.dataset))
    run.log_metrics({"seconds/total": time.monotonic() - started})
    run.client.set_terminated(run.run_id, "FINISHED")
    if run.dataset is not None and run.stage == "split":
        _log_dataset(run.client, run.run_id, run.dataset, "training")
    _update_pipeline(run)


def _log_report(run, path, folder):
    """Log `path` as artifact if it is a report, at its place relative to the stage's folder."""
    inside = path.relative_to(folder) if folder and path.is_relative_to(folder) else Path(path.name)
    if path.is_dir():
        if any(p.suffix in REPORTS for p in path.iterdir()):
            run.log_artifacts(path, inside.as_posix())
    elif path.suffix in REPORTS and path.exists() and inside.as_posix() not in run._logged:
        run.log_artifact(path, inside.parent.as_posix() if inside.parent != Path() else None)


def _update_pipeline(run):
    """Final figures of all stages, also of those that DVC skipped, the runs that made them, and what the data were.

    Figures of stages before this one are valid: DVC has seen to it. Those of later ones only if dvc.lock says that
    everything they were made from is as it is now; else they are about to be made anew.
    """
    client, seen, dataset = run.client, run.client.get_run(run.pipeline_id).data, run.dataset
    names = list(paths.STAGES)
    position = names.index(run.stage) if run.stage in names else -1
    figures, tags = {}, {f"run.{run.stage}": run.run_id}
    for number, (stage, folder) in enumerate(paths.STAGES.items()):
        made = [file for file in (folder / "metrics.json", folder / "report.json") if file.exists()]
        if not made or (number > position and not dvc_lock.matches_lock(stage)):
            continue
        figures[stage] = _figures(made)
        if f"run.{stage}" not in {**seen.tags, **tags}:  # DVC skipped it: an earlier experiment ran it
            maker = _maker(run.connection, made[-1], files.sha256(made[-1]))
            tags |= {f"run.{stage}": maker.info.run_id} if maker else {}
    new = [metric for metric in metric_entities(figures) if seen.metrics.get(metric.key) != metric.value]
    executed = set(seen.tags.get("stages", "").split(", ")) | {run.stage}
    tags["stages"] = ", ".join([s for s in names if s in executed] + sorted(executed - set(names) - {""}))
    tags["mlflow.note.content"] = _overview(run, {**seen.tags, **tags})
    log_batches(client, run.pipeline_id, tags={**tags, **_run_tags(), **_data_tags(dataset)}, metrics=new)
    if dataset is not None and seen.tags.get("data.digest") != dataset.digest[:12]:
        _log_dataset(client, run.pipeline_id, dataset, "training")
    client.set_terminated(run.pipeline_id, "FINISHED")


def _figures(made):
    """The numbers in metrics.json, and in the summary of report.json, which holds what metrics.json has no room for."""
    figures = {}
    for file in made:
        content = files.read_json(file)
        figures |= content.get("summary", {}) if file.name == "report.json" else content
    return figures


def _overview(run, tags):
    """Markdown for the pipeline run's description: which run made each stage's results, and whether it was made here."""
    executed = tags["stages"].split(", ")
    parts = [
        f"[{stage}]{_link(run.connection, tags[f'run.{stage}'])}"
        + ("" if stage in executed else " (unchanged, from an earlier experiment)")
        for stage in paths.STAGES
        if f"run.{stage}" in tags
    ]
    return "Stages: " + ", ".join(parts)


def _data_tags(dataset: DatasetInfo | None) -> dict[str, str]:
    """`data.*` and `test.digest` tags; `data.digest` covers paths, labels, splits and bytes of all images."""
    if dataset is None:
        return {}
    return {"data.path": dataset.path, "data.digest": dataset.digest[:12], "test.digest": dataset.test_digest,
            **{f"data.{key}": str(value) for key, value in dataset.counts.items()}}  # fmt: skip


def _log_dataset(client, run_id, dataset, context):
    """An MLflow dataset: what the UI's Dataset column shows."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = Dataset(
        name=dataset.name,
        digest=dataset.digest[:12],  # MLflow takes at most 36 characters, the column shows few
        source_type="local",
        source=json.dumps({"uri": dataset.path}),
        profile=json.dumps(dataset.counts),
    )
    client.log_inputs(run_id, datasets=[DatasetInput(entity, [InputTag("mlflow.data.context", context)])])


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
