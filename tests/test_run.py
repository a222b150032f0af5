"""What a stage has around it, on recipes that do next to nothing."""

import contextlib
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from graft import params as parameters
from graft import run as running
from graft.system.console import GraftError

ROOT = Path(__file__).parents[1]


def split(params, run):
    run.log.append("split")


def train_head(params, run):
    run.log.append("train-head")


@pytest.fixture
def params():
    return parameters.load(ROOT / "params.yaml")


@pytest.fixture
def log(monkeypatch):
    """What happens, in order, instead of MLflow and TensorFlow."""
    happened = []

    @contextlib.contextmanager
    def note(name, value):
        happened.append(f"{name} {value} begins")
        yield SimpleNamespace(log=happened)
        happened.append(f"{name} ends")

    monkeypatch.setattr(running, "stage_run", lambda stage, params: note("run", stage))
    monkeypatch.setattr(running, "training_scope", lambda seed: note("scope", seed))
    monkeypatch.setattr(running, "full_precision", lambda seed: note("float32", seed))
    monkeypatch.setattr(running, "quiet_tensorflow", lambda: happened.append("TensorFlow"))
    return happened


def test_a_stage_with_a_network_is_checked_recorded_and_seeded(params, log):
    running.execute(train_head, params, lambda given: log.append(f"check {given.seed}"))
    assert log == [
        "check 42",
        "run train-head begins",
        "TensorFlow",
        "scope 42 begins",
        "train-head",
        "scope ends",
        "run ends",
    ]


def test_export_is_exact_and_on_one_device(params, log):
    def export(params, run):
        run.log.append("export")

    running.execute(export, params)
    assert log == [
        "run export begins",
        "TensorFlow",
        "float32 42 begins",
        "export",
        "float32 ends",
        "run ends",
    ]


def test_split_needs_no_tensorflow(params, log):
    running.execute(split, params)
    assert log == ["run split begins", "split", "run ends"]


def test_what_the_check_refuses_is_not_recorded(params, log):
    def refuse(_):
        raise GraftError("backbone.name: unknown")

    with pytest.raises(GraftError, match="unknown"):
        running.execute(train_head, params, refuse)
    assert log == []


@pytest.mark.parametrize(
    ("format", "lacking", "extra"),
    [("onnx_any_size", "onnxruntime", "onnx"), ("openvino", "openvino", "openvino")],
)
def test_a_missing_package_of_another_format_is_named_with_its_extra(
    params, log, monkeypatch, format, lacking, extra
):
    monkeypatch.setattr(running, "missing", lambda names: [lacking] if lacking in names else [])
    export = params.export.model_copy(update={"formats": ("keras", format)})
    with pytest.raises(
        GraftError,
        match=rf"^export\.formats: {format} needs {lacking}; pip install 'graft-vision\[{extra}\]'",
    ):
        running.execute(split, params.model_copy(update={"export": export}))
    assert log == []


@pytest.mark.parametrize("recipe", [split, train_head])
def test_a_missing_onnx_package_is_named_in_the_first_stage(recipe, params, log, monkeypatch):
    """Not by export, after hours of training."""
    real = running.missing
    monkeypatch.setattr(
        running, "missing", lambda names: ["tf2onnx"] if "tf2onnx" in names else real(names)
    )
    with pytest.raises(
        GraftError,
        match=r"^export\.formats: onnx needs tf2onnx; pip install 'graft-vision\[onnx\]', or drop "
        r"it from export",
    ):
        running.execute(recipe, params)
    assert log == []
    formats = params.export.model_copy(update={"formats": ("keras", "tflite")})
    running.execute(recipe, params.model_copy(update={"export": formats}))
    assert log


def test_a_stage_is_offered_to_the_fork_server_under_its_modules_name(
    monkeypatch, tmp_path, capsys
):
    offered = {}
    monkeypatch.setattr(running.client, "run", lambda module, main: offered.update({module: main}))
    running.run_stage(train_head, check=random.seed)
    monkeypatch.chdir(tmp_path)
    assert list(offered) == ["stages.train_head"]
    with pytest.raises(SystemExit) as end:
        offered["stages.train_head"]()
    assert end.value.code == 1
    assert (
        capsys.readouterr().err
        == "error: params.yaml: no such file; run from the root of the project\n"
    )


RECIPE = """
import sys
from graft.run import run_stage
from graft.system.files import write_json
from graft.system.console import GraftError

def split(params, run):
    if "mistake" in sys.argv:
        raise GraftError("data/raw: no images")
    write_json("data/split/metrics.json", {"images": 3})
    run.log_metrics({"images": 3})
    print("tensorflow" in sys.modules)

if __name__ == "__main__":
    run_stage(split)
"""


@pytest.mark.parametrize(
    ("arguments", "status", "run_status"), [([], 0, "FINISHED"), (["mistake"], 1, "FAILED")]
)
def test_a_process_of_its_own(tmp_path, arguments, status, run_status):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").touch()
    (tmp_path / "stages" / "split.py").write_text(RECIPE)
    (tmp_path / "params.yaml").write_text(
        (ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    (tmp_path / "dvc.yaml").write_text(
        "stages: {split: {cmd: x, params: [seed], metrics: [data/split/metrics.json]}}"
    )
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))
    }
    environment = {**kept, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages.split", *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == status, done.stderr
    assert (done.stdout, done.stderr) == (
        ("False\n", "") if status == 0 else ("", "error: data/raw: no images\n")
    )
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "graft")
    found = {run.data.tags["kind"]: run for run in client.search_runs([experiment.experiment_id])}
    # Without a split nobody knows which experiment it was.
    rows = {"pipeline": run_status} if status == 0 else {}
    assert {kind: run.info.status for kind, run in found.items()} == {**rows, "stage": run_status}
    if status == 0:
        assert found["pipeline"].data.metrics == {"split/images": 3}
        assert found["stage"].data.tags["mlflow.source.name"] == "stages/split.py"
