"""What the tuned model is worth: measured once on the test images, beside the head-only model, and against the champion."""

import dataclasses
from pathlib import Path

from stages import console, paths, warm
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
        facts=card.facts_of(
            spec, counts=loading.counts(manifest), problems=problems, curves=curves, unfrozen_at=unfrozen_at, digests=digests
        ),
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
    console.log(
        f"evaluate: test accuracy {found.metrics['accuracy']:.4f} ({found.metrics['accuracy_low']:.4f} to "
        f"{found.metrics['accuracy_high']:.4f}, n = {len(test)}), head alone {found.metrics['head_accuracy']:.4f}"
    )


@console.entry
def main():
    from stages.tracking import runs

    params = parameters.load()
    with runs.stage_run("evaluate", params, inputs=INPUTS, outputs=[paths.EVALUATE / name for name in FILES]) as run:
        console.quiet_tensorflow()
        evaluate(params, run)


if __name__ == "__main__":
    warm.run("stages.evaluate", main)
