"""`graft compare RUN|EXP …`: pipeline runs side by side, with intervals, and paired differences on the same test images."""

from dataclasses import dataclass, field

from stages.common import statistics
from stages.console import GraftError
from stages.tracking import store
from stages.tracking.champion import download_predictions

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "loss", "ece", "head_accuracy")
SHORTEST_ID = 6  # digits of a run id that are taken for one
LATEST = 10  # runs that are compared when none is named


@dataclass(frozen=True)
class Row:
    """One pipeline run: its params, its final metrics (`evaluate/accuracy`), and which predictions are behind them."""

    name: str
    run_id: str
    params: dict
    metrics: dict
    test_digest: str | None
    evaluate_run: str | None


@dataclass(frozen=True)
class Table:
    """Runs, the first of them the reference; the params that differ; by run id, the paired difference from the reference.

    Where there is no paired difference, `paired` holds a clause that says why.
    """

    rows: tuple[Row, ...]
    differing: tuple[str, ...]
    paired: dict[str, statistics.Comparison | str] = field(default_factory=dict)


def compare(params, names=()):
    """Compare pipeline runs, named by DVC experiment, `repro-…` name, or the first digits of a run id.

    Without names: the latest ten that were evaluated, oldest first. The first run is what the others are compared with.
    Returns a Table. Raises GraftError for a name that no run, or no one run, has.
    """
    connection = store.connect(params)
    known = connection.search(kind="pipeline")
    if names:
        chosen = [_find(connection, known, name) for name in dict.fromkeys(names)]
    else:
        current = [r for r in known if "superseded_by" not in r.data.tags and "evaluate/accuracy" in r.data.metrics]
        chosen = current[:LATEST][::-1]
    if not chosen:
        raise GraftError(f"experiment {params.tracking.experiment} has no evaluated run yet; `dvc repro` makes one")
    rows = tuple(_row(run) for run in chosen)
    keys = dict.fromkeys(key for row in rows for key in row.params)
    differing = tuple(key for key in keys if len({row.params.get(key) for row in rows}) > 1)
    cache = {}
    options = {"resamples": params.evaluate.bootstrap, "seed": params.seed}
    paired = {row.run_id: _pair(connection.client, rows[0], row, cache, options) for row in rows[1:]}
    return Table(rows, differing, paired)


def _find(connection, known, name):
    by_name = [r for r in known if r.data.tags.get("pipeline") == name]
    if by_name:
        return by_name[0]
    by_id = [r for r in known if len(name) >= SHORTEST_ID and r.info.run_id.startswith(name)]
    if len(by_id) == 1:
        return by_id[0]
    if by_id:
        raise GraftError(f"{name} begins {len(by_id)} run ids; give more digits")
    have = ", ".join(dict.fromkeys(r.data.tags.get("pipeline", r.info.run_name) for r in known[:LATEST])) or "none"
    raise GraftError(f"no pipeline run is named {name}; the latest are: {have}")


def _row(run):
    tags = run.data.tags
    return Row(
        name=tags.get("pipeline", run.info.run_name),
        run_id=run.info.run_id,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        test_digest=tags.get("test.digest"),
        evaluate_run=tags.get("run.evaluate"),
    )


def _pair(client, first, second, cache, options):
    """Comparison of two rows on the test images they share, or a clause that says why there is none."""
    if None in (first.test_digest, second.test_digest) or first.test_digest != second.test_digest:
        return "another test set"
    for row in (first, second):
        if row.run_id not in cache:
            cache[row.run_id] = download_predictions(client, row.evaluate_run)
    a, b = cache[first.run_id], cache[second.run_id]
    if a is None or b is None:
        return "no predictions at hand"
    if set(a) != set(b) or any(a[path]["label"] != b[path]["label"] for path in a):
        return "another test set"
    order = sorted(a)
    right = ([rows[p]["predicted"] == rows[p]["label"] for p in order] for rows in (a, b))
    return statistics.compare(*right, groups=[a[p].get("group", "") for p in order], **options)


def render(table):
    """The table as text: one line per run, then one line per paired difference."""
    head = ["run", *table.differing, *(m for m in METRICS if _any(table, m))]
    body = [
        [row.name, *(row.params.get(key, "") for key in table.differing),
         *(_metric(row.metrics, m) for m in METRICS if _any(table, m))]
        for row in table.rows
    ]  # fmt: skip
    lines = _columns([head, *body])
    if len(table.rows) > 1:
        lines += [
            "",
            f"test accuracy against {table.rows[0].name}, same images (95% interval of the difference, p of the paired test):",
        ]
        lines += _columns([[f"  {row.name}", _difference(table.paired[row.run_id])] for row in table.rows[1:]])
    return "\n".join(lines)


def _any(table, metric):
    return any(f"evaluate/{metric}" in row.metrics for row in table.rows)


def _metric(metrics, name):
    value = metrics.get(f"evaluate/{name}")
    if value is None:
        return "-"
    low, high = metrics.get(f"evaluate/{name}_low"), metrics.get(f"evaluate/{name}_high")
    return f"{value:.4f}" + (f" ({low:.4f}-{high:.4f})" if low is not None and high is not None else "")


def _difference(paired):
    if isinstance(paired, str):
        return f"not compared: {paired}"
    c = paired
    return (f"{c.difference:+.4f} ({c.low:+.4f} to {c.high:+.4f})  p = {c.p_value:.2g}  n = {c.n}  "
            f"right where the other is wrong: {c.only_second}, wrong where it is right: {c.only_first}")  # fmt: skip


def _columns(rows):
    """Lines of cells padded to columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
