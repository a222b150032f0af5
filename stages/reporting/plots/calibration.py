"""Is the confidence worth its name: the reliability diagram."""

import numpy as np

from stages.reporting import metrics
from stages.reporting.plots import style


class ReliabilityDisplay:
    """Accuracy over confidence in 15 bins with 95% intervals, above how many images each bin holds.

    `series`: {label: rows of `metrics.reliability`}, the shipped model first. On the diagonal, confidence is what it says.
    """

    def __init__(self, series):
        self.series = dict(series)

    @classmethod
    def from_predictions(cls, y, probabilities, *, uncalibrated=None):
        """`uncalibrated`: the probabilities before temperature scaling, drawn beside the others if given."""
        named = {"as shipped": probabilities}
        if uncalibrated is not None:
            named = {"calibrated": probabilities, "uncalibrated": uncalibrated}
        return cls({name: metrics.reliability(y, p) for name, p in named.items()})

    @staticmethod
    def error(rows):
        """Expected calibration error of the bins."""
        return sum(r["n"] * abs(r["accuracy"] - r["confidence"]) for r in rows if r["n"]) / sum(r["n"] for r in rows)

    def plot(self, *, ax=None):
        """`ax`: two axes, for the diagram and for the counts."""
        with style.applied():
            if ax is None:
                ax = style.figure(style.WIDTH, 4.6).subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
            main, counts = ax
            main.plot([0, 1], [0, 1], color=style.MUTED, linewidth=0.8, linestyle=style.DASHES[2])
            looks = ((style.RIGHT, "o", "-"), (style.WRONG, "D", style.DASHES[1]))
            for (label, rows), (colour, marker, dash) in zip(self.series.items(), looks):
                held = [row for row in rows if row["n"]]
                keys = ("confidence", "accuracy", "accuracy_low", "accuracy_high")
                x, y, low, high = (np.array([row[key] for row in held]) for key in keys)
                main.errorbar(
                    x, y, yerr=[y - low, high - y], color=colour, marker=marker, markersize=4, linestyle=dash, linewidth=1.3,
                    elinewidth=0.8, capsize=0, label=f"{label}, ECE {self.error(rows):.3f}",
                )  # fmt: skip
                edges = np.array([rows[0]["low"], *(row["high"] for row in rows)])
                counts.stairs([row["n"] for row in rows], edges, color=colour, linestyle=dash, fill=False, linewidth=1.2)
            main.set(ylabel="accuracy", ylim=(-0.02, 1.02), xlim=(0, 1.005))
            main.set_title("Reliability", pad=18)
            main.legend(loc="lower left", bbox_to_anchor=(0, 0.995), ncols=2, borderaxespad=0, columnspacing=1.2)
            main.grid()
            counts.set(xlabel="confidence", ylabel="images")
            counts.grid(axis="y")
        self.ax_, self.figure_ = ax, main.figure
        return self
