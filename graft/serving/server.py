"""MLflow's scoring server, for photos: it takes an image file as it is too, and says what is wrong
with a request in a line."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

PATH = "/invocations"
RAW = ("image/", "application/octet-stream")  # content types of an image file
LONGEST = 300  # signs of an error
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def application(model: Any) -> Photos:
    """The ASGI application. model: an mlflow.pyfunc.PyFuncModel that graft made."""
    from mlflow.pyfunc import scoring_server

    return Photos(scoring_server.init(model))


class Photos:
    """ASGI around MLflow's `app`, for requests to PATH: an image file becomes MLflow's JSON, an
    error becomes one line.

    MLflow puts the whole request into its errors, megabytes of base64 of which the cause is the
    end.
    """

    def __init__(self, app: Callable):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH:
            scope, receive = await _as_json(scope, receive)
            send = _Shortened(send).send
        await self.app(scope, receive, send)


async def _as_json(scope, receive):
    kind = (
        next((value for name, value in scope["headers"] if name == b"content-type"), b"")
        .decode("latin-1")
        .lower()
    )
    if not kind.startswith(RAW):
        return scope, receive
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    body = json.dumps({"inputs": [base64.b64encode(body).decode()]}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]

    async def given() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return {
        **scope,
        "headers": [*(h for h in scope["headers"] if h[0] not in dict(headers)), *headers],
    }, given


class _Shortened:
    """Passes an answer on; of one that refuses, the line that says why."""

    def __init__(self, send: Send):
        self.pass_on, self.body = send, b""
        self.start: dict[str, Any] | None = None

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self.start = message
        elif self.start is None:
            await self.pass_on(message)
        else:
            self.body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._refuse(self.start)

    async def _refuse(self, start: dict[str, Any]) -> None:
        body = (
            json.dumps(
                {"error": reason(self.body.decode("utf-8", "replace"))}, ensure_ascii=False
            ).encode()
            + b"\n"
        )
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await self.pass_on({**start, "headers": headers})
        await self.pass_on({"type": "http.response.body", "body": body})


def reason(text: str) -> str:
    """The one line that tells the cause, out of what MLflow says of a request that it refuses."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["message"]
    line = " ".join(text.rpartition("\nError: ")[2].split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
