"""What a training leaves; all that an evaluation starts from, and the figures that follow from
it."""

from dataclasses import dataclass, field

import numpy as np

from graft.scoring import metrics
from graft.scoring.calibration import (
    Calibration,
    chance_calibration_error,
    expected_calibration_error,
)
from graft.scoring.history import History
from graft.scoring.predictions import Predictions
from graft.scoring.statistics import Comparison, compare_predictions


@dataclass(frozen=True)
class TrainingResult:
    """history: of this phase and those before it. predictions: of the validation images, by the
    best epoch's weights, which the model holds. temperature: fitted on them. epochs: that this
    phase trained."""

    history: History
    predictions: Predictions
    temperature: float
    epochs: int


@dataclass(frozen=True)
class Results:
    """predictions: of the fine-tuned model as shipped. head: of the model before fine-tuning, of
    the same images. calibration: of `predictions`. history: of the training of both. known: float
    (n,), p-values of the images as of `graft.known`. unknown: what came of pictures of none of the
    classes, `second_look.unknown.Verdict`s.
    """

    predictions: Predictions
    head: Predictions
    calibration: Calibration = field(default_factory=Calibration)
    history: History = field(default_factory=History)
    known: np.ndarray | None = None
    unknown: tuple = ()

    def report(self, *, resamples: int = 2000, seed: int = 0) -> tuple[dict, Comparison]:
        """(metrics.classification_report of `predictions`, head against fine-tuned), with more in
        the report's summary:

        `temperature`, `ece_uncalibrated`, `ece_calibrated`, `loss_uncalibrated`, `loss_calibrated`
        (`ece` and `loss` are those of what is shipped); `ece_by_chance`, `ece_by_chance_high` (mean
        and 95% quantile of the `ece` that perfectly calibrated confidences would show on as many
        images); `head_accuracy`, `head_difference` (fine-tuned minus head) with `_low` and `_high`,
        `head_p_value`.
        """
        bare, tempered = self.calibration.both(self.predictions)
        chance, chance_high = chance_calibration_error(self.predictions, seed=seed)
        paired = compare_predictions(self.head, self.predictions, resamples=resamples, seed=seed)
        report = metrics.classification_report(self.predictions, resamples=resamples, seed=seed)
        report["summary"] |= {
            "temperature": float(self.calibration.temperature),
            "ece_uncalibrated": expected_calibration_error(bare),
            "ece_calibrated": expected_calibration_error(tempered),
            "loss_uncalibrated": metrics.log_loss(bare),
            "loss_calibrated": metrics.log_loss(tempered),
            "ece_by_chance": chance,
            "ece_by_chance_high": chance_high,
            "head_accuracy": paired.first,
            "head_difference": paired.difference,
            "head_difference_low": paired.low,
            "head_difference_high": paired.high,
            "head_p_value": paired.p_value,
        }
        if self.unknown:
            report["summary"]["far_auroc"] = float(
                np.mean([verdict.auroc for verdict in self.unknown])
            )
        return report, paired
