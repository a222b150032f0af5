"""Compare experiments: params that differ, metrics with intervals, paired differences."""

import argparse
from collections.abc import Sequence

from graft import params
from graft.scoring.statistics import Comparison
from graft.system.console import log
from graft.tracking.compare import Table, compare_runs

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "loss", "ece", "head_accuracy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN|EXP", help="experiment names or run ids (default: the latest ten)")


def compare(args: argparse.Namespace) -> None:
    """`graft compare [RUN|EXP …]`. Raises GraftError as `compare_runs` does."""
    log(render(compare_runs(params.load(), args.runs)))


def render(table: Table) -> str:
    """The table as text: one line per run, then one line per paired difference."""
    first, *others = table.rows
    metrics = [name for name in METRICS if any(f"evaluate/{name}" in row.metrics for row in table.rows)]
    body = [
        [row.name, *(row.params.get(key, "") for key in table.differing), *(_metric(row.metrics, name) for name in metrics)]
        for row in table.rows
    ]
    lines = _columns([["run", *table.differing, *metrics], *body])
    if others:
        what = "same images (95% interval of the difference, p of the paired test)"
        lines += ["", f"test accuracy against {first.name}, {what}:"]
        lines += _columns([[f"  {row.name}", _difference(table.paired[row.run_id])] for row in others])
    return "\n".join(lines)


def _metric(metrics, name):
    value, low, high = (metrics.get(f"evaluate/{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    return f"{value:.4f}" if None in (low, high) else f"{value:.4f} ({low:.4f}-{high:.4f})"


def _difference(paired: Comparison | str) -> str:
    if isinstance(paired, str):
        return f"not compared: {paired}"
    c = paired
    return (f"{c.difference:+.4f} ({c.low:+.4f} to {c.high:+.4f})  p = {c.p_value:.2g}  n = {c.n}  "
            f"right where the other is wrong: {c.only_second}, wrong where it is right: {c.only_first}")  # fmt: skip


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells padded to columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
