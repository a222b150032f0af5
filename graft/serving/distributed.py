"""Prediction on a cluster: each block of 512 photos by one worker, without TensorFlow, the rows in
the order of the files."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from graft import pixels, runtimes
from graft.serving import readers
from graft.serving.predict import WITHOUT_TENSORFLOW, Prediction, predict
from graft.system import cluster
from graft.system.console import GraftError

ROWS = 512  # files of a block


@dataclass(frozen=True)
class PredictionJob:
    """A model as a file: its content, and the suffix that says its format; `size` and `resize` of
    its photos."""

    content: bytes
    suffix: str
    size: int
    resize: str

    def identity(self) -> list[str]:
        """What probabilities depend on where they are computed: runtime, versions, instruction set,
        decoded pixels."""
        probe = hashlib.sha256(pixels.probe(self.size, self.resize).tobytes()).hexdigest()
        return [
            *runtimes.computer("onnx" if self.suffix == ".onnx" else "litert"),
            f"pixels {probe[:12]}",
        ]

    def start(self) -> Callable[[list[Path]], list[Prediction]]:
        folder = tempfile.TemporaryDirectory(prefix="graft-")
        path = Path(folder.name) / f"model{self.suffix}"
        path.write_bytes(self.content)
        model = readers.load_file(path)
        # As with a worker's one processor: nobody opens the file again.
        if readers.lanes(model) == 1:
            folder.cleanup()

        def block(files: list[Path], kept: object = folder) -> list[Prediction]:
            return list(predict(model, files))

        return block


def predict_on_cluster(model: readers.Loaded, files: Iterable[Path]) -> Iterator[Prediction]:
    """As `predict`, computed by the workers of `system.cluster`, which must see the files under the
    same paths.

    Raises GraftError for a model whose runtime is TensorFlow, and as `cluster.Cluster.run` does.
    """
    path = Path(model.name)
    if path.suffix not in WITHOUT_TENSORFLOW:
        raise GraftError(
            f"--executor ray: {model.name}: workers run model.tflite or model.onnx; name one with "
            "--model"
        )
    job = PredictionJob(
        path.read_bytes(), path.suffix, model.description.image_size, model.description.resize
    )
    with cluster.connect() as workers:
        for _, rows in workers.run(job, _blocks(files)):
            yield from rows


def _blocks(files):
    files = iter(files)
    while block := list(islice(files, ROWS)):
        yield block
