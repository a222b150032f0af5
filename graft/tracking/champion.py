"""The champion: the best version so far, dethroned only by a challenger that is better on the very
same validation images.

Test images decide nothing: the champion's figures on them are as unseen as any. `decide` is a pure
function; `challenge` finds the champion's predictions, decides, moves the alias and leaves the
reason behind. Each change is a tag of the version that got the title, written before the alias
moves; a tag of the registered model would be full after twenty (5,000 characters).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.dataset import manifest
from graft.dataset.manifest import Manifest
from graft.scoring.predictions import Predictions
from graft.scoring.statistics import Comparison, compare_predictions
from graft.system import files, paths
from graft.system.console import GraftError, log
from graft.tracking import registry, runs, store

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from graft.params import Params

ALIAS = "champion"
# Artifacts of the run that a version's tag `evaluate.run` names: validation predictions by the
# stage that made the version (export ships what fine-tune made), and the SHA-256 of every image
# that was trained on.
PREDICTIONS, HEAD_PREDICTIONS = "validation_predictions.csv", "validation_predictions_head.csv"
TRAINED_ON = "trained_on.json"
# Tags that a version is compared by.
CONTEST = ("evaluate.run", "validation.digest", "test.digest", "val_accuracy")
# Begins the tags of a version that hold its titles: JSON, the time in the key.
HISTORY = "champion.at."
SIGNIFICANT = 0.05
LEAST = 30  # images that two models of different splits are compared on
Ask = Callable[[str, Manifest], Predictions]  # what a version of the registry says of these images


@dataclass(frozen=True)
class Decision:
    """What became of the challenger, and why (`reason`: one sentence).

    The fields from `accuracy` on, of the validation images, are None where there was nothing to
    compare: no champion, or one that cannot be compared.
    """

    promoted: bool
    reason: str
    version: str | None = None
    champion: str | None = None
    accuracy: float | None = None
    champion_accuracy: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    n: int | None = None


def failed_gates(gates: Mapping[str, float], metrics: Mapping[str, float]) -> list[str]:
    """Clauses, one per gate (metric: least value) that `metrics` does not reach. Raises GraftError
    for an unknown metric."""
    failed = []
    for key, least in gates.items():
        if key not in metrics:
            raise GraftError(
                f"params.yaml: evaluate.gates: {key} is not measured; known: "
                f"{', '.join(sorted(metrics))}"
            )
        if not metrics[key] >= least:  # also when it is not a number
            failed.append(f"{key} {metrics[key]:.4f} is below the gate of {least:g}")
    return failed


def decide(
    comparison: Comparison | None,
    *,
    promote: str = "better",
    failed: list[str] | None = None,
    champion: str = "the champion",
    obstacle: str | None = None,
    images: str = "validation images",
) -> Decision:
    """Whether the challenger takes over.

    comparison: with the champion as `first` and the challenger as `second`; None when there is no
    champion, or when `obstacle` (a clause such as "the class lists differ") keeps the two from
    being compared.
    promote: better = a higher accuracy, which includes that the paired test does not call it worse;
    significant = higher, and the paired test's p < 0.05; always; never. failed: see `failed_gates`;
    a gate that is not reached forbids promotion whatever `promote` says. images: what the
    comparison was on. Returns a Decision without versions.
    """
    found = "there is no champion yet"
    numbers: dict[str, Any] = {}
    if obstacle:
        found = f"not comparable with {champion}: {obstacle}"
    elif comparison is not None:
        c = comparison
        numbers = {"accuracy": c.second, "champion_accuracy": c.first, "difference": c.difference,
                   "low": c.low, "high": c.high, "p_value": c.p_value, "n": c.n}  # fmt: skip
        found = (
            f"accuracy {c.second:.4f} against {c.first:.4f} of {champion} on the same {c.n} "
            f"{images}, difference {c.difference:+.4f} ({c.low:+.4f} to {c.high:+.4f}), p = "
            f"{c.p_value:.2g}"
        )
    higher = comparison is not None and comparison.difference > 0
    if failed:
        promoted, why = False, "; ".join(failed)
    elif promote in ("always", "never"):
        promoted, why = promote == "always", f"tracking.promote is {promote}"
    elif obstacle:
        promoted, why = False, "the champion stays; `graft champion --set VERSION` can change it"
    elif comparison is None:
        promoted, why = True, ""
    elif promote == "significant":
        promoted = higher and comparison.p_value < SIGNIFICANT
        why = (
            "significantly better"
            if promoted
            else "better, but not significantly"
            if higher
            else "not better"
        )
    elif promote == "better":
        promoted, why = higher, "better" if higher else "not better"
    else:
        raise ValueError(f"unknown rule {promote!r}")
    return Decision(promoted, f"{why}: {found}" if why else found, **numbers)


def challenge(
    run: runs.StageRun,
    *,
    version: str,
    predictions: Predictions,
    metrics: Mapping[str, float],
    ask: Ask,
) -> Decision:
    """Let `version` of the registry challenge the champion on the validation images, and act on the
    decision.

    run: the StageRun of evaluate. predictions: of the manifest's validation images. metrics: of
    them, for the gates. ask: runs a registered version, for a champion of another split; it may
    raise GraftError.

    The alias `champion` moves or stays; the decision goes to tags and artifact champion.json of the
    run, tags of the version, the history and one line on the console. `predictions` stay with the
    run, for challengers to come.
    """
    client, name = run.client, run.params.tracking.model
    # Before the alias moves: from then on others challenge these.
    record_predictions(run, version, predictions)
    while True:
        champion = _reigning(client, name, run.pipeline_name)
        if champion is not None and _same_network(
            champion, registry.get_version(client, name, version)
        ):
            number = str(champion.version)
            decision = Decision(
                False, "it is the champion already", version=number, champion=number
            )
            decision = (
                _unrecorded(client, name, champion) or decision
                if number == str(version)
                else decision
            )
            break
        decision = _judge(run, champion, predictions, metrics, ask)
        decision = replace(decision, version=version, champion=champion and str(champion.version))
        if not decision.promoted:
            break
        with registry.exclusive(client, name):
            now = registry.by_alias(client, name, ALIAS)
            # Else another experiment won meanwhile: challenge that one.
            if (now and str(now.version)) == decision.champion:
                _move(client, name, version, by=run.pipeline_name, reason=decision.reason)
                break
    _record(run, decision)
    return decision


def _unrecorded(client, name, champion):
    """The decision that made `champion` one, where a kill came before it was recorded."""
    last = (history(client, name) or [{"version": None}])[-1]
    if (
        last["version"] != str(champion.version)
        or last["action"] != "promoted"
        or "champion.decision" in champion.tags
    ):
        return None
    return Decision(True, last["reason"], version=last["version"], champion=last["before"])


def is_decided(run: runs.StageRun, version: str) -> bool:
    """Whether `version` has had its contest, and there is a champion that came out of it or was set
    since."""
    client, name = run.client, run.params.tracking.model
    reigning = registry.by_alias(client, name, ALIAS)
    return (
        reigning is not None
        and "champion.decision" in registry.get_version(client, name, version).tags
    )


def renew(run: runs.StageRun, version: str) -> None:
    """Hand the title on to `version` where the champion is the same network, shipped in another
    way.

    Other serving code, pins or calibration make another version, which no contest would prefer.
    """
    client, name = run.client, run.params.tracking.model
    with registry.exclusive(client, name):
        champion, found = (
            registry.by_alias(client, name, ALIAS),
            registry.get_version(client, name, version),
        )
        if champion is None or str(champion.version) == version:
            return
        if champion.tags.get("stage") == found.tags.get("stage") and _same_network(champion, found):
            registry.copy_tags(run, str(champion.version), version, CONTEST)
            reason = f"the network of version {champion.version}, shipped anew"
            _move(client, name, version, by=run.pipeline_name, reason=reason, action="renewed")
            log(f"champion: version {version}, {reason}")


def record_predictions(
    run: runs.StageRun, version: str, predictions: Predictions, name: str = PREDICTIONS
) -> None:
    """Let `version` be compared with others later: its validation predictions, and what it was
    trained on, stay with `run`."""
    listed = manifest.read()
    with tempfile.TemporaryDirectory() as folder:
        predictions.write(Path(folder) / name)
        files.write_json(Path(folder) / TRAINED_ON, sorted(listed.split("train").sha256))
        for file in (name, TRAINED_ON):
            run.log_artifact(Path(folder) / file)
    accuracy = f"{predictions.correct.mean():.4f}"
    tags = {
        "evaluate.run": run.run_id,
        "validation.digest": runs.validation_digest(),
        "val_accuracy": accuracy,
    }
    metrics = {"validation/accuracy": float(predictions.correct.mean())}
    test = {"test.digest": run.dataset.test_digest} if run.dataset else {}
    registry.describe(run, version, metrics=metrics, tags=tags | test)


def record_head(run: runs.StageRun, version: str) -> None:
    """`record_predictions` of the head alone, which `graft champion --set head` can make champion
    too."""
    record_predictions(
        run, version, Predictions.read(paths.TRAIN_HEAD / "predictions.csv"), HEAD_PREDICTIONS
    )


def _reigning(client, name, by):
    """The champion; where it was deleted, or its alias, the title goes back to the last one that is
    left."""
    with registry.exclusive(client, name):
        champion = registry.by_alias(client, name, ALIAS)
        if champion is None and (left := active_versions(history(client, name))):
            _move(
                client,
                name,
                left[-1],
                by=by,
                reason="the champion is gone from the registry",
                action="restored",
            )
            log(
                f"champion: the last one is gone from the registry; version {left[-1]} defends "
                "the title"
            )
            champion = registry.by_alias(client, name, ALIAS)
    return champion


def _same_network(one, other):
    known = one.tags.get(registry.NETWORK)
    return one.version == other.version or (
        known is not None and known == other.tags.get(registry.NETWORK)
    )


def _judge(run, champion, predictions, metrics, ask):
    params = run.params
    rule = {
        "promote": params.tracking.promote,
        "failed": failed_gates(params.evaluate.gates, metrics),
    }
    if champion is None:
        return decide(None, **rule)
    rule["champion"] = f"version {champion.version}"
    try:
        theirs, ours, rule["images"] = _on_the_same_images(run, champion, predictions, ask)
    except GraftError as obstacle:
        return decide(None, obstacle=str(obstacle), **rule)
    options = {"resamples": params.evaluate.bootstrap, "seed": params.seed}
    return decide(compare_predictions(theirs, ours, **options), **rule)


def _on_the_same_images(run, champion, ours, ask):
    """(champion's predictions, `ours` of the same images, what these are). Raises GraftError, a
    clause, for an obstacle.

    Where the split is another one, the images are those of this one's validation set that neither
    has trained on.
    """
    run_id, name = (
        champion.tags.get("evaluate.run"),
        HEAD_PREDICTIONS if champion.tags.get("stage") == "train-head" else PREDICTIONS,
    )
    if run_id is None:
        raise GraftError(
            "no evaluate run of it is recorded (tag evaluate.run), and so none of its validation "
            "predictions"
        )
    theirs = runs.read_predictions(run.client, run_id, name)
    if theirs is None:
        raise GraftError(f"its validation predictions are missing ({name} of run {run_id})")
    if theirs.classes != ours.classes:
        raise GraftError(f"the class lists differ, {_class_change(theirs.classes, ours.classes)}")
    if champion.tags.get("validation.digest") == runs.validation_digest() and set(
        theirs.paths
    ) == set(ours.paths):
        return theirs, ours, "validation images"
    trained_on = runs.read_json(run.client, run_id, TRAINED_ON)
    if trained_on is None:
        raise GraftError(
            f"its split is another one, and what it trained on is missing ({TRAINED_ON} of run "
            f"{run_id})"
        )
    listed, seen = manifest.read().split("val"), set(trained_on)
    unseen = replace(listed, rows=tuple(row for row in listed.rows if row.sha256 not in seen))
    if len(unseen) < LEAST:
        raise GraftError(
            f"it has trained on all but {len(unseen)} of these {len(ours)} validation images, "
            f"{LEAST} are needed"
        )
    position = {path: k for k, path in enumerate(ours.paths)}
    chosen = [position[path] for path in unseen.paths]
    groups = tuple(ours.groups[k] for k in chosen)
    mine = Predictions(
        unseen.paths, ours.labels[chosen], ours.probabilities[chosen], ours.classes, groups
    )
    return ask(str(champion.version), unseen), mine, "validation images that neither has trained on"


def _class_change(old, new):
    gone, come = [c for c in old if c not in new], [c for c in new if c not in old]
    parts = [f"{verb} {few(names)}" for verb, names in (("without", gone), ("with", come)) if names]
    return " and ".join(parts) or "in their order"


def few(names: Sequence[str]) -> str:
    """The first three of `names`, and how many there are beside them."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _record(run, decision):
    state = (
        "promoted"
        if decision.promoted
        else "kept"
        if decision.champion == decision.version
        else "not promoted"
    )
    tags = {"champion.decision": state, "champion.reason": decision.reason}
    run.set_tags(tags)
    runs.log_batches(run.client, run.pipeline_id, tags=tags)
    run.log_text(json.dumps(asdict(decision), indent=2) + "\n", "champion.json")
    if state != "kept":
        registry.describe(run, decision.version, tags=tags)
    log(f"champion: version {decision.version} {state}; {decision.reason}")


def _move(client, name, version, *, by, reason, action="promoted"):
    """Write into the history that the title goes to `version`, then point the alias at it. The
    caller holds the lock."""
    entries, current = history(client, name), registry.by_alias(client, name, ALIAS)
    before = str(current.version) if current else None
    known = active_versions(entries)
    if (
        entries
        and before
        and (entries[-1]["version"], entries[-1]["before"]) == (str(version), before)
    ):
        # Whoever wrote that was killed before the alias moved.
        registry.set_alias(client, name, ALIAS, str(version))
        return
    if before and before not in known[-1:]:  # else rolling back would miss it
        _write(
            client,
            name,
            before,
            action="by hand",
            before=known[-1] if known else None,
            by="",
            reason="the alias was moved",
        )
    _write(client, name, version, action=action, before=before, by=by, reason=reason[:400])
    registry.set_alias(client, name, ALIAS, str(version))


def _write(client, name, version, **entry):
    at = datetime.now(timezone.utc).isoformat(timespec="microseconds")
    entry = {"at": at, "version": str(version), **entry}
    client.set_model_version_tag(
        name, str(version), f"{HISTORY}{at[:26]}", json.dumps(entry, ensure_ascii=False)
    )


def history(client: MlflowClient, name: str) -> list[dict]:
    """Every change of the champion, oldest first: dicts with at, action, version, before, by,
    reason. Empty without a model.

    What a version that was deleted has been goes with it.
    """
    found = client.search_model_versions(f"name = {store.quoted(name)}", max_results=10_000)
    return sorted(
        (
            json.loads(text)
            for version in found
            for key, text in version.tags.items()
            if key.startswith(HISTORY)
        ),
        key=lambda entry: entry["at"],
    )


def active_versions(entries: list[dict]) -> list[str]:
    """The versions that were champion and not rolled back, oldest first: the last one is the
    champion."""
    stack: list[str] = []
    for entry in entries:
        if entry["action"] == "renewed" and stack:
            stack[-1] = entry["version"]
        elif entry["action"] == "rolled back" and entry["version"] in stack:
            while stack[-1] != entry["version"]:
                stack.pop()
        else:
            stack.append(entry["version"])
    return stack


def show(params: Params) -> str:
    """The champion and its history as a table."""
    client, name = store.connect(params).client, params.tracking.model
    current, entries = registry.by_alias(client, name, ALIAS), history(client, name)
    if current is None:
        return f"model {name} has no champion yet: evaluate names one"
    figures = (("validation", "val_accuracy"), ("test", "accuracy"))
    known = [
        f", {kind} accuracy {float(current.tags[key]):.4f}"
        for kind, key in figures
        if key in current.tags
    ]
    lines = [
        (
            f"champion of {name}: version {current.version} "
            f"({current.tags.get('stage', '?')}{''.join(known)})"
        )
    ]
    if entries:
        width = max(len(e["by"]) for e in entries)
        lines += ["", f"{'when (UTC)':16}  {'change':11}  {'version':>7}  {'by':{width}}  why"]
    for e in entries:
        lines.append(
            f"{e['at'][:16].replace('T', ' ')}  {e['action']:11}  {e['version']:>7}  "
            f"{e['by']:{width}}  {e['reason']}"
        )
    return "\n".join(lines)


def set_champion(params: Params, version: str | int, *, reason: str = "set by hand") -> str:
    """Make `version` (a number or an alias) the champion. Returns one line of text. Raises
    GraftError if there is none."""
    client, name = store.connect(params).client, params.tracking.model
    version = registry.get_version(client, name, version).version
    with registry.exclusive(client, name):
        current = registry.by_alias(client, name, ALIAS)
        if current is not None and str(current.version) == str(version):
            return f"version {version} is the champion of {name} already"
        _move(client, name, version, by=runs.user(), reason=reason, action="set")
    return f"version {version} is the champion of {name} now"


def rollback(params: Params) -> str:
    """Give the title back to the version that had it before. Returns one line of text. Raises
    GraftError when none had it."""
    client, name = store.connect(params).client, params.tracking.model
    with registry.exclusive(client, name):
        current, stack = (
            registry.by_alias(client, name, ALIAS),
            active_versions(history(client, name)),
        )
        if current is not None and str(current.version) in stack[-1:]:
            # Else the alias was moved or deleted by hand: the last one known is the one before.
            stack.pop()
        former = [
            version for version in stack if current is None or version != str(current.version)
        ]
        if not former:
            raise GraftError(
                f"model {name} has no former champion to go back to; "
                "`graft champion --set VERSION` names one"
            )
        _move(
            client,
            name,
            former[-1],
            by=runs.user(),
            reason="rolled back by hand",
            action="rolled back",
        )
    return f"version {former[-1]} is the champion of {name} again"
