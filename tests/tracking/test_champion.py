import json
import math
from dataclasses import replace

import numpy as np
import pytest

from stages import paths
from stages.common.statistics import Comparison
from stages.console import GraftError
from stages.tracking import champion, registry, runs, store
from stages.tracking.champion import decide

CLASSES = ["a", "b"]


# The rule

BETTER = Comparison(
    n=100, first=0.80, second=0.85, difference=0.05, low=-0.01, high=0.11, only_first=3, only_second=8, p_value=0.23, test="any"
)
CLEARLY = replace(BETTER, second=0.95, difference=0.15, low=0.08, high=0.22, only_first=0, only_second=15, p_value=6e-5)
EQUAL = replace(BETTER, second=0.80, difference=0.0, low=-0.05, high=0.05, p_value=1.0)
WORSE = replace(BETTER, first=0.85, second=0.80, difference=-0.05, low=-0.11, high=0.01, p_value=0.23)


@pytest.mark.parametrize(
    ("comparison", "better", "significant"),
    [(None, True, True), (BETTER, True, False), (CLEARLY, True, True), (EQUAL, False, False), (WORSE, False, False)],
)
def test_who_is_promoted(comparison, better, significant):
    rules = {"better": better, "significant": significant, "always": True, "never": False}
    assert {rule: decide(comparison, promote=rule).promoted for rule in rules} == rules


def test_reason_is_a_sentence_with_the_numbers():
    decision = decide(BETTER, promote="significant", champion="version 3")
    assert decision.reason == (
        "better, but not significantly: accuracy 0.8500 against 0.8000 of version 3 on the same 100 test images, "
        "difference +0.0500 (-0.0100 to +0.1100), p = 0.23"
    )
    assert (decision.accuracy, decision.champion_accuracy, decision.n) == (0.85, 0.80, 100)
    assert decide(None).reason == "there is no champion yet"


@pytest.mark.parametrize("promote", ["better", "significant", "never"])
def test_what_cannot_be_compared_is_not_promoted(promote):
    decision = decide(None, promote=promote, champion="version 3", obstacle="the class lists differ, with c")
    assert not decision.promoted and decision.accuracy is None
    assert "not comparable with version 3: the class lists differ, with c" in decision.reason


@pytest.mark.parametrize("promote", ["better", "significant", "always"])
@pytest.mark.parametrize("value", [0.89, math.nan])
def test_gates_forbid(promote, value):
    gates, metrics = {"accuracy": 0.5, "min_class_recall": 0.9}, {"accuracy": 0.95, "min_class_recall": value}
    decision = decide(CLEARLY, promote=promote, gates=gates, metrics=metrics)
    assert not decision.promoted and f"min_class_recall {value:.4f} is below the gate of 0.9" in decision.reason
    assert decide(CLEARLY, promote=promote, gates=gates, metrics={**metrics, "min_class_recall": 0.9}).promoted


def test_gate_of_an_unknown_metric():
    with pytest.raises(GraftError, match=r"evaluate\.gates: accurcy is not measured; known: accuracy"):
        decide(None, gates={"accurcy": 0.9}, metrics={"accuracy": 1.0})


# In the registry


@pytest.fixture
def arena(params, database, write_manifest, write_stub, with_params, monkeypatch, clone):
    """arena(name, wrong): a new model with that many wrong answers on 40 test images contests the champion."""

    def contest(name, wrong, *, settings=None, labels="ab", shuffle=False, keep=True, predict=None, digest=None):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        settings = {"tracking__promote": "better", **(settings or {})}
        rows = write_manifest(n=120, labels=labels).read_text().splitlines()[1:]
        images = [row.split(",")[0] for row in rows if row.split(",")[2] == "test"]
        if shuffle:
            images = images[::-1]
        classes = sorted(labels)
        y = np.array([classes.index(path[0]) for path in images])
        predicted = y.copy()
        predicted[:wrong] = 1 - y[:wrong]
        with runs.stage_run("evaluate", with_params(**settings)) as run:
            version = registry.register(run, digest=digest or name, save_model=write_stub, alias="fine-tuned")
            paths.EVALUATE.mkdir(parents=True, exist_ok=True)
            file = paths.EVALUATE / "predictions.csv"
            lines = [f"{p},{classes[t]},{classes[k]}\n" for p, t, k in zip(images, y, predicted)]
            file.write_text("path,label,predicted\n" + "".join(lines))
            if not keep:
                file.unlink()
            decision = champion.contest(
                run, version=version, image_paths=images, y=y, probabilities=np.eye(2)[predicted], classes=classes,
                metrics={"accuracy": 1 - wrong / 40}, predict=predict,
            )  # fmt: skip
        return decision, run

    return contest


def current(params):
    return str(registry.by_alias(store.connect(params).client, "graft", "champion").version)


