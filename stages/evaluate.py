"""What the tuned model is worth: measured once, on the test images; the champion is challenged."""

from graft.dataset import images, manifest
from graft.known import Known
from graft.network import acquaintance, backbones, classifier, prediction
from graft.reporting import evaluation, model_card, plots
from graft.run import run_stage
from graft.scoring.calibration import Calibration
from graft.scoring.history import History
from graft.scoring.predictions import Predictions
from graft.scoring.results import Results
from graft.second_look import unknown
from graft.serving import pyfunc
from graft.system import files, paths
from graft.system.console import log


def evaluate(params, run):
    rows = manifest.read()
    head, head_description = classifier.load(paths.TRAIN_HEAD)
    model, description = classifier.load(paths.FINE_TUNE)
    (test,) = images.image_sets(rows, params.data.path, description, "test")
    runtime = backbones.choose_runtime(params.features.runtime, description.backbone)
    tuned, untuned, inside = prediction.predict_pair(
        model, head, description.trainable_layers, test, runtime=runtime
    )
    known = Known.read(paths.KNOWN)
    strange = unknown.far(images.sample(test, unknown.FAR, seed=params.seed), seed=params.seed)
    p_values = known.p_values(inside.features, inside.logits)
    refused = acquaintance.p_values(known, model, strange, runtime=runtime)
    calibration, head_calibration = (
        Calibration(d.temperature, params.evaluate.calibrate)
        for d in (description, head_description)
    )
    results = Results(
        predictions=calibration.shipped(Predictions.of(test, tuned)),
        head=head_calibration.shipped(Predictions.of(test, untuned)),
        calibration=calibration,
        history=History.read(paths.FINE_TUNE / "curves.csv"),
        known=p_values,
        unknown=tuple(unknown.judge(kind, p_values, values) for kind, values in refused.items()),
    )
    problems = files.read_csv(paths.SPLIT / "problems.csv")
    seen = (paths.SECOND_LOOK / "section.html").read_text(encoding="utf-8")
    found = evaluation.write_evaluation(
        paths.EVALUATE,
        results,
        models=(head, model),
        images=test,
        resamples=params.evaluate.bootstrap,
        seed=params.seed,
        about=model_card.About(description, rows.counts(), problems, run.digests, seen),
    )
    figures = found.report["summary"]
    run.log_metrics(figures)
    shown = {"params": run.shown_params, "provenance": run.provenance}
    run.log_text(model_card.with_provenance(found.page, **shown), "card.html")
    plots.log_images(run, found.images)
    pyfunc.contest(run, (head, head_description), (model, description), figures, images.image_sets)
    log(
        f"evaluate: test accuracy {figures['accuracy']:.4f} ({figures['accuracy_low']:.4f} to "
        f"{figures['accuracy_high']:.4f}, n = {len(test)}), head alone "
        f"{figures['head_accuracy']:.4f}; the model card: {paths.EVALUATE / 'card.html'}"
    )


if __name__ == "__main__":
    run_stage(evaluate)
