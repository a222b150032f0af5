"""Every photo of a data set at once: where it lies among the others, and which look wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graft.figures import style
from graft.figures.image_grid import PredictedImage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vP"  # the second sign by which classes differ, and the first beyond the ten colours
NAMED = 30  # classes whose names are written into the map, at most
THUMB = 34  # pixels of a thumbnail in the map


@dataclass(frozen=True)
class SuspectImage(PredictedImage):
    """A photo with the label it bears and the class that is likelier."""

    @property
    def lines(self) -> tuple[str, str]:
        return (
            f"{style.short(self.predicted, 14)}? {100 * self.confidence:.0f}%",
            f"labelled {style.short(self.label, 14)}",
        )


class MapDisplay(style.Display):
    """Photos as points, coloured by label. points: float (m, 2), 0 to 1. labels: int (m,). wrong,
    suspect: bool (m,). thumbs: {position among the m: uint8 (S, S, 3)}. method: how the points were
    found; total: how many photos there are."""

    size = (7.2, 6.0)

    def __init__(
        self,
        points: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str],
        *,
        wrong: np.ndarray,
        suspect: np.ndarray,
        thumbs: Mapping[int, np.ndarray] | None = None,
        method: str = "",
        total: int = 0,
    ):
        self.points, self.labels, self.classes = (
            np.asarray(points),
            np.asarray(labels),
            list(classes),
        )
        self.wrong, self.suspect, self.thumbs = (
            np.asarray(wrong),
            np.asarray(suspect),
            dict(thumbs or {}),
        )
        shown = (
            f"{len(self.points):,} of {total:,} photos"
            if total > len(self.points)
            else f"{len(self.points):,} photos"
        )
        self.title = f"{shown} as the backbone sees them ({method})"

    def draw(self, ax: Axes) -> None:
        x, y = self.points.T
        for k in np.unique(self.labels):
            some = self.labels == k
            marker = MARKERS[(k // len(style.SERIES)) % len(MARKERS)]
            ax.scatter(
                x[some],
                y[some],
                s=11,
                color=style.SERIES[k % len(style.SERIES)],
                marker=marker,
                alpha=0.6,
                linewidths=0,
            )
        self._thumbs(ax)
        some, ring = self.wrong & ~self.suspect, style.WRONG
        ax.scatter(
            x[some],
            y[some],
            s=34,
            facecolors="none",
            edgecolors=ring,
            linewidths=0.6,
            label="judged wrongly",
        )
        some = self.suspect
        ax.scatter(
            x[some],
            y[some],
            s=42,
            color=style.INK,
            marker="x",
            linewidths=1.1,
            label="suspect label",
            zorder=4,
        )
        self._names(ax)
        ax.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), xticks=[], yticks=[])
        ax.set_title(self.title, pad=20)
        ax.spines[:].set_visible(False)
        if self.wrong.any() or self.suspect.any():
            ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, borderaxespad=0.2)

    def _thumbs(self, ax):
        from matplotlib.offsetbox import AnnotationBbox, OffsetImage

        for i, image in self.thumbs.items():
            small = image[:: max(1, len(image) // THUMB), :: max(1, len(image) // THUMB)]
            colour = style.SERIES[self.labels[i] % len(style.SERIES)]
            framed = {"pad": 0.08, "bboxprops": {"edgecolor": colour, "linewidth": 1}}
            ax.add_artist(AnnotationBbox(OffsetImage(small, zoom=0.5), self.points[i], **framed))

    def _names(self, ax):
        from matplotlib.patheffects import withStroke

        present = np.unique(self.labels)
        for k in present if len(present) <= NAMED else ():
            middle = np.median(self.points[self.labels == k], axis=0)
            ax.text(*middle, style.short(self.classes[k], 18), ha="center", va="center",
                    fontsize=8.5, fontweight="bold", zorder=5,
                    path_effects=[withStroke(linewidth=2.5, foreground=style.PAPER)])  # fmt: skip


def spread(points: np.ndarray, *, apart: float = 0.085, most: int = 60) -> list[int]:
    """Positions of points of which no two are nearer than `apart` on both axes: where there is room
    for a thumbnail."""
    taken: list[int] = []
    for i, point in enumerate(points):
        if len(taken) < most and all(np.abs(points[j] - point).max() >= apart for j in taken):
            taken.append(i)
    return taken
