"""What a split data set looks like: images per class, samples, sizes, duplicates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graft.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"train": style.SERIES[0], "val": style.SERIES[4], "test": style.SERIES[2]}
CLASSES = 100  # shown in the class balance and the sheet of samples; of more, the largest
# The shapes that images are counted by, up to which width : height each goes.
SHAPES = {"taller": 0.4, "1:2": 0.6, "2:3": 0.72, "3:4": 0.8, "4:5": 0.95, "1:1": 1.05, "5:4": 1.27,
          "4:3": 1.4, "3:2": 1.55, "16:9": 1.9, "2:1": 2.5, "wider": np.inf}  # fmt: skip


def largest(sizes: Sequence[int]) -> list[int]:
    """Positions of the CLASSES largest, in their own order."""
    return sorted(np.argsort(-np.asarray(sizes), kind="stable")[:CLASSES].tolist())


class ClassBalanceDisplay(style.Display):
    """Images per class, one bar each, parted by split. `counts`: {split: {class: images}}."""

    def __init__(self, counts: Mapping[str, Mapping[str, int]]):
        # (splits, classes).
        self.counts = np.array([list(of_split.values()) for of_split in counts.values()])
        self.splits, self.classes = list(counts), list(next(iter(counts.values())))
        self.shown = largest(self.counts.sum(axis=0))
        n = len(self.shown)
        self.size = (6.2, max(1.9, 1.15 + n * (0.3 if n <= 12 else 0.19 if n <= 40 else 0.125)))

    def draw(self, ax: Axes) -> None:
        n = len(self.shown)
        left = np.zeros(n, np.int64)
        for split, counts in zip(self.splits, self.counts):
            label = f"{split} {counts.sum():,}"
            ax.barh(
                range(n),
                counts[self.shown],
                left=left,
                color=COLOURS[split],
                height=0.78,
                label=label,
            )
            left += counts[self.shown]
        few = n <= 40
        for row, total in enumerate(left if few else ()):
            text = ax.annotate(
                f"{total:,}", (total, row), xytext=(3, 0), textcoords="offset points", va="center"
            )
            text.set(fontsize=8, color=style.MUTED)
        ax.set_yticks(
            range(n),
            [style.short(self.classes[i], 24) for i in self.shown],
            fontsize=8 if few else 6,
        )
        ax.tick_params(axis="y", length=0)
        ax.set(ylim=(n - 0.4, -0.6), xlim=(0, max(left) * 1.09), xlabel="images")
        ax.grid(axis="x")
        extra = f", the {n} largest of {len(self.classes)} classes" if n < len(self.classes) else ""
        ax.set_title(f"Images per class{extra}", pad=22)
        ax.legend(
            loc="lower left",
            bbox_to_anchor=(-0.01, 1.0),
            ncols=3,
            borderaxespad=0.2,
            handlelength=1,
            handleheight=1,
        )


class _SheetDisplay(style.Display):
    """Images of SIDE pixels on one axes. `places`: [(left, top, uint8 (SIDE, SIDE, 3))]; `texts`:
    [(x, y, text, options of `Axes.text`)]; `width`, `height`: of the sheet, all in pixels;
    `margin`: inches beside the sheet."""

    SIDE = 72
    margin = 0.2
    title: str
    width: int
    height: int
    places: list[tuple[int, int, np.ndarray]]
    texts: list[tuple[float, float, str, dict[str, Any]]]

    @property
    def size(self) -> tuple[float, float]:  # type: ignore[override]
        return self.width / style.DPI + self.margin, self.height / style.DPI + 0.45

    def draw(self, ax: Axes) -> None:
        sheet = np.full((self.height, self.width, 3), 255, np.uint8)
        for left, top, image in self.places:
            sheet[top : top + self.SIDE, left : left + self.SIDE] = image
        for x, y, text, options in self.texts:
            ax.text(x, y, text, **options)
        ax.imshow(sheet, interpolation="nearest")
        ax.set_axis_off()
        ax.set_title(self.title)


class SamplesDisplay(_SheetDisplay):
    """A few images of each class. `samples`: {class: list of uint8 (SIDE, SIDE, 3)}, `each` of them
    or fewer."""

    title = "Samples of each class"

    def __init__(self, samples: Mapping[str, Sequence[np.ndarray]]):
        self.samples = dict(samples)
        few = len(samples) <= 12
        columns = 1 if few else 3 if len(samples) <= 30 else 5
        lines = math.ceil(len(samples) / columns)
        gap, label, gutter = 3, 0 if few else 17, 14
        wide, high = self.each(len(samples)) * (self.SIDE + gap), self.SIDE + gap + label
        self.width, self.height = columns * (wide + gutter) - gutter, lines * high
        self.margin = 1.5 if few else 0.15
        self.places, self.texts = [], []
        for k, (name, images) in enumerate(samples.items()):
            column, line = divmod(k, lines)
            top, left = line * high + label, column * (wide + gutter)
            self.places += [
                (left + j * (self.SIDE + gap), top, image) for j, image in enumerate(images)
            ]
            if few:
                self.texts.append(
                    (
                        -8,
                        top + self.SIDE / 2,
                        style.short(name, 24),
                        {"ha": "right", "va": "center"},
                    )
                )
            else:
                self.texts.append(
                    (left, top - 4, style.short(name, 40), {"va": "bottom", "fontsize": 7.5})
                )

    @staticmethod
    def each(classes: int) -> int:
        """How many images are shown of each of so many classes."""
        return 8 if classes <= 12 else 4


class StandingOutDisplay(SamplesDisplay):
    """Pictures that are blurred, dark, …: as SamplesDisplay, by kind."""

    title = "Pictures to look at"

    def __init__(self, samples: Mapping[str, Sequence[np.ndarray]]):
        super().__init__(samples)
        self.margin = 1.9


class SizesDisplay(style.Display):
    """Width against height, and the shapes, on two axes. `widths`, `heights`: int (n,), pixels,
    upright."""

    def __init__(self, widths: Sequence[int], heights: Sequence[int]):
        self.widths, self.heights = np.asarray(widths), np.asarray(heights)

    def axes(self) -> np.ndarray:
        return style.figure(6.6, 2.9).subplots(1, 2, width_ratios=(1, 1.15))

    def draw(self, axes: np.ndarray) -> None:
        self._draw_sizes(axes[0])
        self._draw_shapes(axes[1])

    def _draw_sizes(self, ax):
        sizes = Counter(zip(self.widths.tolist(), self.heights.tolist()))
        points = np.array([(w, h, n) for (w, h), n in sorted(sizes.items())], dtype=float)
        area = 8 + 250 * points[:, 2] / points[:, 2].max()
        low, high = points[:, :2].min() / 2.2, points[:, :2].max() * 2.2
        ax.plot((low, high), (low, high), color=style.RULE, linewidth=1, zorder=0)
        ax.scatter(
            points[:, 0], points[:, 1], s=area, color=COLOURS["train"], alpha=0.45, linewidths=0
        )
        ticks = [2**k for k in range(0, 15, 1 if high / low < 64 else 2) if low <= 2**k <= high]
        ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
        ax.set(xticks=ticks, xticklabels=ticks, yticks=ticks, yticklabels=ticks)
        ax.set(
            xlabel="width, pixels",
            ylabel="height, pixels",
            title=f"Size, {len(self.widths):,} images",
        )
        ax.minorticks_off()
        ax.grid()
        if len(sizes) == 1:
            w, h, _ = points[0]
            ax.annotate(
                f"all {w:.0f} x {h:.0f}", (w, h), (0, 14), textcoords="offset points", ha="center"
            )

    def _draw_shapes(self, ax):
        from matplotlib.ticker import PercentFormatter

        shares = np.histogram(self.widths / self.heights, [0, *SHAPES.values()])[0] / len(
            self.widths
        )
        colours = [COLOURS["test" if name == "1:1" else "train"] for name in SHAPES]
        ax.bar(range(len(SHAPES)), shares, color=colours, width=0.8)
        ax.set_xticks(range(len(SHAPES)), SHAPES, rotation=90)
        ax.tick_params(axis="x", length=0)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set(
            xlabel="width : height",
            ylim=(0, min(1.05, max(shares) * 1.15)),
            title="Shape, share of images",
        )
        ax.grid(axis="y")


class DuplicatesDisplay(_SheetDisplay):
    """Sets of images that are the same or nearly so. `groups`: [(title, [(caption, uint8
    (SIDE, SIDE, 3))])], at most GROUPS of `total`."""

    SIDE = 96
    GROUPS = 24
    EACH = 4

    def __init__(
        self, groups: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]], *, total: int
    ):
        self.groups, self.places, self.texts = list(groups), [], []
        self.title = (
            "Duplicates"
            if total <= len(groups)
            else f"Duplicates, the first {len(groups)} of {total} groups"
        )
        step, label, gutter = self.SIDE + 4, 34, 26
        limit, left, top, self.width = 4 * (2 * step + gutter) - gutter, 0, 0, 2 * step
        for title, images in self.groups:
            wide = len(images) * step
            if left and left + wide > limit:
                left, top = 0, top + self.SIDE + label + 10
            self.texts.append((left, top + 13, title, {"fontsize": 7.5, "va": "bottom"}))
            for j, (caption, image) in enumerate(images):
                x, y = left + j * step, top + 17
                self.places.append((x, y, image))
                small = {"fontsize": 5.8, "va": "top", "color": style.MUTED}
                self.texts.append((x, y + self.SIDE + 2, style.short(caption, 22), small))
            self.width = max(self.width, left + wide)
            left += wide + gutter
        self.height = top + self.SIDE + label
