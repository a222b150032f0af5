"""ROC and precision-recall curves, one class against the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from graft.figures import style
from graft.scoring.predictions import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from typing_extensions import Self

POINTS = 200  # of a curve, at most: enough for the eye, and 100 classes stay a small file
EACH_UP_TO = 10  # classes with a line of their own in the legend


class _CurvePerClass(style.Display):
    """`curves`: {class name: (x, y, area)}, x and y float (k,), of the classes for which the curve
    is defined."""

    title = x_label = y_label = area = ""
    corner: Literal["lower left", "lower right"] = "lower left"
    look: ClassVar[dict[str, Any]] = {}

    def __init__(self, curves: Mapping[str, tuple[np.ndarray, np.ndarray, float]]):
        self.curves = dict(curves)

    @staticmethod
    def _curve(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """x, y and the area: of a class, whose images are `positive`, bool (n,), and have `scores`,
        float (n,)."""
        raise NotImplementedError

    @classmethod
    def from_predictions(cls, predictions: Predictions) -> Self:
        curves = {}
        for c, name in enumerate(predictions.classes):
            positive = predictions.labels == c
            if positive.any() and not positive.all():
                xs, ys, area = cls._curve(positive, predictions.probabilities[:, c])
                keep = np.unique(
                    np.linspace(0, len(xs) - 1, min(len(xs), POINTS)).round().astype(int)
                )
                curves[name] = (xs[keep], ys[keep], area)
        return cls(curves)

    @property
    def rows(self) -> list[tuple[str, float, float]]:
        """(class, x, y): the points drawn, for a CSV file."""
        return [
            (name, float(x), float(y))
            for name, (xs, ys, _) in self.curves.items()
            for x, y in zip(xs, ys)
        ]

    def draw(self, ax: Axes) -> None:
        drawn, title = list(self.curves), self.area
        if len(drawn) > EACH_UP_TO:
            drawn, title = (
                sorted(self.curves, key=lambda name: self.curves[name][2])[:3],
                f"{self.area}, the three least",
            )
            self._draw_all(ax)
        for k, name in enumerate(drawn):
            xs, ys, area = self.curves[name]
            look = {"linestyle": style.DASHES[k // 4 % len(style.DASHES)], **self.look}
            colour = style.SERIES[k % len(style.SERIES)]
            # The area first: matplotlib leaves a label that begins with _ out of the legend.
            ax.plot(xs, ys, color=colour, label=f"{area:.3f}  {style.short(name, 18)}", **look)
        self._guide(ax)
        ax.set(title=self.title, xlabel=self.x_label, ylabel=self.y_label)
        ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        ax.grid()
        if drawn:
            ax.legend(
                loc=self.corner, title=title, title_fontsize=8, alignment="left", labelspacing=0.3
            )

    def _draw_all(self, ax):
        from matplotlib.collections import LineCollection

        lines = [np.column_stack(curve[:2]) for curve in self.curves.values()]
        label = (
            f"all {len(lines)}, mean {np.mean([curve[2] for curve in self.curves.values()]):.3f}"
        )
        ax.add_collection(
            LineCollection(lines, colors=style.MUTED, linewidths=0.6, alpha=0.35, label=label)
        )

    def _guide(self, ax):
        pass


class RocDisplay(_CurvePerClass):
    """Receiver operating characteristic of each class against the rest; to 10 classes in colours,
    beyond that the worst three.
    """

    title, x_label, y_label = "ROC", "false positive rate", "true positive rate"
    area = "area under the curve"
    corner = "lower right"

    @staticmethod
    def _curve(positive, scores):
        from sklearn.metrics import roc_auc_score, roc_curve

        xs, ys, _ = roc_curve(positive, scores)
        return xs, ys, float(roc_auc_score(positive, scores))

    def _guide(self, ax):
        ax.plot([0, 1], [0, 1], color=style.MUTED, linewidth=0.8, linestyle=style.DASHES[2])


class PrecisionRecallDisplay(_CurvePerClass):
    """Precision over recall of each class against the rest, as steps (no interpolation, as average
    precision has it)."""

    title, x_label, y_label = "Precision and recall", "recall", "precision"
    area = "average precision"
    look = {"drawstyle": "steps-post"}

    @staticmethod
    def _curve(positive, scores):
        from sklearn.metrics import average_precision_score, precision_recall_curve

        precision, recall, _ = precision_recall_curve(positive, scores, drop_intermediate=True)
        return recall, precision, float(average_precision_score(positive, scores))
