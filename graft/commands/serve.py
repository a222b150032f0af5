"""Serve the champion on 127.0.0.1: photos in, labels and probabilities out, by MLflow's scoring server."""

import argparse

from graft import params
from graft.commands.ui import HOST, claim
from graft.serving import pyfunc, server
from graft.system.console import log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        help="models:/NAME@ALIAS, models:/NAME/VERSION, or the folder of an MLflow model (default: the champion)",
    )
    parser.add_argument("--port", type=int, default=5050, help="of 127.0.0.1 (default: %(default)s)")


def serve(args: argparse.Namespace) -> None:
    """`graft serve [--model MODEL] [--port PORT]`: serve until Ctrl-C, in this process.

    Raises GraftError when the port is not free, and as `pyfunc.load_mlflow` does.
    """
    claim(args.port, "serve")
    uri = args.model or f"models:/{params.load().tracking.model}@champion"
    model = pyfunc.load_mlflow(uri)
    import uvicorn

    log(f"{uri} on http://{HOST}:{args.port}{server.PATH} (Ctrl-C ends it); docs/server.md says how to ask")
    uvicorn.run(server.application(model), host=HOST, port=args.port, log_level="warning")
