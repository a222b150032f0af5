"""Pictures of the classes: confusion matrix, per-class figures, head against fine-tuned."""

import numpy as np

from stages.reporting import metrics
from stages.reporting.plots import style

TEXT_UP_TO = 20  # classes whose cells carry numbers
NAMES_UP_TO = 100
BARS = 24
WHITE = "#fefefe"  # not the colour of paper, which a dark page repaints


class ConfusionMatrixDisplay:
    """Rows: true class, columns: predicted class. Right ones are blue, mistakes vermilion, deeper for a larger share of
    the class.

    `matrix` int (C, C). `normalise`: shares of the true class instead of counts. Numbers up to 20 classes, all names up to 100.
    """

    def __init__(self, matrix, classes, *, normalise=False):
        self.matrix, self.classes, self.normalise = np.asarray(matrix), list(classes), normalise

    @classmethod
    def from_predictions(cls, y, probabilities, classes, *, normalise=False):
        return cls(metrics.confusion_matrix(y, probabilities), classes, normalise=normalise)

    @property
    def values(self):
        """float64 (C, C): counts, or shares of each row; a row without images is 0."""
        if not self.normalise:
            return self.matrix.astype(np.float64)
        return self.matrix / np.maximum(self.matrix.sum(axis=1, keepdims=True), 1)

    def plot(self, *, ax=None):
        count = len(self.classes)
        side = float(np.clip(2.0 + 0.32 * count, 3.6, 4.8 if count <= 12 else 11.0))
        with style.applied():
            if ax is None:
                ax = style.figure(side + 0.2, side).subplots()
            ax.imshow(self._colours(), interpolation="nearest", aspect="equal")
            for spine in ax.spines.values():
                spine.set_visible(True)
            step = int(np.ceil(count / NAMES_UP_TO))
            size = float(np.clip(90 * side / 11 / count * 8, 4.5, 8))
            names = [style.short(name, 16 if count <= 20 else 20) for name in self.classes]
            upright = count > 6 or max(map(len, names)) > 6
            ax.set_xticks(range(0, count, step), names[::step], rotation=90 if upright else 0, fontsize=size)
            ax.set_yticks(range(0, count, step), names[::step], fontsize=size)
            ax.tick_params(length=0)
            ax.set(xlabel="predicted", ylabel="true")
            ax.set_title("Confusion, % of the true class" if self.normalise else "Confusion, images")
            if count <= TEXT_UP_TO:
                self._write(ax, font=float(np.clip(95 / count, 4.5, 9)))
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _shade(self):
        """float64 (C, C), opacity of each cell: its share of the true class; of mistakes the root, so that few are seen
        as well.
        """
        share = self.matrix / np.maximum(self.matrix.sum(axis=1, keepdims=True), 1)
        shade = np.where(np.eye(len(self.classes), dtype=bool), 0.1 + 0.9 * share, np.minimum(0.08 + np.sqrt(share), 1))
        return np.where(share > 0, shade, 0)

    def _colours(self):
        shade, diagonal = self._shade(), np.eye(len(self.classes), dtype=bool)
        return np.where(diagonal[..., None], style.mix(style.RIGHT, shade), style.mix(style.WRONG, shade))

    def _write(self, ax, *, font):
        shade = self._shade()
        for (row, column), value in np.ndenumerate(self.values):
            if not value:
                continue
            text = f"{int(value)}"
            if self.normalise:
                text = f"{100 * value:.0f}" if value >= 0.01 else "<1"
            colour = WHITE if shade[row, column] > (0.6 if row == column else 0.8) else style.INK
            ax.text(column, row, text, ha="center", va="center", fontsize=font, color=colour)


