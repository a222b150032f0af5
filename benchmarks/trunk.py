"""Throughput of the frozen trunk, input pipeline included: graft's runtime and decoder against
`model.predict` over tf.data.

    python benchmarks/trunk.py graft|predict PHOTOS WEIGHTS --cut block_12_add

PHOTOS: a class-per-folder data set. Both read the same files, decode, resize and run them through
the same layers. The clock starts after a batch to warm up and stops with the last value in memory,
as float16 (graft) or float32 (predict). Neither writes them: what writing the feature cache costs
is in the pipeline's own log line.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

BATCH = 64


def graft(args, files):
    import numpy as np

    from graft import runtimes
    from graft.commands.import_weights import bring
    from graft.dataset import images
    from graft.description import Description
    from graft.network import backbones, classifier
    from graft.system import environment, paths

    environment.quiet_tensorflow()
    description = Description(
        "mobilenet_v2", args.alpha, args.image_size, ("a", "b"), 0, 0.2, "squash"
    )
    with tempfile.TemporaryDirectory() as clone:
        os.chdir(clone)  # whose data/weights holds the file, as a user's does
        paths.WEIGHTS.mkdir(parents=True)
        model = classifier.build(description, weights=bring(args.weights)[0].name)
        os.chdir("/")
    runtime = backbones.choose_runtime(args.runtime, "mobilenet_v2")
    run = runtimes.start(model, [model.get_layer(args.cut).output], runtime)

    def go(paths):
        for batch in images.iter_batches(args.photos, paths, args.image_size, batch_size=BATCH):
            run(batch)[0].astype(np.float16)

    go(files[:BATCH])
    started = time.monotonic()
    go(files)
    return runtime, time.monotonic() - started


def predict(args, files):
    import keras

    size = args.image_size
    base = keras.applications.MobileNetV2(
        input_shape=(size, size, 3), alpha=args.alpha, include_top=False, weights=str(args.weights)
    )
    x = inputs = keras.Input((size, size, 3))
    x = keras.applications.mobilenet_v2.preprocess_input(x)
    if args.cut == "pooling":
        x = keras.layers.GlobalAveragePooling2D()(base(x))
    else:
        x = keras.Model(base.input, base.get_layer(args.cut).output)(x)
    model = keras.Model(inputs, x)
    dataset = keras.utils.image_dataset_from_directory(
        args.photos,
        labels=None,
        image_size=(size, size),
        batch_size=BATCH,
        shuffle=False,
        verbose=False,
    )
    model.predict(dataset.take(1), verbose=0)
    started = time.monotonic()
    values = model.predict(dataset, verbose=0)
    seconds = time.monotonic() - started
    assert len(values) == len(files), f"{len(values)} predictions for {len(files)} files"
    return "model.predict", seconds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["graft", "predict"])
    parser.add_argument("photos", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument(
        "--cut", default="pooling", help="layer of MobileNetV2 whose output is wanted, or pooling"
    )
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.photos, args.weights = args.photos.resolve(), args.weights.resolve()
    args.out = args.out and args.out.resolve()
    files = sorted(
        path.relative_to(args.photos).as_posix()
        for path in args.photos.rglob("*")
        if path.is_file()
    )
    runtime, seconds = {"graft": graft, "predict": predict}[args.what](args, files)
    result = {
        "runtime": runtime,
        "images": len(files),
        "pass_seconds": seconds,
        "images_per_second": len(files) / seconds,
    }
    rate = len(files) / seconds
    print(
        f"{args.what} to {args.cut} by {runtime}: {len(files)} images in {seconds:.2f} s, "
        f"{rate:.0f} images/s"
    )
    if args.out:
        args.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
