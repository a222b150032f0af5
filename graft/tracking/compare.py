"""Pipeline runs side by side: params that differ, metrics, and paired differences on the same test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graft.scoring.statistics import Comparison, compare_predictions
from graft.system.console import GraftError
from graft.tracking import runs, store

SHORTEST_ID = 6  # digits of a run id that are taken for one
LATEST = 10  # runs that are compared when none is named


@dataclass(frozen=True)
class RunSummary:
    """One pipeline run: its params, its final metrics (`evaluate/accuracy`), and which predictions are behind them."""

    name: str
    run_id: str
    params: dict[str, str]
    metrics: dict[str, float]
    test_digest: str | None
    evaluate_run: str | None


@dataclass(frozen=True)
class Table:
    """Runs, the first of them the reference; the params that differ; by run id, the paired difference from the reference.

    Where there is no paired difference, `paired` holds a clause that says why.
    """

    rows: tuple[RunSummary, ...]
    differing: tuple[str, ...]
    paired: dict[str, Comparison | str] = field(default_factory=dict)


def compare_runs(params, names: Sequence[str] = ()) -> Table:
    """Compare pipeline runs, named by DVC experiment, `repro-…` name, or the first digits of a run id.

    Without names: the latest ten that were evaluated, oldest first. The first run is what the others are compared with.
    Raises GraftError for a name that no run, or no one run, has.
    """
    connection = store.connect(params)
    known = connection.search(kind="pipeline")
    if names:
        chosen = [_find(known, name) for name in dict.fromkeys(names)]
    else:
        current = [r for r in known if "superseded_by" not in r.data.tags and "evaluate/accuracy" in r.data.metrics]
        chosen = current[:LATEST][::-1]
    if not chosen:
        raise GraftError(f"experiment {params.tracking.experiment} has no evaluated run yet; `dvc repro` makes one")
    rows = tuple(_summary(run) for run in chosen)
    keys = dict.fromkeys(key for row in rows for key in row.params)
    differing = tuple(key for key in keys if len({row.params.get(key) for row in rows}) > 1)
    options = {"resamples": params.evaluate.bootstrap, "seed": params.seed}
    return Table(rows, differing, _pairs(connection.client, rows, options))


def _find(known, name):
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


def _summary(run):
    tags = run.data.tags
    return RunSummary(
        name=tags.get("pipeline", run.info.run_name),
        run_id=run.info.run_id,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        test_digest=tags.get("test.digest"),
        evaluate_run=tags.get("run.evaluate"),
    )


def _pairs(client, rows, options):
    """{run id: Comparison on the test images shared with the first of `rows`, or a clause that says why there is none}."""
    first, *others = rows
    reference = runs.read_predictions(client, first.evaluate_run, "predictions.csv") if others else None
    paired = {}
    for row in others:
        if row.test_digest is None or row.test_digest != first.test_digest:
            paired[row.run_id] = "another test set"
            continue
        predictions = runs.read_predictions(client, row.evaluate_run, "predictions.csv")
        if reference is None or predictions is None:
            paired[row.run_id] = "no predictions at hand"
            continue
        try:
            paired[row.run_id] = compare_predictions(reference, predictions, **options)
        except ValueError:
            paired[row.run_id] = "another test set"
    return paired
