"""Pictures in scikit-learn's Display style: an object holds the data, `.plot(*, ax=None)` draws it and returns the object."""

from stages.reporting.plots.classes import ConfusionMatrixDisplay
from stages.reporting.plots.curves import CurvesDisplay

__all__ = ["ConfusionMatrixDisplay", "CurvesDisplay"]
