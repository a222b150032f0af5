"""The same classifier, its top layers unfrozen and trained on at a lower rate, from where
train-head left it."""

from graft.dataset import images, manifest
from graft.features.extractor import FeatureExtractor
from graft.network import acquaintance, backbones, classifier, top_training
from graft.network.checkpoint import Checkpoint
from graft.network.cut import find_cut
from graft.network.top_training import Phase, TrainConfig
from graft.reporting import plots, report
from graft.run import run_stage
from graft.scoring.history import History
from graft.serving import pyfunc
from graft.system import paths
from graft.system.console import log


def fine_tune(params, run):
    model, description = classifier.load(paths.TRAIN_HEAD)
    rows = manifest.read()
    layers = classifier.unfreeze(
        model, classifier.top_layers(model, params.fine_tune.layers, rows.shorter_sides)
    )
    cut = find_cut(model, layers)
    train, val = images.image_sets(rows, params.data.path, description, "train", "val")
    runtime = backbones.choose_runtime(params.features.runtime, description.backbone)
    extractor = FeatureExtractor.of(params, runtime)
    (seen,) = extractor.extract(model, [cut], train, views=params.augment.views, label="train")
    (val_seen,) = extractor.extract(model, [cut], val, label="val")

    checkpoint = Checkpoint(run.stage, {**run.identity, "model": pyfunc.digest(model, description)})
    enlarged = classifier.enlargement(description.image_size, rows.shorter_sides)
    config = TrainConfig.of(params, Phase.fine_tune(params, enlarged=enlarged), train.labels)
    if config.phase.epochs:
        log(f"fine-tune: the top {layers} layers, mixup {config.phase.mixup:g}")
    head = History.read(paths.TRAIN_HEAD / "curves.csv")
    trained = top_training.train(
        model,
        cut,
        seen,
        val_seen,
        config,
        checkpoint=checkpoint,
        previous=head,
        on_epoch=run.log_epoch,
    )

    description = description.replace(trainable_layers=layers, temperature=trained.temperature)
    classifier.save(model, description, paths.FINE_TUNE)
    acquaintance.acquaint(model, cut, seen, val_seen).write(paths.KNOWN)
    summary = report.write_training(paths.FINE_TUNE, trained, seed=params.seed)
    run.log_metrics(summary)
    plots.log_training(run, trained, model)
    accuracy = f"{summary['accuracy']:.4f}"
    tags = {"val_accuracy": accuracy}
    version = pyfunc.register(run, model, description, alias="fine-tuned", tags=tags)
    checkpoint.remove()
    log(f"fine-tune: validation accuracy {accuracy} (n = {len(val)}), model version {version}")


if __name__ == "__main__":
    run_stage(fine_tune)
