"""Pipeline runs side by side: params that differ, metrics, and paired differences on the same
validation and test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graft.scoring.statistics import Comparison, compare_predictions
from graft.system.console import GraftError
from graft.tracking import champion, runs, store

if TYPE_CHECKING:
    from graft.params import Params

SHORTEST_ID = 6  # digits of a run id that are taken for one
PREDICTIONS = {
    "validation": champion.PREDICTIONS,
    "test": "predictions.csv",
}  # artifacts of the evaluate run, of each image set
LATEST = 10  # runs that are compared when none is named


@dataclass(frozen=True)
class RunSummary:
    """One pipeline run: its params, its final metrics (`evaluate/accuracy`), and which predictions
    are behind them.

    params: also the digests of what else makes an experiment, `data` and `code`. digests: of the
    images of each set of PREDICTIONS, None where it is not known. images: how many the data set
    has.
    """

    name: str
    run_id: str
    params: dict[str, str]
    metrics: dict[str, float]
    digests: dict[str, str | None]
    evaluate_run: str | None
    images: str | None = None


@dataclass(frozen=True)
class Table:
    """Runs, the first of them the reference; the params that differ; paired differences from the
    reference.

    paired: {"validation" | "test": {run id: Comparison, or a clause that says why there is none}}.
    """

    rows: tuple[RunSummary, ...]
    differing: tuple[str, ...]
    paired: dict[str, dict[str, Comparison | str]] = field(default_factory=dict)

    def adjusted(self, images: str) -> dict[str, float]:
        """{run id: p-value} of the comparisons on these images, raised for their number: see
        `holm`."""
        found = {
            run_id: c.p_value
            for run_id, c in self.paired[images].items()
            if isinstance(c, Comparison)
        }
        return dict(zip(found, holm(list(found.values()))))


@dataclass(frozen=True)
class Series:
    """Experiments that differ in one param alone, by its value; `params`: of the others, those that
    tell series apart."""

    params: dict[str, str]
    rows: dict[str, RunSummary]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several comparisons such that the chance of any false one below 5% is 5%
    (Holm 1979)."""
    order, adjusted, highest = (
        sorted(range(len(p_values)), key=p_values.__getitem__),
        [0.0] * len(p_values),
        0.0,
    )
    for rank, k in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = highest
    return adjusted


def compare_runs(params: Params, names: Sequence[str] = ()) -> Table:
    """Compare pipeline runs, named by DVC experiment, `repro-…` name, or the first digits of a run
    id.

    Without names: the latest ten that were evaluated, oldest first. The first run is what the
    others are compared with. Raises GraftError for a name that no run, or no one run, has.
    """
    connection, rows = _chosen(params, names, LATEST)
    options = {"resamples": params.evaluate.bootstrap, "seed": params.seed}
    paired = (
        {images: _pairs(connection.client, rows, images, options) for images in PREDICTIONS}
        if len(rows) > 1
        else {}
    )
    return Table(rows, _differing(rows), paired)


def compare_over(params: Params, key: str, names: Sequence[str] = ()) -> list[Series]:
    """The evaluated runs, all or those named, as series that differ in the param `key` alone; the
    longest series first.

    Of several runs with the same value the newest counts. Raises GraftError as `compare_runs`, and
    where no series has two.
    """
    _, rows = _chosen(params, names, None)
    series: dict[tuple, dict] = {}
    # Oldest first. Another seed is another split, so the data are told apart by number alone.
    for row in rows:
        others = {k: v for k, v in row.params.items() if k not in (key, "data")} | {
            "images": row.images
        }
        series.setdefault(tuple(others.items()), {})[row.params.get(key, "?")] = row
    found = sorted(
        (item for item in series.items() if len(item[1]) > 1), key=lambda item: -len(item[1])
    )
    if not found:
        raise GraftError(
            f"no two evaluated runs differ in {key} alone; `dvc exp run --queue -S {key}=1,2,3` "
            "makes such runs"
        )
    differing = [k for k, _ in found[0][0] if len({dict(others)[k] for others, _ in found}) > 1]
    return [
        Series({k: dict(others)[k] for k in differing}, dict(sorted(rows.items())))
        for others, rows in found
    ]


def _chosen(params, names, latest):
    """(connection, RunSummaries): the runs of these names; without names the latest that were
    evaluated, oldest first."""
    connection = store.connect(params)
    known = connection.search(kind="pipeline")
    if names:
        chosen = [_find(known, name) for name in dict.fromkeys(names)]
    else:
        current = [
            r
            for r in known
            if "superseded_by" not in r.data.tags and "evaluate/accuracy" in r.data.metrics
        ]
        chosen = current[:latest][::-1]
    if not chosen:
        raise GraftError(
            f"experiment {params.tracking.experiment} has no evaluated run yet; `dvc repro` makes "
            "one, `graft publish` records what data/ holds"
        )
    return connection, tuple(map(_summary, chosen))


def _differing(rows):
    keys = dict.fromkeys(key for row in rows for key in row.params)
    return tuple(key for key in keys if len({row.params.get(key) for row in rows}) > 1)


def _find(known, name):
    by_name = [r for r in known if r.data.tags.get("pipeline") == name]
    if by_name:
        return by_name[0]
    by_id = [r for r in known if len(name) >= SHORTEST_ID and r.info.run_id.startswith(name)]
    if len(by_id) == 1:
        return by_id[0]
    if by_id:
        raise GraftError(f"{name} begins {len(by_id)} run ids; give more digits")
    have = (
        ", ".join(
            dict.fromkeys(r.data.tags.get("pipeline", r.info.run_name) for r in known[:LATEST])
        )
        or "none"
    )
    raise GraftError(f"no pipeline run is named {name}; the latest are: {have}")


def _summary(run):
    tags = run.data.tags
    return RunSummary(
        name=tags.get("pipeline", run.info.run_name),
        run_id=run.info.run_id,
        params={
            **run.data.params,
            **{key: tags[f"{key}.digest"] for key in ("data", "code") if f"{key}.digest" in tags},
        },
        metrics=dict(run.data.metrics),
        digests={images: tags.get(f"{images}.digest") for images in PREDICTIONS},
        evaluate_run=tags.get("run.evaluate"),
        images=tags.get("data.images"),
    )


def _pairs(client, rows, images, options):
    """{run id: Comparison on the images shared with the first of `rows`, or a clause that says why
    there is none}."""
    first, *others = rows
    reference = runs.read_predictions(client, first.evaluate_run, PREDICTIONS[images])
    paired = {}
    for row in others:
        if row.digests[images] is None or row.digests[images] != first.digests[images]:
            paired[row.run_id] = f"another {images} set"
            continue
        predictions = runs.read_predictions(client, row.evaluate_run, PREDICTIONS[images])
        if reference is None or predictions is None:
            paired[row.run_id] = "no predictions at hand"
            continue
        try:
            paired[row.run_id] = compare_predictions(reference, predictions, **options)
        except ValueError:
            paired[row.run_id] = f"another {images} set"
    return paired
