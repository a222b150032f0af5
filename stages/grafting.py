"""What train-head and fine-tune have in common: they are one operation at two cuts.

Unfreeze the top layers, take the frozen rest's activations from the memo, train what is above, then write, log and register.
"""

from stages import paths
from stages.console import log
from stages.dataset import loading
from stages.network import augmentation, classifier, engines, memo, training
from stages.reporting import metrics, report
from stages.serving import pyfunc
from stages.tracking import facts, registry

MANIFEST = paths.SPLIT / "manifest.csv"
FILES = (
    "model.weights.h5",
    "model.json",
    "curves.csv",
    "metrics.json",
    "report.json",
    "report.txt",
    "confusion_matrix.csv",
    "plots",
)
METRICS = ("n", "accuracy", "accuracy_low", "accuracy_high", "macro_f1", "loss")


def outputs(stage):
    return [paths.STAGES[stage] / name for name in FILES]


def graft(model, spec, layers, params, run, *, inputs, peak_lr, lr_key, settings, alias, also=(), earlier=()):
    """Train `model` with the top `layers` of its backbone unfrozen, and leave everything that the stage `run.stage` makes.

    inputs: {name: path}, what the stage reads. peak_lr, lr_key: the learning rate and the parameter that it came from.
    settings: the params block with epochs and patience. alias: in the registry. also: see `training.train`.
    earlier: rows of curves.csv of the stage before, continued by this one's.
    """
    manifest = loading.read_manifest()
    train, val = manifest.split("train"), manifest.split("val")
    augment, folder = params.augment, paths.STAGES[run.stage]
    identity = {
        "params": facts.stage_keys(run.stage, params),
        "inputs": {name: facts.digest(path) for name, path in inputs.items()},
    }
    checkpoint = training.Checkpoint(run.stage, identity)
    trained = layers > 0 or not earlier
    layers = classifier.unfreeze(model, layers)
    curves, probabilities = training.train(
        model,
        layers,
        *((loading.ImageSet(part, params.data.path, spec.image_size), part.labels) for part in (train, val)),
        pool=augmentation.Augmentation(
            augment.flip, augment.rotation, augment.zoom, augment.translation, augment.contrast, params.seed
        ),
        views=augment.views,
        schedule=training.Schedule(
            lr=peak_lr,
            lr_key=lr_key,
            epochs=settings.epochs if trained else 0,
            patience=settings.patience,
            warmup=settings.warmup if earlier else 0.0,  # the head starts from nothing that could be torn
            batch_size=params.batch_size,
            seed=params.seed,
            class_weights=training.balanced(train.labels, len(spec.classes))
            if params.head.class_weights == "balanced"
            else None,
        ),
        engine=engines.choose(params.trunk.engine, spec.backbone),
        memo=memo.Memo(max_gb=params.cache.max_gb),
        checkpoint=checkpoint,
        also=also,
        on_epoch=lambda row: run.log_epoch({**row, "epoch": row["epoch"] + len(earlier)}),
        baseline=bool(earlier),  # fine-tuning that helps nowhere leaves the head's model as it was
    )
    spec = spec.with_(trainable_layers=layers, temperature=metrics.fit_temperature(training.log_of(probabilities), val.labels))
    classifier.save(model, spec, folder)
    summary = report.write_training_report(
        folder,
        y=val.labels,
        probabilities=probabilities,
        classes=spec.classes,
        curves=[*earlier, *({**row, "epoch": row["epoch"] + len(earlier)} for row in curves)],
        unfrozen_at=len(earlier) if earlier and curves else None,
        groups=val.groups,
        model=model,
        seed=params.seed,
    )
    figures = {key: summary[key] for key in METRICS} | {"epochs": len(curves), "temperature": spec.temperature}
    report.write_json(folder / "metrics.json", figures)  # what `dvc exp show` has room for; report.json holds everything
    run.log_metrics(summary)
    version = registry.register(
        run,
        digest=classifier.digest(folder),
        alias=alias,
        save_model=lambda path: pyfunc.save(path, model, spec),
        tags={"val_accuracy": f"{summary['accuracy']:.4f}"},
    )
    checkpoint.remove()
    log(f"{run.stage}: validation accuracy {summary['accuracy']:.4f} (n = {len(val)}), model version {version} in the registry")
