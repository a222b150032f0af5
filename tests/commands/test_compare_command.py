from dataclasses import replace

from graft.commands import compare, main
from graft.scoring.statistics import Comparison
from graft.tracking.compare import RunSummary, Series, Table

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
ACCURACY = {
    "evaluate/accuracy": 0.75,
    "evaluate/accuracy_low": 0.65,
    "evaluate/accuracy_high": 0.8,
    "evaluate/loss": 0.5,
}


def row(name, lr, **metrics):
    return RunSummary(name, f"id of {name}", {"lr": lr, "seed": "42"}, metrics, {}, "run")


BOTH = {"fine-tune/accuracy": 0.9, "evaluate/accuracy": 0.95}
TABLE = Table(
    (row("base", "0.0001", **ACCURACY), row("tuned", "1e-05", **BOTH), row("other", "1e-05")),
    differing=("lr",),
    paired={
        "validation": {
            "id of tuned": replace(PAIRED, p_value=0.03),
            "id of other": replace(PAIRED, p_value=0.5),
        },
        "test": {"id of tuned": PAIRED, "id of other": "another test set"},
    },
)


def test_a_line_per_run_and_one_per_difference_validation_first():
    pair = "right where the other is wrong: 8, wrong where it is right: 0"
    assert compare.render(TABLE).splitlines() == [
        "run    lr      validation accuracy  test accuracy           test loss",
        "base   0.0001  -                    0.7500 (0.6500-0.8000)  0.5000",
        "tuned  1e-05   0.9000               0.9500                  -",
        "other  1e-05   -                    -                       -",
        "",
        (
            "validation accuracy against base, same images (95% interval of the difference, p of "
            "the paired test; p* is for 2 comparisons at once (Holm)):"
        ),
        f"  tuned  +0.2000 (+0.1000 to +0.3250)  p = 0.03  p* = 0.06  n = 40  {pair}",
        f"  other  +0.2000 (+0.1000 to +0.3250)  p = 0.5  p* = 0.5  n = 40  {pair}",
        "",
        (
            "test accuracy against base, same images (95% interval of the difference, p of the "
            "paired test):"
        ),
        f"  tuned  +0.2000 (+0.1000 to +0.3250)  p = 0.0078  n = 40  {pair}",
        "  other  not compared: another test set",
    ]


def test_over_seeds():
    def series(lr, **test):
        return Series(
            {"lr": lr},
            {seed: row(seed, lr, **{"evaluate/accuracy": value}) for seed, value in test.items()},
        )

    text = compare.render_over(
        "seed", [series("1e-4", s1=0.8, s2=0.9, s3=0.7), series("1e-5", s1=0.9, s2=0.8, s4=0.1)]
    )
    assert text.splitlines() == [
        "runs     values of seed  validation accuracy, mean (range)  test accuracy, mean (range)",
        "lr=1e-4  3               -                                  0.8000 (0.7000 to 0.9000)",
        "lr=1e-5  3               -                                  0.6000 (0.1000 to 0.9000)",
        "",
        "paired by seed against lr=1e-4:",
        (
            "  lr=1e-5  validation accuracy -  test accuracy +0.0000 (-0.1000 to +0.1000), better "
            "in 1 of 2"
        ),
    ]


def test_one_run_is_two_lines():
    assert len(compare.render(Table(TABLE.rows[:1], ())).splitlines()) == 2


def test_runs_that_are_named(clone, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(compare, "compare_runs", lambda params, names: asked.extend(names) or TABLE)
    main.main(["compare", "tuned", "base"])
    assert asked == ["tuned", "base"]
    assert capsys.readouterr().out.startswith("run    lr ")
    monkeypatch.setattr(
        compare,
        "compare_over",
        lambda params, key, names: asked.append((key, names)) or [Series({}, {})],
    )
    main.main(["compare", "--over", "seed", "tuned"])
    assert asked[-1] == ("seed", ["tuned"])
    assert capsys.readouterr().out.startswith("runs  values of seed")
