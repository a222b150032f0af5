"""The one look of all figures: colours, fonts, and how a figure becomes bytes.

Colours are Okabe & Ito's, and one red of Tol's, which people with any colour vision tell apart;
blue stands for right, red for wrong, and a mark (✓ ✗) or a dashed line says the same without
colour. Figures are made without pyplot, so nothing global is left behind.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from typing_extensions import Self

RIGHT, WRONG = "#0072b2", "#cc3311"
HEAD, TUNED = "#e69f00", "#0072b2"
SERIES = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7f4f24",
    "#6a3d9a",
    "#117733",
    "#882255",
)
INK, MUTED, RULE, SOFT, PAPER = "#1c2733", "#66727f", "#dde2e8", "#eef1f4", "#ffffff"
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)))  # the second sign by which series differ
DPI = 120
# Inches of most figures: on a phone, where they fill the screen, the text then keeps its size.
WIDTH = 4.4
NAMED = {
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    SOFT: "soft",
    PAPER: "paper",
    RIGHT: "right",
    WRONG: "wrong",
}
# What a page may repaint, e.g. in the dark.
VARIABLES = {**{colour: f"c{k}" for k, colour in enumerate(SERIES)}, **NAMED}

# In matplotlib's SVG; what stands between two is text, which may say anything.
TAG = re.compile(r"<[^>]*>")

FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Arial Unicode MS",
)

RC: dict[Any, Any] = {
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$5 and $10"
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # text stays text: the reader's fonts, selectable, small
    "svg.hashsalt": "graft",
    "path.simplify": True,
}


@contextlib.contextmanager
def applied() -> Iterator[None]:
    """matplotlib's own defaults plus ours inside, whatever a matplotlibrc says. No warning for a
    glyph that the font lacks."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC | {"font.family": _fonts()})
        yield


@functools.cache
def _fonts():
    """DejaVu Sans comes with matplotlib, the same on every machine; others only for class names in
    scripts that it lacks."""
    from matplotlib import font_manager

    return ["DejaVu Sans", *(name for name in FALLBACKS if name in font_manager.get_font_names())]


def figure(width: float, height: float) -> Figure:
    """A figure of `width` x `height` inches with a layout that leaves room for its labels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor=PAPER)


class Display:
    """scikit-learn's pattern: a figure holds its data, `plot(*, ax=None)` draws it on `ax`, by
    default axes of its own, and returns the display, with `ax_` and `figure_`. A subclass gives
    `size`, in inches, and `draw(ax)`.
    """

    size = (WIDTH, 4.1)

    def axes(self) -> Axes | np.ndarray:
        return figure(*self.size).subplots()

    def draw(self, ax: Any) -> None:
        raise NotImplementedError

    def plot(self, *, ax: Axes | np.ndarray | None = None) -> Self:
        with applied():
            axes: Any = self.axes() if ax is None else ax  # Axes, or an array of them
            self.ax_, self.figure_ = axes, np.ravel(axes)[0].figure
            self.draw(self.ax_)
        return self


def png(fig: Figure, path: str | Path | BinaryIO) -> None:
    """Write the figure as PNG; the same figure gives the same bytes."""
    with applied():
        fig.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def svg(fig: Figure) -> str:
    """The figure as an <svg> element to put into a page: no size of its own, the palette as CSS
    variables (`var(--ink)` …)."""
    buffer = io.StringIO()
    with applied():
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        fig.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # CSS pixels: text then comes out as large as the page's small print.
    wide = 1.45 * 72 * fig.get_figwidth()
    head = rf'<svg viewBox="\1" style="max-width: {wide:.0f}px">'
    text = re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', head, text, count=1)
    used = set(re.findall(r"#([\w.-]+)", " ".join(TAG.findall(text))))
    return TAG.sub(lambda tag: _restyled(tag[0], used), text)


def _restyled(tag, used):
    """A tag of matplotlib's for a page that holds many figures: its fonts, its colours, only the
    ids that are `used`."""
    tag = re.sub(r"font: ?([\d.]+)px[^;\"]*", r"font-size: \1px", tag)
    tag = re.sub(r"font-family: ?[^;\"]*;?", "", tag)
    tag = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", tag)
    return re.sub(
        r"#[0-9a-f]{6}", lambda m: f"var(--{VARIABLES[m[0]]})" if m[0] in VARIABLES else m[0], tag
    )


def short(name: str, limit: int = 22) -> str:
    """`name`, its middle replaced by … where it is longer than `limit` characters."""
    name = " ".join(str(name).split())
    if len(name) <= limit:
        return name
    return f"{name[: limit // 2]}…{name[-(limit - limit // 2 - 1) :]}"


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"
