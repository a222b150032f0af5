"""A small clone in a folder with a space and Unicode in its name, with MLflow in a SQLite database of its own."""

import multiprocessing
import re
import shutil
import warnings
from pathlib import Path

import pytest

from stages import params as parameters

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """The root of an empty clone, which is also the working folder."""
    root = tmp_path / "my clöne #1 50%"
    root.mkdir()
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    defaults = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    (root / "params.yaml").write_text(re.sub(r"^lr: \S+", "lr: 1.0e-4", defaults, flags=re.MULTILINE), encoding="utf-8")
    for key in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "DVC_ROOT", "DVC_EXP_NAME", "DVC_STAGE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def params(clone):
    return parameters.load()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """An MLflow database with its tables and nothing in them: making one takes seconds, copying it none."""
    from stages.tracking import store

    store.quiet_mlflow()
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def database(clone, empty_database):
    """The clone's MLflow database, empty."""
    (clone / "mlruns").mkdir()
    shutil.copy(empty_database, clone / "mlruns" / "mlflow.db")
    return clone / "mlruns" / "mlflow.db"


@pytest.fixture(scope="session")
def processes():
    """Multiprocessing context whose workers have MLflow imported already, and none of the threads of this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store"])
    return context


@pytest.fixture
def with_params(clone):
    """with_params(lr="1e-05") edits params.yaml as `dvc exp run -S` does and loads it again."""

    def edit(**values):
        from ruamel.yaml import YAML

        tree = YAML(typ="safe").load(clone / "params.yaml")
        for key, value in values.items():
            block, _, last = key.rpartition("__")
            (tree[block] if block else tree)[last] = value
        YAML(typ="safe").dump(tree, clone / "params.yaml")
        return parameters.load()

    return edit


@pytest.fixture
def write_manifest(clone):
    return lambda **options: _write_manifest(clone, **options)


@pytest.fixture
def manifest(write_manifest):
    """Path, relative to the clone, of a manifest of 9 images."""
    return write_manifest()


def _write_manifest(root, *, n=9, labels="ab"):
    """n images of two classes, every third a test image."""
    file = root / "data/split/manifest.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{labels[i % 2]}/{i}.png,{labels[i % 2]},{('train', 'val', 'test')[i % 3]},{i:064x},8,8,\n" for i in range(n)]
    file.write_text("path,label,split,sha256,width,height,group\n" + "".join(rows), encoding="utf-8")
    return file.relative_to(root)


@pytest.fixture
def write_model():
    """A save_model for `registry.register`: a model that can be loaded."""
    return _write_model


@pytest.fixture
def write_stub():
    """A save_model for `registry.register`: the least that MLflow takes for a model, quickly written."""

    def write(folder):
        from mlflow.models import Model

        folder.mkdir()
        Model().save(str(folder / "MLmodel"))

    return write


def _write_model(folder):
    """An MLflow model that counts its inputs."""
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    code = folder.parent / "counting.py"
    code.write_text(
        "from mlflow.models import set_model\n"
        "from mlflow.pyfunc import PythonModel\n"
        "class Counting(PythonModel):\n"
        "    def predict(self, context, model_input, params=None):\n"
        "        return [len(model_input)]\n"
        "set_model(Counting())\n"
    )
    signature = ModelSignature(inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, 8, 8, 3))]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(str(folder), python_model=str(code), pip_requirements=["numpy"], signature=signature)
