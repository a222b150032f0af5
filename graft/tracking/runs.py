"""What MLflow gets to see of a pipeline: one *pipeline run* per experiment, with one nested *stage
run* per executed stage.

    with runs.stage_run("fine-tune", params) as run:
        run.log_epoch({"epoch": 0, "lr": 1e-4, "train_loss": 0.7, …})
        run.log_metrics({"accuracy": 0.93})

No stage reads MLflow to compute its outputs: runs are linked by the digests of files, never by ids
in files. An experiment is params, data and code: what differs in any of them is another row.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
import itertools
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.dataset.manifest import DatasetInfo, dataset_info
from graft.scoring.predictions import Predictions
from graft.system import files, git, paths
from graft.system.console import GraftError, warn
from graft.tracking import dvc_lock, spool, store

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

    from graft.params import Params

BATCH = {"params": 100, "tags": 100, "metrics": 1000}  # in one request, MLflow's limits
# What the experiment's own row holds too, beside its figures.
ONE_CLICK = ("card.html", "checks.json")
FIGURES = ("metrics.json", "report.json", "checks.json")  # of a stage's folder, read in this order
# Outputs that are worth a look in the UI; weights are not.
REPORTS = {".json", ".csv", ".txt", ".png", ".svg", ".html", ".md"}


def identity(params: Params, dataset: DatasetInfo | None) -> dict[str, str]:
    """What makes an experiment one and not another, as tags: digests of the params, of the code, of
    both with the data."""
    parts = {"params.digest": _digest(params.flat()), "code.digest": dvc_lock.code_digest()[:12]}
    return {**parts, "experiment.digest": _digest([parts, dataset and dataset.digest])}


def _digest(content):
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
    return (git.output("rev-parse", "HEAD") or "").strip() or None


@functools.cache
def git_state() -> str | None:
    """`git_commit`, with " (dirty)" behind it where the code that the stages depend on is not as
    committed."""
    commit, code = git_commit(), list(map(str, dvc_lock.code_paths()))
    if not commit or not code:
        return commit
    return (
        f"{commit} (dirty)"
        if (git.output("status", "--porcelain", "--", *code) or "").strip()
        else commit
    )


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
    for kind, items in (("params", values), ("tags", texts), ("metrics", list(metrics))):
        for start in range(0, len(items), BATCH[kind]):
            batch: dict[str, Any] = {kind: items[start : start + BATCH[kind]]}
            client.log_batch(run_id, **batch)


def read_predictions(client: MlflowClient, run_id: str | None, name: str) -> Predictions | None:
    """The table of predictions that a run has as artifact `name`; None where there is none, or none
    that can be read."""
    return _read_artifact(client, run_id, name, Predictions.read)


def read_json(client: MlflowClient, run_id: str | None, name: str) -> Any:
    """The content of a run's artifact `name`; None where there is none, or none that can be
    read."""
    return _read_artifact(client, run_id, name, files.read_json)


def _read_artifact(client, run_id, name, read):
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            recorded = client.get_run(run_id).info.artifact_uri
            here = store.relocated(recorded)
            if here != recorded:
                return read(store.local_path(here) / name)
            return read(client.download_artifacts(run_id, name, folder))
        except (MlflowException, OSError, ValueError, GraftError):
            return None


@dataclass(eq=False)
class StageRun:
    """The MLflow run of one executed stage; made by `stage_run`.

    stage: its name in dvc.yaml. run_id, pipeline_id: of MLflow; pipeline_id and pipeline_name are
    empty for split until it has ended, since the experiment is not known before its data are.
    digests: {path relative to `data/`: SHA-256} of what the stage reads there, computed once.
    dataset: of the manifest; None where there is none, and until split has written it.
    """

    connection: store.Connection
    params: Params
    stage: str
    run_id: str
    digests: dict[str, str]
    dataset: DatasetInfo | None
    pipeline_id: str = ""
    pipeline_name: str = ""
    # Metrics that the store did not take yet.
    _pending: list[Metric] = field(default_factory=list, init=False)
    # Artifacts that the stage logged itself: nothing is sent twice.
    _logged: set[str] = field(default_factory=set, init=False)
    # Of ONE_CLICK, what the stage gave the experiment's row itself.
    _shown: set[str] = field(default_factory=set, init=False)

    @property
    def client(self) -> MlflowClient:
        return self.connection.client

    @property
    def identity(self) -> dict[str, dict]:
        """What the stage's outputs follow from, its code apart: the params that dvc.yaml declares,
        and `digests`."""
        return {"params": dvc_lock.stage_keys(self.stage, self.params), "inputs": self.digests}

    @property
    def provenance(self) -> dict[str, str]:
        """What changes from run to run, for a person: label -> value."""
        return {
            "git commit": git_state() or "none",
            "pipeline run": self.pipeline_name,
            "MLflow run": self.run_id,
        }

    @property
    def shown_params(self) -> dict[str, str]:
        """Every parameter under its dotted key, as one would write it in params.yaml."""
        return {key: shown(value) for key, value in self.params.flat().items()}

    def log_metrics(self, values: Mapping, *, step: int = 0) -> None:
        """Every number of a (nested) dict, nested keys joined by "/"; texts, lists and None are
        left out."""
        self._pending += metric_entities(values, step)
        self._flush()

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """One row of curves.csv while training goes on, as one request: `train_loss` becomes
        `train/loss` at step `epoch`.

        A store that fails for a while does not stop the training: the values are sent again with
        the next epoch.
        """
        try:
            self.log_metrics(
                {_curve_name(k): v for k, v in row.items() if k != "epoch" and v is not None},
                step=int(row["epoch"]),
            )
        except Exception as error:  # an epoch of training is worth more than its log line
            warn(
                f"MLflow did not take epoch {row['epoch']}, sent again later: "
                f"{store.first_line(error)}"
            )

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """One file, into `folder` of the run's artifacts."""
        self.client.log_artifact(self.run_id, str(path), folder)
        self._logged.add(f"{folder}/{Path(path).name}" if folder else Path(path).name)

    def log_artifacts(self, path: Path | str, folder: str | None = None) -> None:
        """A folder's content, into `folder` of the run's artifacts."""
        self.client.log_artifacts(self.run_id, str(path), folder)

    def log_text(self, text: str, name: str) -> None:
        self.client.log_text(self.run_id, text, name)
        if name in ONE_CLICK:
            self.client.log_text(self.pipeline_id, text, name)
            self._shown.add(name)
        self._logged.add(name)

    def log_image(self, pixels: np.ndarray, key: str) -> None:
        """One image, uint8 (h, w, 3), of the experiment's row: MLflow's image grid shows rows side
        by side by key."""
        self.client.log_image(self.pipeline_id, pixels, key=key, step=0, synchronous=True)

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
    """`train_loss` -> `train/loss`, `val_accuracy` -> `val/accuracy`, `lr` and others as they
    are."""
    split, _, rest = key.partition("_")
    return (
        f"{split}/{rest}"
        if split in ("train", "val", "test") and rest
        else "seconds/epoch"
        if key == "seconds"
        else key
    )


