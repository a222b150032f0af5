"""The same classifier, its top layers unfrozen and trained on at a lower rate, from where train-head left it."""

from stages import console, paths, warm
from stages import params as parameters


def fine_tune(params, run, inputs):
    from stages.grafting import graft
    from stages.network import classifier, training
    from stages.reporting import report

    head_curves, _ = report.read_curves(paths.TRAIN_HEAD / "curves.csv")
    with training.start(params.seed):
        model, spec = classifier.load(paths.TRAIN_HEAD)
        graft(
            model,
            spec,
            layers=params.fine_tune.layers,
            params=params,
            run=run,
            inputs=inputs,
            peak_lr=params.lr,
            lr_key="lr",
            settings=params.fine_tune,
            alias="fine-tuned",
            earlier=head_curves,
        )


@console.entry
def main():
    from stages.grafting import MANIFEST, outputs
    from stages.tracking import runs

    params = parameters.load()
    inputs = {
        "manifest": MANIFEST,
        "head.weights": paths.TRAIN_HEAD / "model.weights.h5",
        "head.model": paths.TRAIN_HEAD / "model.json",
        "head.curves": paths.TRAIN_HEAD / "curves.csv",
    }
    with runs.stage_run("fine-tune", params, inputs=inputs, outputs=outputs("fine-tune")) as run:
        console.quiet_tensorflow()
        fine_tune(params, run, inputs)


if __name__ == "__main__":
    warm.run("stages.fine_tune", main)
