"""Accuracy and loss over the epochs of head and fine-tuning."""

from stages.reporting.plots import style


class CurvesDisplay:
    """Accuracy above loss on one axis of epochs, the unfreezing marked, the epoch with the least validation loss of each
    phase dotted.

    `curves`: dicts with `epoch`, `train_loss`, `train_accuracy`, `val_loss`, `val_accuracy`; `unfrozen_at`: the first epoch of
    fine-tuning, None without one.
    """

    def __init__(self, curves, *, unfrozen_at=None):
        self.curves, self.unfrozen_at = list(curves), unfrozen_at

    @property
    def phases(self):
        """[(name, rows)]: head and fine-tuning, those that have epochs."""
        cut = self.unfrozen_at if self.unfrozen_at is not None else float("inf")
        head = [row for row in self.curves if row["epoch"] < cut]
        tuned = [row for row in self.curves if row["epoch"] >= cut]
        return [(name, rows) for name, rows in (("head", head), ("fine-tuning", tuned)) if rows]

    def plot(self, *, ax=None):
        """`ax`: two axes, for accuracy and for loss; by default those of a new figure. Returns self."""
        with style.applied():
            if ax is None:
                fig = style.figure(style.WIDTH, 4.2)
                ax = fig.subplots(2, 1, sharex=True)
            for axes, figure in zip(ax, ("accuracy", "loss")):
                self._draw(axes, figure)
            ax[1].set_xlabel("epoch")
            ax[0].set_title("Training", pad=18)
            ax[0].plot([], [], "o", color=style.RIGHT, markersize=5, label="least validation loss")
            ax[0].legend(loc="lower left", bbox_to_anchor=(0, 0.995), ncols=3, borderaxespad=0, columnspacing=1.2)
        self.ax_, self.figure_ = ax, ax[0].figure
        return self

    def _draw(self, ax, figure):
        from matplotlib.ticker import MaxNLocator

        for part, colour, dash in (("train", style.HEAD, style.DASHES[1]), ("val", style.RIGHT, style.DASHES[0])):
            label = {"train": "train", "val": "validation"}[part]
            for _, rows in self.phases:
                epochs, values = [r["epoch"] + 1 for r in rows], [r[f"{part}_{figure}"] for r in rows]
                marker = "o" if len(rows) == 1 else None
                ax.plot(epochs, values, color=colour, linestyle=dash, label=label, marker=marker, markersize=3)
                label = None
                if part == "val":
                    best = min(rows, key=lambda r: r["val_loss"])
                    ax.plot(best["epoch"] + 1, best[f"val_{figure}"], "o", color=colour, markersize=5)
        ax.set_ylabel(figure)
        ax.grid(axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if self.unfrozen_at is not None and len(self.phases) == 2:
            ax.axvline(self.unfrozen_at + 0.5, color=style.MUTED, linewidth=1, linestyle=(0, (2, 2)))
            if figure == "loss":
                ax.annotate(
                    "unfrozen", (self.unfrozen_at + 0.5, 1), xycoords=("data", "axes fraction"), xytext=(4, -2),
                    textcoords="offset points", va="top", color=style.MUTED, fontsize=8,
                )  # fmt: skip
