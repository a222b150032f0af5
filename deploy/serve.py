"""Serve model.onnx with ONNX Runtime, NumPy and Pillow alone: `python serve.py`, with pixels.py and
model.onnx beside it.

POST /invocations takes an image file as it is and answers as `graft serve` does; GET /ping answers
200.
"""

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime
import pixels  # graft/pixels.py

LARGEST = 50_000_000  # bytes of a photo


class Classifier:
    def __init__(self, file: Path):
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self.about = json.loads(self.session.get_modelmeta().custom_metadata_map["graft"])

    def __call__(self, photo: bytes) -> dict:
        """Label, confidence and probabilities of an image file's bytes. Raises
        pixels.ImageProblem."""
        reading = {key: self.about[key] for key in ("resize", "max_megapixels", "white")}
        image = pixels.load(photo, self.about["image_size"], **reading)
        (found,) = self.session.run(["probabilities"], {"image": image[np.newaxis]})[0].tolist()
        best = int(np.argmax(found))
        named = dict(zip(self.about["classes"], found))
        return {
            "label": self.about["classes"][best],
            "confidence": found[best],
            "probabilities": named,
        }


class Handler(BaseHTTPRequestHandler):
    classifier: Classifier
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a client may keep a thread waiting

    def do_GET(self):
        self.answer(200, {}) if self.path == "/ping" else self.answer(
            404, {"error": "POST a photo to /invocations"}
        )

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.close_connection = True
        if self.path != "/invocations" or not 0 < length <= LARGEST:
            self.answer(
                400,
                {
                    "error": f"POST an image file to /invocations, with its length, {LARGEST:,} "
                    "bytes at most"
                },
            )
            return
        try:
            self.answer(200, {"predictions": [self.classifier(self.rfile.read(length))]})
        except pixels.ImageProblem as problem:
            self.answer(400, {"error": f"image 0: {problem}"})

    def answer(self, status, content):
        body = json.dumps(content, ensure_ascii=False).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing is kept of who asked what."""


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path(__file__).with_name("model.onnx"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5050)
    args = parser.parse_args()
    Handler.classifier = Classifier(args.model)
    with ThreadingHTTPServer((args.host, args.port), Handler) as server:
        print(f"{args.model} on http://{args.host}:{server.server_port}/invocations", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
