"""Is the confidence worth its name: the reliability diagram."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graft.figures import style
from graft.scoring.calibration import calibration_error, reliability
from graft.scoring.predictions import Predictions

if TYPE_CHECKING:
    pass


class ReliabilityDisplay(style.Display):
    """Accuracy over confidence in 15 bins with 95% intervals, above how many images each bin holds.

    `series`: {label: rows of `calibration.reliability`}, the shipped model first. On the diagonal,
    confidence is what it says. Drawn on two axes, for the diagram and for the counts.
    """

    size = (style.WIDTH, 4.6)

    def __init__(self, series: dict[str, list[dict]]):
        self.series = dict(series)

    @classmethod
    def from_predictions(
        cls, predictions: Predictions, *, uncalibrated: Predictions | None = None
    ) -> ReliabilityDisplay:
        """`uncalibrated`: the predictions before temperature scaling, drawn beside the others if
        given."""
        named = {"as shipped": predictions}
        if uncalibrated is not None:
            named = {"calibrated": predictions, "uncalibrated": uncalibrated}
        return cls({name: reliability(some) for name, some in named.items()})

    def axes(self) -> np.ndarray:
        return style.figure(*self.size).subplots(2, 1, sharex=True, height_ratios=[3.2, 1])

    def draw(self, ax: np.ndarray) -> None:
        main, counts = ax
        main.plot([0, 1], [0, 1], color=style.MUTED, linewidth=0.8, linestyle=style.DASHES[2])
        looks = ((style.RIGHT, "o", "-"), (style.WRONG, "D", style.DASHES[1]))
        for (label, rows), (colour, marker, dash) in zip(self.series.items(), looks):
            held = [row for row in rows if row["n"]]
            keys = ("confidence", "accuracy", "accuracy_low", "accuracy_high")
            x, y, low, high = (np.array([row[key] for row in held]) for key in keys)
            look = {
                "color": colour,
                "marker": marker,
                "markersize": 4,
                "linestyle": dash,
                "linewidth": 1.3,
                "elinewidth": 0.8,
            }
            main.errorbar(
                x,
                y,
                yerr=[y - low, high - y],
                label=f"{label}, ECE {calibration_error(rows):.3f}",
                **look,
            )
            edges = np.array([rows[0]["low"], *(row["high"] for row in rows)])
            counts.stairs(
                [row["n"] for row in rows],
                edges,
                color=colour,
                linestyle=dash,
                fill=False,
                linewidth=1.2,
            )
        main.set(ylabel="accuracy", ylim=(-0.02, 1.02), xlim=(0, 1.005))
        main.set_title("Reliability", pad=18)
        main.legend(
            loc="lower left", bbox_to_anchor=(0, 0.995), ncols=2, borderaxespad=0, columnspacing=1.2
        )
        main.grid()
        counts.set(xlabel="confidence", ylabel="images")
        counts.grid(axis="y")
