import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graft import params as parameters
from graft.system import files
from graft.system.console import GraftError
from graft.tracking import registry, runs, store

DIGEST = "ab" * 32


def versions(run):
    return sorted(int(v.version) for v in run.client.search_model_versions("name = 'graft'"))


def test_create_describe_and_load_in_a_fresh_process(
    params, database, manifest, write_model, register, clone
):
    with runs.stage_run("fine-tune", params) as run:
        version = register(run, DIGEST, "fine-tuned", write=write_model)
        for _ in range(2):
            registry.show_output(run, version)
        registry.describe(run, version, tags={"note": "größer"})
        registry.describe(
            run,
            version,
            metrics={"accuracy": 0.97123456, "text": "x"},
            tags={"test.digest": "t", "none": None},
        )
    assert version == "1"
    found = registry.by_alias(run.client, "graft", "fine-tuned")
    assert (found.tags["accuracy"], found.tags["note"], found.tags["test.digest"]) == (
        "0.971235",
        "größer",
        "t",
    )
    assert (found.tags["stage"], found.tags["digest"], found.run_id) == (
        "fine-tune",
        DIGEST,
        run.run_id,
    )
    assert found.tags["pipeline"] == run.pipeline_name
    assert found.tags["data.digest"] == run.dataset.digest[:12]
    assert "none" not in found.tags
    model = run.client.get_logged_model(found.tags["model_id"])
    assert [(m.key, m.value, m.dataset_name) for m in model.metrics] == [
        ("accuracy", 0.97123456, "fashion")
    ]
    assert (model.status, model.params["lr"], model.source_run_id) == (
        "READY",
        "0.0001",
        run.run_id,
    )
    (link,) = json.loads(model.tags["mlflow.modelVersions"])
    assert (link["name"], int(link["version"])) == ("graft", 1)
    for run_id in (run.run_id, run.pipeline_id):
        assert [output.model_id for output in run.client.get_run(run_id).outputs.model_outputs] == [
            model.model_id
        ]

    code = (
        "import mlflow, numpy as np\n"
        "model = mlflow.pyfunc.load_model('models:/graft@fine-tuned')\n"
        "print(model.predict(np.zeros((3, 8, 8, 3), 'uint8')), model.metadata.model_id, "
        "model.metadata.run_id)"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store.tracking_uri()}
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.split("\n")[0] == f"[3] {model.model_id} {run.run_id}"


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_clone_that_was_moved_or_copied_writes_into_its_own_folder(
    how, params, database, register, write_model, clone, monkeypatch, capsys
):
    with runs.stage_run("fine-tune", params) as before:
        register(before, DIGEST, "champion", write=write_model)
        before.log_text('{"n": 1}', "note.json")
    other = clone.with_name("moved ü #2")
    clone.rename(other) if how == "moved" else shutil.copytree(clone, other)
    kept = files.sha256(clone) if how == "copied" else None
    monkeypatch.chdir(other)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # what comes now is another process
    # A command that reads, before any that writes.
    place = registry.files_of("models:/graft@champion") if store.use() else ""
    assert Path(place).is_relative_to(other) and (Path(place) / "MLmodel").exists()
    with runs.stage_run("fine-tune", params) as run:
        run.log_text('{"n": 2}', "note.json")
    said = capsys.readouterr().err
    assert (
        said.count(
            "warning: this project was copied or moved: MLflow knows artifacts of earlier runs "
            "under "
        )
        == 1
    )
    link = (
        f"`mkdir -p '{clone}/mlruns' && ln -s '{other}/mlruns/artifacts' "
        f"'{clone}/mlruns/artifacts'`"
    )
    assert (link in said) == (how == "moved")
    assert kept == (files.sha256(clone) if how == "copied" else None)
    assert clone.exists() == (how == "copied")
    for run_id, n in ((before.run_id, 1), (run.run_id, 2)):
        assert runs.read_json(run.client, run_id, "note.json") == {"n": n}
    assert store.local_path(run.client.get_run(run.run_id).info.artifact_uri).is_relative_to(other)
    store.connect(params)
    assert capsys.readouterr().err == ""  # said once


def test_a_clone_that_is_moved_back_goes_on_where_it_was(params, database, clone, monkeypatch):
    ids = []
    for place in (clone, clone.with_name("elsewhere"), clone):
        if Path.cwd() != place:
            Path.cwd().rename(place)
            monkeypatch.chdir(place)
            monkeypatch.delenv("MLFLOW_TRACKING_URI")
        ids.append(store.connect(params).experiment_id)
    assert ids[0] == ids[2] != ids[1]


def test_a_link_at_the_old_place_keeps_a_moved_clone_together(
    params, database, clone, monkeypatch, capsys
):
    first = store.connect(params).experiment_id
    (clone / "mlruns" / "artifacts").mkdir()
    moved = clone.with_name("moved")
    clone.rename(moved)
    (clone / "mlruns").mkdir(parents=True)
    (clone / "mlruns" / "artifacts").symlink_to(moved / "mlruns" / "artifacts")
    monkeypatch.chdir(moved)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert (store.connect(params).experiment_id, capsys.readouterr().err) == (first, "")


def test_a_model_whose_files_are_gone_is_named(params, database, register, clone):
    with runs.stage_run("fine-tune", params) as run:
        register(run, DIGEST, "champion")
    shutil.rmtree(clone / "mlruns" / "artifacts")
    with pytest.raises(
        Exception, match=r"its files are gone from .*; `graft publish` registers it anew"
    ):
        registry.files_of("models:/graft@champion")


