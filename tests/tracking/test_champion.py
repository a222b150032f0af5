import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graft.dataset import manifest
from graft.scoring.predictions import Predictions
from graft.scoring.statistics import Comparison
from graft.system import paths
from graft.system.console import GraftError
from graft.tracking import champion, registry, runs, store
from graft.tracking.champion import decide, failed_gates

# The rule

BETTER = Comparison(
    n=100,
    first=0.80,
    second=0.85,
    difference=0.05,
    low=-0.01,
    high=0.11,
    only_first=3,
    only_second=8,
    p_value=0.23,
    test="any",
)
CLEARLY = replace(
    BETTER,
    second=0.95,
    difference=0.15,
    low=0.08,
    high=0.22,
    only_first=0,
    only_second=15,
    p_value=6e-5,
)
EQUAL = replace(BETTER, second=0.80, difference=0.0, low=-0.05, high=0.05, p_value=1.0)
WORSE = replace(
    BETTER, first=0.85, second=0.80, difference=-0.05, low=-0.11, high=0.01, p_value=0.23
)


@pytest.mark.parametrize(
    ("comparison", "better", "significant"),
    [
        (None, True, True),
        (BETTER, True, False),
        (CLEARLY, True, True),
        (EQUAL, False, False),
        (WORSE, False, False),
    ],
)
def test_who_is_promoted(comparison, better, significant):
    rules = {"better": better, "significant": significant, "always": True, "never": False}
    assert {rule: decide(comparison, promote=rule).promoted for rule in rules} == rules


def test_reason_is_a_sentence_with_the_numbers():
    decision = decide(BETTER, promote="significant", champion="version 3")
    assert decision.reason == (
        "better, but not significantly: accuracy 0.8500 against 0.8000 of version 3 on the same "
        "100 validation images, difference +0.0500 (-0.0100 to +0.1100), p = 0.23"
    )
    assert (decision.accuracy, decision.champion_accuracy, decision.n) == (0.85, 0.80, 100)
    assert (decision.difference, decision.low, decision.high, decision.p_value) == (
        0.05,
        -0.01,
        0.11,
        0.23,
    )
    assert decide(None).reason == "there is no champion yet"


@pytest.mark.parametrize("promote", ["better", "significant", "never"])
def test_what_cannot_be_compared_is_not_promoted(promote):
    decision = decide(
        None, promote=promote, champion="version 3", obstacle="the class lists differ, with c"
    )
    assert not decision.promoted
    assert decision.accuracy is None
    assert "not comparable with version 3: the class lists differ, with c" in decision.reason


@pytest.mark.parametrize("promote", ["better", "significant", "always"])
@pytest.mark.parametrize("value", [0.89, math.nan])
def test_gates_forbid(promote, value):
    gates, metrics = (
        {"accuracy": 0.5, "min_class_recall": 0.9},
        {"accuracy": 0.95, "min_class_recall": value},
    )
    decision = decide(CLEARLY, promote=promote, failed=failed_gates(gates, metrics))
    assert not decision.promoted
    assert f"min_class_recall {value:.4f} is below the gate of 0.9" in decision.reason
    reached = failed_gates(gates, {**metrics, "min_class_recall": 0.9})
    assert reached == []
    assert decide(CLEARLY, promote=promote, failed=reached).promoted


def test_gate_of_an_unknown_metric():
    with pytest.raises(
        GraftError, match=r"evaluate\.gates: accurcy is not measured; known: accuracy"
    ):
        failed_gates({"accurcy": 0.9}, {"accuracy": 1.0})


# In the registry


