import os
import socket
import sys
from types import SimpleNamespace

import pytest

from graft.commands import main
from graft.tracking import store


@pytest.fixture
def served(clone, monkeypatch):
    """What `graft ui` would become: the arguments and the environment of the process that takes its
    place."""
    started = []
    monkeypatch.setattr(store, "connect", lambda params: SimpleNamespace(experiment_id="7"))
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    return started


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_mlflow_serves_the_store_of_the_clone_and_no_jobs(served, clone, capsys):
    port = free_port()
    main.main(["ui", "--port", port])
    ((program, arguments, environment),) = served
    assert program == sys.executable
    where = ["--host", "127.0.0.1", "--port", port]
    assert arguments == [sys.executable, "-m", "mlflow", "ui", *where, "--workers", "1"]
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    # Of what MLflow imports.
    assert environment["PYTHONWARNINGS"] == os.environ.get("PYTHONWARNINGS", "ignore")
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{clone}/mlruns/mlflow.db"
    address = f"http://127.0.0.1:{port}/#/experiments/7/runs?viewStateShareKey=graft"
    assert capsys.readouterr().out == f"MLflow UI on {address} (Ctrl-C ends it)\n"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_is_there_already_is_named_without_its_password(
    scheme, served, monkeypatch, capsys
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://user:secret@mlflow.example:8080/team")
    main.main(["ui"])
    assert (
        capsys.readouterr().out
        == f"the stages write to the MLflow server at {scheme}://mlflow.example:8080/team: its UI "
        "is there\n"
    )
    assert served == []


def test_a_port_in_use_is_found_before_any_work(served, monkeypatch, capsys):
    monkeypatch.setattr(store, "connect", lambda params: pytest.fail("MLflow was imported"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as end:
            main.main(["ui", "--port", str(port)])
    assert (end.value.code, served) == (1, [])
    assert (
        capsys.readouterr().err
        == f"error: --port {port}: Address already in use; name a free one, such as graft ui "
        "--port 5001\n"
    )


def test_a_port_that_is_none(served, capsys):
    with pytest.raises(SystemExit):
        main.main(["ui", "--port", "70000"])
    assert capsys.readouterr().err.startswith("error: --port 70000: ")
