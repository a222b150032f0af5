"""Rows of results, one JSON object a line, and the tables made of them.

A row is one run of one thing: {"what": "first", "repeat": 1, "setting": {…}, "version": …,
"seconds": …, …}. Rows are appended as they come, so that an interrupted benchmark loses the run
that it was in and no other.
"""

import json
import statistics
from pathlib import Path

PEERS = {
    "course": "peer (a): course recipe",
    "frozen": "peer (b): BN frozen, graft's epochs",
    "cifar": "peer (c): CIFAR-10 recipe, 32 px",
}
CASES = {
    "first": "graft: first `dvc repro`",
    "nothing": "graft: `dvc repro`, nothing to do",
    "next": "graft: `dvc exp run -S lr=…`",
    "sweep": "graft: 8 values of lr, one after the other",
    "queue": "graft: 8 values of lr, queued, two at a time",
}
NAMES = {**PEERS, **CASES}
SWEEP = 8  # values of lr in a sweep


def load(path):
    path = Path(path)
    if not path.exists():
        return []
    return [
        json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]


def append(path, row):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def spread(values):
    """(median, smallest, largest) of what is not None; None if nothing is left."""
    values = [value for value in values if value is not None]
    return (statistics.median(values), min(values), max(values)) if values else None


def summarise(rows):
    """One dict per setting, in the order of data, images and size: `whats` (statistics of each
    thing measured) and `ratios`."""
    settings = {json.dumps(row["setting"], sort_keys=True): row["setting"] for row in rows}
    ordered = sorted(
        settings.items(), key=lambda item: [item[1][k] for k in ("data", "images", "image_size")]
    )
    return [
        _summary(setting, [row for row in rows if row["setting"] == setting])
        for _, setting in ordered
    ]


def _summary(setting, rows):
    by_what = {}
    for row in rows:
        # A later row of the same repeat replaces an earlier one.
        by_what.setdefault(row["what"], {})[row["repeat"]] = row
    order = [*NAMES, *sorted(set(by_what) - set(NAMES))]
    columns = ("seconds", "cpu_seconds", "largest_mib", "anonymous_mib", "tree_mib", "accuracy",
               "training_starts", "images_per_second")  # fmt: skip
    whats = {}
    for what in (name for name in order if name in by_what):
        runs = list(by_what[what].values())
        whats[what] = {
            "runs": len(runs),
            **{c: spread([run.get(c) for run in runs]) for c in columns},
        }
        whats[what].update(
            {
                key: runs[-1][key]
                for key in ("n", "interval", "epochs", "runtime", "stages")
                if key in runs[-1]
            }
        )
    return {"setting": setting, "whats": whats, "ratios": _ratios(by_what)}


def _ratios(by_what):
    """{label: (median, smallest, largest)} over repeats: each repeat's graft against the same
    repeat's peer."""

    def paired(a, b, value):
        pairs = [
            (by_what[a][r], by_what[b][r]) for r in by_what.get(a, {}) if r in by_what.get(b, {})
        ]
        return spread([value(x, y) for x, y in pairs])

    def time(times=1):
        return lambda x, y: x["seconds"] / (times * y["seconds"])

    def error(x, y):
        return (1 - x["accuracy"]) / (1 - y["accuracy"]) if y["accuracy"] < 1 else None

    found = {}
    for peer in ("course", "frozen"):
        found[f"time, first run / {peer}"] = paired("first", peer, time())
    for peer in PEERS:
        found[f"test error, first run / {peer}"] = paired("first", peer, error)
    found["time, next experiment / course"] = paired("next", "course", time())
    for case in ("sweep", "queue"):
        found[f"time, {case} of {SWEEP} / {SWEEP} x course"] = paired(case, "course", time(SWEEP))
    for what in sorted(by_what):
        if what.startswith("trunk graft to "):
            other = what.replace("graft", "predict")
            label = what.replace("trunk graft to", "throughput, graft / model.predict, trunk to")
            found[label] = paired(
                what, other, lambda x, y: x["images_per_second"] / y["images_per_second"]
            )
    return {label: value for label, value in found.items() if value is not None}


def markdown(summaries, machine=""):
    parts = [machine] if machine else []
    for summary in summaries:
        s = summary["setting"]
        extra = f", {', '.join(s['set'])}" if s.get("set") else ""
        parts.append(
            f"### {s['data']}, {s['images']:,} images, {s['image_size']} px, alpha "
            f"{s['alpha']}{extra}"
        )
        timed = {what: w for what, w in summary["whats"].items() if not what.startswith("trunk")}
        if timed:
            parts.append(_table(
                ["", "runs", "seconds", "CPU s", "largest process, MiB", "without files, MiB",
                 "test accuracy", "n", "epochs", "training starts after, s"],
                [[NAMES.get(what, what), str(w["runs"]), _show(w["seconds"], ".1f"),
                  _show(w["cpu_seconds"], ".0f"), _show(w["largest_mib"], ".0f"),
                  _show(w["anonymous_mib"], ".0f"), _accuracy(w), str(w.get("n", "")),
                  " + ".join(map(str, w.get("epochs", []))), _show(w["training_starts"], ".1f")]
                 for what, w in timed.items()],
            ))  # fmt: skip
        trunks = {what: w for what, w in summary["whats"].items() if what.startswith("trunk")}
        if trunks:
            parts.append(
                _table(
                    ["", "runs", "runtime", "images/s"],
                    [
                        [what, str(w["runs"]), w["runtime"], _show(w["images_per_second"], ".0f")]
                        for what, w in trunks.items()
                    ],
                )
            )
        if summary["ratios"]:
            parts.append(
                _table(
                    ["ratio", "median (min to max)"],
                    [[k, _show(v, ".2f")] for k, v in summary["ratios"].items()],
                )
            )
    return "\n\n".join(parts) + "\n"


def _show(values, form):
    """`2.5 (2.0 to 3.0)`; the range is left out where there is none."""
    if values is None:
        return ""
    median, low, high = (format(value, form) for value in values)
    return median if low == high else f"{median} ({low} to {high})"


def _accuracy(what):
    shown = _show(what["accuracy"], ".4f")
    return (
        f"{shown}, 95%: {what['interval'][0]:.3f} to {what['interval'][1]:.3f}"
        if shown and "interval" in what
        else shown
    )


def _table(header, rows):
    filled = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
    lines = [
        [header[i] for i in filled],
        ["---", *["---:"] * (len(filled) - 1)],
        *([row[i] for i in filled] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
