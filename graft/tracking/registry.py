"""Versions of the trained models in the MLflow registry, found again by the digest of all that they
ship."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import socket
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from graft.system.console import GraftError
from graft.tracking import runs, store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

# Tag of a version: of weights, classes and preprocessing, the same however it is shipped.
NETWORK = "network.digest"
# Tags by which an exported version and its original are found.
ORIGIN, EXPORTED = "fine-tuned.version", "exported.version"
# Tag of a version: the logged model behind it, which a database store does not record.
MODEL_ID = "model_id"
# Columns of the Models tab.
SHOWN = ("lr", "seed", "image_size", "backbone.name", "backbone.alpha", "fine_tune.layers")
TAGGED = (
    "n",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "balanced_accuracy",
    "macro_f1",
    "loss",
    "ece",
)
# How long a queue worker waits for others to hand their models to a slow server.
UPLOAD_SECONDS = 1800
LEASE_SECONDS = 60  # who holds `exclusive` for longer was killed: it is held for a few requests
SETTLE_SECONDS = 1.0  # longer than a request of another that takes over the same lock


def lock() -> contextlib.AbstractContextManager[Path]:
    """One process at a time looks a digest up and registers what it does not find: hold it from
    `find` to `point`."""
    return store.lock("registry", UPLOAD_SECONDS)


@contextlib.contextmanager
def exclusive(client: MlflowClient, name: str) -> Iterator[None]:
    """One process at a time, of any clone on any machine, reads the titles of model `name` and
    moves them.

    A clone's own processes wait at a file. Against other clones the lock is a row of the registry:
    a registered model for as long as it is held, since a name can be taken once. Raises GraftError
    where the file or the row stays taken.
    """
    row = f"{name}.lock"
    with store.lock("champion") as file:
        owner = f"{socket.gethostname()}:{file.resolve()}:{uuid.uuid4().hex}"
        _take(client, row, owner)
        try:
            yield
        finally:
            if _owner(client, row) == owner:
                client.delete_registered_model(row)


def _take(client, row, owner):
    from mlflow.exceptions import MlflowException

    holder, since, begun = None, 0.0, time.monotonic()
    while True:
        try:
            client.create_registered_model(
                row, tags={"owner": owner}, description="held while the champion is decided"
            )
            return
        except MlflowException as error:
            # The second: it was there, and is given back by the time the server looks at it.
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                raise
        now, other = time.monotonic(), _owner(client, row)
        if other != holder:
            holder, since = other, now
        # One of this clone, whose file we hold, is gone for certain.
        gone = other and (
            other.rpartition(":")[0] == owner.rpartition(":")[0] or now - since > LEASE_SECONDS
        )
        if gone:
            with contextlib.suppress(MlflowException):  # deleted meanwhile
                # Over, not away: one of several has the last word.
                client.set_registered_model_tag(row, "owner", owner)
            time.sleep(SETTLE_SECONDS)
            if _owner(client, row) == owner:
                return
        if now - begun > store.LOCK_SECONDS:
            waited = f"held for {store.LOCK_SECONDS} s by others"
            raise GraftError(f"registered model {row}: {waited}; delete it if nobody is at work")
        time.sleep(random.uniform(0.02, 0.2))


def _owner(client, row):
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(row).tags.get("owner")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def find(
    run: runs.StageRun, digest: str, stage: str | None = None, *, by: str = "digest"
) -> str | None:
    """Number of the newest version that `stage`, by default the run's own, registered with this
    `digest`, or None.

    by: the tag that is asked; NETWORK is the same for versions of one network that ship it in
    another way.
    """
    wanted = (
        f"tags.stage = {store.quoted(stage or run.stage)} and tags.`{by}` = {store.quoted(digest)}"
    )
    found = run.client.search_model_versions(
        f"name = {store.quoted(run.params.tracking.model)} and {wanted}"
    )
    return str(max(int(version.version) for version in found)) if found else None


def create(run: runs.StageRun, folder: Path, *, digest: str, stage: str | None = None) -> str:
    """Register the MLflow model in `folder` as a new version of `tracking.model`. Returns its
    number.

    run: the StageRun that made the model. digest: of what the model is, for `find`. stage: by
    default the run's own. `folder`'s MLmodel file learns which run and logged model it belongs to.
    Raises ValueError for a folder without one.
    """
    client, name, stage = run.client, run.params.tracking.model, stage or run.stage
    _ensure_model(client, name)
    tags = {"stage": stage, "digest": digest}
    model = client.create_logged_model(
        run.connection.experiment_id,
        # What MLflow does not take in a name.
        name=re.sub(r"[/:.%\"']", "-", f"{stage} of {run.pipeline_name}"),
        source_run_id=run.run_id,
        tags=tags,
        params={key: value for key, value in run.shown_params.items() if key in SHOWN},
        model_type="image classifier",
    )
    try:
        _complete(Path(folder), model, run.run_id)
        client.log_model_artifacts(model.model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    # A database store would look `models:/<id>` up through MLflow's global URI, which may be
    # another one.
    source = (
        f"models:/{model.model_id}"
        if run.connection.uri.startswith("http")
        else model.artifact_location
    )
    tags |= {MODEL_ID: model.model_id}
    version = client.create_model_version(
        name, source, run_id=run.run_id, model_id=model.model_id, tags=tags
    ).version
    # The link that the UI follows from the logged model to its version.
    client.set_logged_model_tags(
        model.model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": version}])}
    )
    describe(run, str(version), tags=_origin(run))
    return str(version)


def show_output(run: runs.StageRun, version: str) -> None:
    """Let the stage run and the experiment's row show the model behind `version` as their output,
    once."""
    from mlflow.entities import LoggedModelOutput

    model_id = run.client.get_model_version(run.params.tracking.model, version).tags.get(MODEL_ID)
    for run_id in (run.run_id, run.pipeline_id):
        outputs = run.client.get_run(run_id).outputs
        if model_id and model_id not in [
            output.model_id for output in (outputs.model_outputs if outputs else [])
        ]:
            run.client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def copy_tags(run: runs.StageRun, origin: str, version: str, keys: Collection[str]) -> None:
    """Give `version` the tags `keys` of the version `origin`, as far as it has them."""
    tags = run.client.get_model_version(run.params.tracking.model, origin).tags
    describe(run, version, tags={key: tags[key] for key in keys if key in tags})


def _ensure_model(client, name):
    """Create the registered model `name` if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException:
        with contextlib.suppress(MlflowException):  # somebody else was faster
            client.create_registered_model(
                name, description="Image classifiers grafted onto pretrained backbones."
            )


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


