"""The recipe of docs/tracking.md: a server of MLflow tells an address when the champion changes."""

import http.server
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from graft.tracking import champion, runs


@pytest.fixture
def server(clone, empty_database, monkeypatch):
    """The address of a server on a copy of an empty database, which may send to this host, and does
    so at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    (clone / "server.db").write_bytes(empty_database.read_bytes())
    allowed = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
    environment = {**os.environ, **allowed, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    options = [
        "--backend-store-uri",
        f"sqlite:///{clone / 'server.db'}",
        "--default-artifact-root",
        (clone / "files").as_uri(),
    ]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *options,
        "--host",
        "127.0.0.1",
        "--port",
        address.rpartition(":")[2],
    ]
    with subprocess.Popen(
        [*command, "--workers", "1"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as started:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(1)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield address
        started.terminate()


@pytest.mark.slow
def test_a_webhook_hears_of_a_new_champion(server, params, register):
    heard = queue.Queue()

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            heard.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        with runs.stage_run("fine-tune", params) as run:
            url = f"http://127.0.0.1:{receiver.server_port}/"
            run.client.create_webhook(
                name="champion", url=url, events=["model_version_alias.created"]
            )
            version = register(run, "a", "fine-tuned")
        champion.set_champion(params, version)
        messages = [heard.get(timeout=60) for _ in range(2)]
        receiver.shutdown()
    assert [message["data"] for message in messages] == [
        {"name": "graft", "alias": "fine-tuned", "version": "1"},
        {"name": "graft", "alias": "champion", "version": "1"},
    ]
