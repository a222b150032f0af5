"""`graft predict` beside a `model.predict` loop over `image_dataset_from_directory`, on the same
photos and network.

    python benchmarks/predict.py --data FOLDER [--images 10000] [--repeats 2]
        [--backbone efficientnet_lite0]

FOLDER: one sub-folder per class. Its photos are linked, again and again, into a folder of --images.
The network is the default's with a head of random weights, which takes as long as a trained one.
Every run is a process of its own, in turns; seconds are those of the clock and of the processors,
the start with its imports included and apart.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

KERAS = """
import sys, time
import keras, tensorflow as tf
model = keras.saving.load_model(sys.argv[1], compile=False)
started = time.perf_counter()
data = keras.utils.image_dataset_from_directory(
    sys.argv[2], image_size=model.input_shape[1:3], shuffle=False, verbose=False
)
data = data.map(lambda images, _: tf.cast(images, tf.uint8), num_parallel_calls=tf.data.AUTOTUNE)
data = data.prefetch(tf.data.AUTOTUNE)
print(len(model.predict(data, verbose=0)), time.perf_counter() - started)
"""
START = "from graft.commands.main import main; main(['predict', *__import__('sys').argv[1:]])"


def export(folder: Path, classes: tuple[str, ...], backbone: str) -> None:
    """The classifier with random head, as .keras, .onnx and .tflite."""
    from graft.description import Description
    from graft.network import backbones, classifier
    from graft.serving import writers
    from graft.system.environment import quiet_tensorflow

    quiet_tensorflow()
    size = backbones.resolve_size(backbone, "auto", [])
    description = Description(backbone, 1.0, size, classes, 0, 0.2, "crop")
    model = classifier.build(description, weights="packaged")
    writers.write(["keras", "tflite", "onnx"], *writers.self_contained(model, description), folder)


def link(data: Path, into: Path, n: int) -> None:
    """n links to the photos of `data`, in its classes' folders, evenly over the classes."""
    photos = sorted(
        path for path in data.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    photos = photos[:: -(-len(photos) // n)]
    for k, photo in enumerate(islice(cycle(photos), n)):
        folder = into / photo.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k:06}{photo.suffix}").symlink_to(photo.resolve())


def timed(*command: str) -> tuple[float, float, str]:
    """(seconds by the clock, seconds of processors, what it printed) of a command."""
    before, started = os.times(), time.perf_counter()
    out = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    wall, after = time.perf_counter() - started, os.times()
    return wall, sum(after[2:4]) - sum(before[2:4]), out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as place:
        work = Path(place)
        link(args.data, work / "photos", args.images)
        export(
            work / "export",
            tuple(sorted(path.name for path in (work / "photos").iterdir())),
            args.backbone,
        )
        one = next((work / "photos").rglob("*.*"))
        for turn in range(args.repeats):
            wall, cpu, out = timed(
                "-c", KERAS, str(work / "export" / "model.keras"), str(work / "photos")
            )
            n, loop = out.split()[-2:]
            tell("model.predict", turn, int(n), wall, float(loop), cpu)
            for name in ("model.onnx", "model.tflite"):
                model = ["--model", str(work / "export" / name)]
                start, _, _ = timed("-c", START, str(one), *model)
                output = work / "out.csv"
                wall, cpu, _ = timed(
                    "-c", START, str(work / "photos"), *model, "--output", str(output)
                )
                tell(
                    f"graft {name}",
                    turn,
                    len(output.read_text().splitlines()) - 1,
                    wall,
                    wall - start,
                    cpu,
                )


def tell(name: str, turn: int, n: int, wall: float, loop: float, cpu: float) -> None:
    print(
        f"{name:18} run {turn}: {n} photos, {wall:.1f} s by the clock ({n / wall:5.1f}/s), of "
        f"which start {wall - loop:4.1f} s ({n / loop:5.1f}/s without), {cpu:6.1f} s of "
        f"processors ({n / cpu:5.1f}/s)",
        flush=True,
    )


if __name__ == "__main__":
    main()
