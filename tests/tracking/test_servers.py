"""graft against real servers: they go away, come back, ask for passwords, and stand on
PostgreSQL."""

import secrets
import time

import pytest

from graft.system import files, paths
from graft.system.console import GraftError
from graft.tracking import registry, runs, spool, store
from tests.tracking import servers

pytestmark = pytest.mark.slow
EPOCH = {
    "lr": 1e-4,
    "train_loss": 0.5,
    "train_accuracy": 0.8,
    "val_loss": 0.6,
    "val_accuracy": 0.7,
    "seconds": 1.0,
}


def work(run, epochs):
    for epoch in epochs:
        run.log_epoch({"epoch": epoch, **EPOCH})


def test_a_server_that_goes_away_in_the_middle(
    params, clone, manifest, tmp_path, monkeypatch, capsys
):
    """One warning; the stage ends; the next one sends what was missed."""
    backend, port = f"sqlite:///{tmp_path}/server.db", servers.free_port()
    with servers.mlflow_server(tmp_path, backend, port=port) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        stage = runs.stage_run("fine-tune", params)
        run = stage.__enter__()
        work(run, [0])
    work(run, [1])  # the server has gone
    started = time.monotonic()
    work(run, range(2, 12))
    assert time.monotonic() - started < 2  # today every epoch stalls 12 s
    run.log_text("of the head", "note.txt")
    files.write_json(paths.FINE_TUNE / "metrics.json", {"accuracy": 0.7})
    with pytest.raises(store.Away):
        registry.find(run, "ab" * 32)
    stage.__exit__(None, None, None)
    assert capsys.readouterr().err.count("warning: ") == 1

    with pytest.raises(GraftError, match="cannot be reached"), runs.stage_run("evaluate", params):
        pytest.fail("began without a server")
    with servers.mlflow_server(tmp_path, backend, port=port):
        with runs.stage_run("evaluate", params) as following:
            pass
        found = following.client.get_run(run.run_id)
        history = following.client.get_metric_history(run.run_id, "train/loss")
        row = following.client.get_run(following.pipeline_id).data
        note = following.client.download_artifacts(run.run_id, "note.txt", str(tmp_path))
    assert (found.info.status, [m.step for m in history]) == ("FINISHED", list(range(12)))
    assert (tmp_path / "note.txt").read_text() == "of the head" and note
    assert found.data.tags["output.data/fine-tune/metrics.json"]
    assert row.metrics["fine-tune/accuracy"] == 0.7 and row.tags["run.fine-tune"] == run.run_id
    assert list(spool.folder().glob("*")) == []
    assert "sent to MLflow what it had missed of 1 run" in capsys.readouterr().out


def test_a_whole_stage_on_postgresql_behind_a_server(
    params, manifest, tmp_path, monkeypatch, register, clone
):
    password = secrets.token_hex(12)
    with (
        servers.postgresql(password) as database,
        servers.mlflow_server(tmp_path, database) as address,
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with runs.stage_run("fine-tune", params) as run:
            work(run, [0, 1])
            run.log_text("proxied", "note.txt")
            version = register(run, "ab" * 32, "fine-tuned")
        found = run.client.get_run(run.run_id)
        assert (found.info.status, version) == ("FINISHED", "1")
        assert found.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert not (clone / "mlruns").exists()


def test_postgresql_itself_and_its_password(
    params, manifest, tmp_path, monkeypatch, register, clone, capsys
):
    """Artifacts lie in the clone, from a throw-away folder too, and the password in no file, tag or
    output."""
    password = secrets.token_hex(12)
    working = clone / ".dvc" / "tmp" / "exps" / "temporary"
    working.mkdir(parents=True)
    (working / "params.yaml").write_bytes((clone / "params.yaml").read_bytes())
    with servers.postgresql(password) as database:
        monkeypatch.setenv("DVC_ROOT", str(clone))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
        monkeypatch.chdir(working)
        with runs.stage_run("split", params) as run:
            run.log_text("here", "note.txt")
            register(run, "ab" * 32, "head")
        place = store.local_path(run.client.get_run(run.run_id).info.artifact_uri)
        assert (
            place.is_relative_to(clone / "mlruns" / "artifacts")
            and (place / "note.txt").read_text() == "here"
        )
        with pytest.raises(GraftError) as failed, runs.stage_run("split", params) as broken:
            raise GraftError(f"cannot reach {database}")
        tags = broken.client.get_run(broken.run_id).data.tags
        assert "***" in tags["error"] and password not in str(tags)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", database.replace(password, "wrong-one"))
        started = time.monotonic()
        with pytest.raises(GraftError, match="cannot be reached") as refused:
            store.connect(params)
        assert time.monotonic() - started < 3
        assert "wrong-one" not in str(refused.value)
    assert failed.value and password not in "".join(capsys.readouterr())
    assert [
        p for p in clone.rglob("*") if p.is_file() and password.encode() in p.read_bytes()
    ] == []
