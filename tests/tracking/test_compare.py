import json

import pytest

from stages import paths
from stages.console import GraftError
from stages.tracking import compare, runs


@pytest.fixture
def evaluate(params, database, write_manifest, with_params, monkeypatch):
    """evaluate(name, lr, wrong): one experiment whose evaluate stage got that many of 40 test images wrong."""

    def run_it(name, lr, wrong, *, labels="ab", group=lambda i: ""):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        rows = write_manifest(n=120, labels=labels).read_text().splitlines()[1:]
        images = [row.split(",")[0] for row in rows if row.split(",")[2] == "test"]
        file = paths.EVALUATE / "predictions.csv"
        with runs.stage_run("evaluate", with_params(lr=lr), outputs=[file]) as run:
            paths.EVALUATE.mkdir(parents=True, exist_ok=True)
            lines = [f"{path},{path[0]},{'?' if i < wrong else path[0]},{group(i)}\n" for i, path in enumerate(images)]
            file.write_text("path,label,predicted,group\n" + "".join(lines))
            accuracy = 1 - wrong / 40
            metrics = {"accuracy": accuracy, "accuracy_low": accuracy - 0.1, "accuracy_high": accuracy + 0.05, "loss": 0.5}
            (paths.EVALUATE / "metrics.json").write_text(json.dumps(metrics))
        return run

    return run_it


def test_table(evaluate, params):
    evaluate("base", 1e-4, 10)
    tuned = evaluate("tuned", 1e-5, 2)
    evaluate("other", 1e-5, 0, labels="ac")
    table = compare.compare(params)
    assert [row.name for row in table.rows] == ["base", "tuned", "other"] and table.differing == ("lr",)
    paired = table.paired[tuned.pipeline_id]
    assert (paired.n, paired.difference, paired.only_first, paired.only_second, paired.p_value) == (40, 0.2, 0, 8, 2 * 0.5**8)
    lines = compare.render(table).splitlines()
    assert lines[0].split() == ["run", "lr", "accuracy", "loss"]
    assert lines[1].split() == ["base", "0.0001", "0.7500", "(0.6500-0.8000)", "0.5000"]
    assert lines[2].split()[:3] == ["tuned", "1e-05", "0.9500"]
    assert lines[5].startswith("test accuracy against base, same images")
    assert lines[6].startswith(f"  tuned  +0.2000 ({paired.low:+.4f} to {paired.high:+.4f})  p = 0.0078  n = 40")
    assert lines[7].split() == ["other", "not", "compared:", "another", "test", "set"]


def test_images_of_one_group_count_as_one(evaluate, params):
    """Eight near-duplicates that only the second gets right are one piece of evidence, not eight (exact McNemar: p = 0.008)."""
    evaluate("base", 1e-4, 8, group=lambda i: "burst" if i < 8 else "")
    tuned = evaluate("tuned", 1e-5, 0, group=lambda i: "burst" if i < 8 else "")
    paired = compare.compare(params).paired[tuned.pipeline_id]
    assert paired.only_second == 8 and paired.test == "sign flips over groups" and paired.p_value == 1.0


def test_names_ids_and_order(evaluate, params):
    base, tuned = evaluate("base", 1e-4, 10), evaluate("tuned", 1e-5, 2)
    table = compare.compare(params, ["tuned", base.pipeline_id[:12], "tuned"])
    assert [row.run_id for row in table.rows] == [tuned.pipeline_id, base.pipeline_id]
    assert table.paired[base.pipeline_id].difference == -0.2
    assert len(compare.render(compare.compare(params, ["base"])).splitlines()) == 2


def test_predictions_that_are_gone(evaluate, params, database):
    base, tuned = evaluate("base", 1e-4, 10), evaluate("tuned", 1e-5, 2)
    (database.parent / "artifacts" / base.run_id / "artifacts" / "predictions.csv").unlink()
    assert compare.compare(params).paired == {tuned.pipeline_id: "no predictions at hand"}


def test_unknown_names(evaluate, params):
    with pytest.raises(GraftError, match="no evaluated run yet"):
        compare.compare(params)
    evaluate("base", 1e-4, 10)
    with pytest.raises(GraftError, match="no pipeline run is named bsae; the latest are: base"):
        compare.compare(params, ["bsae"])
