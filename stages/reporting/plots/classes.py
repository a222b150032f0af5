"""Pictures of the classes: confusion matrix, per-class figures, head against fine-tuned."""

import numpy as np

from stages.reporting import metrics
from stages.reporting.plots import style

TEXT_UP_TO = 20  # classes whose cells carry numbers
NAMES_UP_TO = 100
BARS = 30


class ConfusionMatrixDisplay:
    """Rows: true class, columns: predicted class. Right ones are blue, mistakes vermilion, each on a scale of its own.

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
            names = [style.short(name, 16 if count <= 20 else 12) for name in self.classes]
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
        """float64 (C, C), opacity of each cell: share of the largest on, or off, the diagonal."""
        values, diagonal = self.values, np.eye(len(self.classes), dtype=bool)
        shade = np.zeros_like(values)
        for part in (diagonal, ~diagonal):
            top = 1.0 if self.normalise and part is diagonal else values[part].max()
            shade[part] = values[part] / top if top else 0
        # A single mistake among thousands must still be seen.
        return np.where(values > 0, 0.12 + 0.88 * shade, 0)

    def _colours(self):
        shade, diagonal = self._shade(), np.eye(len(self.classes), dtype=bool)
        return np.where(diagonal[..., None], style.mix(style.RIGHT, shade), style.mix(style.WRONG, shade * 0.9))

    def _write(self, ax, *, font):
        shade = self._shade()
        for (row, column), value in np.ndenumerate(self.values):
            if not value:
                continue
            text = f"{100 * value:.0f}" if self.normalise and value >= 0.005 else "<1" if self.normalise else f"{int(value)}"
            colour = style.PAPER if shade[row, column] > 0.6 else style.INK
            ax.text(column, row, text, ha="center", va="center", fontsize=font, color=colour)
