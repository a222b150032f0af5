import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages import params as parameters
from stages.console import GraftError
from stages.tracking import registry, runs, store

DIGEST = "ab" * 32


def versions(run):
    return sorted(int(v.version) for v in run.client.search_model_versions("name = 'graft'"))


def test_register_describe_and_load_in_a_fresh_process(params, database, manifest, write_model, clone):
    with runs.stage_run("fine-tune", params) as run:
        version = registry.register(run, digest=DIGEST, save_model=write_model, alias="fine-tuned", tags={"note": "größer"})
        registry.describe(run, version, metrics={"accuracy": 0.97123456, "text": "x"}, tags={"test.digest": "t", "none": None})
    assert version == "1"
    found = registry.by_alias(run.client, "graft", "fine-tuned")
    assert found.tags["accuracy"] == "0.971235" and found.tags["note"] == "größer" and found.tags["test.digest"] == "t"
    assert (found.tags["stage"], found.tags["digest"], found.run_id) == ("fine-tune", DIGEST, run.run_id)
    assert found.tags["pipeline"] == runs.pipeline_name(params) and "none" not in found.tags
    model = run.client.get_logged_model(found.tags["model_id"])
    assert [(m.key, m.value, m.dataset_name) for m in model.metrics] == [("accuracy", 0.97123456, "digits")]
    assert (model.status, model.params["lr"], model.source_run_id) == ("READY", "0.0001", run.run_id)
    (link,) = json.loads(model.tags["mlflow.modelVersions"])
    assert (link["name"], int(link["version"])) == ("graft", 1)
    assert run.client.get_run(run.run_id).data.tags["model.version"] == "1"
    assert [o.model_id for o in run.client.get_run(run.pipeline_id).outputs.model_outputs] == [model.model_id]

    code = (
        "import mlflow, numpy as np\n"
        "model = mlflow.pyfunc.load_model('models:/graft@fine-tuned')\n"
        "print(model.predict(np.zeros((3, 8, 8, 3), 'uint8')), model.metadata.model_id, model.metadata.run_id)"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store.tracking_uri()}
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert out.stdout.split("\n")[0] == f"[3] {model.model_id} {run.run_id}"


def test_a_clone_that_was_moved(params, database, write_stub, clone, monkeypatch, capsys):
    with runs.stage_run("fine-tune", params) as before:
        registry.register(before, digest=DIGEST, save_model=write_stub, alias="champion")
        before.log_text("old", "note.txt")
    moved = clone.with_name("moved ü #2")
    clone.rename(moved)
    monkeypatch.chdir(moved)
    with runs.stage_run("fine-tune", params) as run:
        run.log_text("new", "note.txt")
    assert "moved" in capsys.readouterr().err and not clone.exists()
    for run_id, text in ((before.run_id, "old"), (run.run_id, "new")):
        assert Path(run.client.download_artifacts(run_id, "note.txt")).read_text() == text
    uri = run.client.get_model_version_download_uri("graft", "1")
    assert store.local_path(uri).is_relative_to(moved) and (store.local_path(uri) / "MLmodel").exists()
    store.connect(params)
    assert capsys.readouterr().err == ""


def test_same_stage_and_digest_is_the_same_version(params, database, write_stub):
    with runs.stage_run("fine-tune", params) as run:
        arguments = [("fine-tune", "1", "a"), ("fine-tune", "2", "a"), ("export", "1", "b"), ("fine-tune", "1", "a")]
        made = [
            registry.register(run, stage=stage, digest=d, save_model=write_stub, alias=alias) for stage, d, alias in arguments
        ]
    assert made == ["1", "2", "3", "1"] and versions(run) == [1, 2, 3]
    assert int(registry.by_alias(run.client, "graft", "a").version) == 1
    assert int(registry.find_version(run.client, "graft", stage="export", digest="1").version) == 3
    assert registry.find_version(run.client, "graft", stage="export", digest="2") is None


def test_a_model_that_cannot_be_written_leaves_no_version(params, database):
    def broken(folder):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"), runs.stage_run("fine-tune", params) as run:
        registry.register(run, digest=DIGEST, save_model=broken, alias="fine-tuned")
    assert versions(run) == [] and registry.by_alias(run.client, "graft", "fine-tuned") is None
    (model,) = run.client.search_logged_models([run.connection.experiment_id])
    assert model.status == "FAILED"


def test_a_folder_without_mlmodel_is_refused(params, database):
    with pytest.raises(ValueError, match="no MLmodel"), runs.stage_run("fine-tune", params) as run:
        registry.register(run, digest=DIGEST, save_model=lambda folder: folder.mkdir(), alias="fine-tuned")


@pytest.mark.parametrize("missing", ["7", "champion"])
def test_unknown_version(params, database, write_stub, missing):
    with runs.stage_run("fine-tune", params) as run:
        with pytest.raises(GraftError, match=missing):
            registry.get_version(run.client, "graft", missing)
        registry.register(run, digest=DIGEST, save_model=write_stub, alias="head")
        assert registry.get_version(run.client, "graft", "head").version == registry.get_version(run.client, "graft", 1).version
        with pytest.raises(GraftError, match=missing):
            registry.get_version(run.client, "graft", missing)


def _write_stub(folder):
    from mlflow.models import Model

    folder.mkdir()
    Model().save(str(folder / "MLmodel"))


def _register(root, barrier, number):
    os.chdir(root)
    os.environ["DVC_EXP_NAME"] = f"exp-{number}"
    with runs.stage_run("fine-tune", parameters.load()) as run:
        barrier.wait()
        registry.register(run, digest=str(number % 3), save_model=_write_stub, alias="fine-tuned")


def test_processes_that_register_together(params, database, clone, processes):
    """Six workers with three models: three versions, and the alias on one of them."""
    barrier = processes.Barrier(6)
    workers = [processes.Process(target=_register, args=(clone, barrier, i)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 6
    client = store.connect(params).client
    found = client.search_model_versions("name = 'graft'")
    assert sorted(v.tags["digest"] for v in found) == ["0", "1", "2"]
    assert registry.by_alias(client, "graft", "fine-tuned").version in {v.version for v in found}
