"""The classifier as an MLflow model: written as a folder that MLflow loads anywhere, registered,
and loaded again."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from importlib import metadata as packages
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from graft import known, pixels
from graft.description import FILES, Description
from graft.scoring.metrics import summary
from graft.scoring.predictions import Predictions
from graft.serving import readers, writers
from graft.system import files, paths
from graft.system.console import GraftError
from graft.system.environment import quiet_mlflow, quiet_tensorflow, silence
from graft.tracking import champion, registry, store
from graft.tracking.runs import StageRun

if TYPE_CHECKING:
    import keras
    from mlflow.pyfunc import PyFuncModel

Answer = TypeVar("Answer")

CODE = Path(__file__).with_name("pyfunc_model.py")
# Folder of a registered model that holds what `export` wrote, the Keras model apart, which it is.
FORMATS = "formats"
REQUIRED = ("mlflow", "tensorflow", "keras", "numpy", "pandas", "pillow")
PENDING = "(none yet)"  # in place of a version's number, while the server is away
IN_STORE = ("models:/", "runs:/")  # how URIs of the MLflow store begin; anything else is a folder


def _later_if_away(function: Callable[..., Answer]) -> Callable[..., Answer | str]:
    """Leave it to `graft publish` where the server has gone away: what was trained lies in `data/`,
    and counts."""

    @functools.wraps(function)
    def attempt(run, *given, **options):
        try:
            return function(run, *given, **options)
        except store.Away:
            return PENDING

    return attempt


@_later_if_away
def register(
    run: StageRun,
    model: keras.Model,
    description: Description,
    *,
    alias: str,
    stage: str | None = None,
    metrics: dict | None = None,
    tags: dict | None = None,
    export: tuple[Path, str] | None = None,
) -> str:
    """Register a keras.Model as a version of `tracking.model`, point `alias` at it, and return its
    number.

    stage: which made the model, by default the run's own. A version of that stage that ships just
    this (`shipped_digest`) is taken as it is; nothing is saved again. metrics: test metrics
    (numbers, also nested), shown with the version; tags: values become text. Both are added to what
    the version has. export: (folder of the model's other formats, which become its artifacts;
    `network_digest` of the fine-tuned model, whose version is linked with this one). The
    temperature is left out where `evaluate.calibrate` is false. A champion that is the same network
    hands its title on. Stages that register at the same time are safe.
    """
    stage = stage or run.stage
    if not run.params.evaluate.calibrate:
        description = description.replace(temperature=1.0)
    folder, network = export or (None, network_digest(model, description))
    # Of the tuned network, which all others are.
    knows = paths.KNOWN if alias != "head" and paths.KNOWN.exists() else None
    found = shipped_digest(model, description, folder, knows)
    with registry.lock(), tempfile.TemporaryDirectory(prefix="graft-") as place:
        version = registry.find(run, found, stage)
        if version is None:
            made = Path(place) / "model"
            save(made, model, description, knows, written=folder and folder / FILES["keras"])
            if folder is not None:
                shutil.copytree(
                    folder, made / FORMATS, ignore=shutil.ignore_patterns(FILES["keras"])
                )
            version = registry.create(run, made, digest=found, stage=stage)
        registry.describe(
            run, version, metrics=metrics, tags={**(tags or {}), registry.NETWORK: network}
        )
        registry.point(run, alias, version)
        registry.show_output(run, version)
        if export and (origin := registry.find(run, network, "fine-tune", by=registry.NETWORK)):
            registry.describe(run, version, tags={registry.ORIGIN: origin})
            registry.describe(run, origin, tags={registry.EXPORTED: version})
            registry.copy_tags(run, origin, version, champion.CONTEST)
    champion.renew(run, version)
    run.set_tags({"model.version": version})
    return version


@_later_if_away
def contest(
    run: StageRun,
    head: tuple[keras.Model, Description],
    tuned: tuple[keras.Model, Description],
    figures: dict,
    image_sets: Callable,
    *,
    once: bool = False,
) -> None:
    """Register both models as evaluate found them; the fine-tuned one challenges the champion on
    the validation images.

    head, tuned: (model, Description). figures: of `tuned` on the test images. image_sets: as of
    `graft.dataset.images`. Both are registered already, unless what is shipped with them has
    changed since they were trained: the serving code, say. once: what came of an earlier contest of
    the same version stands, and so does what was done to the champion since.
    """
    options = {"resamples": run.params.evaluate.bootstrap, "seed": run.params.seed}
    champion.record_head(run, register(run, *head, alias="head", stage="train-head"))
    version = register(run, *tuned, alias="fine-tuned", stage="fine-tune", metrics=figures)
    if once and champion.is_decided(run, version):
        return
    validation = Predictions.read(paths.FINE_TUNE / "predictions.csv")
    seen = summary(validation, **options)  # gates are checked on them too
    ask = functools.partial(_ask, run.params, image_sets)
    champion.challenge(run, version=version, predictions=validation, metrics=seen, ask=ask)


def digest(model: keras.Model, description: Description) -> str:
    """SHA-256 in hex of the weights and the description: the same for a model in memory and for one
    loaded again."""
    total = hashlib.sha256(description.to_json().encode())
    for weight in model.get_weights():
        total.update(f"{weight.dtype}{weight.shape}".encode())
        total.update(np.ascontiguousarray(weight).data)
    return total.hexdigest()


def network_digest(model: keras.Model, description: Description) -> str:
    """`digest` of what is the same however it is shipped: the temperature and whether it is applied
    are left out."""
    return digest(model, description.replace(temperature=1.0, calibrated=False))


def shipped_digest(
    model: keras.Model,
    description: Description,
    formats: Path | None = None,
    knows: Path | None = None,
) -> str:
    """SHA-256 in hex of all that a version holds: `digest`, the code that serves and decodes, pins,
    exported formats, and what it knows."""
    code = (
        (CODE, pixels.__file__) if knows is None else (CODE, pixels.__file__, known.__file__, knows)
    )
    parts = [digest(model, description), files.sha256_of(*code), *_pins()]
    return hashlib.sha256(
        json.dumps([*parts, formats and files.sha256(formats)]).encode()
    ).hexdigest()


def _pins():
    return [f"{name}=={packages.version(name)}" for name in REQUIRED]


def save(
    folder: Path,
    model: keras.Model,
    description: Description,
    knows: Path | None = None,
    *,
    written: Path | None = None,
) -> None:
    """Write a keras.Model, its temperature applied, as an MLflow model into `folder`, which must
    not exist.

    The folder holds the model, the code that calls it, the image decoder that training used, a
    signature, an input example and the versions of the six packages that it needs. knows: file of a
    `graft.known.Known`, with which it gives `known` too. written: the same model as
    `writers.write_keras` wrote it, if it has.
    """
    quiet_mlflow()
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Map, Schema, TensorSpec

    # No schema of what goes in: MLflow has no type for "bytes, base64 or pixels", and pushes what
    # has one through a DataFrame, which 3-D pixels do not survive. Without one a server takes
    # inputs, instances, dataframe_split and dataframe_records.
    columns: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "label"),
        ColSpec(DataType.double, "confidence"),
        ColSpec(Map(DataType.double), "probabilities"),
    ]
    more = {} if knows is None else {"known": str(knows), "known_code": known.__file__}
    signature = ModelSignature(
        outputs=Schema(columns + [ColSpec(DataType.double, "known")] * bool(more))
    )
    model, description = writers.self_contained(model, description)
    with silence(), tempfile.TemporaryDirectory(prefix="graft-") as place:
        file = written or Path(place) / FILES["keras"]
        if written is None:
            writers.write_keras(model, description, file)
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(CODE),
            artifacts={"model": str(file), "pixels": pixels.__file__, **more},
            signature=signature,
            input_example=[_example()],
            pip_requirements=_pins(),
            metadata=json.loads(description.to_json()),
        )
    _forget_origins(folder)


def _forget_origins(folder):
    """Take out of an MLflow model folder where its files came from; paths inside the folder are
    enough to load it."""
    from mlflow.models import Model

    model = Model.load(str(folder / "MLmodel"))
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    model.save(str(folder / "MLmodel"))


def _example():
    """A small PNG in base64: the input example, in the one form that JSON can carry too."""
    from PIL import Image

    ramp = np.linspace(0, 255, 16, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(128)), axis=-1)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def load(uri: str) -> readers.Loaded:
    """The model at `uri` of the store that the stages write to (`models:/graft@champion`, a run's),
    or of an MLflow folder.

    Raises GraftError where there is none, or one that graft did not make.
    """
    model = load_mlflow(uri)
    description = Description.from_json(json.dumps(model.metadata.metadata or {}), uri)

    def run(batch):
        return np.array([list(row.values()) for row in model.predict(list(batch))["probabilities"]])

    def judged(batch):
        found = model.predict(list(batch))
        return np.array([list(row.values()) for row in found["probabilities"]]), found[
            "known"
        ].to_numpy()

    signature = model.metadata.signature
    knows = (
        signature is not None
        and signature.outputs is not None
        and "known" in signature.outputs.input_names()
    )
    identity = model.metadata.model_uuid or uri
    return readers.Loaded(
        uri, description, run, identity=identity, judged=judged if knows else None
    )


def load_mlflow(uri: str) -> PyFuncModel:
    """What MLflow makes of `uri` (see `load`), an mlflow.pyfunc.PyFuncModel: its `predict` takes
    paths, bytes, base64, pixels.

    From any folder of the project, and also after it was moved. Raises GraftError where there is no
    such model.
    """
    address = store.tracking_uri()
    database = Path(address.removeprefix(store.DATABASE))
    # MLflow would make an empty database where there is none.
    if uri.startswith(IN_STORE) and address.startswith(store.DATABASE) and not database.exists():
        raise GraftError(f"{uri}: no MLflow store at {database}; run `dvc repro` first")
    quiet_tensorflow()
    quiet_mlflow()
    import mlflow

    if uri.startswith(IN_STORE):
        store.use()
    try:
        return mlflow.pyfunc.load_model(registry.files_of(uri) if uri.startswith(IN_STORE) else uri)
    except mlflow.MlflowException as error:
        if uri.startswith(IN_STORE) and "not found" in str(error):
            raise GraftError(
                f"{uri}: no such model in the registry; `dvc repro` makes one, `graft publish` "
                "registers what data/ holds"
            ) from None
        raise GraftError(f"{uri}: {store.first_line(error)}") from None


def _ask(params, image_sets, version, listed):
    """What `version` of `tracking.model` says of the images of a Manifest, all of one split.

    image_sets: as `graft.dataset.images.image_sets`. Raises GraftError for a version that cannot be
    run.
    """
    try:
        model = load(f"models:/{params.tracking.model}/{version}")
        (chosen,) = image_sets(listed, params.data.path, model.description, listed.rows[0].split)
        batches = chosen.read(range(len(chosen)))
        return Predictions.of(chosen, np.concatenate([model(batch) for batch in batches]))
    except Exception as error:  # whatever it is, the contest names it and goes on
        raise GraftError(f"its model cannot be run: {store.first_line(error)}") from error
