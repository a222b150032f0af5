import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graft.scoring.predictions import Predictions
from graft.scoring.statistics import Comparison
from graft.system.console import GraftError
from graft.tracking import champion, registry, runs, store
from graft.tracking.champion import decide, failed_gates

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
        "better, but not significantly: accuracy 0.8500 against 0.8000 of version 3 on the same 100 validation images, "
        "difference +0.0500 (-0.0100 to +0.1100), p = 0.23"
    )
    assert (decision.accuracy, decision.champion_accuracy, decision.n) == (0.85, 0.80, 100)
    assert decide(None).reason == "there is no champion yet"


@pytest.mark.parametrize("promote", ["better", "significant", "never"])
def test_what_cannot_be_compared_is_not_promoted(promote):
    decision = decide(None, promote=promote, champion="version 3", obstacle="the class lists differ, with c")
    assert not decision.promoted
    assert decision.accuracy is None
    assert "not comparable with version 3: the class lists differ, with c" in decision.reason


@pytest.mark.parametrize("promote", ["better", "significant", "always"])
@pytest.mark.parametrize("value", [0.89, math.nan])
def test_gates_forbid(promote, value):
    gates, metrics = {"accuracy": 0.5, "min_class_recall": 0.9}, {"accuracy": 0.95, "min_class_recall": value}
    decision = decide(CLEARLY, promote=promote, failed=failed_gates(gates, metrics))
    assert not decision.promoted
    assert f"min_class_recall {value:.4f} is below the gate of 0.9" in decision.reason
    reached = failed_gates(gates, {**metrics, "min_class_recall": 0.9})
    assert reached == []
    assert decide(CLEARLY, promote=promote, failed=reached).promoted


def test_gate_of_an_unknown_metric():
    with pytest.raises(GraftError, match=r"evaluate\.gates: accurcy is not measured; known: accuracy"):
        failed_gates({"accurcy": 0.9}, {"accuracy": 1.0})


# In the registry


@pytest.fixture
def arena(database, write_manifest, register, with_params, monkeypatch):
    """arena(name, wrong): a new model with that many wrong answers on 40 validation images challenges the champion."""

    def challenge(name, wrong, *, settings=None, labels="ab", shuffle=False, digest=None, images=120):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        settings = {"tracking__promote": "better", **(settings or {})}
        paths = write_manifest(n=images, labels=labels)["val"]
        paths = paths[::-1] if shuffle else paths
        truth = np.array([sorted(labels).index(path[0]) for path in paths])
        said = np.where(np.arange(len(paths)) < wrong, 1 - truth, truth)
        predictions = Predictions(paths, truth, np.eye(2)[said], sorted(labels))
        with runs.stage_run("evaluate", with_params(**settings)) as run:
            version = register(run, digest or name, "fine-tuned", stage="fine-tune")
            metrics = {"accuracy": 1 - wrong / 40}
            decision = champion.challenge(run, version=version, predictions=predictions, metrics=metrics)
        return decision, run

    return challenge


def current(params):
    return str(registry.by_alias(store.connect(params).client, "graft", "champion").version)


def test_first_then_worse_then_better(arena, params, capsys):
    first, _ = arena("one", 8)
    assert (first.promoted, first.champion, current(params)) == (True, None, "1")
    worse, run = arena("two", 10, shuffle=True)
    assert (worse.promoted, current(params)) == (False, "1")
    assert (worse.accuracy, worse.champion_accuracy, worse.n, worse.version, worse.champion) == (0.75, 0.8, 40, "2", "1")
    better, run = arena("three", 0)
    assert (better.promoted, better.p_value, current(params)) == (True, 2 * 0.5**8, "3")
    assert f"champion: version 3 promoted; {better.reason}\n" in capsys.readouterr().out
    for run_id in (run.run_id, run.pipeline_id):
        tags = run.client.get_run(run_id).data.tags
        assert (tags["champion.decision"], tags["champion.reason"]) == ("promoted", better.reason)
    written = json.loads(Path(run.client.download_artifacts(run.run_id, "champion.json")).read_text())
    assert (written["difference"], written["champion"]) == (0.2, "1")
    again, _ = arena("four", 0, digest="three")
    assert (again.promoted, again.reason, current(params)) == (False, "it is the champion already", "3")


