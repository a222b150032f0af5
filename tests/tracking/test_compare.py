import numpy as np
import pytest

from graft.scoring.predictions import Predictions
from graft.system import files, paths
from graft.system.console import GraftError
from graft.tracking import compare, runs


@pytest.fixture
def evaluate(params, database, write_manifest, with_params, declare, monkeypatch):
    """evaluate(name, lr, wrong): one experiment whose evaluate stage got that many of 40 test images wrong."""
    declare("evaluate", outs=[paths.EVALUATE / "predictions.csv"])

    def run_it(name, lr, wrong, *, labels="ab", group=lambda i: ""):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        images = write_manifest(n=120, labels=labels)["test"]
        truth = np.array([labels.index(path[0]) for path in images])
        said = np.where(np.arange(40) < wrong, 1 - truth, truth)
        predictions = Predictions(images, truth, np.eye(2)[said], tuple(labels), tuple(group(i) for i in range(40)))
        with runs.stage_run("evaluate", with_params(lr=lr)) as run:
            predictions.write(paths.EVALUATE / "predictions.csv", head=predictions)
            files.write_json(paths.EVALUATE / "metrics.json", {"accuracy": 1 - wrong / 40})
        return run

    return run_it


def test_rows_params_that_differ_and_pairs(evaluate, params):
    evaluate("base", 1e-4, 10)
    tuned, other = evaluate("tuned", 1e-5, 2), evaluate("other", 1e-5, 0, labels="ac")
    table = compare.compare_runs(params)
    assert [row.name for row in table.rows] == ["base", "tuned", "other"]
    assert table.differing == ("lr",)
    assert [row.metrics["evaluate/accuracy"] for row in table.rows] == [0.75, 0.95, 1.0]
    paired = table.paired[tuned.pipeline_id]
    assert (paired.n, paired.difference, paired.only_first, paired.only_second, paired.p_value) == (40, 0.2, 0, 8, 2 * 0.5**8)
    assert table.paired[other.pipeline_id] == "another test set"


def test_images_of_one_group_count_as_one(evaluate, params):
    """Eight near-duplicates that only the second gets right are one piece of evidence, not eight (exact McNemar: p = 0.008)."""
    evaluate("base", 1e-4, 8, group=lambda i: "burst" if i < 8 else "")
    tuned = evaluate("tuned", 1e-5, 0, group=lambda i: "burst" if i < 8 else "")
    paired = compare.compare_runs(params).paired[tuned.pipeline_id]
    assert (paired.only_second, paired.test, paired.p_value) == (8, "sign flips over groups", 1.0)


def test_names_ids_and_order(evaluate, params):
    base, tuned = evaluate("base", 1e-4, 10), evaluate("tuned", 1e-5, 2)
    table = compare.compare_runs(params, ["tuned", base.pipeline_id[:12], "tuned"])
    assert [row.run_id for row in table.rows] == [tuned.pipeline_id, base.pipeline_id]
    assert table.paired[base.pipeline_id].difference == -0.2
    assert compare.compare_runs(params, ["base"]).paired == {}


def test_predictions_that_are_gone(evaluate, params, database):
    base, tuned = evaluate("base", 1e-4, 10), evaluate("tuned", 1e-5, 2)
    (database.parent / "artifacts" / base.run_id / "artifacts" / "predictions.csv").unlink()
    assert compare.compare_runs(params).paired == {tuned.pipeline_id: "no predictions at hand"}


def test_unknown_names(evaluate, params):
    with pytest.raises(GraftError, match="no evaluated run yet"):
        compare.compare_runs(params)
    evaluate("base", 1e-4, 10)
    with pytest.raises(GraftError, match="no pipeline run is named bsae; the latest are: base"):
        compare.compare_runs(params, ["bsae"])
