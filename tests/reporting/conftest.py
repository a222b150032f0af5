import warnings
from dataclasses import dataclass

import numpy as np
import pytest

from graft.description import Description
from graft.reporting.evaluation import write_evaluation
from graft.reporting.model_card import About
from graft.scoring.calibration import Calibration
from graft.scoring.results import Results

CLASSES = ["daisy", "path", 'a "b", <c> & d']


@dataclass
class Noise:
    """Stands for an ImageSet: every index is another image; keeps what was asked for last."""

    size: int = 16
    asked: tuple = ()

    def read(self, indices):
        self.asked = tuple(int(i) for i in indices)
        for some in np.array_split(np.array(self.asked), 2):  # in batches
            made = [
                np.random.default_rng(i).integers(0, 256, (self.size, self.size, 3), np.uint8)
                for i in some
            ]
            yield np.array(made, np.uint8).reshape(-1, self.size, self.size, 3)


@pytest.fixture(scope="session")
def images():
    return Noise()


@pytest.fixture(scope="session")
def about():
    return About(
        Description("tiny & <small>", 0.35, 96, tuple(CLASSES), 1280, 0.25, "squash", 20, 1.23456),
        counts={"train": {"daisy": 5, "path": 7}, "test": dict.fromkeys(CLASSES, 30)},
        problems=[
            {"path": f"daisy/{k}.jpg", "problem": "truncated", "action": "set aside"}
            for k in range(50)
        ],
        digests={"data": "ab12"},
    )


@pytest.fixture(scope="session")
def results(simulate, history):
    """90 test images of 3 classes in groups, calibrated with the temperature 2."""
    options = {"classes": CLASSES, "groups": ["" if i % 3 else f"g{i // 9}" for i in range(90)]}
    bare, head = (
        simulate(90, 3, signal=1.5, sharpness=2, **options),
        simulate(90, 3, signal=1, **options),
    )
    calibration = Calibration(2.0, applied=True)
    return Results(calibration.shipped(bare), head, calibration, history)


@pytest.fixture(scope="session")
def arguments(about, residual_model):
    """Of `write_evaluation`, but folder, results and images."""
    return {"models": (residual_model, residual_model), "about": about, "resamples": 200, "seed": 7}


@pytest.fixture(scope="session")
def written(results, arguments, images, tmp_path_factory):
    """(folder, Evaluation)"""
    folder = tmp_path_factory.mktemp("evaluate")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return folder, write_evaluation(folder, results, images=images, **arguments)