@contextlib.contextmanager
def stage_run(stage: str, params: Params) -> Iterator[StageRun]:
    """Record one execution of `stage`; yields a StageRun.

    What the stage reads and writes is what dvc.yaml declares below `data/`. The digests of its
    inputs lead to the runs that made them. At a clean end its outputs are digested, and those that
    are reports (tables, texts, figures, folders of them) become artifacts, laid out as in the
    stage's folder, unless the stage logged one of that name itself.

    Connects before any work. Ends FINISHED; FAILED with the message as tag `error` when the block
    raises; KILLED on Ctrl-C and SIGTERM. Raises GraftError when the store cannot be reached.
    """
    started = time.monotonic()
    connection = store.connect(params)
    inputs, outputs = dvc_lock.stage_files(stage)
    with store.failures(connection.uri), _spooled(connection) as connection:
        run = _start(connection, params, stage, inputs)
        with _sigterm_interrupts():
            try:
                yield run
                _finish(run, outputs, started)
            except BaseException as error:
                with contextlib.suppress(Exception):  # the error itself is what counts
                    _fail(run, error)
                raise


@contextlib.contextmanager
def _spooled(connection):
    """The connection through a client that keeps what a server cannot take; what was kept before is
    sent first."""
    if connection.uri.startswith(store.DATABASE):
        yield connection
        return
    spool.send(connection.client, connection.uri)
    client = spool.SpoolingClient(connection.client, connection.uri)
    try:
        yield replace(connection, client=client)
    finally:
        client.release()
        if client.away and not store.is_away(connection.uri):
            spool.send(connection.client, connection.uri)


