"""Pictures of a split data set, in scikit-learn's Display style: an object holds the data, `.plot(*, ax=None)` draws it."""

import contextlib
import math
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from stages.dataset import images
from stages.dataset.loading import SPLITS

INK, MUTED, RULE, PAPER = "#1c2733", "#66727f", "#dde2e8", "#ffffff"
COLOURS = {"train": "#0072b2", "val": "#e69f00", "test": "#009e73"}  # Okabe & Ito: told apart with any colour vision
DPI = 110
CLASSES = 100  # shown in the class balance and the sheet of samples; of more, the largest
GROUPS = 24
RC = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 8.5, "text.color": INK, "text.parse_math": False,  # a class may be called "$5 and $10"
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "axes.linewidth": 0.7, "axes.titlesize": 9.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "grid.color": RULE, "grid.linewidth": 0.7, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.frameon": False, "legend.fontsize": 8,
}  # fmt: skip


def write(folder, *, root, manifest, problems):
    """class_balance.png, samples.png, sizes.png and, if there are any, duplicates.png: the same bytes for the same data."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    displays = {
        "class_balance": ClassBalanceDisplay.from_manifest(manifest),
        "samples": SamplesDisplay.from_manifest(manifest, root=root),
        "sizes": SizesDisplay.from_manifest(manifest),
        "duplicates": DuplicatesDisplay.from_problems(problems, manifest, root=root),
    }
    for name, display in displays.items():
        if len(display):
            with _style():
                display.plot().figure_.savefig(folder / f"{name}.png", dpi=DPI, metadata={"Software": None})


class ClassBalanceDisplay:
    """Images per class, one bar each, parted by split. `counts`: int (C, 3), columns train, val, test."""

    def __init__(self, counts, classes):
        self.counts, self.classes = np.asarray(counts), list(classes)

    def __len__(self):
        return len(self.classes)

    @classmethod
    def from_manifest(cls, manifest):
        counts = np.zeros((len(manifest.classes), len(SPLITS)), np.int64)
        np.add.at(counts, (manifest.labels, [SPLITS.index(row.split) for row in manifest.rows]), 1)
        return cls(counts, manifest.classes)

    def plot(self, *, ax=None):
        shown = _largest(self.counts.sum(axis=1))
        counts, names = self.counts[shown], [_short(self.classes[i]) for i in shown]
        n = len(names)
        pitch = 0.3 if n <= 12 else 0.19 if n <= 40 else 0.125
        with _style():
            if ax is None:
                ax = _figure(6.2, max(1.9, 1.15 + pitch * n)).subplots()
            left = np.zeros(n, np.int64)
            for k, split in enumerate(SPLITS):
                ax.barh(
                    range(n),
                    counts[:, k],
                    left=left,
                    color=COLOURS[split],
                    height=0.78,
                    label=f"{split} {self.counts[:, k].sum():,}",
                )
                left += counts[:, k]
            size = 8 if n <= 40 else 6
            if n <= 40:
                for row, total in enumerate(left):
                    ax.annotate(
                        f"{total:,}", (total, row), (3, 0), textcoords="offset points", va="center", fontsize=size, color=MUTED
                    )
            ax.set_yticks(range(n), names, fontsize=size)
            ax.tick_params(axis="y", length=0)
            ax.set(ylim=(n - 0.4, -0.6), xlim=(0, max(left) * 1.09), xlabel="images")
            ax.grid(axis="x")
            extra = f", the {n} largest of {len(self)} classes" if n < len(self) else ""
            ax.set_title(f"Images per class{extra}", pad=22)
            ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, borderaxespad=0.2, handlelength=1, handleheight=1)
        self.ax_, self.figure_ = ax, ax.figure
        return self


class SamplesDisplay:
    """A few images of each class. `samples`: {class: list of uint8 (SIDE, SIDE, 3)}."""

    SIDE = 72

    def __init__(self, samples):
        self.samples = dict(samples)

    def __len__(self):
        return len(self.samples)

    @classmethod
    def from_manifest(cls, manifest, *, root):
        """Up to 8 images per class (4 of more than 12 classes), taken in the order of their hashes: neither the first nor
        random."""
        rows = defaultdict(list)
        for row in manifest.rows:
            rows[row.label].append(row)
        names = [manifest.classes[i] for i in _largest(np.array([len(rows[name]) for name in manifest.classes]))]
        per_class = 8 if len(names) <= 12 else 4
        picks = {name: sorted(rows[name], key=lambda row: row.sha256)[:per_class] for name in names}
        return cls({name: [_tile(Path(root) / row.path, cls.SIDE) for row in picks[name]] for name in names})

    def plot(self, *, ax=None):
        """`ax`: ignored scales; one axes holds the whole sheet."""
        few = len(self) <= 12
        across, columns = (8, 1) if few else (4, 3 if len(self) <= 30 else 5)
        gap, label, gutter = 3, 0 if few else 17, 14
        lines = math.ceil(len(self) / columns)
        wide, high = across * (self.SIDE + gap), self.SIDE + gap + label
        sheet = np.full((lines * high, columns * wide + (columns - 1) * gutter, 3), 255, np.uint8)
        with _style():
            if ax is None:
                margin = 1.5 if few else 0.15
                ax = _figure(sheet.shape[1] / DPI + margin, sheet.shape[0] / DPI + 0.45).subplots()
            for k, (name, tiles) in enumerate(self.samples.items()):
                column, line = divmod(k, lines)
                top, left = line * high + label, column * (wide + gutter)
                for j, tile in enumerate(tiles):
                    sheet[top : top + self.SIDE, left + j * (self.SIDE + gap) :][: self.SIDE, : self.SIDE] = tile
                if few:
                    ax.text(-8, top + self.SIDE / 2, _short(name), ha="right", va="center", fontsize=8.5)
                else:
                    ax.text(left, top - 4, _short(name, 40), ha="left", va="bottom", fontsize=7.5)
            ax.imshow(sheet, interpolation="nearest")
            ax.set_axis_off()
            ax.set_title("Samples of each class")
        self.ax_, self.figure_ = ax, ax.figure
        return self


class SizesDisplay:
    """Width against height, and the shapes. `widths`, `heights`: int (n,), pixels, upright."""

    def __init__(self, widths, heights):
        self.widths, self.heights = np.asarray(widths), np.asarray(heights)

    def __len__(self):
        return len(self.widths)

    @classmethod
    def from_manifest(cls, manifest):
        return cls([row.width for row in manifest.rows], [row.height for row in manifest.rows])

    def plot(self, *, ax=None):
        """`ax`: two axes; by default those of a new figure."""
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

        with _style():
            if ax is None:
                ax = _figure(6.6, 2.9).subplots(1, 2, width_ratios=(1, 1.15))
            sizes = Counter(zip(self.widths.tolist(), self.heights.tolist()))
            points = np.array([(w, h, n) for (w, h), n in sorted(sizes.items())], dtype=float)
            area = 8 + 250 * points[:, 2] / points[:, 2].max()
            low, high = points[:, :2].min() / 2.2, points[:, :2].max() * 2.2
            ax[0].plot((low, high), (low, high), color=RULE, linewidth=1, zorder=0)
            ax[0].scatter(points[:, 0], points[:, 1], s=area, color=COLOURS["train"], alpha=0.45, linewidths=0)
            ax[0].set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
            for axis in (ax[0].xaxis, ax[0].yaxis):
                axis.set_major_locator(FixedLocator([t for t in _ticks(low, high) if low <= t <= high]))
                axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
                axis.set_minor_locator(NullLocator())
            ax[0].grid()
            ax[0].set_aspect("equal")
            ax[0].set(xlabel="width, pixels", ylabel="height, pixels")
            ax[0].set_title(f"Size, {len(self):,} images")
            if len(sizes) == 1:
                ax[0].annotate(
                    f"all {points[0, 0]:.0f} x {points[0, 1]:.0f}",
                    points[0, :2],
                    (0, 14),
                    textcoords="offset points",
                    ha="center",
                )
            edges = np.array([0, 0.4, 0.6, 0.72, 0.8, 0.95, 1.05, 1.27, 1.4, 1.55, 1.9, 2.5, np.inf])
            names = ["taller", "1:2", "2:3", "3:4", "4:5", "1:1", "5:4", "4:3", "3:2", "16:9", "2:1", "wider"]
            shares = np.histogram(self.widths / self.heights, edges)[0] / len(self)
            colours = [COLOURS["train"] if name != "1:1" else COLOURS["test"] for name in names]
            ax[1].bar(range(len(names)), shares, color=colours, width=0.8)
            ax[1].set_xticks(range(len(names)), names, rotation=90)
            ax[1].tick_params(axis="x", length=0)
            ax[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            ax[1].set(xlabel="width : height", ylim=(0, min(1.05, max(shares) * 1.15)))
            ax[1].grid(axis="y")
            ax[1].set_title("Shape, share of images")
        self.ax_, self.figure_ = ax, ax[0].figure
        return self


class DuplicatesDisplay:
    """Groups of pictures that are the same or nearly so. `groups`: [(title, [(caption, tile)])]; `total`: groups in all."""

    SIDE = 96

    def __init__(self, groups, *, total=None):
        self.groups, self.total = list(groups), total or len(groups)

    def __len__(self):
        return len(self.groups)

    @classmethod
    def from_problems(cls, problems, manifest, *, root):
        """Copies with several labels first, then leaks, near-duplicates, copies within a class; at most GROUPS groups of 4."""
        split = {row.path: row.split for row in manifest.rows}
        partner = {"duplicate_across_classes": "same bytes, two labels", "leak": "in two given splits",
                   "near_duplicate": "near-duplicates", "duplicate_in_class": "same bytes"}  # fmt: skip
        groups = []
        for kind, title in partner.items():
            groups += [(title, members) for members in _linked([(p.path, p.other) for p in problems if p.problem == kind])]
        shown = []
        for title, members in groups[:GROUPS]:
            tiles = [
                (f"{Path(path).parent.name} · {split.get(path, 'set aside')}", _tile(Path(root) / path, cls.SIDE))
                for path in members[:4]
            ]
            shown.append((f"{title} ({len(members)})" if len(members) > 4 else title, tiles))
        return cls(shown, total=len(groups))

    def plot(self, *, ax=None):
        """`ax`: one axes, which holds the whole sheet."""
        gap, label, gutter = 4, 34, 26
        widths = [len(tiles) * (self.SIDE + gap) for _, tiles in self.groups]
        limit, x, y, places = max(4 * (2 * (self.SIDE + gap) + gutter) - gutter, *widths, 0), 0, 0, []
        for wide in widths:
            if x and x + wide > limit:
                x, y = 0, y + self.SIDE + label + 10
            places.append((x, y))
            x += wide + gutter
        right = max(px + wide for (px, _), wide in zip(places, widths))
        sheet = np.full((y + self.SIDE + label, max(right, 2 * (self.SIDE + gap)), 3), 255, np.uint8)
        with _style():
            if ax is None:
                ax = _figure(sheet.shape[1] / DPI + 0.2, sheet.shape[0] / DPI + 0.45).subplots()
            for (left, top), (title, tiles) in zip(places, self.groups):
                ax.text(left, top + 13, title, fontsize=7.5, va="bottom")
                for j, (caption, tile) in enumerate(tiles):
                    at = left + j * (self.SIDE + gap)
                    sheet[top + 17 : top + 17 + self.SIDE, at : at + self.SIDE] = tile
                    ax.text(at, top + 19 + self.SIDE, _short(caption, 17), fontsize=5.8, va="top", color=MUTED)
            ax.imshow(sheet, interpolation="nearest")
            ax.set_axis_off()
            more = f", the first {len(self)} of {self.total} groups" if self.total > len(self) else ""
            ax.set_title(f"Duplicates{more}")
        self.ax_, self.figure_ = ax, ax.figure
        return self


@contextlib.contextmanager
def _style():
    """matplotlib's defaults plus ours inside, whatever a matplotlibrc says. No warning for a glyph that the font lacks."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


