"""The tuned model for use elsewhere: one self-contained classifier in up to seven formats, each checked on test images."""

import json

from stages import console, paths, warm
from stages import params as parameters

INPUTS = {
    "manifest": paths.SPLIT / "manifest.csv",
    "weights": paths.FINE_TUNE / "model.weights.h5",
    "model": paths.FINE_TUNE / "model.json",
    "metrics": paths.EVALUATE / "metrics.json",
}
CALIBRATION = 64  # training images that set the ranges of int8; 3 s for MobileNetV2 at 160 px


def export(params, run):
    import numpy as np
    import tensorflow as tf

    from stages.dataset import loading
    from stages.network import classifier
    from stages.serving import checks, formats, pyfunc
    from stages.tracking import facts, registry

    tf.config.experimental.enable_tensor_float_32_execution(False)  # a GPU would round to 10 bits, a CPU does not
    wanted, folder = params.export.formats, paths.EXPORT
    formats.check_available(wanted)
    model, spec = classifier.load(paths.FINE_TUNE)
    temperature = spec.temperature if params.evaluate.calibrate else 1.0
    manifest = loading.read_manifest()
    test, train = manifest.split("test"), manifest.split("train")

    def pictures(part, positions):
        chosen = [part.paths[i] for i in positions]
        return np.stack(list(loading.load_images(params.data.path, chosen, spec.image_size)))

    with run.timed("convert"):
        formats.write(
            wanted,
            formats.self_contained(model, temperature),
            formats.Metadata.of(spec, temperature),
            folder,
            min_agreement=params.export.min_agreement,
            calibration=pictures(train, checks.sample(len(train), CALIBRATION)) if "tflite_int8" in wanted else None,
            wrote=lambda format, how: console.log(f"export: {folder / formats.FILES[format]} {how}".rstrip()),
        )

    positions = checks.sample(len(test))
    with run.timed("check"):
        images, y = pictures(test, positions), test.labels[positions]
        reference = checks.original(model, images, temperature)
        found, keras_model = [], None
        for format in wanted:  # one after the other: seven networks with their buffers would take gigabytes together
            model = formats.load(format, folder)
            found.append(checks.check(model, folder, images=images, y=y, reference=reference))
            keras_model = model if format == "keras" else keras_model
        console.log(checks.table(found))
        checks.write(folder / "checks.json", found)
        run.log_metrics({**checks.as_dict(found), **{f"latency/{k}": v for k, v in checks.latencies(found).items()}})
        run.log_text(json.dumps(checks.latencies(found), indent=2), "latency.json")
        for check in found:
            if problem := checks.problem(check, params.export.min_agreement):
                raise console.GraftError(problem)
        checked = found[wanted.index("keras")]
        accuracy = whole_accuracy(params, test, keras_model, checked, positions, evaluated=INPUTS["metrics"])

    version = registry.register(
        run,
        digest=facts.digest(folder / formats.FILES["keras"]),
        alias="exported",
        metrics={"accuracy": accuracy},
        save_model=lambda path: pyfunc.save_exported(path, folder / formats.FILES["keras"]),
        tags={"formats": ", ".join(wanted)},
    )
    console.log(f"export: {len(wanted)} formats agree with the original, test accuracy {accuracy:.4f}, model version {version}")


def whole_accuracy(params, test, model, checked, positions, *, evaluated):
    """Accuracy of the exported model on all test images. Raises GraftError unless it is what evaluate found (`evaluated`).

    checked: the Check of `model` on the images at `positions`, int (n,): only the others are predicted here.
    """
    import numpy as np

    from stages.dataset import loading

    others = np.setdiff1d(np.arange(len(test)), positions)
    right, start = round(checked.accuracy * checked.n), 0
    paths_left, labels = [test.paths[i] for i in others], test.labels[others]
    for batch in loading.iter_batches(params.data.path, paths_left, model.metadata.image_size, batch_size=32):
        right += int((model(batch).argmax(axis=1) == labels[start : start + len(batch)]).sum())
        start += len(batch)
    accuracy = right / len(test)
    expected = json.loads(evaluated.read_text(encoding="utf-8"))["accuracy"]
    # Both run the same weights, but evaluate's engine may round otherwise: an image near a boundary may fall on its other side.
    if abs(accuracy - expected) * len(test) > max(1, len(test) // 200) + 1e-6:
        raise console.GraftError(
            f"export: keras: accuracy {accuracy:.4f} on {len(test)} test images, but evaluate found {expected:.4f}; "
            "run `dvc repro --force evaluate export`"
        )
    return accuracy


@console.entry
def main():
    from stages.serving import formats
    from stages.tracking import runs

    params = parameters.load()
    outputs = [paths.EXPORT / name for name in (*formats.FILES.values(), formats.LABELS, "checks.json")]
    with runs.stage_run("export", params, inputs=INPUTS, outputs=outputs) as run:
        console.quiet_tensorflow()
        export(params, run)


if __name__ == "__main__":
    warm.run("stages.export", main)