def _start(connection, params, stage, inputs):
    client, dataset = (
        connection.client,
        dataset_info(params.data.path) if stage != "split" else None,
    )
    known = {paths.SPLIT / "manifest.csv": dataset.digest} if dataset else {}
    digests = {
        name: known.get(path) or files.sha256(path)
        for name, path in inputs.items()
        if path.exists()
    }
    makers = {
        name: maker
        for name in digests
        if (maker := _maker(connection, inputs[name], digests[name]))
    }
    tags = _run_tags(kind="stage", stage=stage, **_data_tags(dataset))
    tags |= {"mlflow.source.name": f"stages/{stage.replace('-', '_')}.py", **store.process_tags()}
    tags |= {f"input.{name}": digest for name, digest in digests.items()}
    tags |= {f"input.{name}.run": maker.info.run_id for name, maker in makers.items()}
    if makers:
        tags["mlflow.note.content"] = _note(connection, makers.values())
    run_id = client.create_run(connection.experiment_id, tags=tags, run_name=stage).info.run_id
    run = StageRun(connection, params, stage, run_id, digests, dataset)
    log_batches(client, run_id, params=dvc_lock.stage_keys(stage, params))
    if stage != "split":  # which is about to make the data that the experiment is known by
        _join(run)
        log_batches(client, run.pipeline_id, tags=store.process_tags())
        client.update_run(run.pipeline_id, status="RUNNING")
    if dataset is not None:
        _log_dataset(
            client, run_id, dataset, "testing" if stage in ("evaluate", "export") else "training"
        )
    return run


def _join(run):
    """Put the stage run under its experiment's row, which is made if there is none; it takes the
    place of earlier ones."""
    client = run.client
    run.pipeline_name, run.pipeline_id = _pipeline_run(run)
    _adopt(run)
    siblings = _current(
        run.connection.search(**{"mlflow.parentRunId": run.pipeline_id, "stage": run.stage})
    )
    run.set_tags({"mlflow.parentRunId": run.pipeline_id, "pipeline": run.pipeline_name})
    for earlier in (each for each in siblings if each.info.run_id != run.run_id):
        client.set_tag(earlier.info.run_id, "superseded_by", run.run_id)
        if earlier.info.status == "RUNNING":  # its process was killed outright
            client.set_terminated(earlier.info.run_id, "KILLED")


def _adopt(run):
    """Put a split that found no server at its end under the row of the experiment that its data
    belong to."""
    if run.stage == "split" or run.dataset is None or run.connection.uri.startswith(store.DATABASE):
        return
    for orphan in run.connection.search(
        kind="stage", stage="split", **{"data.digest": run.dataset.digest[:12]}
    ):
        if orphan.info.status == "FINISHED" and "mlflow.parentRunId" not in orphan.data.tags:
            tags = {"mlflow.parentRunId": run.pipeline_id, "pipeline": run.pipeline_name}
            log_batches(run.client, orphan.info.run_id, tags=tags)


def _pipeline_run(run):
    """(name, id) of the experiment's row: found by name, params, data and code, or created with all
    params.

    The name is `$DVC_EXP_NAME`; for `dvc repro`, which has none: that of the row with the same
    params, data and code, else `repro-` and 8 digits of their digest.
    A row of the same name that differs in one of these (`dvc exp run -n NAME -f`) is tagged
    `superseded_by` and left alone, since its figures are of what it was. The row begins when its
    first stage did.
    """
    connection, client, known = run.connection, run.client, identity(run.params, run.dataset)
    digest, given = known["experiment.digest"], os.environ.get("DVC_EXP_NAME")
    name = given or f"repro-{digest[:8]}"
    with store.lock():
        old = _current(
            connection.search(
                kind="pipeline", **({"pipeline": given} if given else {"experiment.digest": digest})
            )
        )
        for row in old:
            if row.data.tags.get("experiment.digest") == digest:
                return row.data.tags["pipeline"], row.info.run_id
        tags = _run_tags(kind="pipeline", pipeline=name, **known, **_data_tags(run.dataset))
        tags |= {"mlflow.source.name": "dvc.yaml", **store.process_tags()}
        began = client.get_run(run.run_id).info.start_time
        run_id = client.create_run(connection.experiment_id, began, tags, name).info.run_id
        log_batches(client, run_id, params=run.params.flat())
        if run.dataset is not None:
            _log_dataset(client, run_id, run.dataset, "training")
        for row in old:
            client.set_tag(row.info.run_id, "superseded_by", run_id)
        return name, run_id


