"""graft serve: what becomes of requests, and the commands of docs/server.md on a server that
runs."""

import asyncio
import base64
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from graft.commands import main
from graft.serving import pyfunc, server
from tests.serving.conftest import CLASSES, encode, make_classifier, make_images

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
MLFLOW = json.dumps(
    {
        "error_code": "BAD",
        "message": f"Failed to predict data '{'A' * 9999}'. \nError: image 0: empty: no\nbytes",
    }
)


async def ask(app, body, kind, path=server.PATH):
    """(status, headers, body) of a request in two parts."""
    parts, sent = [body[:2], body[2:]], []

    async def receive():
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", kind), (b"content-length", b"999"), (b"host", b"here")]
    await app({"type": "http", "path": path, "headers": headers}, receive, send)
    return (
        sent[0]["status"],
        dict(sent[0]["headers"]),
        b"".join(message.get("body", b"") for message in sent[1:]),
    )


def mirror(status, text=None):
    """An ASGI application that answers with what it was asked, or with `text`, in two parts."""

    async def app(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        shown = json.dumps(
            {name.decode(): value.decode() for name, value in scope["headers"]}
            | {"body": body.decode("latin-1")}
        )
        content = (text or shown).encode()
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-length", b"7")],
            }
        )
        await send({"type": "http.response.body", "body": content[:4], "more_body": True})
        await send({"type": "http.response.body", "body": content[4:]})

    return server.Photos(app)


@pytest.mark.parametrize("kind", [b"image/jpeg", b"IMAGE/png; x=y", b"application/octet-stream"])
def test_an_image_file_becomes_the_json_that_mlflow_takes(kind):
    status, _, body = asyncio.run(ask(mirror(200), b"\xff\xd8 photo", kind))
    seen = json.loads(body)
    assert status == 200
    assert json.loads(seen["body"]) == {"inputs": [base64.b64encode(b"\xff\xd8 photo").decode()]}
    assert (seen["content-type"], seen["host"]) == ("application/json", "here")
    assert int(seen["content-length"]) == len(seen["body"])


@pytest.mark.parametrize(
    ("kind", "path"), [(b"application/json", server.PATH), (b"image/png", "/ping")]
)
def test_anything_else_is_passed_on_as_it_is(kind, path):
    seen = json.loads(asyncio.run(ask(mirror(200), b"[1, 2]", kind, path))[2])
    assert (seen["body"], seen["content-type"], seen["content-length"]) == (
        "[1, 2]",
        kind.decode(),
        "999",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MLFLOW, "image 0: empty: no bytes"),
        ("only JSON\nplease", "only JSON please"),
        ("[3]", "[3]"),
        ("x" * 999, "x" * 300 + "…"),
    ],
)
def test_a_refusal_is_one_line(text, said):
    status, headers, body = asyncio.run(ask(mirror(400, text), b"{}", b"application/json"))
    assert (status, json.loads(body), headers[b"content-type"]) == (
        400,
        {"error": said},
        b"application/json",
    )
    assert int(headers[b"content-length"]) == len(body)


def test_a_port_in_use_is_found_before_any_work(clone, monkeypatch, capsys):
    monkeypatch.setattr(pyfunc, "load_mlflow", lambda uri: pytest.fail("a model was loaded"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SystemExit):
            main.main(["serve", "--port", str(taken.getsockname()[1])])
    assert "name a free one, such as graft serve --port 5001" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("exported", "options", "warned"),
    [(("a", "b"), [], False), (("x", "b"), [], True), (("x", "b"), ["--model", "m"], False)],
)
def test_a_champion_of_other_photos_than_the_latest_is_said(
    exported, options, warned, clone, monkeypatch, capsys
):
    _, described = make_classifier()
    kept = json.loads(described.replace(classes=("a", "b")).to_json())
    loaded = SimpleNamespace(metadata=SimpleNamespace(metadata=kept))
    monkeypatch.setattr(pyfunc, "load_mlflow", lambda uri: loaded)
    monkeypatch.setattr(server, "application", lambda model: model)
    monkeypatch.setattr("uvicorn.run", lambda model, **_: None)
    (clone / "data" / "export").mkdir(parents=True, exist_ok=True)
    (clone / "data" / "export" / "labels.txt").write_text("".join(f"{name}\n" for name in exported))
    main.main(["serve", "--port", "0", *options])
    said = capsys.readouterr()
    assert "(classes: a, b) on http://127.0.0.1:0/invocations (Ctrl-C ends it)" in said.out
    assert ("`graft champion --set exported` makes that one the champion" in said.err) == warned


def test_without_a_store_there_is_no_champion(clone, capsys):
    with pytest.raises(SystemExit):
        main.main(["serve", "--port", "0"])
    assert "models:/graft@champion: no MLflow store at " in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_is_true(tmp_path):
    """Its curl commands, verbatim but for the port, on the server that `graft serve` is."""
    model, described = make_classifier()
    pyfunc.save(tmp_path / "model", model, described)
    photo, whole = make_images(1)[0], tmp_path / "photo.jpg"
    whole.write_bytes(encode(photo, "JPEG"))
    (tmp_path / "broken.jpg").write_bytes(whole.read_bytes()[:-200])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [
        sys.executable,
        "-m",
        "graft.commands.main",
        "serve",
        "--model",
        str(tmp_path / "model"),
        "--port",
        port,
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert "(Ctrl-C ends it)" in process.stdout.readline()
        wait(f"http://127.0.0.1:{port}/ping", process)
        blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
        asked = [block.replace("5050", port) for block in blocks if "curl" in block]
        run = [
            subprocess.run(["bash", "-ec", each], cwd=tmp_path, capture_output=True, text=True)
            for each in asked
        ]
        alone, both, broken = (json.loads(done.stdout, parse_constant=pytest.fail) for done in run)
        (row,) = alone["predictions"]
        assert row["label"] in CLASSES and list(row) == ["label", "confidence", "probabilities"]
        assert (both["predictions"][0]["label"], both["predictions"][0]["problem"]) == (
            row["label"],
            "",
        )
        assert both["predictions"][0]["confidence"] == pytest.approx(row["confidence"], abs=1e-5)
        assert (
            both["predictions"][1]["label"] is None
            and "truncated" in both["predictions"][1]["problem"]
        )
        assert broken["error"].startswith("image 0: truncated")
        for wrong in ("{", '{"inputs": ["no photo"]}', '{"data": []}', "{}", "[]"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(
                    urllib.request.Request(
                        asked_of(port), wrong.encode(), {"Content-Type": "application/json"}
                    )
                )
            assert refused.value.code == 400
            (said,) = json.loads(refused.value.read()).values()
            assert len(said.split()) > 2 and "\n" not in said
    finally:
        process.terminate()
        process.wait(30)


def asked_of(port):
    return f"http://127.0.0.1:{port}{server.PATH}"


def wait(url, process):
    deadline = time.monotonic() + 120
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5)
        except OSError:
            assert time.monotonic() < deadline and process.poll() is None, (
                "the server does not start"
            )
            time.sleep(0.2)
