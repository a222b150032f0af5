"""What the tuned model is worth: measured once on the test images, beside the head-only model, and against the champion."""

import dataclasses
from pathlib import Path

from stages import console, paths
from stages import params as parameters

INPUTS = {
    "manifest": paths.SPLIT / "manifest.csv",
    "problems": paths.SPLIT / "problems.csv",
    "head.weights": paths.TRAIN_HEAD / "model.weights.h5",
    "head.model": paths.TRAIN_HEAD / "model.json",
    "weights": paths.FINE_TUNE / "model.weights.h5",
    "model": paths.FINE_TUNE / "model.json",
    "curves": paths.FINE_TUNE / "curves.csv",
}
FILES = ("metrics.json", "predictions.csv", "report.json", "report.txt", "confusion_matrix.csv", "plots")
LOAD = """import keras, numpy as np
model = keras.models.load_model("data/export/model.keras")
probabilities = model.predict(pixels)  # uint8 RGB (n, {size}, {size}, 3)"""


def card_facts(spec, manifest, problems, curves, unfrozen_at, digests):
    from stages.dataset import loading
    from stages.reporting.card import Facts

    counts = {name: dict.fromkeys(manifest.classes, 0) for name in loading.SPLITS}
    for row in manifest.rows:
        counts[row.split][row.label] += 1
    head_epochs = len(curves) if unfrozen_at is None else unfrozen_at
    return Facts(
        name=f"{spec.backbone} for {len(spec.classes)} classes",
        purpose=f"Says which of {len(spec.classes)} classes a photo shows: a new head grafted onto a pretrained {spec.backbone}.",
        model={
            "backbone": spec.backbone,
            "width (alpha)": spec.alpha,
            "input": f"{spec.image_size} x {spec.image_size} RGB, uint8",
            "resizing": spec.resize,
            "dense layer": spec.hidden_units or "none",
            "dropout": spec.dropout,
            "unfrozen layers": spec.trainable_layers,
            "temperature": round(spec.temperature, 4),
        },
        data={"images": len(manifest), "classes": len(manifest.classes)},
        counts=counts,
        problems=problems,
        training={
            "epochs, head": head_epochs,
            "epochs, fine-tuning": len(curves) - head_epochs,
            "peak lr, head": f"{curves[0]['lr']:.2g}",
            **({"peak lr, fine-tuning": f"{curves[unfrozen_at]['lr']:.2g}"} if unfrozen_at is not None else {}),
        },
        digests=digests,
        load=LOAD.format(size=spec.image_size),
    )


def evaluate(params, run):
    import csv

    from stages.dataset import loading
    from stages.network import classifier, engines, inference, training
    from stages.reporting import card, metrics, report
    from stages.serving import pyfunc
    from stages.tracking import champion, facts, registry, runs

    manifest = loading.read_manifest()
    test = manifest.split("test")
    with training.start(params.seed):
        head, head_spec = classifier.load(paths.TRAIN_HEAD)
        model, spec = classifier.load(paths.FINE_TUNE)
        pictures = loading.ImageSet(test, params.data.path, spec.image_size)
        probabilities, head_probabilities = inference.together(
            model, head, spec.trainable_layers, pictures, engine=engines.choose("auto", spec.backbone)
        )
    if params.evaluate.calibrate:
        probabilities = metrics.apply_temperature(probabilities, spec.temperature)
        head_probabilities = metrics.apply_temperature(head_probabilities, head_spec.temperature)

    curves, unfrozen_at = report.read_curves(paths.FINE_TUNE / "curves.csv")
    with (paths.SPLIT / "problems.csv").open(encoding="utf-8", newline="") as file:
        problems = list(csv.DictReader(file))
    digest = facts.model_digest(paths.FINE_TUNE)
    digests = {"manifest": facts.digest(INPUTS["manifest"]), "model": digest}
    found = report.write_evaluation(
        paths.EVALUATE,
        paths=test.paths,
        y=test.labels,
        probabilities=probabilities,
        classes=spec.classes,
        image=lambda i: next(iter(pictures.read([i])))[0],
        groups=test.groups,
        temperature=spec.temperature,
        calibrated=params.evaluate.calibrate,
        head_probabilities=head_probabilities,
        curves=curves,
        unfrozen_at=unfrozen_at,
        model=model,
        facts=card_facts(spec, manifest, problems, curves, unfrozen_at, digests),
        resamples=params.evaluate.bootstrap,
        seed=params.seed,
    )
    run.log_metrics(found.metrics)
    version = registry.register(
        run,
        stage="fine-tune",
        digest=digest,
        alias="fine-tuned",
        metrics=found.metrics,
        save_model=lambda path: pyfunc.save(path, model, spec),
    )
    champion.contest(
        run,
        version=version,
        image_paths=test.paths,
        y=test.labels,
        probabilities=probabilities,
        classes=spec.classes,
        groups=test.groups,
        metrics=found.metrics,
        predict=lambda old: pyfunc.predict_version(run.connection.uri, old, [Path(params.data.path) / p for p in test.paths]),
    )
    provenance = {"git commit": runs.git_commit() or "none", "pipeline run": run.pipeline_name, "MLflow run": run.run_id}
    settings = {key: str(value) for key, value in params.flat().items()}
    page = dataclasses.replace(found.card, facts=dataclasses.replace(found.card.facts, params=settings))
    run.log_text(card.render_card(page, provenance=provenance), "card.html")
    console.log(f"evaluate: test accuracy {found.metrics['accuracy']:.4f} ({found.metrics['accuracy_low']:.4f} to "
                f"{found.metrics['accuracy_high']:.4f}, n = {len(test)}), head alone {found.metrics['head_accuracy']:.4f}")  # fmt: skip


@console.entry
def main():
    console.quiet_tensorflow()
    from stages.tracking import runs

    params = parameters.load()
    with runs.stage_run("evaluate", params, inputs=INPUTS, outputs=[paths.EVALUATE / name for name in FILES]) as run:
        evaluate(params, run)


if __name__ == "__main__":
    main()
