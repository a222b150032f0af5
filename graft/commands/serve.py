"""Serve the champion on 127.0.0.1: photos in, labels and probabilities out, by MLflow's scoring
server."""

import argparse
import json

from graft import params
from graft.commands.ui import HOST, claim
from graft.description import LABELS, Description
from graft.serving import pyfunc, server
from graft.system import paths
from graft.system.console import log, warn
from graft.tracking.champion import few


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        help="models:/NAME@ALIAS, models:/NAME/VERSION, or the folder of an MLflow model "
        "(default: the champion)",
    )
    parser.add_argument(
        "--port", type=int, default=5050, help="of 127.0.0.1 (default: %(default)s)"
    )


def serve(args: argparse.Namespace) -> None:
    """`graft serve [--model MODEL] [--port PORT]`: serve until Ctrl-C, in this process.

    Says so where the champion knows other classes than the model that was exported last: it was
    trained on other photos. Raises GraftError when the port is not free, and as
    `pyfunc.load_mlflow` does.
    """
    claim(args.port, "serve")
    name = params.load().tracking.model
    uri = args.model or f"models:/{name}@champion"
    model = pyfunc.load_mlflow(uri)
    described = Description.from_json(json.dumps(model.metadata.metadata or {}), uri)
    exported = paths.EXPORT / LABELS
    if (
        args.model is None
        and exported.exists()
        and exported.read_text(encoding="utf-8") != described.labels_text()
    ):
        warn(
            f"the champion was trained on other classes than the model in {paths.EXPORT}; "
            "`graft champion --set exported` makes that one the champion, "
            f"`graft serve --model models:/{name}@exported` serves it as it is"
        )
    import uvicorn

    where = f"http://{HOST}:{args.port}{server.PATH}"
    log(
        f"{uri} (classes: {few(described.classes)}) on {where} (Ctrl-C ends it); docs/server.md "
        "says how to ask"
    )
    uvicorn.run(server.application(model), host=HOST, port=args.port, log_level="warning")