@pytest.fixture
def arena(database, write_manifest, register, with_params, monkeypatch):
    """arena(name, wrong): a new model with that many wrong answers on 40 validation images
    challenges the champion.

    asked: [(version, paths)] that registered models were asked about; they get everything right.
    """

    def predictions_of(paths, wrong, labels):
        truth = np.array([sorted(labels).index(path[0]) for path in paths])
        said = np.where(np.arange(len(paths)) < wrong, 1 - truth, truth)
        return Predictions(paths, truth, np.eye(2)[said], sorted(labels))

    def challenge(name, wrong, *, settings=None, labels="ab", shuffle=False, digest=None, seed=0):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        settings = {"tracking__promote": "better", **(settings or {})}
        paths = write_manifest(n=120, labels=labels, first=seed)["val"]
        paths = paths[::-1] if shuffle else paths

        def ask(version, listed):
            challenge.asked.append((version, listed.paths))
            return predictions_of(listed.paths, 0, labels)

        with runs.stage_run("evaluate", with_params(**settings)) as run:
            version = register(run, digest or name, "fine-tuned", stage="fine-tune")
            champion.renew(run, version)
            metrics = {"accuracy": 1 - wrong / 40}
            mine = predictions_of(paths, wrong, labels)
            decision = champion.challenge(
                run, version=version, predictions=mine, metrics=metrics, ask=ask
            )
        return decision, run

    challenge.asked = []
    return challenge


def current(params):
    return str(registry.by_alias(store.connect(params).client, "graft", "champion").version)


def test_first_then_worse_then_better(arena, params, capsys):
    first, _ = arena("one", 8)
    assert (first.promoted, first.champion, current(params)) == (True, None, "1")
    worse, run = arena("two", 10, shuffle=True)
    assert (worse.promoted, current(params)) == (False, "1")
    assert (worse.accuracy, worse.champion_accuracy, worse.n, worse.version, worse.champion) == (
        0.75,
        0.8,
        40,
        "2",
        "1",
    )
    better, run = arena("three", 0)
    assert (better.promoted, better.p_value, current(params)) == (True, 2 * 0.5**8, "3")
    assert f"champion: version 3 promoted; {better.reason}\n" in capsys.readouterr().out
    for run_id in (run.run_id, run.pipeline_id):
        tags = run.client.get_run(run_id).data.tags
        assert (tags["champion.decision"], tags["champion.reason"]) == ("promoted", better.reason)
    written = json.loads(
        Path(run.client.download_artifacts(run.run_id, "champion.json")).read_text()
    )
    assert (written["difference"], written["champion"]) == (0.2, "1")
    again, _ = arena("four", 0, digest="three")
    assert (again.promoted, again.reason, current(params)) == (
        False,
        "it is the champion already",
        "3",
    )


def test_a_challengers_validation_predictions_stay_with_it(arena, params):
    _, run = arena("one", 8)
    tags = run.client.get_model_version("graft", "1").tags
    assert (tags["evaluate.run"], tags["val_accuracy"], len(tags["validation.digest"])) == (
        run.run_id,
        "0.8000",
        12,
    )
    kept = runs.read_predictions(run.client, run.run_id, champion.PREDICTIONS)
    assert (len(kept), kept.correct.sum(), kept.classes) == (40, 32, ("a", "b"))


@pytest.mark.parametrize("text", [None, "path,label\n"])
def test_without_predictions_nothing_is_compared(arena, params, database, text):
    _, run = arena("one", 8)
    file = database.parent / "artifacts" / run.run_id / "artifacts" / champion.PREDICTIONS
    file.write_text(text) if text else file.unlink()
    decision, _ = arena("two", 0)
    assert (decision.promoted, current(params)) == (False, "1")
    missing = (
        f"its validation predictions are missing (validation_predictions.csv of run {run.run_id})"
    )
    expected = (
        "the champion stays; `graft champion --set VERSION` can change it: not comparable with "
        f"version 1: {missing}"
    )
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
    assert (
        "not comparable with version 1: the class lists differ, without b and with c"
        in decision.reason
    )
    forced, _ = arena("three", 0, labels="ac", settings={"tracking__promote": "always"})
    assert (forced.promoted, current(params)) == (True, "3")