def test_a_challengers_validation_predictions_stay_with_it(arena, params):
    _, run = arena("one", 8)
    tags = run.client.get_model_version("graft", "1").tags
    assert (tags["evaluate.run"], tags["val_accuracy"], len(tags["validation.digest"])) == (run.run_id, "0.8000", 12)
    kept = runs.read_predictions(run.client, run.run_id, champion.PREDICTIONS)
    assert (len(kept), kept.correct.sum(), kept.classes) == (40, 32, ("a", "b"))


@pytest.mark.parametrize("text", [None, "path,label\n"])
def test_without_predictions_nothing_is_compared(arena, params, database, text):
    _, run = arena("one", 8)
    file = database.parent / "artifacts" / run.run_id / "artifacts" / champion.PREDICTIONS
    file.write_text(text) if text else file.unlink()
    decision, _ = arena("two", 0)
    assert (decision.promoted, current(params)) == (False, "1")
    missing = f"its validation predictions are missing (validation_predictions.csv of run {run.run_id})"
    expected = f"the champion stays; `graft champion --set VERSION` can change it: not comparable with version 1: {missing}"
    assert decision.reason == expected


def test_a_champion_that_was_never_evaluated(arena, params):
    arena("one", 8, settings={"tracking__promote": "never"})
    client = store.connect(params).client
    client.delete_model_version_tag("graft", "1", "evaluate.run")
    champion.set_champion(params, "1")
    decision, _ = arena("two", 0)
    assert not decision.promoted
    assert "no evaluate run of it is recorded (tag evaluate.run)" in decision.reason


def test_other_classes_are_not_compared(arena, params):
    arena("one", 8)
    decision, _ = arena("two", 0, labels="ac")
    assert (decision.promoted, decision.accuracy) == (False, None)
    assert "not comparable with version 1: the class lists differ, without b and with c" in decision.reason
    forced, _ = arena("three", 0, labels="ac", settings={"tracking__promote": "always"})
    assert (forced.promoted, current(params)) == (True, "3")


def test_other_images_are_not_compared(arena, params):
    arena("one", 8)
    decision, _ = arena("two", 0, images=90)
    assert (decision.promoted, decision.accuracy) == (False, None)
    assert "its validation images are others (30 of these 30 by path; " in decision.reason
    store.connect(params).client.set_model_version_tag("graft", "1", "validation.digest", "another")
    decision, _ = arena("three", 0)
    assert "(40 of these 40 by path; labels or bytes may have changed)" in decision.reason


def test_gates_of_params(arena, params):
    decision, _ = arena("one", 8, settings={"evaluate__gates": {"accuracy": 0.9}})
    assert not decision.promoted
    assert decision.reason.startswith("accuracy 0.8000 is below the gate of 0.9")
    assert registry.by_alias(store.connect(params).client, "graft", "champion") is None


def test_a_champion_that_changes_meanwhile_is_challenged_anew(arena, params, monkeypatch):
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
    assert seen == ["1", "2"]
    assert (decision.promoted, decision.champion, current(params)) == (False, "2", "2")


def test_history_set_and_rollback(arena, params):
    assert champion.show(params) == "model graft has no champion yet: evaluate names one"
    for name, wrong in (("one", 8), ("two", 4), ("three", 0)):
        arena(name, wrong)
    assert champion.set_champion(params, 1) == "version 1 is the champion of graft now"
    assert champion.set_champion(params, "champion") == "version 1 is the champion of graft already"
    assert [champion.rollback(params) for _ in range(3)] == [f"version {v} is the champion of graft again" for v in (3, 2, 1)]
    with pytest.raises(GraftError, match="no former champion to go back to; `graft champion --set VERSION` names one"):
        champion.rollback(params)
    with pytest.raises(GraftError, match="no version 9"):
        champion.set_champion(params, "9")
    client = store.connect(params).client
    entries = champion.history(client, "graft")
    assert [(e["action"], e["version"], e["before"]) for e in entries] == [
        ("promoted", "1", None), ("promoted", "2", "1"), ("promoted", "3", "2"), ("set", "1", "3"),
        ("rolled back", "3", "1"), ("rolled back", "2", "3"), ("rolled back", "1", "2"),
    ]  # fmt: skip
    client.set_model_version_tag("graft", "1", "accuracy", "0.75")
    table = champion.show(params).splitlines()
    assert table[0] == "champion of graft: version 1 (fine-tune, validation accuracy 0.8000, test accuracy 0.7500)"
    assert len(table) == 3 + 7
    assert "promoted" in table[3]
    assert "one" in table[3]
    assert table[3].endswith("there is no champion yet")
