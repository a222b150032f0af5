"""The champion: the best version so far, dethroned only by a challenger that is better on the very same validation images.

Test images decide nothing: the champion's figures on them are as unseen as any. `decide` is a pure function; `challenge` finds
the champion's predictions, decides, moves the alias and leaves the reason behind. History is a tag of the registered model, so
that it outlives runs and versions.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from graft.dataset import manifest
from graft.scoring.predictions import Predictions
from graft.scoring.statistics import Comparison, compare_predictions
from graft.system.console import GraftError, log
from graft.tracking import registry, runs, store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "champion"
PREDICTIONS = "validation_predictions.csv"  # artifact of the run that a version's tag `evaluate.run` names
HISTORY = "champion.history"  # tag of the registered model: JSON list of entries, oldest first
KEPT = 200  # entries of the history; a tag holds 100,000 characters
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Decision:
    """What became of the challenger, and why (`reason`: one sentence).

    The fields from `accuracy` on, of the validation images, are None where there was nothing to compare: no champion, or one
    that cannot be compared.
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
    """Clauses, one per gate (metric: least value) that `metrics` does not reach. Raises GraftError for an unknown metric."""
    failed = []
    for key, least in gates.items():
        if key not in metrics:
            raise GraftError(f"params.yaml: evaluate.gates: {key} is not measured; known: {', '.join(sorted(metrics))}")
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
) -> Decision:
    """Whether the challenger takes over.

    comparison: with the champion as `first` and the challenger as `second`; None when there is no champion, or when
    `obstacle` (a clause such as "the class lists differ") keeps the two from being compared.
    promote: better = a higher accuracy, which includes that the paired test does not call it worse; significant = higher, and
    the paired test's p < 0.05; always; never. failed: see `failed_gates`; a gate that is not reached forbids promotion
    whatever `promote` says. Returns a Decision without versions.
    """
    numbers, found = {}, "there is no champion yet"
    if obstacle:
        found = f"not comparable with {champion}: {obstacle}"
    elif comparison is not None:
        c = comparison
        numbers = {"accuracy": c.second, "champion_accuracy": c.first, "difference": c.difference,
                   "low": c.low, "high": c.high, "p_value": c.p_value, "n": c.n}  # fmt: skip
        found = (f"accuracy {c.second:.4f} against {c.first:.4f} of {champion} on the same {c.n} validation images, "
                 f"difference {c.difference:+.4f} ({c.low:+.4f} to {c.high:+.4f}), p = {c.p_value:.2g}")  # fmt: skip
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
        why = "significantly better" if promoted else "better, but not significantly" if higher else "not better"
    elif promote == "better":
        promoted, why = higher, "better" if higher else "not better"
    else:
        raise ValueError(f"unknown rule {promote!r}")
    return Decision(promoted, f"{why}: {found}" if why else found, **numbers)


def challenge(run: runs.StageRun, *, version: str, predictions: Predictions, metrics: Mapping[str, float]) -> Decision:
    """Let `version` of the registry challenge the champion on the validation images, and act on the decision.

    run: the StageRun of evaluate. predictions: of the manifest's validation images. metrics: of them, for the gates.

    The alias `champion` moves or stays; the decision goes to tags and artifact champion.json of the run, tags of the version,
    the history and one line on the console. `predictions` stay with the run, for challengers to come.
    """
    client, name = run.client, run.params.tracking.model
    _record_predictions(run, version, predictions)  # before the alias moves: from then on others challenge these
    while True:
        champion = registry.by_alias(client, name, ALIAS)
        if champion is not None and str(champion.version) == version:
            decision = Decision(False, "it is the champion already", version=version, champion=version)
            break
        decision = _judge(run, champion, predictions, metrics)
        decision = replace(decision, version=version, champion=champion and str(champion.version))
        if not decision.promoted:
            break
        with store.lock("champion"):
            now = registry.by_alias(client, name, ALIAS)
            if (now and str(now.version)) == decision.champion:  # else another experiment won meanwhile: challenge that one
                _move(client, name, version, by=run.pipeline_name, reason=decision.reason)
                break
    _record(run, decision)
    return decision


def _record_predictions(run, version, predictions):
    with tempfile.TemporaryDirectory() as folder:
        predictions.write(Path(folder) / PREDICTIONS)
        run.log_artifact(Path(folder) / PREDICTIONS)
    accuracy = f"{predictions.correct.mean():.4f}"
    tags = {"evaluate.run": run.run_id, "validation.digest": _validation_digest(), "val_accuracy": accuracy}
    registry.describe(run, version, tags=tags | ({"test.digest": run.dataset.test_digest} if run.dataset else {}))


def _validation_digest():
    """12 hex digits of path, label and bytes of every validation image."""
    rows = manifest.read().split("val").rows
    return hashlib.sha256(json.dumps([(row.path, row.label, row.sha256) for row in rows]).encode()).hexdigest()[:12]


def _judge(run, champion, predictions, metrics):
    params = run.params
    rule = {"promote": params.tracking.promote, "failed": failed_gates(params.evaluate.gates, metrics)}
    if champion is None:
        return decide(None, **rule)
    rule["champion"] = f"version {champion.version}"
    theirs = runs.read_predictions(run.client, champion.tags.get("evaluate.run"), PREDICTIONS)
    if obstacle := _obstacle(champion, theirs, predictions):
        return decide(None, obstacle=obstacle, **rule)
    options = {"resamples": params.evaluate.bootstrap, "seed": params.seed}
    return decide(compare_predictions(theirs, predictions, **options), **rule)


