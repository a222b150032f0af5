"""Accuracy and loss over the epochs of head and fine-tuning."""

from __future__ import annotations

import numpy as np

from graft.figures import style
from graft.scoring.history import History


class CurvesDisplay(style.Display):
    """Accuracy above loss on one axis of epochs, the unfreezing marked, the epoch with the least
    validation loss of each phase dotted. Drawn on two axes.
    """

    size = (style.WIDTH, 4.2)

    def __init__(self, history: History):
        self.history = history

    def axes(self) -> np.ndarray:
        return style.figure(*self.size).subplots(2, 1, sharex=True)

    def draw(self, ax: np.ndarray) -> None:
        for axes, figure in zip(ax, ("accuracy", "loss")):
            self._draw(axes, figure)
        ax[1].set_xlabel("epoch")
        ax[0].set_title("Training", pad=18)
        ax[0].plot([], [], "o", color=style.RIGHT, markersize=5, label="least validation loss")
        ax[0].legend(
            loc="lower left", bbox_to_anchor=(0, 0.995), ncols=3, borderaxespad=0, columnspacing=1.2
        )

    def _draw(self, ax, figure):
        from matplotlib.ticker import MaxNLocator

        for part, label, colour, dash in (
            ("train", "train", style.HEAD, style.DASHES[1]),
            ("val", "validation", style.RIGHT, style.DASHES[0]),
        ):
            for rows in self.history.phases.values():
                epochs, values = (
                    [row["epoch"] + 1 for row in rows],
                    [row[f"{part}_{figure}"] for row in rows],
                )
                marker = "o" if len(rows) == 1 else None
                ax.plot(
                    epochs,
                    values,
                    color=colour,
                    linestyle=dash,
                    label=label,
                    marker=marker,
                    markersize=3,
                )
                label = None
                if part == "val":
                    best = min(rows, key=lambda row: row["val_loss"])
                    ax.plot(
                        best["epoch"] + 1, best[f"val_{figure}"], "o", color=colour, markersize=5
                    )
        ax.set_ylabel(figure)
        ax.grid(axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(self.history.phases) == 2:
            at = self.history.unfrozen_at + 0.5
            ax.axvline(at, color=style.MUTED, linewidth=1, linestyle=(0, (2, 2)))
            if figure == "loss":
                look = {
                    "xycoords": ("data", "axes fraction"),
                    "textcoords": "offset points",
                    "va": "top",
                    "fontsize": 8,
                }
                ax.annotate("unfrozen", (at, 1), xytext=(4, -2), color=style.MUTED, **look)
