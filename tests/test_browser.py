"""docs/browser.md: its page, in a real Chromium, says of a dropped photo what the exported model
says."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from graft.description import Description

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "browser.md").read_text(encoding="utf-8")
INDEX = (ROOT / "deploy" / "browser" / "index.html").read_text(encoding="utf-8")
DROP = """<script>addEventListener("load", async () => {
  const photo = new File([await (await fetch("photo.png")).blob()], "photo.png");
  const transfer = new DataTransfer();
  transfer.items.add(photo);
  const dropped = new DragEvent("drop", {dataTransfer: transfer, bubbles: true});
  document.getElementById("drop").dispatchEvent(dropped);
  const told = await classify(photo).catch(error => String(error));
  while (!answer.textContent) await new Promise(resolve => setTimeout(resolve, 50));
  const shown = answer.innerText, none = new DataTransfer();
  none.items.add(new File(["no photo"], "notes.txt"));
  const refusable = new DragEvent("drop", {dataTransfer: none, bubbles: true});
  document.getElementById("drop").dispatchEvent(refusable);
  const between = [answer.textContent, answer.ariaBusy];
  while (!answer.textContent) await new Promise(resolve => setTimeout(resolve, 50));
  const refused = answer.textContent, seen = {};
  for (const rule of ["crop", "squash", "pad"]) seen[rule] = [...await pixels(photo, 32, rule)];
  fetch("answer", {method: "POST", body: JSON.stringify({told, seen, shown, between, refused})});
})</script>"""


def commands():
    (block,) = re.findall(r"^```sh\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    return block.strip().splitlines()


def test_the_page_asks_no_other_server():
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.+?)"', INDEX)
    assert policy.startswith("default-src 'self';")
    assert (
        re.findall(
            r"(?:https?:)?//[a-z]", re.sub("^ *//.*$|; //.*$", "", INDEX, flags=re.MULTILINE)
        )
        == []
    )


def test_the_page_asks_for_the_tensors_that_the_file_has():
    """Their names; the slow test runs the file itself."""
    assert 'session.run({ image: new ort.Tensor("uint8", image, [1, size, size, 3]) })' in INDEX
    assert "output.probabilities" in INDEX
    assert set(re.findall(r"about\.(\w+)", INDEX)) <= set(Description.__dataclass_fields__)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, keeps what is asked for and what is posted."""

    asked, posted = [], threading.Event()

    def do_POST(self):
        Handler.body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        Handler.posted.set()

    def log_message(self, *_):
        Handler.asked.append(self.path)


@pytest.mark.slow
def test_a_dropped_photo_gets_the_models_answer(tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    if (
        not shutil.which("npm")
        or subprocess.run(
            ["npm", "view", "onnxruntime-web", "name"], capture_output=True
        ).returncode
    ):
        pytest.skip("the npm registry cannot be reached, so there is no ONNX Runtime Web")
    from PIL import Image

    from graft import pixels
    from graft.serving import readers, writers
    from tests.serving.conftest import CLASSES, SIZE, make_classifier
    from tests.test_resizers import photo

    model, description = make_classifier()
    network, described = writers.self_contained(model, description.replace(resize="crop"))
    writers.write(("keras", "onnx"), network, described, tmp_path / "data" / "export")
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    for command in commands()[:-1]:
        subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True, capture_output=True)
    site = tmp_path / "site"
    (site / "index.html").write_text(INDEX.replace("</body>", f"{DROP}</body>"), encoding="utf-8")
    Image.fromarray(photo((90, 130))).save(site / "photo.png")
    Handler.extensions_map |= {".mjs": "text/javascript", ".wasm": "application/wasm"}
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=site)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
        ]
        options += ["--remote-debugging-port=0", f"http://127.0.0.1:{server.server_port}/"]
        process = subprocess.Popen(
            [browser, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            assert Handler.posted.wait(120), f"no answer; asked for {Handler.asked}"
        finally:
            process.terminate()
            process.wait()
            server.shutdown()
    found = json.loads(Handler.body)
    for rule, seen in found["seen"].items():
        image = np.array(seen, int).reshape(SIZE, SIZE, 3)
        assert np.abs(image - pixels.load(site / "photo.png", SIZE, resize=rule)).max() <= 1, rule
    cropped = np.array(found["seen"]["crop"], np.uint8).reshape(1, SIZE, SIZE, 3)
    expected = readers.load("onnx", tmp_path / "data" / "export")(cropped)[0]
    assert [each["name"] for each in found["told"]] == list(CLASSES), found
    np.testing.assert_allclose([each["probability"] for each in found["told"]], expected, atol=1e-4)
    assert found["between"] == ["", "true"]  # not the answer to the photo before
    assert found["refused"].startswith("This is no photo that can be read")
    assert found["shown"].split("\n")[0].startswith(CLASSES[expected.argmax()])
