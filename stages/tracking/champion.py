"""The champion: the best version so far, dethroned only by a newcomer that is better on the very same test images.

`decide` is a pure function of two sets of predictions; `contest` finds the champion's predictions, decides, moves the alias and
leaves the reason behind. History is a tag of the registered model, so that it outlives runs and versions.
"""

import csv
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from stages import paths as places
from stages.common import statistics
from stages.console import GraftError, log, warn
from stages.tracking import registry, runs, store

ALIAS = "champion"
HISTORY = "champion.history"  # tag of the registered model: JSON list of entries, oldest first
KEPT = 200  # entries of the history; a tag holds 100,000 characters
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Decision:
    """What became of the newcomer, and why (`reason`: one sentence).

    The fields from `accuracy` on are None where there was nothing to compare: no champion, or one that cannot be compared.
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


def failed_gates(gates, metrics):
    """Clauses, one per gate (metric: least value) that `metrics` does not reach. Raises GraftError for an unknown metric."""
    failed = []
    for key, least in gates.items():
        if key not in metrics:
            raise GraftError(f"params.yaml: evaluate.gates: {key} is not measured; known: {', '.join(sorted(metrics))}")
        if not metrics[key] >= least:  # also when it is not a number
            failed.append(f"{key} {metrics[key]:.4f} is below the gate of {least:g}")
    return failed


def decide(comparison, *, promote="better", gates=None, metrics=None, champion="the champion", obstacle=None, remark=None):
    """Whether the newcomer takes over.

    comparison: Comparison with the champion as `first` and the newcomer as `second`; None when there is no champion, or
    when `obstacle` (a clause such as "the class lists differ") keeps the two from being compared.
    promote: better = a higher accuracy, which includes that the paired test does not call it worse; significant = higher, and
    the paired test's p < 0.05; always; never. gates and metrics: see `failed_gates`; a gate that is not reached forbids
    promotion whatever `promote` says. remark: a clause that is added to the reason. Returns a Decision without versions.
    """
    failed = failed_gates(gates or {}, metrics or {})
    numbers, facts = {}, "there is no champion yet"
    if obstacle:
        facts = f"not comparable with {champion}: {obstacle}"
    elif comparison is not None:
        c = comparison
        numbers = {"accuracy": c.second, "champion_accuracy": c.first, "difference": c.difference,
                   "low": c.low, "high": c.high, "p_value": c.p_value, "n": c.n}  # fmt: skip
        facts = (f"accuracy {c.second:.4f} against {c.first:.4f} of {champion} on the same {c.n} test images, "
                 f"difference {c.difference:+.4f} ({c.low:+.4f} to {c.high:+.4f}), p = {c.p_value:.2g}")  # fmt: skip
    if remark:
        facts += f"; {remark}"
    higher = comparison is not None and comparison.difference > 0
    if failed:
        promoted, why = False, "; ".join(failed)
    elif promote in ("always", "never"):
        promoted, why = promote == "always", f"tracking.promote is {promote}"
    elif obstacle:
        promoted, why = False, "the champion stays; `graft champion set` can change it"
    elif comparison is None:
        promoted, why = True, ""
    elif promote == "significant":
        promoted = higher and comparison.p_value < SIGNIFICANT
        why = "significantly better" if promoted else "better, but not significantly" if higher else "not better"
    elif promote == "better":
        promoted, why = higher, "better" if higher else "not better"
    else:
        raise ValueError(f"unknown rule {promote!r}")
    return Decision(promoted, f"{why}: {facts}" if why else facts, **numbers)


def contest(run, *, version, image_paths, y, probabilities, classes, groups=None, metrics=None, predict=None):
    """Let `version` of the registry contest the champion on this run's test images, and act on the decision.

    run: StageRun of evaluate, whose predictions.csv is written already. image_paths: n paths, as in that file. y: int (n,).
    probabilities: float (n, C). classes: C names. groups: None or n labels. metrics: the test metrics that gates may ask for.
    predict: callable (model version) -> probabilities (n, C) for these images in this order; called when the champion's
    predictions for them are not at hand.

    The alias `champion` moves or stays; the decision goes to tags and artifact champion.json of the run, tags of the version,
    the history and one line on the console. Returns the Decision.
    """
    import numpy as np

    client, name = run.client, run.params.tracking.model
    right = np.asarray(probabilities).argmax(axis=1) == np.asarray(y)
    own = {"classes": json.dumps(list(classes), ensure_ascii=False), "evaluate.run": run.run_id}
    if run.facts:
        own["test.digest"] = run.facts.test_digest
    if (saved := places.EVALUATE / "predictions.csv").exists():
        run.log_artifact(saved)  # before the alias moves: from then on others contest these predictions
    registry.describe(run, version, tags=own)
    while True:
        champion = registry.by_alias(client, name, ALIAS)
        if champion is not None and str(champion.version) == str(version):
            decision = Decision(False, "it is the champion already", version=str(version), champion=str(version))
            break
        decision = _judge(run, champion, image_paths, y, right, classes, groups, metrics, predict)
        decision = replace(decision, version=str(version), champion=champion and str(champion.version))
        if not decision.promoted:
            break
        with store.lock("champion"):
            now = registry.by_alias(client, name, ALIAS)
            if (now and str(now.version)) == decision.champion:  # else another experiment won meanwhile: contest that one
                _move(client, name, version, by=run.pipeline_name, reason=decision.reason)
                break
    _record(run, decision)
    return decision


def _judge(run, champion, image_paths, y, right, classes, groups, metrics, predict):
    import numpy as np

    params = run.params
    rule = {"promote": params.tracking.promote, "gates": params.evaluate.gates, "metrics": metrics}
    if champion is None:
        return decide(None, **rule)
    title = f"version {champion.version}"
    theirs = champion.tags.get("classes")
    if theirs is None or json.loads(theirs) != list(classes):
        obstacle = (
            "its classes are not recorded"
            if theirs is None
            else f"the class lists differ, {_class_change(json.loads(theirs), classes)}"
        )
        return decide(None, champion=title, obstacle=obstacle, **rule)
    same = run.facts is not None and champion.tags.get("test.digest") == run.facts.test_digest
    remark = None
    known = _saved_predictions(run, champion, image_paths, [classes[k] for k in y]) if same else None
    if known is not None:
        champion_right = known == np.asarray([classes[k] for k in y])
    elif predict is None:
        return decide(None, champion=title, obstacle="its predictions for these test images are not at hand", **rule)
    else:
        try:
            champion_right = np.asarray(predict(champion)).argmax(axis=1) == np.asarray(y)
        except Exception as error:
            warn(f"the champion, version {champion.version}, could not be run: {type(error).__name__}: {error}")
            return decide(None, champion=title, obstacle="it could not be run on these test images", **rule)
        if not same:
            remark = "the champion was trained and tested with another split of the data and may have seen some of these images"
    options = {"groups": groups, "resamples": params.evaluate.bootstrap, "seed": params.seed}
    comparison = statistics.compare(champion_right, right, **options)
    return decide(comparison, champion=title, remark=remark, **rule)


def _class_change(old, new):
    gone, come = [c for c in old if c not in new], [c for c in new if c not in old]
    parts = [f"{verb} {_few(names)}" for verb, names in (("without", gone), ("with", come)) if names]
    return " and ".join(parts) or "in their order"


def _few(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _saved_predictions(run, champion, image_paths, labels):
    """The champion's predicted labels (n,) from predictions.csv of its evaluate run; None if they are not for these images."""
    import numpy as np

    rows = download_predictions(run.client, champion.tags.get("evaluate.run"))
    if rows is None or set(rows) != set(image_paths):
        return None
    if any(rows[path]["label"] != label for path, label in zip(image_paths, labels)):
        return None
    return np.asarray([rows[path]["predicted"] for path in image_paths])


