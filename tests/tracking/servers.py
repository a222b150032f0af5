"""Real servers for the tests: `mlflow server` over HTTP, PostgreSQL of Debian's package."""

import base64
import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

START_SECONDS = 240


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def mlflow_server(folder, backend, *, port=None, password=None):
    """Address of an `mlflow server` on the database `backend`, its artifacts, which it hands on
    itself, below `folder`.

    password: of its user `admin`; without one it asks nobody. The address holds neither.
    """
    port = port or free_port()
    where = [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--artifacts-destination",
        str(folder / "served"),
    ]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend, *where]
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**kept, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PATH": path}
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
    )
    if password:
        if importlib.util.find_spec("flask_wtf") is None:
            pytest.skip("MLflow's basic authentication needs Flask-WTF: pip install 'mlflow[auth]'")
        command += ["--app-name", "basic-auth"]
        settings = folder / "basic_auth.ini"
        users = (
            f"database_uri = sqlite:///{folder}/users.db\nadmin_username = "
            "admin\ndefault_permission = READ"
        )
        rule = "authorization_function = mlflow.server.auth:authenticate_request_basic_auth"
        settings.write_text(f"[mlflow]\n{users}\n{rule}\n")
        environment |= {
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(),
        }
        asked.add_header(
            "Authorization", "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()
        )
    with (folder / f"server-{port}.log").open("ab") as output:
        options = {
            "env": environment,
            "cwd": folder,
            "stdout": output,
            "stderr": output,
            "start_new_session": True,
        }
        process = subprocess.Popen(command, **options)
    try:
        _wait(process, asked)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(process, address):
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(address, timeout=10).close()
            return
        except OSError:
            assert time.monotonic() < deadline and process.poll() is None, (
                "the server does not start"
            )
            time.sleep(0.5)


def _programs():
    """Folder of PostgreSQL's programs, or None."""
    found = shutil.which("pg_ctl")
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return Path(found).resolve().parent if found else versions[-1].parent if versions else None


@contextlib.contextmanager
def postgresql(password):
    """Address of an empty database of a PostgreSQL server of the test's own, which asks for
    `password`."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("PostgreSQL's driver is not installed: pip install 'psycopg[binary]'")
    become = {}
    # Not in pytest's folder, which is its owner's alone: PostgreSQL refuses to run as root.
    with tempfile.TemporaryDirectory(prefix="graft-postgresql-") as place:
        data, secret, port = Path(place) / "data", Path(place) / "password", free_port()
        secret.write_text(password)
        if os.getuid() == 0:
            become = {"user": _account()}
            for path in (place, secret):
                shutil.chown(path, become["user"])
        quiet = {
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "cwd": "/",
            "check": True,
            **become,
        }
        made = [
            "-D",
            str(data),
            "-U",
            "graft",
            "-A",
            "scram-sha-256",
            "--pwfile",
            str(secret),
            "-E",
            "UTF8",
        ]
        subprocess.run([programs / "initdb", *made], **quiet)
        options = (
            f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        )
        start = ["-D", data, "-w", "-t", "120", "-l", Path(place) / "log", "-o", options, "start"]
        subprocess.run([programs / "pg_ctl", *start], **quiet)
        try:
            yield f"postgresql://graft:{password}@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **quiet)


def _account():
    try:
        return pwd.getpwnam("postgres").pw_uid
    except KeyError:
        pytest.skip("there is no user postgres to run PostgreSQL as")