def test_another_split_is_compared_on_what_neither_has_trained_on(arena, params):
    """Photos were added: of the new split's 40 validation images, the champion trained on none of
    those it had for validation or test, and on none of the new ones."""
    arena("one", 8)
    decision, _ = arena("two", 0, seed=89)
    ((version, unseen),) = arena.asked
    assert version == "1"
    # 10 of the 40 are training images of the champion's split.
    assert len(unseen) == decision.n == 30
    assert not decision.promoted  # since this champion, asked, gets all 30 right
    assert "on the same 30 validation images that neither has trained on" in decision.reason
    arena("three", 0)
    assert len(arena.asked) == 1  # the champion's own split: what it said then is enough


def test_too_few_images_that_neither_has_trained_on_are_an_obstacle(arena, params):
    arena("one", 8)
    decision, _ = arena("two", 0, seed=86)
    assert (decision.promoted, decision.accuracy, arena.asked) == (False, None, [])
    assert (
        "it has trained on all but 29 of these 40 validation images, 30 are needed"
        in decision.reason
    )


def test_a_champion_that_cannot_be_run_is_an_obstacle(arena, params, monkeypatch):
    arena("one", 8)

    def broken(*_):
        raise GraftError("its model cannot be run: no such file")

    _, run = arena("two", 9)
    listed = manifest.read()
    manifest.write(
        replace(listed, rows=tuple(replace(row, path=f"new/{row.path}") for row in listed.rows)),
        paths.SPLIT,
    )
    mine = manifest.read().split("val")
    predictions = Predictions(mine.paths, mine.labels, np.eye(2)[mine.labels], mine.classes)
    decision = champion.challenge(
        run, version="2", predictions=predictions, metrics={"accuracy": 1.0}, ask=broken
    )
    assert "not comparable with version 1: its model cannot be run: no such file" in decision.reason


def test_what_a_champion_trained_on_may_be_missing(arena, params, database):
    _, run = arena("one", 8)
    (database.parent / "artifacts" / run.run_id / "artifacts" / champion.TRAINED_ON).unlink()
    decision, _ = arena("two", 0, seed=31)
    assert "its split is another one, and what it trained on is missing" in decision.reason


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
    assert [champion.rollback(params) for _ in range(3)] == [
        f"version {v} is the champion of graft again" for v in (3, 2, 1)
    ]
    with pytest.raises(
        GraftError,
        match="no former champion to go back to; `graft champion --set VERSION` names one",
    ):
        champion.rollback(params)
    with pytest.raises(GraftError, match="no version 9"):
        champion.set_champion(params, "9")
    client = store.connect(params).client
    entries = champion.history(client, "graft")
    assert [(e["action"], e["version"], e["before"]) for e in entries] == [
        ("promoted", "1", None),
        ("promoted", "2", "1"),
        ("promoted", "3", "2"),
        ("set", "1", "3"),
        ("rolled back", "3", "1"),
        ("rolled back", "2", "3"),
        ("rolled back", "1", "2"),
    ]
    client.set_model_version_tag("graft", "1", "accuracy", "0.75")
    table = champion.show(params).splitlines()
    assert (
        table[0]
        == "champion of graft: version 1 (fine-tune, validation accuracy 0.8000, test accuracy "
        "0.7500)"
    )
    assert len(table) == 3 + 7
    assert "promoted" in table[3]
    assert "one" in table[3]
    assert table[3].endswith("there is no champion yet")


# What people and time do to the registry


def titles(params):
    return [
        (e["action"], e["version"], e["before"])
        for e in champion.history(store.connect(params).client, "graft")
    ]


@pytest.fixture
def three(arena, params):
    """The client, after versions 1, 2 and 3 were champions in turn."""
    for name, wrong in (("one", 8), ("two", 4), ("three", 2)):
        arena(name, wrong)
    return store.connect(params).client


