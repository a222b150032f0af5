"""A second look at the data: each photo judged by a head that did not learn from it; suspect
labels, a map, weak segments."""

import numpy as np

from graft.dataset import images, manifest
from graft.features.extractor import FeatureExtractor
from graft.network import acquaintance, backbones, classifier, head_solver
from graft.network.cut import find_cut
from graft.reporting import second_look as report
from graft.run import run_stage
from graft.scoring.predictions import Predictions
from graft.second_look import unknown
from graft.second_look.evidence import Evidence
from graft.system import files, paths
from graft.system.console import log


def second_look(params, run):
    rows = manifest.read()
    model, description = classifier.load(paths.TRAIN_HEAD)
    (photos,) = images.image_sets(rows, params.data.path, description)
    runtime = backbones.choose_runtime(params.features.runtime, description.backbone)
    extractor = FeatureExtractor.of(params, runtime)
    (seen,) = extractor.extract(model, [find_cut(model, 0)], photos, label="all photos")
    features = seen.take(np.arange(len(photos)))
    judged = head_solver.out_of_fold(
        features,
        rows.labels,
        rows.groups,
        classes=len(rows.classes),
        folds=params.evaluate.folds,
        balanced=params.head.class_weights == "balanced",
    )
    evidence = Evidence(
        Predictions.of(photos, judged),
        features,
        tuple(row.split for row in rows.rows),
        files.read_csv(paths.SPLIT / "problems.csv"),
        folds=params.evaluate.folds,
        sizes=tuple((row.width, row.height) for row in rows.rows),
    )
    near = unknown.near(acquaintance.without_a_class(
        features, rows.labels, evidence.splits, classes=len(rows.classes), seed=params.seed,
        shallow=classifier.shallow_width(model),
    ), rows.classes)  # fmt: skip
    found = report.write(paths.SECOND_LOOK, evidence, near, images=photos, seed=params.seed)
    run.log_metrics(found.metrics)
    report.log_images(run, found)
    log(found.line)


if __name__ == "__main__":
    run_stage(second_look)
