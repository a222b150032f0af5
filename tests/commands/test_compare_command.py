from graft.commands import compare, main
from graft.scoring.statistics import Comparison
from graft.tracking.compare import RunSummary, Table

PAIRED = Comparison(
    n=40,
    first=0.75,
    second=0.95,
    difference=0.2,
    low=0.1,
    high=0.325,
    only_first=0,
    only_second=8,
    p_value=0.0078125,
    test="any",
)
ACCURACY = {"evaluate/accuracy": 0.75, "evaluate/accuracy_low": 0.65, "evaluate/accuracy_high": 0.8, "evaluate/loss": 0.5}


def row(name, lr, **metrics):
    return RunSummary(name, f"id of {name}", {"lr": lr, "seed": "42"}, metrics, "digest", "run")


TABLE = Table(
    (row("base", "0.0001", **ACCURACY), row("tuned", "1e-05", **{"evaluate/accuracy": 0.95}), row("other", "1e-05")),
    differing=("lr",),
    paired={"id of tuned": PAIRED, "id of other": "another test set"},
)


def test_a_line_per_run_and_one_per_difference():
    assert compare.render(TABLE).splitlines() == [
        "run    lr      accuracy                loss",
        "base   0.0001  0.7500 (0.6500-0.8000)  0.5000",
        "tuned  1e-05   0.9500                  -",
        "other  1e-05   -                       -",
        "",
        "test accuracy against base, same images (95% interval of the difference, p of the paired test):",
        "  tuned  +0.2000 (+0.1000 to +0.3250)  p = 0.0078  n = 40  "
        "right where the other is wrong: 8, wrong where it is right: 0",
        "  other  not compared: another test set",
    ]


def test_one_run_is_two_lines():
    assert len(compare.render(Table(TABLE.rows[:1], ())).splitlines()) == 2


def test_runs_that_are_named(clone, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(compare, "compare_runs", lambda params, names: asked.extend(names) or TABLE)
    main.main(["compare", "tuned", "base"])
    assert asked == ["tuned", "base"]
    assert capsys.readouterr().out.startswith("run    lr ")
