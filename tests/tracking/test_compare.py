import numpy as np
import pytest

from graft.scoring.predictions import Predictions
from graft.system import files, paths
from graft.system.console import GraftError
from graft.tracking import champion, compare, runs


@pytest.fixture
def evaluate(params, database, write_manifest, with_params, declare, monkeypatch):
    """evaluate(name, lr, wrong): one experiment that got that many of 40 test images wrong, of the
    validation half."""
    declare("evaluate", outs=[paths.EVALUATE / "predictions.csv"])

    def run_it(name, lr, wrong, *, labels="ab", group=lambda i: "", seed=42):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        images = write_manifest(n=120, labels=labels)

        def predictions(images, wrong):
            truth = np.array([labels.index(path[0]) for path in images])
            said = np.where(np.arange(40) < wrong, 1 - truth, truth)
            return Predictions(
                images, truth, np.eye(2)[said], tuple(labels), tuple(group(i) for i in range(40))
            )

        with runs.stage_run("evaluate", with_params(lr=lr, seed=seed)) as run:
            tested = predictions(images["test"], wrong)
            tested.write(paths.EVALUATE / "predictions.csv", head=tested)
            predictions(images["val"], wrong // 2).write(paths.EVALUATE / "v.csv")
            run.log_text((paths.EVALUATE / "v.csv").read_text(), champion.PREDICTIONS)
            files.write_json(paths.EVALUATE / "metrics.json", {"accuracy": 1 - wrong / 40})
            files.write_json(paths.FINE_TUNE / "metrics.json", {"accuracy": 1 - wrong // 2 / 40})
        return run

    return run_it


def test_rows_params_that_differ_and_pairs(evaluate, params):
    evaluate("base", 1e-4, 10)
    tuned, other = evaluate("tuned", 1e-5, 2), evaluate("other", 1e-5, 0, labels="ac")
    table = compare.compare_runs(params)
    assert [row.name for row in table.rows] == ["base", "tuned", "other"]
    assert table.differing == ("lr", "data")
    assert [row.metrics["evaluate/accuracy"] for row in table.rows] == [0.75, 0.95, 1.0]
    assert list(table.paired) == ["validation", "test"]  # by which experiments are compared, first
    for images, lost in (("validation", 5 - 1), ("test", 10 - 2)):
        paired = table.paired[images][tuned.pipeline_id]
        found = (paired.n, paired.difference, paired.only_first, paired.only_second, paired.p_value)
        assert found == (40, lost / 40, 0, lost, 2 * 0.5**lost)
        assert table.paired[images][other.pipeline_id] == f"another {images} set"


def test_many_comparisons_raise_p(evaluate, params):
    """Eight runs without any merit: one of them looks better than the first by p = 0.008, which is
    0.06 among eight."""
    evaluate("base", 1e-4, 8)
    best = evaluate("best", 2e-4, 0)
    for k in range(7):
        evaluate(f"run {k}", 3e-4 + k * 1e-5, 8)
    table = compare.compare_runs(params)
    assert table.paired["test"][best.pipeline_id].p_value == 2 * 0.5**8
    assert table.adjusted("test")[best.pipeline_id] == 8 * 2 * 0.5**8


@pytest.mark.parametrize(
    ("given", "adjusted"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.9, 0.5], [1.0, 1.0]),
        ([0.01] * 2, [0.02] * 2),
    ],
)
def test_holm(given, adjusted):
    """The worked example of Holm's procedure, [0.01, 0.04, 0.03]: 3 * 0.01, then 2 * 0.03, then no
    less than that."""
    assert compare.holm(given) == pytest.approx(adjusted)


def test_over_seeds(evaluate, params):
    for seed in (1, 2, 3):
        evaluate(f"base {seed}", 1e-4, 10 + seed, seed=seed)
    for seed in (2, 3):
        evaluate(f"tuned {seed}", 1e-5, 6 + seed, seed=seed)
    evaluate("base 1 again", 1e-4, 9, seed=1)
    evaluate("lonely", 1e-3, 9)
    base, tuned = compare.compare_over(params, "seed")
    assert (base.params, list(base.rows), tuned.params, list(tuned.rows)) == (
        {"lr": "0.0001"},
        ["1", "2", "3"],
        {"lr": "1e-05"},
        ["2", "3"],
    )
    assert base.rows["1"].name == "base 1 again"
    assert [
        row.name
        for row in compare.compare_over(params, "seed", ["base 1", "base 2"])[0].rows.values()
    ] == [
        "base 1",
        "base 2",
    ]
    with pytest.raises(GraftError, match="no two evaluated runs differ in batch_size alone"):
        compare.compare_over(params, "batch_size")


def test_images_of_one_group_count_as_one(evaluate, params):
    """Eight near-duplicates that only the second gets right are one piece of evidence, not eight
    (exact McNemar: p = 0.008)."""
    evaluate("base", 1e-4, 8, group=lambda i: "burst" if i < 8 else "")
    tuned = evaluate("tuned", 1e-5, 0, group=lambda i: "burst" if i < 8 else "")
    paired = compare.compare_runs(params).paired["test"][tuned.pipeline_id]
    assert (paired.only_second, paired.test, paired.p_value) == (8, "sign flips over groups", 1.0)


def test_names_ids_and_order(evaluate, params):
    base, tuned = evaluate("base", 1e-4, 10), evaluate("tuned", 1e-5, 2)
    table = compare.compare_runs(params, ["tuned", base.pipeline_id[:12], "tuned"])
    assert [row.run_id for row in table.rows] == [tuned.pipeline_id, base.pipeline_id]
    assert table.paired["test"][base.pipeline_id].difference == -0.2
    assert compare.compare_runs(params, ["base"]).paired == {}


def test_predictions_that_are_gone(evaluate, params, database):
    base, tuned = evaluate("base", 1e-4, 10), evaluate("tuned", 1e-5, 2)
    (database.parent / "artifacts" / base.run_id / "artifacts" / "predictions.csv").unlink()
    assert compare.compare_runs(params).paired["test"] == {
        tuned.pipeline_id: "no predictions at hand"
    }


def test_unknown_names(evaluate, params):
    with pytest.raises(GraftError, match="no evaluated run yet"):
        compare.compare_runs(params)
    evaluate("base", 1e-4, 10)
    with pytest.raises(GraftError, match="no pipeline run is named bsae; the latest are: base"):
        compare.compare_runs(params, ["bsae"])