def _current(runs):
    return [run for run in runs if "superseded_by" not in run.data.tags]


def _run_tags(**tags):
    """`tags`, and those that every run has, as MLflow's UI expects them."""
    commit = (
        {"mlflow.source.git.commit": git_commit(), "git.commit": git_state()}
        if git_commit()
        else {}
    )
    return {**tags, "mlflow.user": user(), "mlflow.source.type": "LOCAL", **commit}


def _maker(connection: store.Connection, path: Path, digest: str) -> Run | None:
    """The newest stage run that made this very content of `path`."""
    return next(iter(connection.search(limit=1, **{f"output.{path.as_posix()}": digest})), None)


def _note(connection, makers):
    """Markdown for the run's description: links to where its inputs came from."""
    lines = {
        run.info.run_id: f"[{run.data.tags['stage']} of "
        f"{run.data.tags['pipeline']}]{_link(connection, run.info.run_id)}"
        for run in makers
    }
    return "Made from " + ", ".join(lines.values())


def _link(connection, run_id):
    return f"(#/experiments/{connection.experiment_id}/runs/{run_id})"


def _finish(run, outputs, started):
    folder = paths.STAGES.get(run.stage)
    outputs = _taken_apart(outputs, folder)
    tags = _output_tags(outputs)
    for path in outputs:
        _log_report(run, path, folder)
    run.dataset = run.dataset or dataset_info(run.params.data.path)
    run.set_tags(tags | _data_tags(run.dataset))
    run.log_metrics({"seconds/total": time.monotonic() - started})
    with contextlib.suppress(store.Away):  # the next stage joins it
        if run.stage == "split":
            _join(run)
            if run.dataset is not None:
                _log_dataset(run.client, run.run_id, run.dataset, "training")
    run.client.set_terminated(run.run_id, "FINISHED")
    with contextlib.suppress(store.Away):  # the next stage brings its figures along
        update_pipeline(run)


def _taken_apart(outputs, folder):
    """export's folder is one output: its parts are digested and shown one by one."""
    if folder not in outputs:
        return outputs
    return [path for path in outputs if path != folder] + sorted(folder.glob("*"))


def _output_tags(outputs):
    return {f"output.{path.as_posix()}": files.sha256(path) for path in outputs if path.exists()}


def _log_report(run, path, folder):
    """Log `path` as artifact if it is a report, at its place relative to the stage's folder."""
    inside = path.relative_to(folder) if folder and path.is_relative_to(folder) else Path(path.name)
    if path.is_dir():
        if any(p.suffix in REPORTS for p in path.iterdir()):
            run.log_artifacts(path, inside.as_posix())
    elif path.suffix in REPORTS and path.exists() and inside.as_posix() not in run._logged:
        run.log_artifact(path, inside.parent.as_posix() if inside.parent != Path() else None)


def update_pipeline(run: StageRun) -> None:
    """Final figures of all stages, also of those that DVC skipped, the runs that made them, and
    what one wants at one click.

    Figures of stages before this one are valid: DVC has seen to it. Those of later ones only as far
    as dvc.lock says that everything they were made from is as it is now; else they are about to be
    made anew.
    """
    client, seen = run.client, run.client.get_run(run.pipeline_id).data
    found, tags = {}, {f"run.{run.stage}": run.run_id}
    for stage in _valid_stages(run.stage):
        folder = paths.STAGES[stage]
        made = [folder / name for name in FIGURES if (folder / name).exists()]
        if not made:
            continue
        found[stage] = figures(folder)
        skipped = f"run.{stage}" not in {**seen.tags, **tags}  # an earlier experiment ran it
        if skipped:
            maker = _maker(run.connection, made[-1], files.sha256(made[-1]))
            tags |= {f"run.{stage}": maker.info.run_id} if maker else {}
        if skipped or stage == run.stage:
            _show_at_one_click(run, folder)
    new = [
        metric for metric in metric_entities(found) if seen.metrics.get(metric.key) != metric.value
    ]
    names, executed = list(paths.STAGES), set(seen.tags.get("stages", "").split(", ")) | {run.stage}
    tags["stages"] = ", ".join(
        [s for s in names if s in executed] + sorted(executed - set(names) - {""})
    )
    tags["mlflow.note.content"] = _overview(run, {**seen.tags, **tags})
    log_batches(client, run.pipeline_id, tags={**tags, **_run_tags()}, metrics=new)
    store.end_row(run.connection, run.pipeline_id, "FINISHED")


