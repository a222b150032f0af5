"""The one look of all pictures: colours, fonts, and how a figure becomes bytes.

Colours are Okabe & Ito's, which people with any colour vision tell apart; blue stands for right, vermilion for wrong, and
a mark (✓ ✗) or a dashed line says the same without colour. Figures are made without pyplot, so nothing global is left
behind.
"""

import contextlib
import functools
import io
import re
import warnings
from pathlib import Path

RIGHT, WRONG = "#0072b2", "#d55e00"
HEAD, TUNED = "#e69f00", "#0072b2"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f4f24", "#6a3d9a", "#117733", "#882255")
INK, MUTED, RULE, SOFT, PAPER = "#1c2733", "#66727f", "#dde2e8", "#eef1f4", "#ffffff"
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)))  # the second sign by which series differ
DPI = 120
WIDTH = 4.4  # inches of most figures: on a phone, where they fill the screen, the text then keeps its size
NAMED = {INK: "ink", MUTED: "muted", RULE: "rule", SOFT: "soft", PAPER: "paper", RIGHT: "right", WRONG: "wrong"}
VARIABLES = {**{colour: f"c{k}" for k, colour in enumerate(SERIES)}, **NAMED}  # what a page may repaint, e.g. in the dark

FALLBACKS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans", "Hiragino Sans", "Microsoft YaHei", "Arial Unicode MS")

RC = {
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
def applied():
    """matplotlib's own defaults plus ours inside, whatever a matplotlibrc says. No warning for a glyph that the font lacks."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC | {"font.family": _fonts()})
        yield


@functools.cache
def _fonts():
    """DejaVu Sans comes with matplotlib, the same on every machine; another font only for class names in scripts that it
    lacks.
    """
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in FALLBACKS if name in installed)]


def figure(width, height):
    """A figure of `width` x `height` inches with a layout that leaves room for its labels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(fig)
    return fig


def png(fig, path=None):
    """The figure as PNG bytes, written to `path` if given; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with applied():
        fig.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    if path is not None:
        Path(path).write_bytes(buffer.getvalue())
    return buffer.getvalue()


def svg(fig):
    """The figure as an <svg> element to put into a page: no size of its own, the palette as CSS variables (`var(--ink)` …)."""
    buffer = io.StringIO()
    with applied():
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        fig.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    wide = 1.45 * 72 * fig.get_figwidth()  # CSS pixels: text then comes out as large as the page's small print
    head = rf'<svg viewBox="\1" style="max-width: {wide:.0f}px">'
    text = re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', head, text, count=1)
    text = re.sub(r"font: ?([\d.]+)px[^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: ?[^;\"]*;?", "", text)
    used = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)  # one page holds many figures
    return re.sub(r"#[0-9a-f]{6}", lambda m: f"var(--{VARIABLES[m[0]]})" if m[0] in VARIABLES else m[0], text)


def short(name, limit=22):
    """`name`, its middle replaced by … where it is longer than `limit` characters."""
    name = " ".join(str(name).split())
    if len(name) <= limit:
        return name
    return f"{name[: limit // 2]}…{name[-(limit - limit // 2 - 1) :]}"


def mix(colour, share):
    """RGBA of `colour` at the opacities `share` (any shape, 0 … 1): float32 (..., 4)."""
    import numpy as np
    from matplotlib.colors import to_rgb

    share = np.asarray(share, np.float32)
    return np.concatenate([np.broadcast_to(np.array(to_rgb(colour), np.float32), (*share.shape, 3)), share[..., None]], axis=-1)


def percent(share):
    return f"{100 * share:.1f}%"
