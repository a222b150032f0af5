"""Versions of the trained models in the MLflow registry, found again by the digest of what they hold."""

import contextlib
import json
import re
import shutil
import tempfile
import time
from pathlib import Path

from stages.console import GraftError
from stages.tracking import runs, store

MODEL_ID = "model_id"  # tag of a version: the logged model behind it, which a database store does not record
SHOWN = ("lr", "seed", "image_size", "backbone.name", "backbone.alpha", "fine_tune.layers")  # columns of the Models tab
TAGGED = ("n", "accuracy", "accuracy_low", "accuracy_high", "balanced_accuracy", "macro_f1", "loss", "ece")
UPLOAD_SECONDS = 1800  # how long a queue worker waits for others to hand their models to a slow server


def register(run, *, digest, save_model, alias, stage=None, metrics=None, tags=None):
    """Register a model as a version of `tracking.model` and point `alias` at it.

    run: the StageRun that made the model.
    digest: of what the model is, see `facts.model_digest`; a version with this stage and digest is taken as it is.
    save_model: called with a path that does not exist yet; writes an MLflow model folder (with its MLmodel file) there.
    metrics: test metrics, {name: number}; shown with the version in the registry and in the Models tab.
    tags: more tags of the version; values become text.

    Returns the version number as a string, as MLflow has it. Stages that register at the same time are safe.
    """
    client, name, stage = run.client, run.params.tracking.model, stage or run.stage
    with store.lock("registry", UPLOAD_SECONDS):
        ensure_model(client, name)
        found = find_version(client, name, stage=stage, digest=digest)
        version = found.version if found else _create(run, name, stage, digest, save_model)
        describe(run, version, metrics=metrics, tags={**_origin(run), **(tags or {})} if found is None else tags)
        set_alias(client, name, alias, version)
    run.set_tags({"model.version": version})
    return str(version)


def ensure_model(client, name):
    """The registered model `name`, created if there is none."""
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):
        return client.get_registered_model(name)
    with contextlib.suppress(MlflowException):  # somebody else was faster
        client.create_registered_model(name, description="Image classifiers grafted onto pretrained backbones.")
    return client.get_registered_model(name)


def find_version(client, name, *, stage, digest):
    """The newest version that `stage` registered with this `digest`, or None."""
    found = client.search_model_versions(f"name = {store.quoted(name)} and tags.stage = '{stage}' and tags.digest = '{digest}'")
    return max(found, key=lambda v: int(v.version), default=None)


def by_alias(client, name, alias):
    """The version that `alias` points at, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def get_version(client, name, version):
    """Version number or alias `version` of model `name`. Raises GraftError when there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, str(version)) if str(version).isdigit() else _aliased(client, name, version)
    except MlflowException:
        raise GraftError(f"model {name} has no version {version} in the registry") from None


def _aliased(client, name, alias):
    found = by_alias(client, name, alias)
    if found is None:
        raise GraftError(f"model {name} has no version with the alias {alias} in the registry")
    return found


def set_alias(client, name, alias, version):
    current = by_alias(client, name, alias)
    if current is None or str(current.version) != str(version):
        client.set_registered_model_alias(name, alias, str(version))


def describe(run, version, *, metrics=None, tags=None):
    """Add test metrics and tags to a version that is there: evaluate knows what the training stages did not.

    The metrics become metrics of the logged model behind it, which the Models tab shows and can sort by; the main ones (TAGGED)
    also tags of the version: `accuracy: 0.9712`.
    """
    from mlflow.entities import Metric

    client, name = run.client, run.params.tracking.model
    numbers = runs.flat_metrics(metrics or {})
    texts = {key: str(value) for key, value in (tags or {}).items() if value is not None}
    for key, value in {**texts, **{key: f"{numbers[key]:.6g}" for key in TAGGED if key in numbers}}.items():
        client.set_model_version_tag(name, str(version), key, value)
    model_id = client.get_model_version(name, str(version)).tags.get(MODEL_ID)
    if not model_id:  # registered by other means
        return
    if texts:
        client.set_logged_model_tags(model_id, texts)
    now, facts = int(time.time() * 1000), run.facts
    dataset = {"dataset_name": facts.name, "dataset_digest": facts.digest[:12]} if facts else {}
    items = [
        Metric(key, float(value), now, 0, model_id=model_id, run_id=run.run_id, **dataset) for key, value in numbers.items()
    ]
    if items:
        client.log_batch(run.run_id, metrics=items)


def _origin(run):
    facts, tags = run.facts, {"pipeline": run.pipeline_name, "git.commit": runs.git_commit()}
    return {**tags, **({"data.digest": facts.digest[:12], "data.path": facts.path} if facts else {})}


def _create(run, name, stage, digest, save_model):
    from mlflow.entities import LoggedModelOutput

    client = run.client
    model = client.create_logged_model(
        run.connection.experiment_id,
        name=re.sub(r"[/:.%\"']", "-", f"{stage} of {run.pipeline_name}"),  # what MLflow does not take in a name
        source_run_id=run.run_id,
        tags={"stage": stage, "digest": digest},
        params={key: runs.shown(value) for key, value in run.params.flat().items() if key in SHOWN},
        model_type="image classifier",
    )
    folder = Path(tempfile.mkdtemp(prefix="graft-model-"))
    try:
        save_model(folder / "model")
        _complete(folder / "model", model, run.run_id)
        client.log_model_artifacts(model.model_id, str(folder / "model"))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    client.finalize_logged_model(model.model_id, "READY")
    # A database store would look `models:/<id>` up through MLflow's global URI, which may be another one.
    source = model.artifact_location if run.connection.uri.startswith("sqlite:") else f"models:/{model.model_id}"
    tags = {"stage": stage, "digest": digest, MODEL_ID: model.model_id}
    version = client.create_model_version(name, source, run_id=run.run_id, model_id=model.model_id, tags=tags).version
    # The links that the UI follows: from the logged model to its version, from the experiment's row to the model.
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": version}])})
    client.log_outputs(run.pipeline_id, [LoggedModelOutput(model.model_id, step=0)])
    return version


def _complete(folder, logged_model, run_id):
    """Write into MLmodel which logged model and run the folder belongs to."""
    from mlflow.models import Model

    if not (folder / "MLmodel").exists():
        raise ValueError(f"{folder} is not an MLflow model: it has no MLmodel file")
    model = Model.load(str(folder / "MLmodel"))
    model.model_uuid = model.model_id = logged_model.model_id
    model.run_id, model.artifact_path = run_id, logged_model.artifact_location
    model.save(str(folder / "MLmodel"))
    for cache in list(folder.rglob("__pycache__")):
        shutil.rmtree(cache, ignore_errors=True)
