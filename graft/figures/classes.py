"""Figures of the classes: confusion matrix, per-class figures, head against fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from graft.figures import style
from graft.scoring import metrics
from graft.scoring.predictions import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEXT_UP_TO = 20  # classes whose cells carry numbers
NAMES_UP_TO = 100
BARS = 24
WHITE = "#fefefe"  # not the colour of paper, which a dark page repaints


class ConfusionMatrixDisplay(style.Display):
    """Rows: true class, columns: predicted class. Right ones are blue, mistakes red, deeper for a
    larger share of the class.

    `matrix` int (C, C). `normalise`: shares of the true class instead of counts. Numbers up to 20
    classes, all names up to 100.
    """

    def __init__(self, matrix: np.ndarray, classes: Sequence[str], *, normalise: bool = False):
        self.matrix, self.classes, self.normalise = np.asarray(matrix), list(classes), normalise
        count = len(self.classes)
        self.side = float(np.clip(2.0 + 0.32 * count, 3.6, 4.8 if count <= 12 else 11.0))
        self.size = (self.side + 0.2, self.side)

    @classmethod
    def from_predictions(
        cls, predictions: Predictions, *, normalise: bool = False
    ) -> ConfusionMatrixDisplay:
        return cls(metrics.confusion_matrix(predictions), predictions.classes, normalise=normalise)

    @property
    def shares(self) -> np.ndarray:
        """float64 (C, C): shares of each row; a row without images is 0."""
        return self.matrix / np.maximum(self.matrix.sum(axis=1, keepdims=True), 1)

    def draw(self, ax: Axes) -> None:
        from matplotlib.colors import to_rgba_array

        count, shade = len(self.classes), self._shade()
        colours = np.where(np.eye(count), style.RIGHT, style.WRONG)
        colours = to_rgba_array(colours.ravel(), shade.ravel()).reshape(count, count, 4)
        ax.imshow(colours, interpolation="nearest", aspect="equal")
        for spine in ax.spines.values():
            spine.set_visible(True)
        step = int(np.ceil(count / NAMES_UP_TO))
        size = float(np.clip(90 * self.side / 11 / count * 8, 4.5, 8))
        names = [style.short(name, 16 if count <= 20 else 20) for name in self.classes]
        upright = count > 6 or max(map(len, names)) > 6
        ax.set_xticks(
            range(0, count, step), names[::step], rotation=90 if upright else 0, fontsize=size
        )
        ax.set_yticks(range(0, count, step), names[::step], fontsize=size)
        ax.tick_params(length=0)
        title = "Confusion, % of the true class" if self.normalise else "Confusion, images"
        ax.set(xlabel="predicted", ylabel="true", title=title)
        if count <= TEXT_UP_TO:
            self._write(ax, shade, font=float(np.clip(95 / count, 4.5, 9)))

    def _shade(self):
        """float64 (C, C), opacity of each cell: its share of the true class; of mistakes the root,
        so that few are seen as well.
        """
        share = self.shares
        shade = np.where(
            np.eye(len(share), dtype=bool), 0.1 + 0.9 * share, np.minimum(0.08 + np.sqrt(share), 1)
        )
        return np.where(share > 0, shade, 0)

    def _write(self, ax, shade, *, font):
        for (row, column), share in np.ndenumerate(self.shares):
            percent = f"{100 * share:.0f}" if share >= 0.01 else "<1"
            colour = WHITE if shade[row, column] > (0.6 if row == column else 0.8) else style.INK
            if share:
                text = percent if self.normalise else f"{self.matrix[row, column]:.0f}"
                ax.text(column, row, text, ha="center", va="center", fontsize=font, color=colour)


class PerClassDisplay(style.Display):
    """F1 as a bar with its interval, precision and recall as marks beside it; the worst first, at
    most 24 classes.

    `rows`: the "classes" of `metrics.classification_report`, drawn are those with images or
    predictions, least F1 first, ties in the order of the classes.
    """

    def __init__(self, rows: list[dict]):
        self.shown = sorted(
            (row for row in rows if row["support"] or row["predicted"]), key=lambda row: row["f1"]
        )[:BARS]
        self.size = (style.WIDTH, 1.3 + 0.27 * len(self.shown))

    def draw(self, ax: Axes) -> None:
        rows, at = self.shown, np.arange(len(self.shown))
        f1, low, high = (
            np.array([row[key] for row in rows], float) for key in ("f1", "f1_low", "f1_high")
        )
        ax.barh(at, f1, height=0.62, color=style.RIGHT, alpha=0.28, label="F1, 95% interval")
        ax.errorbar(
            f1,
            at,
            xerr=[f1 - low, high - f1],
            fmt="none",
            ecolor=style.INK,
            elinewidth=1,
            capsize=2.5,
        )
        ax.plot(
            [row["precision"] for row in rows],
            at,
            "D",
            markersize=4,
            color=style.WRONG,
            label="precision",
        )
        recalls = [row["recall"] for row in rows]
        ax.plot(
            recalls, at, "o", label="recall", markersize=5, color="none", markeredgecolor=style.INK
        )
        ax.set_yticks(at, [f"{style.short(row['class'], 15)} ({row['support']})" for row in rows])
        ax.tick_params(axis="y", length=0)
        ax.invert_yaxis()
        ax.set(xlim=(0, 1.005), ylim=(len(rows) - 0.4, -0.6))
        ax.grid(axis="x")
        ax.set_title(
            f"The {BARS} with the least F1 (images)" if len(rows) == BARS else "Classes (images)",
            pad=18,
        )
        look = {"borderaxespad": 0, "handletextpad": 0.3, "columnspacing": 0.9, "handlelength": 1.4}
        ax.legend(loc="lower left", bbox_to_anchor=(0, 0.995), ncols=3, **look)


class HeadAgainstTunedDisplay(style.Display):
    """Recall of each class before and after fine-tuning, joined by a line: blue where it rose, red
    and dashed where it fell.

    The classes that changed most, at most 24. `head`, `tuned` float (C,), NaN for a class without
    images.
    """

    def __init__(self, head: np.ndarray, tuned: np.ndarray, classes: Sequence[str]):
        self.head, self.tuned, self.classes = (
            np.asarray(head, float),
            np.asarray(tuned, float),
            list(classes),
        )
        change = self.tuned - self.head
        self.known = np.flatnonzero(~np.isnan(change))
        shown = self.known[np.argsort(-np.abs(change[self.known]), kind="stable")][:BARS]
        if len(self.known) > BARS:
            shown = shown[change[shown] != 0]
        self.shown = shown[np.argsort(-change[shown], kind="stable")]
        self.size = (style.WIDTH, 1.3 + 0.24 * len(self.shown))

    @classmethod
    def from_predictions(cls, head: Predictions, tuned: Predictions) -> HeadAgainstTunedDisplay:
        def recall(predictions):
            matrix = metrics.confusion_matrix(predictions)
            support = matrix.sum(axis=1)
            return np.where(support > 0, matrix.diagonal() / np.maximum(support, 1), np.nan)

        return cls(recall(head), recall(tuned), tuned.classes)

    def draw(self, ax: Axes) -> None:
        shown, at = self.shown, np.arange(len(self.shown))
        head, tuned = self.head[shown], self.tuned[shown]
        for some, colour, dash in (
            (tuned >= head, style.RIGHT, "-"),
            (tuned < head, style.WRONG, style.DASHES[2]),
        ):
            ax.hlines(at[some], head[some], tuned[some], color=colour, linestyle=dash, linewidth=2)
        ax.plot(
            head, at, "o", markersize=5, color="none", markeredgecolor=style.INK, label="head only"
        )
        ax.plot(tuned, at, "o", markersize=5, color=style.INK, label="fine-tuned")
        ax.set_yticks(at, [style.short(self.classes[c], 18) for c in shown])
        ax.tick_params(axis="y", length=0)
        ax.set(ylim=(len(shown) - 0.4, -0.6), xlabel="recall")
        ax.margins(x=0.03)
        low, high = ax.get_xlim()
        # A recall is a share, also where all are 1 and nothing spans the axis.
        ax.set_xlim(max(low, -0.015), min(high, 1.015))
        ax.grid(axis="x")
        few = len(shown) < len(self.known)
        ax.set_title(
            f"The {len(shown)} largest changes" if few else "Head against fine-tuned", pad=18
        )
        ax.legend(
            loc="lower left", bbox_to_anchor=(0, 0.995), ncols=2, borderaxespad=0, handletextpad=0.4
        )
