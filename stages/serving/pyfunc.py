"""The classifier as an MLflow model: written as a folder that MLflow loads anywhere, and loaded again from the registry."""

import io
import shutil
import tempfile
from importlib import metadata as packages
from pathlib import Path

import numpy as np

from stages.dataset import images
from stages.serving import formats

CODE = Path(__file__).with_name("pyfunc_model.py")
REQUIRED = ("mlflow", "tensorflow", "keras", "numpy", "pandas", "pillow")


def save(folder, model, spec, *, temperature=None):
    """Write `model`, a classifier as `network.classifier` builds it, as an MLflow model into `folder`, which must not exist.

    spec: its description (`classes`, `image_size`, `resize`, `backbone`, `alpha`, `temperature`).
    temperature: what its probabilities are calibrated with; None = the spec's.
    """
    temperature = spec.temperature if temperature is None else temperature
    about = formats.Metadata.of(spec, temperature)
    with tempfile.TemporaryDirectory(prefix="graft-") as place:
        file = Path(place) / formats.FILES["keras"]
        formats.write_keras(formats.self_contained(model, temperature), about, file)
        save_exported(folder, file)


def save_exported(folder, keras_file):
    """Write an exported model.keras as an MLflow model into `folder`, which must not exist.

    The folder holds the model, the code that calls it, the image decoder that training used, a signature, an input example and
    the versions of the six packages that it needs.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Map, Schema

    about = formats.read_metadata(keras_file)
    # Any: MLflow has no type for "bytes, base64 or pixels". Under a column's signature it pushes the input through a DataFrame,
    # which 3-D pixels do not survive; under a signature that is marked as made from type hints it hands the input over as is.
    signature = ModelSignature(
        inputs=Schema([ColSpec(AnyType())]),
        outputs=Schema([
            ColSpec(DataType.string, "label"),
            ColSpec(DataType.double, "confidence"),
            ColSpec(Map(DataType.double), "probabilities"),
        ]),
    )  # fmt: skip
    signature._is_signature_from_type_hint = True
    with formats.silence():
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(CODE),
            artifacts={"model": str(keras_file), "images": images.__file__},
            signature=signature,
            input_example=[example()],
            pip_requirements=[f"{name}=={packages.version(name)}" for name in REQUIRED],
            metadata={"classes": list(about.classes), "image_size": about.image_size, "resize": about.resize},
        )
    _forget_origins(Path(folder))


def _forget_origins(folder):
    """Take out of an MLflow model folder where its files came from; paths inside the folder are enough to load it."""
    from mlflow.models import Model

    model = Model.load(str(folder / "MLmodel"))
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    model.save(str(folder / "MLmodel"))
    for cache in list(folder.rglob("__pycache__")):
        shutil.rmtree(cache, ignore_errors=True)


def example():
    """A small PNG in base64: the input example, in the one form that JSON can carry too."""
    import base64

    from PIL import Image

    ramp = np.linspace(0, 255, 16, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(128)), axis=-1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def load(uri, *, tracking_uri=None):
    """The registered model at `uri` (`models:/graft@champion`, a run's, or a folder), as `mlflow.pyfunc.load_model` gives it.

    tracking_uri: of the store; None = MLflow's own setting.
    """
    import mlflow

    if tracking_uri is not None:
        mlflow.set_tracking_uri(tracking_uri)
    return mlflow.pyfunc.load_model(uri)


def predict_version(tracking_uri, version, files):
    """Probabilities, float64 (n, C), that a registered version gives for image `files`, in their order.

    version: MLflow's ModelVersion. C and its order are those of that version's classes.
    """
    model = load(f"models:/{version.name}/{version.version}", tracking_uri=tracking_uri)
    found = model.predict([Path(file) for file in files])
    return np.array([list(row.values()) for row in found["probabilities"]])
