"""What the tests of the recipes share: NullRun, params with changes, and a recipe run as
`run_stage` runs it."""

import contextlib
from pathlib import Path

from graft import params as parameters
from graft.system import environment
from stages import evaluate, fine_tune, second_look, split, train_head

ROOT = Path(__file__).parents[2]


class NullRun:
    """Stands for a StageRun where MLflow is not what is tested: keeps what is logged, and reaches
    no registry.

    metrics: {name: value}. rows: of log_epoch. texts: {name: text}. images: {key: pixels}.
    pictures: names of the files in logged folders.
    """

    def __init__(self, stage="", params=None):
        params = params or parameters.load(ROOT / "params.yaml")
        self.stage, self.params = stage, params
        self.identity, self.digests, self.shown_params = (
            {"stage": stage, "params": params.flat()},
            {},
            {"lr": str(params.lr)},
        )
        self.provenance = {"MLflow run": "0"}
        self.metrics, self.rows, self.texts, self.pictures = {}, [], {}, set()
        self.images = {}

    def log_metrics(self, values):
        self.metrics.update(values)

    def log_epoch(self, row):
        self.rows.append(row)

    def log_text(self, text, name):
        self.texts[name] = text

    def log_image(self, pixels, key):
        self.images[key] = pixels

    def log_artifacts(self, folder, name=None):
        self.pictures |= {path.name for path in Path(folder).iterdir()}

    def timed(self, what):
        return contextlib.nullcontext()


def changed(params, **blocks):
    """`params` with some fields of its blocks replaced: changed(params, head={"epochs": 3})."""
    inner = {
        key: getattr(params, key).model_copy(update=value)
        for key, value in blocks.items()
        if isinstance(value, dict)
    }
    return params.model_copy(update=blocks | inner)


def run(stage, params):
    """The recipe `stage` on `params`, as `run_stage` calls it. Returns its NullRun."""
    recipe = {
        "split": split.split,
        "train-head": train_head.train_head,
        "second-look": second_look.second_look,
        "fine-tune": fine_tune.fine_tune,
        "evaluate": evaluate.evaluate,
    }[stage]
    made = NullRun(stage, params)
    with environment.training_scope(params.seed):
        recipe(params, made)
    return made
