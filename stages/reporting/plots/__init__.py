"""Pictures in scikit-learn's Display style: an object holds the data, `.plot(*, ax=None)` draws it and returns the object."""

from stages.reporting.plots.calibration import ReliabilityDisplay
from stages.reporting.plots.classes import ConfusionMatrixDisplay, HeadAgainstTunedDisplay, PerClassDisplay
from stages.reporting.plots.curves import CurvesDisplay
from stages.reporting.plots.graph import ModelGraphDisplay
from stages.reporting.plots.photos import PhotosDisplay, Tile
from stages.reporting.plots.ranking import PrecisionRecallDisplay, RocDisplay

__all__ = [
    "ConfusionMatrixDisplay",
    "CurvesDisplay",
    "HeadAgainstTunedDisplay",
    "ModelGraphDisplay",
    "PerClassDisplay",
    "PhotosDisplay",
    "PrecisionRecallDisplay",
    "ReliabilityDisplay",
    "RocDisplay",
    "Tile",
]
