"""Serve the MLflow UI on 127.0.0.1, on the store that the stages write to."""

import argparse
import os
import socket
import sys

from graft import params
from graft.system import paths
from graft.system.console import GraftError, log
from graft.tracking import store

HOST = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port", type=int, default=5000, help="of 127.0.0.1 (default: %(default)s)"
    )


def ui(args: argparse.Namespace) -> None:
    """`graft ui [--port PORT]`: serve until Ctrl-C; where the store is a server's already, say its
    address.

    Raises GraftError when the port is not free.
    """
    uri = store.tracking_uri()
    if uri.startswith(("http:", "https:", "databricks")):
        log(f"the stages write to the MLflow server at {store.shown(uri)}: its UI is there")
        return
    claim(args.port, "ui")
    connection = store.connect(params.load())  # makes the store if there is none
    # Opened without this address the UI starts on its pages for language models, and shows a
    # hundred columns or none.
    where = f"http://{HOST}:{args.port}/#/experiments/{connection.experiment_id}/runs?viewStateShareKey={store.VIEW}"
    log(f"MLflow UI on {where} (Ctrl-C ends it)")
    options = ["--host", HOST, "--port", str(args.port), "--workers", "1"]
    # Else MLflow starts seven more processes, 1.7 GB, for jobs that nothing here gives it.
    environment = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",
        **os.environ,
    }
    # Not as an argument: a database's password would show in `ps`.
    environment["MLFLOW_BACKEND_STORE_URI"] = uri
    os.chdir(paths.root())
    # In place of this process, whose 225 MB of imports are not needed any more.
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "ui", *options], environment)


def claim(port: int, command: str) -> None:
    """Raise GraftError unless a server may listen on `port`: MLflow finds that out after 16 s of
    imports. command: graft's."""
    with socket.socket() as probe:
        # As the server does: free again right after its end.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise GraftError(
                f"--port {port}: {reason}; name a free one, such as graft {command} --port 5001"
            ) from None
