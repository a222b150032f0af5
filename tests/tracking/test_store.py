import base64
import contextlib
import http.server
import json
import os
import shutil
import socket
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from graft import params as parameters
from graft.system.console import GraftError
from graft.tracking import runs, store


def test_first_use_makes_database_and_artifacts_in_the_root(params, clone, monkeypatch):
    working = clone / ".dvc" / "tmp" / "exps" / "temporary"
    working.mkdir(parents=True)
    shutil.copy("params.yaml", working)
    monkeypatch.setenv("DVC_ROOT", str(clone))
    monkeypatch.chdir(working)
    (clone / "mlruns").mkdir()
    (clone / "mlruns" / "mlflow.db.new").write_bytes(
        b"left by a process that was killed while it made the tables"
    )
    with runs.stage_run("split", params) as run:
        run.log_text("hello", "note.txt")
    assert sorted(p.name for p in (clone / "mlruns").iterdir()) == ["artifacts", "mlflow.db"]
    assert (
        clone / "mlruns" / "artifacts" / run.run_id / "artifacts" / "note.txt"
    ).read_text() == "hello"
    note = Path(run.client.download_artifacts(run.run_id, "note.txt", str(clone)))
    assert note.read_text() == "hello"
    assert [p.name for p in working.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, "sqlite:///{root}/mlruns/mlflow.db"),
        ("", "sqlite:///{root}/mlruns/mlflow.db"),
        ("sqlite:///other/a b.db", "sqlite:///{root}/other/a b.db"),
        ("sqlite:////absolute/m.db", "sqlite:////absolute/m.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://me:p%40ss@mlflow.example/team", "https://mlflow.example/team"),
    ],
)
def test_tracking_uri(clone, monkeypatch, setting, expected):
    (clone / "sub").mkdir()
    monkeypatch.chdir(clone / "sub")  # a relative address means the same everywhere in the project
    if setting is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", setting)
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", setting)
        assert store.registry_uri() == expected.format(root=clone)
        monkeypatch.delenv("MLFLOW_REGISTRY_URI")
        assert store.registry_uri() == expected.format(root=clone)
    assert store.tracking_uri() == expected.format(root=clone)


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_unreachable_server_is_refused_before_any_work(params, monkeypatch):
    uri = f"http://user:secret@127.0.0.1:{closed_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    expected = r"MLflow at http://127\.0\.0\.1:\d+ cannot be reached"
    with pytest.raises(GraftError, match=expected) as caught, runs.stage_run("split", params):
        pytest.fail("the stage began to work")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the server's `status`, and notes what it was asked, and by whom."""

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def answering(status):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.status, server.seen = status, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_user_and_password_are_sent_and_shown_nowhere(params, monkeypatch):
    """Python's urllib takes `user:secret@127.0.0.1` for a host's name; MLflow would show the
    address in its errors."""
    with answering(200) as server:
        monkeypatch.setenv(
            "MLFLOW_TRACKING_URI", f"http://me:s%40cret@127.0.0.1:{server.server_port}"
        )
        assert store.use() == f"http://127.0.0.1:{server.server_port}"
        from mlflow import MlflowClient

        MlflowClient().search_experiments()
        server.status = 401
        with pytest.raises(GraftError) as refused:
            store.connect(params)
        assert "s@cret" not in str(refused.value) and "s%40cret" not in str(refused.value)
        assert base64.b64decode(server.seen[-1][1].removeprefix("Basic ")) == b"me:s@cret"
        assert server.seen[0][1] is None  # of the question whether anyone is there


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_answers_500_is_refused_at_once(params, monkeypatch, status):
    with answering(status) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        started = time.monotonic()
        with pytest.raises(GraftError, match=rf"cannot be reached \(it answers {status} "):
            store.connect(params)
        assert time.monotonic() - started < 3


