"""The exported formats side by side, as text and as a page that needs nothing but itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from graft.reporting.model_card import environment
from graft.scoring.statistics import wilson

HEADER = (
    "format",
    "MB",
    "accuracy",
    "95% interval",
    "agreement",
    "from the photo",
    "ms at 1",
    "p95",
    "ms at 32",
    "p95",
    "of predict",
    "memory MB",
)


def cells(rows: Sequence[Any]) -> list[list[str]]:
    """A row of text per `graft.serving.benchmark.Measured`, in the order of HEADER."""
    return [_row(row) for row in rows]


def _row(row):
    low, high = wilson(row.accuracy * row.n, row.n)
    times = [f"{figure:.1f}" for batch in ("1", "32") for figure in row.ms[batch]]
    photo = f"{row.photo_agreement:.4f} {row.worst if row.photo_agreement < 1 else ''}".rstrip()
    figures = [
        f"{row.bytes / 1e6:.2f}",
        f"{row.accuracy:.4f}",
        f"{low:.3f} to {high:.3f}",
        f"{row.agreement:.4f}",
        photo,
    ]
    return [row.format, *figures, *times, f"{row.of_predict:.2f}", f"{row.memory_mb:.0f}"]


def text(rows: Sequence[Any]) -> str:
    """The table, a line per format."""
    lines = [list(HEADER), *cells(rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        f"{line[0]:{widths[0]}}" + "".join(f"  {v:>{w}}" for v, w in zip(line[1:], widths[1:]))
        for line in lines
    )


def page(rows: Sequence[Any], about: Mapping[str, str]) -> str:
    """HTML. about: label -> value of what was measured, and where."""
    n, photos = (max(getattr(row, name) for row in rows) for name in ("n", "photos"))
    return (
        environment()
        .get_template("format_table.html.j2")
        .render(header=HEADER, rows=cells(rows), about=about, n=n, photos=photos)
    )