def download_predictions(client, run_id):
    """{path: row} of the predictions.csv of a run, or None when there is none."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = Path(client.download_artifacts(run_id, "predictions.csv", folder))
        except (MlflowException, OSError):
            return None
        with file.open(encoding="utf-8", newline="") as stream:
            return {row["path"]: row for row in csv.DictReader(stream)}


def _record(run, decision):
    state = "promoted" if decision.promoted else "kept" if decision.champion == decision.version else "not promoted"
    tags = {"champion.decision": state, "champion.reason": decision.reason}
    run.set_tags(tags)
    runs.log_tags(run.client, run.pipeline_id, tags)
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


def history(client, name):
    """Every change of the champion, oldest first: dicts with at, action, version, before, by, reason. Empty without a model."""
    from mlflow.exceptions import MlflowException

    try:
        return json.loads(client.get_registered_model(name).tags.get(HISTORY, "[]"))
    except MlflowException:
        return []


def reigns(entries):
    """The versions that reigned and were not rolled back, oldest first: the last one is the champion."""
    stack = []
    for entry in entries:
        if entry["action"] == "rolled back":
            stack.pop()
        else:
            stack.append(entry["version"])
    return stack


def show(params):
    """The history of the champion as a table. Returns text."""
    connection = store.connect(params)
    client, name = connection.client, params.tracking.model
    current, entries = registry.by_alias(client, name, ALIAS), history(client, name)
    if current is None:
        return f"model {name} has no champion yet: evaluate names one"
    accuracy = current.tags.get("accuracy")
    lines = [f"champion of {name}: version {current.version} ({current.tags.get('stage', '?')}"
             f"{f', test accuracy {float(accuracy):.4f}' if accuracy else ''})"]  # fmt: skip
    if entries:
        width = max(len(e["by"]) for e in entries)
        lines += ["", f"{'when (UTC)':16}  {'change':11}  {'version':>7}  {'by':{width}}  why"]
    for e in entries:
        lines.append(f"{e['at'][:16].replace('T', ' ')}  {e['action']:11}  {e['version']:>7}  {e['by']:{width}}  {e['reason']}")
    return "\n".join(lines)


def set_champion(params, version, *, reason="set by hand"):
    """Make `version` (a number or an alias) the champion. Returns one line of text. Raises GraftError if there is none."""
    client, name = store.connect(params).client, params.tracking.model
    version = registry.get_version(client, name, version).version
    with store.lock("champion"):
        current = registry.by_alias(client, name, ALIAS)
        if current is not None and str(current.version) == str(version):
            return f"version {version} is the champion of {name} already"
        _move(client, name, version, by=runs.user(), reason=reason, action="set")
    return f"version {version} is the champion of {name} now"


def rollback(params):
    """Give the title back to the version that had it before. Returns one line of text. Raises GraftError when none had it."""
    client, name = store.connect(params).client, params.tracking.model
    with store.lock("champion"):
        former = reigns(history(client, name))[:-1]
        if not former:
            raise GraftError(f"model {name} has no former champion to go back to; `graft champion set VERSION` names one")
        registry.get_version(client, name, former[-1])
        _move(client, name, former[-1], by=runs.user(), reason="rolled back by hand", action="rolled back")
    return f"version {former[-1]} is the champion of {name} again"
