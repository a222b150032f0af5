"""A new head on a frozen backbone: the manifest's classes, learnt from what the backbone already sees."""

from stages import console, paths, warm
from stages import params as parameters


def train_head(params, run, inputs):
    from stages.dataset import images, loading
    from stages.grafting import graft
    from stages.network import backbones, classifier, training

    spec = classifier.ClassifierSpec(
        backbone=params.backbone.name,
        alpha=params.backbone.alpha,
        image_size=backbones.resolve_size(params.backbone.name, params.image_size),
        classes=loading.read_manifest().classes,
        hidden_units=params.head.hidden_units,
        dropout=params.head.dropout,
        resize=images.RESIZE,
    )
    with training.start(params.seed):
        model = classifier.build(spec, weights=params.backbone.weights)
        graft(
            model,
            spec,
            layers=0,
            params=params,
            run=run,
            inputs=inputs,
            peak_lr=params.head.lr,
            lr_key="head.lr",
            settings=params.head,
            alias="head",
            # The next stage's activations come out of the same pass over the images and change no byte of this stage's outputs.
            also=[params.fine_tune.layers],
        )


@console.entry
def main():
    from stages.grafting import MANIFEST, outputs
    from stages.network import backbones
    from stages.tracking import runs

    params = parameters.load()
    backbones.check(params)
    inputs = {"manifest": MANIFEST, "backbones": paths.BACKBONES}
    with runs.stage_run("train-head", params, inputs=inputs, outputs=outputs("train-head")) as run:
        console.quiet_tensorflow()
        train_head(params, run, inputs)


if __name__ == "__main__":
    warm.run("stages.train_head", main)