class PerClassDisplay:
    """F1 as a bar with its interval, precision and recall as marks beside it; the worst first, at most 24 classes.

    `rows`: the "classes" of `metrics.classification_report`.
    """

    def __init__(self, rows):
        self.rows = list(rows)

    @classmethod
    def from_predictions(cls, y, probabilities, classes, *, groups=None):
        return cls(metrics.classification_report(y, probabilities, classes, groups=groups, resamples=1)["classes"])

    @property
    def shown(self):
        """The rows drawn: those with images or predictions, least F1 first, ties in the order of the classes."""
        occurring = [row for row in self.rows if row["support"] or row["predicted"]]
        return sorted(occurring, key=lambda row: row["f1"])[:BARS]

    def plot(self, *, ax=None):
        rows = self.shown
        at = np.arange(len(rows))
        with style.applied():
            if ax is None:
                ax = style.figure(style.WIDTH, 1.3 + 0.27 * len(rows)).subplots()
            f1, low, high = (np.array([row[key] for row in rows], float) for key in ("f1", "f1_low", "f1_high"))
            ax.barh(at, f1, height=0.62, color=style.RIGHT, alpha=0.28, label="F1, 95% interval")
            ax.errorbar(f1, at, xerr=[f1 - low, high - f1], fmt="none", ecolor=style.INK, elinewidth=1, capsize=2.5)
            ax.plot([row["precision"] for row in rows], at, "D", markersize=4, color=style.WRONG, label="precision")
            ring = {"markersize": 5, "color": "none", "markeredgecolor": style.INK}
            ax.plot([row["recall"] for row in rows], at, "o", label="recall", **ring)
            ax.set_yticks(at, [f"{style.short(row['class'], 15)} ({row['support']})" for row in rows])
            ax.tick_params(axis="y", length=0)
            ax.invert_yaxis()
            ax.set(xlim=(0, 1.005), ylim=(len(rows) - 0.4, -0.6))
            ax.grid(axis="x")
            ax.set_title(f"The {BARS} with the least F1 (images)" if len(rows) == BARS else "Classes (images)", pad=18)
            look = {"borderaxespad": 0, "handletextpad": 0.3, "columnspacing": 0.9, "handlelength": 1.4}
            ax.legend(loc="lower left", bbox_to_anchor=(0, 0.995), ncols=3, **look)
        self.ax_, self.figure_ = ax, ax.figure
        return self


class HeadAgainstTunedDisplay:
    """Recall of each class before and after fine-tuning, joined by a line: blue where it rose, vermilion and dashed where
    it fell.

    The classes that changed most, at most 24. `head`, `tuned` float (C,), NaN for a class without images.
    """

    def __init__(self, head, tuned, classes):
        self.head, self.tuned, self.classes = np.asarray(head, float), np.asarray(tuned, float), list(classes)

    @classmethod
    def from_predictions(cls, y, head, tuned, classes):
        recalls = []
        for probabilities in (head, tuned):
            matrix = metrics.confusion_matrix(y, probabilities)
            support = matrix.sum(axis=1)
            recalls.append(np.where(support > 0, matrix.diagonal() / np.maximum(support, 1), np.nan))
        return cls(*recalls, classes)

    def plot(self, *, ax=None):
        change = self.tuned - self.head
        known = np.flatnonzero(~np.isnan(change))
        shown = known[np.argsort(-np.abs(change[known]), kind="stable")][:BARS]
        if len(known) > BARS:
            shown = shown[change[shown] != 0]
        shown = shown[np.argsort(-change[shown], kind="stable")]
        at = np.arange(len(shown))
        with style.applied():
            if ax is None:
                ax = style.figure(style.WIDTH, 1.3 + 0.24 * len(shown)).subplots()
            for worse, colour, dash in ((False, style.RIGHT, "-"), (True, style.WRONG, style.DASHES[2])):
                some = (change[shown] < 0) == worse
                ax.hlines(at[some], self.head[shown[some]], self.tuned[shown[some]], color=colour, linestyle=dash, linewidth=2)
            ax.plot(self.head[shown], at, "o", markersize=5, color="none", markeredgecolor=style.INK, label="head only")
            ax.plot(self.tuned[shown], at, "o", markersize=5, color=style.INK, label="fine-tuned")
            ax.set_yticks(at, [style.short(self.classes[c], 18) for c in shown])
            ax.tick_params(axis="y", length=0)
            ax.set(ylim=(len(shown) - 0.4, -0.6), xlabel="recall")
            ax.margins(x=0.03)
            ax.grid(axis="x")
            ax.set_title(f"The {len(shown)} largest changes" if len(shown) < len(known) else "Head against fine-tuned", pad=18)
            ax.legend(loc="lower left", bbox_to_anchor=(0, 0.995), ncols=2, borderaxespad=0, handletextpad=0.4)
        self.ax_, self.figure_ = ax, ax.figure
        return self