def _figure(width, height):
    """A figure of `width` x `height` inches; made without pyplot, so nothing global is left behind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(fig)
    return fig


def _short(name, limit=24):
    name = " ".join(str(name).split())
    return name if len(name) <= limit else f"{name[: limit // 2]}…{name[-(limit - limit // 2 - 1) :]}"


def _largest(sizes):
    """Positions of the CLASSES largest, in their own order."""
    return sorted(np.argsort(-np.asarray(sizes), kind="stable")[:CLASSES].tolist())


def _linked(pairs):
    """Sorted lists of the paths that `pairs` link, directly or by way of others, in the order of their first."""
    home = {}
    for a, b in pairs:
        one, two = home.setdefault(a, [a]), home.setdefault(b, [b])
        if one is not two:
            one += two
            home |= dict.fromkeys(two, one)
    return sorted({id(group): sorted(group) for group in home.values()}.values())


def _ticks(low, high):
    ticks = [2**k for k in range(15)]
    return ticks if high / low < 64 else ticks[::2]


def _tile(path, side):
    """uint8 (side, side, 3): the picture, its proportions kept, on white; small ones enlarged in whole pixels."""
    from PIL import Image

    try:
        picture = images.open_rgb(path, at_least=side, max_megapixels=None)
    except (OSError, images.ImageProblem):  # changed since the scan: the report still counts
        return np.full((side, side, 3), 230, np.uint8)
    scale = side / max(picture.size)
    size = [max(1, round(v * scale)) for v in picture.size]
    picture = picture.resize(size, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BILINEAR)
    sheet = Image.new("RGB", (side, side), "white")
    sheet.paste(picture, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(sheet)
