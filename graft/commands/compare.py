"""Compare experiments: params that differ, metrics with intervals, paired differences."""

import argparse
from collections.abc import Sequence
from statistics import mean

from graft import params
from graft.scoring.statistics import Comparison
from graft.system.console import log
from graft.tracking.compare import PREDICTIONS, Series, Table, compare_over, compare_runs

# Title -> metric of the pipeline run. Validation first: experiments are chosen by it, and test
# figures stay unseen.
ACCURACIES = {"validation accuracy": "fine-tune/accuracy", "test accuracy": "evaluate/accuracy"}
OTHERS = ("balanced_accuracy", "macro_f1", "weighted_f1", "loss", "ece", "head_accuracy")
METRICS = ACCURACIES | {f"test {name}": f"evaluate/{name}" for name in OTHERS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN|EXP",
        help="experiment names or run ids (default: the latest ten)",
    )
    parser.add_argument(
        "--over",
        metavar="PARAM",
        help="mean, range and paired differences over the values of PARAM, e.g. seed",
    )


def compare(args: argparse.Namespace) -> None:
    """`graft compare [--over PARAM] [RUN|EXP …]`. Raises GraftError as `compare_runs` and
    `compare_over` do."""
    given = params.load()
    if args.over:
        log(render_over(args.over, compare_over(given, args.over, args.runs)))
    else:
        log(render(compare_runs(given, args.runs)))


def render(table: Table) -> str:
    """The table as text: one line per run, then one line per paired difference, on validation
    images first."""
    first, *others = table.rows
    metrics = {
        title: name
        for title, name in METRICS.items()
        if any(name in row.metrics for row in table.rows)
    }
    body = [
        [
            row.name,
            *(row.params.get(key, "") for key in table.differing),
            *(_metric(row.metrics, m) for m in metrics.values()),
        ]
        for row in table.rows
    ]
    lines = _columns([["run", *table.differing, *metrics], *body])
    for images in PREDICTIONS if others else ():
        adjusted = table.adjusted(images)
        many = (
            f"; p* is for {len(adjusted)} comparisons at once (Holm)" if len(adjusted) > 1 else ""
        )
        what = f"same images (95% interval of the difference, p of the paired test{many})"
        lines += ["", f"{images} accuracy against {first.name}, {what}:"]
        lines += _columns(
            [
                [
                    f"  {row.name}",
                    _difference(
                        table.paired[images][row.run_id], adjusted.get(row.run_id) if many else None
                    ),
                ]
                for row in others
            ]
        )
    return "\n".join(lines)


def render_over(key: str, series: Sequence[Series]) -> str:
    """One line per series of runs that differ in `key` alone: mean and range; then their paired
    differences from the first."""
    first, *others = series
    body = [
        [
            _label(each),
            str(len(each.rows)),
            *(_spread(_values(each, m)) for m in ACCURACIES.values()),
        ]
        for each in series
    ]
    lines = _columns(
        [["runs", f"values of {key}", *(f"{title}, mean (range)" for title in ACCURACIES)], *body]
    )
    if others:
        lines += ["", f"paired by {key} against {_label(first)}:"]
        lines += _columns([[f"  {_label(each)}", *_paired_over(first, each)] for each in others])
    return "\n".join(lines)


def _label(series):
    return " ".join(f"{key}={value}" for key, value in series.params.items()) or "all"


def _values(series, metric):
    return [row.metrics[metric] for row in series.rows.values() if metric in row.metrics]


def _spread(values, sign=""):
    return (
        f"{mean(values):{sign}.4f} ({min(values):{sign}.4f} to {max(values):{sign}.4f})"
        if values
        else "-"
    )


def _paired_over(first, other):
    """Cells: for each accuracy the differences at the values that both series have."""
    for title, metric in ACCURACIES.items():
        shared = [key for key in other.rows if key in first.rows]
        pairs = [
            (first.rows[key].metrics.get(metric), other.rows[key].metrics.get(metric))
            for key in shared
        ]
        differences = [b - a for a, b in pairs if None not in (a, b)]
        better = (
            f", better in {sum(d > 0 for d in differences)} of {len(differences)}"
            if differences
            else ""
        )
        yield f"{title} {_spread(differences, '+')}{better}"


def _metric(metrics, name):
    value, low, high = (metrics.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    return f"{value:.4f}" if None in (low, high) else f"{value:.4f} ({low:.4f}-{high:.4f})"


def _difference(paired: Comparison | str, adjusted: float | None) -> str:
    if isinstance(paired, str):
        return f"not compared: {paired}"
    c, many = paired, "" if adjusted is None else f"  p* = {adjusted:.2g}"
    return (
        f"{c.difference:+.4f} ({c.low:+.4f} to {c.high:+.4f})  p = {c.p_value:.2g}{many}  n = "
        f"{c.n}  right where the other is wrong: {c.only_second}, wrong where it is right: "
        f"{c.only_first}"
    )


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells padded to columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    ]