def _valid_stages(stage):
    """Names of the stages whose outputs belong to the experiment at the end of `stage`, in
    order."""
    names = list(paths.STAGES)
    position = names.index(stage) + 1 if stage in names else 0
    return [*names[:position], *itertools.takewhile(dvc_lock.matches_lock, names[position:])]


def _show_at_one_click(run, folder):
    for name in ONE_CLICK:
        if (folder / name).exists() and name not in run._shown:
            run.client.log_artifact(run.pipeline_id, str(folder / name))


def figures(folder: Path) -> dict:
    """A stage's numbers: of metrics.json, of the summary of report.json, for which that has no
    room, of checks.json."""
    found: dict = {}
    for file in (folder / name for name in FIGURES if (folder / name).exists()):
        content = files.read_json(file)
        found |= content.get("summary", {}) if file.name == "report.json" else content
    return found


def _overview(run, tags):
    """Markdown for the pipeline run's description: which run made each stage's results, and whether
    it was made here."""
    executed = tags["stages"].split(", ")
    parts = [
        f"[{stage}]{_link(run.connection, tags[f'run.{stage}'])}"
        + ("" if stage in executed else " (unchanged, from an earlier experiment)")
        for stage in paths.STAGES
        if f"run.{stage}" in tags
    ]
    return "Stages: " + ", ".join(parts)


def _data_tags(dataset: DatasetInfo | None) -> dict[str, str]:
    """`data.*` and `test.digest` tags; `data.digest` covers paths, labels, splits and bytes of all
    images."""
    if dataset is None:
        return {}
    return {
        "data.path": dataset.path,
        "data.digest": dataset.digest[:12],
        "test.digest": dataset.test_digest,
        "validation.digest": validation_digest(),
        **{f"data.{key}": str(value) for key, value in dataset.counts.items()},
    }


def validation_digest() -> str:
    """12 hex digits of path, label and bytes of every validation image of the manifest."""
    rows = files.read_csv(paths.SPLIT / "manifest.csv")
    return _digest(
        [(row["path"], row["label"], row["sha256"]) for row in rows if row["split"] == "val"]
    )[:12]


def _log_dataset(client, run_id, dataset, context):
    """An MLflow dataset: what the UI's Dataset column shows."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    entity = Dataset(
        name=dataset.name,
        digest=dataset.digest[:12],  # MLflow takes at most 36 characters, the column shows few
        source_type="local",
        source=json.dumps({"uri": dataset.path}),
        profile=json.dumps(dataset.counts),
    )
    inputs = [DatasetInput(entity, [InputTag("mlflow.data.context", context)])]
    try:
        client.log_inputs(run_id, datasets=inputs)
    except MlflowException:
        # MLflow looks whether the store has this data set, then writes it: of two runs that do so
        # at one moment the database refuses one, and nothing of it is written. Once more, it is
        # found.
        client.log_inputs(run_id, datasets=inputs)


def _fail(run, error):
    interrupted = isinstance(error, KeyboardInterrupt)
    status = "KILLED" if interrupted else "FAILED"
    text = "interrupted" if interrupted else store.first_line(error)
    run.set_tags(
        {
            "error": text
            if interrupted or isinstance(error, GraftError)
            else f"{type(error).__name__}: {text}"
        }
    )
    with contextlib.suppress(Exception):
        run._flush()
    run.client.set_terminated(run.run_id, status)
    if run.pipeline_id:
        store.end_row(run.connection, run.pipeline_id, status)


def find_made(connection: store.Connection, params: Params, stage: str) -> StageRun | None:
    """The newest finished run that made exactly what lies in the folder of `stage`, as a StageRun
    under the experiment's row.

    None where there is none: these outputs were made elsewhere, or what recorded them is gone.
    """
    inputs, outputs = dvc_lock.stage_files(stage)
    wanted = _output_tags(_taken_apart(outputs, paths.STAGES[stage]))
    made = (
        [run for run in connection.search(stage=stage, **wanted) if run.info.status == "FINISHED"]
        if wanted
        else []
    )
    if not made:
        return None
    digests = {name: files.sha256(path) for name, path in inputs.items() if path.exists()}
    run = StageRun(
        connection, params, stage, made[0].info.run_id, digests, dataset_info(params.data.path)
    )
    run.pipeline_name, run.pipeline_id = _pipeline_run(run)
    return run


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