def test_history_lies_with_the_versions_and_before_the_alias(arena, params, monkeypatch):
    arena("one", 8)
    client = store.connect(params).client
    # Where the 20th change would find no room on PostgreSQL.
    assert client.get_registered_model("graft").tags == {}

    def full(*_):
        raise GraftError("the database is full")

    client.delete_registered_model_alias("graft", "champion")
    with monkeypatch.context() as patch, pytest.raises(GraftError, match="full"):
        patch.setattr(type(client), "set_model_version_tag", full)
        champion._move(client, "graft", "1", by="me", reason="because")
    assert registry.by_alias(client, "graft", "champion") is None
    assert titles(params) == [("promoted", "1", None)]
    assert max(len(text) for text in client.get_model_version("graft", "1").tags.values()) < 5000


def test_an_alias_that_was_moved_by_hand(three, arena, params):
    three.set_registered_model_alias("graft", "champion", "1")
    # Which had it before.
    assert champion.rollback(params) == "version 3 is the champion of graft again"
    assert titles(params)[3:] == [("by hand", "1", "3"), ("rolled back", "3", "1")]
    three.set_registered_model_alias("graft", "champion", "1")
    decision, _ = arena("four", 6)
    assert (decision.promoted, decision.champion, current(params)) == (True, "1", "4")
    assert champion.rollback(params) == "version 1 is the champion of graft again"


def test_a_deleted_champion_leaves_the_title_to_the_one_before(three, arena, params):
    three.delete_model_version("graft", "3")
    decision, _ = arena("four", 6)
    assert (decision.promoted, decision.champion, current(params)) == (False, "2", "2")
    assert titles(params)[-1] == ("restored", "2", None)


def test_a_deleted_alias_is_set_again(three, arena, params):
    three.delete_registered_model_alias("graft", "champion")
    decision, _ = arena("four", 6)
    assert (decision.promoted, decision.champion, current(params)) == (False, "3", "3")


def test_rolling_back_passes_over_a_deleted_version(three, params):
    three.delete_model_version("graft", "2")
    assert champion.rollback(params) == "version 1 is the champion of graft again"
    champion.set_champion(params, "3")
    three.delete_model_version("graft", "3")
    assert champion.rollback(params) == "version 1 is the champion of graft again"
    with pytest.raises(GraftError, match="no former champion"):
        champion.rollback(params)


def test_the_same_network_shipped_anew_keeps_the_title(arena, params):
    """As after a change of the serving code: the weights are equal, so no contest would move the
    alias."""
    arena("one", 8)
    client = store.connect(params).client
    client.set_model_version_tag("graft", "1", registry.NETWORK, "n")
    _, run = arena("other", 9)  # version 2
    client.set_model_version_tag("graft", "2", registry.NETWORK, "n")
    champion.renew(run, "2")
    assert (current(params), titles(params)[-1]) == ("2", ("renewed", "2", "1"))
    assert client.get_model_version("graft", "2").tags["evaluate.run"]
    client.set_model_version_tag("graft", "1", registry.NETWORK, "another")
    champion.renew(run, "1")
    assert current(params) == "2"
    with pytest.raises(GraftError, match="no former champion"):
        champion.rollback(params)  # to what is shipped no more


@pytest.mark.parametrize("stage", ["export", "train-head"])
def test_a_champion_of_another_stage_can_be_challenged(arena, register, params, stage):
    """`graft champion --set exported`, or head: the contest goes on from its validation
    predictions."""
    _, run = arena("one", 8)
    version = register(run, "x", "exported" if stage == "export" else "head", stage=stage)
    if stage == "export":
        registry.copy_tags(run, "1", version, champion.CONTEST)
    else:
        val = manifest.read().split("val")
        wrong = Predictions(val.paths, val.labels, np.eye(2)[1 - val.labels], val.classes)
        paths.TRAIN_HEAD.mkdir(parents=True)
        wrong.write(paths.TRAIN_HEAD / "predictions.csv")
        champion.record_head(run, version)
    champion.set_champion(params, version)
    decision, _ = arena("two", 4)
    assert (decision.promoted, decision.champion, current(params)) == (True, "2", "3")
    assert decision.champion_accuracy == (0.8 if stage == "export" else 0.0)
