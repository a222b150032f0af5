"""A small clone in a folder with a space and Unicode in its name, with MLflow in a SQLite database
of its own."""

import multiprocessing
import re
import shutil
import warnings
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from graft import params as parameters
from graft.system import environment, files, paths
from graft.tracking import registry

REPOSITORY = Path(__file__).parents[2]
STAGES = {
    "split": {"params": ["seed", "data"], "metrics": ["data/split/metrics.json"]},
    "train-head": {"params": ["seed", "head"], "metrics": ["data/train-head/metrics.json"]},
    "second-look": {"params": ["seed", "evaluate"], "metrics": ["data/second-look/metrics.json"]},
    "fine-tune": {
        "params": ["lr", "seed", "fine_tune"],
        "metrics": ["data/fine-tune/metrics.json"],
    },
    "evaluate": {"params": ["seed", "evaluate"], "metrics": ["data/evaluate/metrics.json"]},
    "export": {"params": ["export"], "outs": ["data/export"]},
}


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """The root of an empty clone, which is also the working folder."""
    root = tmp_path / "my clöne #1 50%"
    root.mkdir()
    YAML().dump({"stages": STAGES}, root / "dvc.yaml")
    defaults = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    (root / "params.yaml").write_text(
        re.sub(r"^lr: \S+", "lr: 1.0e-4", defaults, flags=re.MULTILINE), encoding="utf-8"
    )
    for key in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_REGISTRY_URI",
        "DVC_ROOT",
        "DVC_EXP_NAME",
        "DVC_STAGE",
    ):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def declare(clone):
    """declare("train-head", deps=[…], outs=[…]) adds to what dvc.yaml says of a stage."""

    def add(stage, **lists):
        tree = YAML(typ="safe").load(clone / "dvc.yaml")
        for key, values in lists.items():
            tree["stages"][stage].setdefault(key, []).extend(map(str, values))
        YAML().dump(tree, clone / "dvc.yaml")

    return add


@pytest.fixture
def params(clone):
    return parameters.load()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """An MLflow database with its tables and nothing in them: making one takes seconds, copying it
    none."""
    environment.quiet_mlflow()
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
    """Multiprocessing context whose workers have MLflow imported already, and none of the threads
    of this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store"])
    return context


@pytest.fixture
def with_params(clone):
    """with_params(lr="1e-05") edits params.yaml as `dvc exp run -S` does and loads it again."""

    def edit(**values):
        tree = YAML(typ="safe").load(clone / "params.yaml")
        for key, value in values.items():
            block, _, last = key.rpartition("__")
            (tree[block] if block else tree)[last] = value
        YAML(typ="safe").dump(tree, clone / "params.yaml")
        return parameters.load()

    return edit


@pytest.fixture
def write_manifest(clone):
    """write_manifest(n=9, labels="ab"): n images of two classes, every third a test image. Returns
    {split: [path]}.

    first: number of the first image, by which path and bytes are told apart; another residue of 3
    is another split.
    """

    def write(*, n=9, labels="ab", first=0):
        numbers = range(first, first + n)
        images = [
            (f"{labels[i % 2]}/{i}.png", labels[i % 2], ("train", "val", "test")[(i - first) % 3])
            for i in numbers
        ]
        columns = ["path", "label", "split", "sha256", "width", "height", "group"]
        files.write_csv(
            paths.SPLIT / "manifest.csv",
            columns,
            [(*i, f"{k:064x}", 8, 8, "") for k, i in zip(numbers, images)],
        )
        files.write_json(paths.SPLIT / "classes.json", sorted(labels))
        return {
            split: [path for path, _, found in images if found == split]
            for split in ("train", "val", "test")
        }

    return write


@pytest.fixture
def manifest(write_manifest):
    """Path, relative to the clone, of a manifest of 9 images."""
    write_manifest()
    return paths.SPLIT / "manifest.csv"


@pytest.fixture
def register(tmp_path):
    """register(run, digest, alias, stage=None, write=write_stub): a model's version, as the stages
    register theirs."""

    def do(run, digest, alias, *, stage=None, write=write_stub):
        with registry.lock():
            version = registry.find(run, digest, stage)
            if version is None:
                folder = tmp_path / f"model {digest[:8]} {stage}"
                write(folder)
                version = registry.create(run, folder, digest=digest, stage=stage)
            registry.point(run, alias, version)
        return version

    return do


def write_stub(folder):
    """The least that MLflow takes for a model, quickly written."""
    from mlflow.models import Model

    folder.mkdir()
    Model().save(str(folder / "MLmodel"))


@pytest.fixture
def write_model():
    """write_model(folder): an MLflow model that can be loaded, and counts its inputs."""

    def write(folder):
        import mlflow.pyfunc
        import numpy as np
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        code = folder.with_name("counting.py")
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
            mlflow.pyfunc.save_model(
                str(folder), python_model=str(code), pip_requirements=["numpy"], signature=signature
            )

    return write