def _origin(run):
    tags = {"pipeline": run.pipeline_name, "git.commit": runs.git_state()}
    return tags | (
        {"data.digest": run.dataset.digest[:12], "data.path": run.dataset.path}
        if run.dataset
        else {}
    )


def describe(
    run: runs.StageRun, version: str, *, metrics: Mapping | None = None, tags: Mapping | None = None
) -> None:
    """Add test metrics and tags to a version that is there: evaluate knows what the training stages
    did not.

    The metrics, numbers in a (nested) dict, become metrics of the logged model behind it, which the
    Models tab shows and can sort by; the main ones (TAGGED) also tags of the version:
    `accuracy: 0.9712`. Tags that are None are left out.
    """
    from mlflow.entities import Metric

    client, name = run.client, run.params.tracking.model
    numbers = runs.flat_metrics(metrics or {})
    texts = {key: str(value) for key, value in (tags or {}).items() if value is not None}
    for key, value in (
        texts | {key: f"{numbers[key]:.6g}" for key in TAGGED if key in numbers}
    ).items():
        client.set_model_version_tag(name, version, key, value)
    model_id = client.get_model_version(name, version).tags.get(MODEL_ID)
    if not model_id:  # registered by other means
        return
    if texts:
        client.set_logged_model_tags(model_id, texts)
    if numbers:
        now, known = int(time.time() * 1000), run.dataset
        dataset = {"dataset_name": known.name, "dataset_digest": known.digest[:12]} if known else {}
        options = {"model_id": model_id, "run_id": run.run_id, **dataset}
        client.log_batch(
            run.run_id,
            metrics=[Metric(key, float(v), now, 0, **options) for key, v in numbers.items()],
        )


def point(run: runs.StageRun, alias: str, version: str) -> None:
    """Make `alias` of `tracking.model` name `version`."""
    client, name = run.client, run.params.tracking.model
    current = by_alias(client, name, alias)
    if current is None or str(current.version) != version:
        set_alias(client, name, alias, version)


def set_alias(client: MlflowClient, name: str, alias: str, version: str) -> None:
    """Let `alias` name `version`, also where another clone makes the same alias at this moment:
    MLflow looks first whether there is one, and of two that find none the second one fails."""
    from mlflow.exceptions import MlflowException

    try:
        client.set_registered_model_alias(name, alias, version)
    except MlflowException:
        if by_alias(client, name, alias) is None:
            raise
        client.set_registered_model_alias(name, alias, version)


def by_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version of model `name` that `alias` points at, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def get_version(client: MlflowClient, name: str, version: str | int) -> ModelVersion:
    """Version number or alias `version` of model `name`. Raises GraftError when there is none."""
    from mlflow.exceptions import MlflowException

    if not str(version).isdigit():
        found = by_alias(client, name, str(version))
        if found is None:
            raise GraftError(
                f"model {name} has no version with the alias {version} in the registry"
            )
        return found
    try:
        return client.get_model_version(name, str(version))
    except MlflowException:
        raise GraftError(f"model {name} has no version {version} in the registry") from None


def files_of(uri: str) -> str:
    """`models:/NAME@ALIAS` or `models:/NAME/VERSION` as the folder of its files where the project
    was moved or copied since.

    Any other address, and one whose files lie where MLflow says, is returned as it is. Raises
    MlflowException for a model that is not there.
    """
    import mlflow

    parts = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if not parts:
        return uri
    client, (name, alias, number) = mlflow.MlflowClient(), parts.groups()
    version = (
        client.get_model_version_by_alias(name, alias)
        if alias
        else client.get_model_version(name, number)
    )
    source = str(version.source)
    here = store.relocated(source)
    if here == source and here.startswith("file:") and not store.local_path(here).exists():
        raise mlflow.MlflowException(
            f"its files are gone from {store.local_path(here)}; `graft publish` registers it anew"
        )
    return uri if here == source else str(store.local_path(here))