def test_same_stage_and_digest_is_the_same_version(params, database, register):
    with runs.stage_run("fine-tune", params) as run:
        assert registry.find(run, "1") is None  # there is no registered model at all
        wanted = [
            (None, "1", "a"),
            ("fine-tune", "2", "a"),
            ("export", "1", "b"),
            ("fine-tune", "1", "a"),
        ]
        made = [register(run, digest, alias, stage=stage) for stage, digest, alias in wanted]
        assert made == ["1", "2", "3", "1"]
        assert (registry.find(run, "1", "export"), registry.find(run, "2", "export")) == ("3", None)
    assert versions(run) == [1, 2, 3]
    assert int(registry.by_alias(run.client, "graft", "a").version) == 1


def test_a_model_that_cannot_be_uploaded_leaves_no_version(params, database, register, monkeypatch):
    def broken(*_):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"), runs.stage_run("fine-tune", params) as run:
        monkeypatch.setattr(run.client, "log_model_artifacts", broken)
        register(run, DIGEST, "fine-tuned")
    assert versions(run) == []
    assert registry.by_alias(run.client, "graft", "fine-tuned") is None
    (model,) = run.client.search_logged_models([run.connection.experiment_id])
    assert model.status == "FAILED"


def test_a_folder_without_mlmodel_is_refused(params, database, register):
    with pytest.raises(ValueError, match="no MLmodel"), runs.stage_run("fine-tune", params) as run:
        register(run, DIGEST, "fine-tuned", write=Path.mkdir)


@pytest.mark.parametrize("missing", ["7", "champion"])
def test_unknown_version(params, database, register, missing):
    with runs.stage_run("fine-tune", params) as run:
        with pytest.raises(GraftError, match=missing):
            registry.get_version(run.client, "graft", missing)
        register(run, DIGEST, "head")
        assert (
            registry.get_version(run.client, "graft", "head").version
            == registry.get_version(run.client, "graft", 1).version
        )
        with pytest.raises(GraftError, match=missing):
            registry.get_version(run.client, "graft", missing)


def _register(root, barrier, number):
    from mlflow.models import Model

    os.chdir(root)
    os.environ["DVC_EXP_NAME"] = f"exp-{number}"
    folder = root / f"model {number}"
    folder.mkdir()
    Model().save(str(folder / "MLmodel"))
    with runs.stage_run("fine-tune", parameters.load()) as run:
        barrier.wait()
        with registry.lock():
            digest = str(number % 3)
            version = registry.find(run, digest) or registry.create(run, folder, digest=digest)
            registry.point(run, "fine-tuned", version)


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


def _count(clone, uri, rounds):
    """Add one to a tag as often, by reading and writing it."""
    os.environ["DVC_ROOT"] = str(clone)
    client = mlflow_client(uri)
    for _ in range(rounds):
        with registry.exclusive(client, "graft"):
            before = int(client.get_registered_model("graft").tags.get("count", 0))
            time.sleep(0.01)
            client.set_registered_model_tag("graft", "count", str(before + 1))


def mlflow_client(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def test_two_clones_with_one_store_take_turns(database, processes, tmp_path):
    uri = f"sqlite:///{database}"
    client = mlflow_client(uri)
    client.create_registered_model("graft")
    workers = [
        processes.Process(target=_count, args=(tmp_path / f"clone {k}", uri, 8)) for k in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert client.get_registered_model("graft").tags["count"] == "16"
    assert [model.name for model in client.search_registered_models()] == ["graft"]


@pytest.mark.parametrize("holder", ["of this clone", "of another"])
def test_the_turn_of_one_that_was_killed_passes_on(holder, database, clone, monkeypatch):
    monkeypatch.setattr(registry, "SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(registry, "LEASE_SECONDS", 60 if holder == "of this clone" else 0.3)
    client = mlflow_client(f"sqlite:///{database}")
    file = (
        Path(".cache/champion.lock").resolve()
        if holder == "of this clone"
        else Path("/elsewhere/.cache/champion.lock")
    )
    client.create_registered_model(
        "graft.lock", tags={"owner": f"{socket.gethostname()}:{file}:killed"}
    )
    with registry.exclusive(client, "graft"):
        assert "killed" not in client.get_registered_model("graft.lock").tags["owner"]
    assert client.search_registered_models() == []


def test_a_turn_that_never_comes_is_one_line(database, clone, monkeypatch):
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.3)
    client = mlflow_client(f"sqlite:///{database}")
    client.create_registered_model("graft.lock", tags={"owner": "elsewhere:/x:alive"})
    one_line = r"registered model graft\.lock: held .* delete it if nobody"
    with pytest.raises(GraftError, match=one_line), registry.exclusive(client, "graft"):
        pytest.fail("it is not our turn")
    assert client.get_registered_model("graft.lock").tags["owner"] == "elsewhere:/x:alive"


def test_an_alias_that_another_clone_makes_meanwhile_is_set_all_the_same(
    database, clone, monkeypatch
):
    from mlflow.exceptions import MlflowException

    client = mlflow_client(f"sqlite:///{database}")
    client.create_registered_model("graft")
    for _ in range(2):
        client.create_model_version("graft", str(clone))
    real, calls = client.set_registered_model_alias, []

    def late(name, alias, version):
        calls.append(version)
        if len(calls) == 1:
            real(name, alias, "1")
            raise MlflowException("duplicate key value violates unique constraint")
        real(name, alias, version)

    monkeypatch.setattr(client, "set_registered_model_alias", late)
    registry.set_alias(client, "graft", "fine-tuned", "2")
    assert str(registry.by_alias(client, "graft", "fine-tuned").version) == "2"
    with pytest.raises(MlflowException):
        registry.set_alias(client, "nobody", "fine-tuned", "2")