def test_first_then_worse_then_better(arena, params, capsys):
    first, _ = arena("one", 8)
    assert (first.promoted, first.champion, current(params)) == (True, None, "1")
    worse, run = arena("two", 10, shuffle=True)
    assert not worse.promoted and current(params) == "1"
    assert (worse.accuracy, worse.champion_accuracy, worse.n, worse.version, worse.champion) == (0.75, 0.8, 40, "2", "1")
    better, run = arena("three", 0)
    assert better.promoted and better.p_value == 2 * 0.5**8 and current(params) == "3"
    assert f"champion: version 3 promoted; {better.reason}\n" in capsys.readouterr().out
    for run_id in (run.run_id, run.pipeline_id):
        tags = run.client.get_run(run_id).data.tags
        assert (tags["champion.decision"], tags["champion.reason"]) == ("promoted", better.reason)
    written = json.loads(open(run.client.download_artifacts(run.run_id, "champion.json")).read())  # noqa: PTH123, SIM115
    assert written["difference"] == 0.2 and written["champion"] == "1"
    again, _ = arena("four", 0, digest="three")
    assert not again.promoted and again.reason == "it is the champion already" and current(params) == "3"


def test_champion_is_run_again_when_its_predictions_are_gone(arena, params):
    arena("one", 8, keep=False)
    asked = []

    def predict(version):
        asked.append(str(version.version))
        return np.eye(2)[[i % 2 for i in range(40)]]  # all right: the test images are of the two classes in turn

    decision, _ = arena("two", 1, predict=predict)
    assert asked == ["1"] and (decision.n, decision.champion_accuracy, decision.accuracy) == (40, 1.0, 0.975)
    assert not decision.promoted and "may have seen" not in decision.reason


def test_without_predictions_nothing_is_compared(arena, params):
    arena("one", 8, keep=False)
    decision, _ = arena("two", 0)
    assert not decision.promoted and "its predictions for these test images are not at hand" in decision.reason
    broken, _ = arena("three", 0, predict=lambda version: 1 / 0)
    assert not broken.promoted and "it could not be run" in broken.reason and current(params) == "1"


def test_other_classes_are_not_compared(arena, params):
    arena("one", 8)
    decision, _ = arena("two", 0, labels="ac")
    assert not decision.promoted and decision.accuracy is None
    assert "not comparable with version 1: the class lists differ, without b and with c" in decision.reason
    forced, _ = arena("three", 0, labels="ac", settings={"tracking__promote": "always"})
    assert forced.promoted and current(params) == "3"


def test_another_test_set_is_said(arena, params, monkeypatch, write_manifest):
    arena("one", 8)
    connection = store.connect(params)
    connection.client.set_model_version_tag("graft", "1", "test.digest", "another")
    decision, _ = arena("two", 0, predict=lambda version: np.eye(2)[[0] * 40])
    assert decision.promoted and decision.champion_accuracy == 0.5
    assert decision.reason.endswith("another split of the data and may have seen some of these images")


def test_gates_of_params(arena, params):
    decision, _ = arena("one", 8, settings={"evaluate__gates": {"accuracy": 0.9}})
    assert not decision.promoted and decision.reason.startswith("accuracy 0.8000 is below the gate of 0.9")
    assert registry.by_alias(store.connect(params).client, "graft", "champion") is None


def test_a_champion_that_changes_meanwhile_is_contested_anew(arena, params, monkeypatch):
    arena("one", 8)
    judge, seen = champion._judge, []

    def slow(run, opponent, *rest):
        decision = judge(run, opponent, *rest)
        seen.append(str(opponent.version))
        if len(seen) == 1:  # somebody else wins while this one compares
            run.client.set_registered_model_alias("graft", "champion", "2")
        return decision

    arena("two", 4, settings={"tracking__promote": "never"})
    monkeypatch.setattr(champion, "_judge", slow)
    decision, _ = arena("three", 6)
    assert seen == ["1", "2"] and not decision.promoted and decision.champion == "2" and current(params) == "2"


def test_history_set_and_rollback(arena, params):
    assert champion.show(params) == "model graft has no champion yet: evaluate names one"
    for name, wrong in (("one", 8), ("two", 4), ("three", 0)):
        arena(name, wrong)
    assert champion.set_champion(params, 1) == "version 1 is the champion of graft now"
    assert champion.set_champion(params, "champion") == "version 1 is the champion of graft already"
    assert [champion.rollback(params) for _ in range(3)] == [f"version {v} is the champion of graft again" for v in (3, 2, 1)]
    with pytest.raises(GraftError, match="no former champion"):
        champion.rollback(params)
    with pytest.raises(GraftError, match="no version 9"):
        champion.set_champion(params, "9")
    entries = champion.history(store.connect(params).client, "graft")
    assert [(e["action"], e["version"], e["before"]) for e in entries] == [
        ("promoted", "1", None), ("promoted", "2", "1"), ("promoted", "3", "2"), ("set", "1", "3"),
        ("rolled back", "3", "1"), ("rolled back", "2", "3"), ("rolled back", "1", "2"),
    ]  # fmt: skip
    table = champion.show(params).splitlines()
    assert table[0].startswith("champion of graft: version 1 (evaluate") and len(table) == 3 + 7
    assert "promoted" in table[3] and "one" in table[3] and table[3].endswith("there is no champion yet")