def _obstacle(champion: ModelVersion, theirs: Predictions | None, ours: Predictions) -> str | None:
    """What keeps the champion from being compared, as a clause, or None."""
    run_id = champion.tags.get("evaluate.run")
    if theirs is None and run_id is None:
        return "no evaluate run of it is recorded (tag evaluate.run), and so none of its validation predictions"
    if theirs is None:
        return f"its validation predictions are missing ({PREDICTIONS} of run {run_id})"
    if theirs.classes != ours.classes:
        return f"the class lists differ, {_class_change(theirs.classes, ours.classes)}"
    if champion.tags.get("validation.digest") != _validation_digest() or set(theirs.paths) != set(ours.paths):
        shared = len(set(theirs.paths) & set(ours.paths))
        return f"its validation images are others ({shared} of these {len(ours)} by path; labels or bytes may have changed)"
    return None


def _class_change(old, new):
    gone, come = [c for c in old if c not in new], [c for c in new if c not in old]
    parts = [f"{verb} {_few(names)}" for verb, names in (("without", gone), ("with", come)) if names]
    return " and ".join(parts) or "in their order"


def _few(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _record(run, decision):
    state = "promoted" if decision.promoted else "kept" if decision.champion == decision.version else "not promoted"
    tags = {"champion.decision": state, "champion.reason": decision.reason}
    run.set_tags(tags)
    runs.log_batches(run.client, run.pipeline_id, tags=tags)
    run.log_text(json.dumps(asdict(decision), indent=2) + "\n", "champion.json")
    if state != "kept":
        registry.describe(run, decision.version, tags=tags)
    log(f"champion: version {decision.version} {state}; {decision.reason}")


def _move(client, name, version, *, by, reason, action="promoted"):
    """Point the alias at `version` and write it into the history. The caller holds the lock."""
    entries = history(client, name)
    current = registry.by_alias(client, name, ALIAS)
    client.set_registered_model_alias(name, ALIAS, str(version))
    entries.append({
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"), "action": action, "version": str(version),
        "before": str(current.version) if current else None, "by": by, "reason": reason[:400],
    })  # fmt: skip
    client.set_registered_model_tag(name, HISTORY, json.dumps(entries[-KEPT:], ensure_ascii=False))


def history(client: MlflowClient, name: str) -> list[dict]:
    """Every change of the champion, oldest first: dicts with at, action, version, before, by, reason. Empty without a model."""
    from mlflow.exceptions import MlflowException

    try:
        return json.loads(client.get_registered_model(name).tags.get(HISTORY, "[]"))
    except MlflowException:
        return []


def active_versions(entries: list[dict]) -> list[str]:
    """The versions that were champion and not rolled back, oldest first: the last one is the champion."""
    stack = []
    for entry in entries:
        if entry["action"] == "rolled back":
            stack.pop()
        else:
            stack.append(entry["version"])
    return stack


def show(params) -> str:
    """The champion and its history as a table."""
    client, name = store.connect(params).client, params.tracking.model
    current, entries = registry.by_alias(client, name, ALIAS), history(client, name)
    if current is None:
        return f"model {name} has no champion yet: evaluate names one"
    figures = (("validation", "val_accuracy"), ("test", "accuracy"))
    known = [f", {kind} accuracy {float(current.tags[key]):.4f}" for kind, key in figures if key in current.tags]
    lines = [f"champion of {name}: version {current.version} ({current.tags.get('stage', '?')}{''.join(known)})"]
    if entries:
        width = max(len(e["by"]) for e in entries)
        lines += ["", f"{'when (UTC)':16}  {'change':11}  {'version':>7}  {'by':{width}}  why"]
    for e in entries:
        lines.append(f"{e['at'][:16].replace('T', ' ')}  {e['action']:11}  {e['version']:>7}  {e['by']:{width}}  {e['reason']}")
    return "\n".join(lines)


def set_champion(params, version: str | int, *, reason: str = "set by hand") -> str:
    """Make `version` (a number or an alias) the champion. Returns one line of text. Raises GraftError if there is none."""
    client, name = store.connect(params).client, params.tracking.model
    version = registry.get_version(client, name, version).version
    with store.lock("champion"):
        current = registry.by_alias(client, name, ALIAS)
        if current is not None and str(current.version) == str(version):
            return f"version {version} is the champion of {name} already"
        _move(client, name, version, by=runs.user(), reason=reason, action="set")
    return f"version {version} is the champion of {name} now"


def rollback(params) -> str:
    """Give the title back to the version that had it before. Returns one line of text. Raises GraftError when none had it."""
    client, name = store.connect(params).client, params.tracking.model
    with store.lock("champion"):
        former = active_versions(history(client, name))[:-1]
        if not former:
            raise GraftError(f"model {name} has no former champion to go back to; `graft champion --set VERSION` names one")
        registry.get_version(client, name, former[-1])
        _move(client, name, former[-1], by=runs.user(), reason="rolled back by hand", action="rolled back")
    return f"version {former[-1]} is the champion of {name} again"
