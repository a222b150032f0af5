"""ROC and precision-recall curves, one class against the rest."""

import numpy as np

from stages.reporting import metrics
from stages.reporting.plots import style

POINTS = 200  # of a curve, at most: enough for the eye, and 100 classes stay a small file
EACH_UP_TO = 10  # classes with a line of their own in the legend


class _Curves:
    """`curves`: {class name: (x, y, area)}, x and y float (k,), of the classes for which the curve is defined."""

    title = x_label = y_label = area = corner = ""

    def __init__(self, curves):
        self.curves = dict(curves)

    @classmethod
    def from_predictions(cls, y, probabilities, classes):
        y, p = np.asarray(y), metrics.normalise(probabilities)
        curves = {}
        for c, name in enumerate(classes):
            positive = y == c
            if positive.any() and not positive.all():
                xs, ys, area = cls._curve(positive, p[:, c])
                keep = np.unique(np.linspace(0, len(xs) - 1, POINTS).round().astype(int)) if len(xs) > POINTS else slice(None)
                curves[name] = (xs[keep], ys[keep], area)
        return cls(curves)

    @property
    def rows(self):
        """(class, x, y): the points drawn, for a CSV file."""
        return [(name, float(x), float(y)) for name, (xs, ys, _) in self.curves.items() for x, y in zip(xs, ys)]

    def plot(self, *, ax=None):
        with style.applied():
            if ax is None:
                ax = style.figure(style.WIDTH, 4.1).subplots()
            if len(self.curves) <= EACH_UP_TO:
                drawn = list(self.curves)
            else:
                drawn = sorted(self.curves, key=lambda name: self.curves[name][2])[:3]
                self._draw_all(ax)
            for k, name in enumerate(drawn):
                xs, ys, area = self.curves[name]
                label = f"{style.short(name, 18)}  {area:.3f}"
                dash = style.DASHES[k // 4 % len(style.DASHES)]
                self._line(ax, xs, ys, color=style.SERIES[k % len(style.SERIES)], linestyle=dash, label=label)
            self._guide(ax)
            ax.set(xlabel=self.x_label, ylabel=self.y_label, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
            ax.set_title(self.title)
            ax.grid()
            if drawn:
                title = self.area if len(drawn) == len(self.curves) else f"{self.area}, the three least"
                ax.legend(loc=self.corner, title=title, title_fontsize=8, alignment="left", labelspacing=0.3)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw_all(self, ax):
        from matplotlib.collections import LineCollection

        lines = [np.column_stack(curve[:2]) for curve in self.curves.values()]
        label = f"all {len(lines)}, mean {np.mean([curve[2] for curve in self.curves.values()]):.3f}"
        ax.add_collection(LineCollection(lines, colors=style.MUTED, linewidths=0.6, alpha=0.35, label=label))

    def _line(self, ax, xs, ys, **look):
        ax.plot(xs, ys, **look)

    def _guide(self, ax):
        pass


class RocDisplay(_Curves):
    """Receiver operating characteristic of each class against the rest; to 10 classes in colours, beyond that the worst
    three.
    """

    title, x_label, y_label = "ROC", "false positive rate", "true positive rate"
    area, corner = "area under the curve", "lower right"

    @staticmethod
    def _curve(positive, score):
        from sklearn.metrics import roc_auc_score, roc_curve

        xs, ys, _ = roc_curve(positive, score)
        return xs, ys, float(roc_auc_score(positive, score))

    def _guide(self, ax):
        ax.plot([0, 1], [0, 1], color=style.MUTED, linewidth=0.8, linestyle=style.DASHES[2])


class PrecisionRecallDisplay(_Curves):
    """Precision over recall of each class against the rest, as steps (no interpolation, as average precision has it)."""

    title, x_label, y_label = "Precision and recall", "recall", "precision"
    area, corner = "average precision", "lower left"

    @staticmethod
    def _curve(positive, score):
        from sklearn.metrics import average_precision_score, precision_recall_curve

        precision, recall, _ = precision_recall_curve(positive, score, drop_intermediate=True)
        return recall, precision, float(average_precision_score(positive, score))

    def _line(self, ax, xs, ys, **look):
        ax.plot(xs, ys, drawstyle="steps-post", **look)