def test_a_password_is_taken_out_of_what_an_error_says(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:geh%20heim@db.example/mlflow")
    for text in ("cannot log in with geh heim", "postgresql://me:geh%20heim@db.example: no"):
        assert "heim" not in store.first_line(ValueError(f"{text}\nsecond line"))
    assert store.shown("postgresql://db.example/mlflow?user=me&password=geheim") == (
        "postgresql://db.example/mlflow?user=me&password=***"
    )


def test_versions_go_to_the_roots_registry_from_a_throw_away_folder(
    params, clone, monkeypatch, database, register
):
    """MLFLOW_REGISTRY_URI=sqlite:///reg.db with `dvc exp run --temp`."""
    working = clone / ".dvc" / "tmp" / "exps" / "temporary"
    working.mkdir(parents=True)
    shutil.copy("params.yaml", working)
    shutil.copy(database, clone / "reg.db")
    monkeypatch.setenv("DVC_ROOT", str(clone))
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///reg.db")
    monkeypatch.chdir(working)
    with runs.stage_run("fine-tune", params) as run:
        register(run, "ab" * 32, "champion")
    assert [path.name for path in working.iterdir()] == ["params.yaml"]
    monkeypatch.chdir(clone)
    assert (
        store.connect(params).client.get_model_version_by_alias("graft", "champion").run_id
        == run.run_id
    )
    with contextlib.closing(sqlite3.connect(clone / "reg.db")) as registry:
        assert registry.execute("SELECT count(*) FROM model_versions").fetchone() == (1,)


def test_artifacts_of_a_database_server_go_to_the_root(params, clone, monkeypatch):
    """Its own default is the working folder, which `dvc exp run --temp` throws away."""
    made = {}

    class Client:
        def __init__(self, **_):
            pass

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name, **options):
            made.update(options)

    store._open(Client, "postgresql://db.example/mlflow", "graft")
    assert made["artifact_location"] == (clone / "mlruns" / "artifacts").as_uri()


def test_silent_server_is_refused(params, monkeypatch):
    monkeypatch.setattr(store, "PROBE_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(GraftError, match="cannot be reached"):
            store.connect(params)


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "./mlruns", "mlruns"])
def test_file_store_is_refused(params, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(GraftError, match="file store"):
        store.connect(params)


def test_damaged_database_is_one_line(params, clone):
    (clone / "mlruns").mkdir()
    (clone / "mlruns" / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(
        GraftError, match=r"^MLflow at sqlite:///.*mlflow\.db: .*not a database"
    ) as caught:
        store.connect(params)
    assert "\n" not in str(caught.value)


def test_deleted_experiment_is_restored(params, database, capsys):
    connection = store.connect(params)
    connection.client.delete_experiment(connection.experiment_id)
    again = store.connect(params)
    assert again.experiment_id == connection.experiment_id
    assert "restored" in capsys.readouterr().err
    assert again.client.get_experiment(again.experiment_id).lifecycle_stage == "active"


def _worker(root, barrier, number, name):
    os.chdir(root)
    os.environ["DVC_EXP_NAME"] = name
    barrier.wait()
    with runs.stage_run("fine-tune", parameters.load()) as run:
        run.log_metrics({"number": number})


def test_processes_that_meet_an_empty_store_together(params, clone, processes):
    """Ten queue workers of five experiments, none of which finds a database."""
    barrier = processes.Barrier(10)
    workers = [
        processes.Process(target=_worker, args=(clone, barrier, i, f"exp-{i % 5}"))
        for i in range(10)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 10
    found = store.connect(params)
    assert sorted(run.info.run_name for run in found.search(kind="pipeline")) == [
        f"exp-{i}" for i in range(5)
    ]
    assert sorted(run.data.metrics["number"] for run in found.search(kind="stage")) == list(
        range(10)
    )


def test_a_lock_that_is_not_given_back(clone):
    with (
        store.lock("held"),
        pytest.raises(GraftError, match=r"held\.lock: another process"),
        store.lock("held", seconds=0.05),
    ):
        pytest.fail("two at once")
    with store.lock("held", seconds=0.05):
        pass


def test_the_view_that_the_ui_opens_with(params, database):
    """An experiment of before gets it too, and one that was changed gets it back."""
    key = f"mlflow.sharedViewState.{store.VIEW}"
    for _ in range(2):
        connection = store.connect(params)
        text = connection.client.get_experiment(connection.experiment_id).tags[key]
        view = json.loads(text)
        assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`fine-tune/accuracy`", False)
        assert view["selectedColumns"][0] == view["orderByKey"]
        # As long as a tag may be on PostgreSQL.
        assert (len(view["selectedColumns"]), len(text) < 5000) == (10, True)
        assert view["columnOrder"] == view["selectedColumns"]
        assert [
            chart["metricKey"] for chart in view["compareRunCharts"] if chart["type"] == "BAR"
        ] == list(store.BARS)
        assert len({chart["uuid"] for chart in view["compareRunCharts"]}) == 6
        sections = [section["uuid"] for section in view["compareRunSections"]]
        assert {chart["metricSectionId"] for chart in view["compareRunCharts"]} == set(sections)
        connection.client.search_runs([connection.experiment_id], view["searchFilter"])
        connection.client.set_experiment_tag(connection.experiment_id, key, "{}")
