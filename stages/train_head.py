"""A new head on a frozen backbone: the manifest's classes, learnt from what that already sees."""

from graft.dataset import images, manifest
from graft.description import Description
from graft.features.extractor import FeatureExtractor
from graft.network import backbones, classifier, head_solver, top_training
from graft.network.checkpoint import Checkpoint
from graft.network.cut import find_cut
from graft.network.outlook import outlook
from graft.network.top_training import Phase, TrainConfig
from graft.reporting import plots, report
from graft.run import run_stage
from graft.serving import pyfunc
from graft.system import paths
from graft.system.console import log


def train_head(params, run):
    rows = manifest.read()
    size = backbones.resolve_size(params.backbone.name, params.image_size, rows.shorter_sides)
    description = Description(
        backbone=params.backbone.name,
        alpha=params.backbone.alpha,
        image_size=size,
        classes=rows.classes,
        hidden_units=params.head.hidden_units,
        dropout=params.head.dropout,
        resize=params.resize,
        max_megapixels=params.data.max_megapixels,
        white=rows.white,
    )
    train, val = images.image_sets(rows, params.data.path, description, "train", "val")
    model = classifier.build(description, weights=params.backbone.weights)
    # The next stage's features come out of the same pass; they change no byte of these outputs.
    layers = classifier.top_layers(model, params.fine_tune.layers, rows.shorter_sides)
    cuts = find_cut(model, 0), find_cut(model, layers)
    counts = len(train), len(val)
    announce = outlook(model, cuts[1], description, params, rows.shorter_sides, counts)
    runtime = backbones.choose_runtime(params.features.runtime, description.backbone)
    extractor = FeatureExtractor.of(params, runtime, announce)
    seen = extractor.extract(model, cuts, train, views=params.augment.views, label="train")[0]
    val_seen = extractor.extract(model, cuts, val, label="val")[0]

    checkpoint = Checkpoint(run.stage, {**run.identity, "model": pyfunc.digest(model, description)})
    task = (model, cuts[0], seen, val_seen)
    if params.head.hidden_units:
        config = TrainConfig.of(params, Phase.head(params), train.labels)
        trained = top_training.fit_head(
            *task, config, checkpoint=checkpoint, on_epoch=run.log_epoch
        )
    else:
        balanced = params.head.class_weights == "balanced"
        trained = head_solver.solve(*task, balanced=balanced, on_epoch=run.log_epoch)

    description = description.replace(temperature=trained.temperature)
    classifier.save(model, description, paths.TRAIN_HEAD)
    summary = report.write_training(paths.TRAIN_HEAD, trained, seed=params.seed)
    run.log_metrics(summary)
    plots.log_training(run, trained, model)
    accuracy = f"{summary['accuracy']:.4f}"
    tags = {"val_accuracy": accuracy}
    version = pyfunc.register(run, model, description, alias="head", tags=tags)
    checkpoint.remove()
    log(f"train-head: validation accuracy {accuracy} (n = {len(val)}), model version {version}")


if __name__ == "__main__":
    run_stage(train_head, check=backbones.check)
