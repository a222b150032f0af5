"""Parallel experiments into one store: is every one recorded right, and does one champion come out
with its history whole?

    python benchmarks/load.py --out FOLDER [--experiments 8] [--workers 4] [--rounds 3]

A fresh clone of what is checked out, 120 generated pictures, one experiment; then, in each round,
`dvc exp run --queue` of so many augmentations and `--run-all` with so many workers. Where FOLDER is
there already, the rounds are added to those that it has had. Ends with status 1 where anything is
amiss.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

SETTINGS = (
    "data.path=data/raw/tiny", "data.val_fraction=0.25", "data.test_fraction=0.25", "image_size=32",
    "batch_size=8", "augment.views=2", "fine_tune.layers=20", "fine_tune.epochs=1",
    "evaluate.bootstrap=100", "export.formats=[keras]",
)  # fmt: skip
# Gives every experiment another head, and so another model to contest with.
SWEPT = "augment.rotation"
STAGES = ("train-head", "fine-tune", "evaluate", "export")  # that every experiment runs
# Whose accuracy the row must have from metrics.json.
COMPARED = ("train-head", "fine-tune", "evaluate")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where the clone is made")
    parser.add_argument("--experiments", type=int, default=8, help="in a round")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    folder, asked = args.out.resolve(), args.out.with_name(f"{args.out.name}.json")
    run = runner(folder)
    if not asked.exists():
        prepare(folder, run)
    wanted = json.loads(asked.read_text()) if asked.exists() else []
    for number in range(args.rounds):
        values = [f"{0.1 + (len(wanted) + k) / 100:.2f}" for k in range(args.experiments)]
        wanted += values
        asked.write_text(json.dumps(wanted))
        run("dvc", "exp", "run", "--queue", "-S", f"{SWEPT}={','.join(values)}")
        began = time.monotonic()
        run("dvc", "exp", "run", "--run-all", "-j", str(args.workers))
        print(
            f"round {number + 1}: {args.experiments} experiments, {time.monotonic() - began:.0f} s",
            flush=True,
        )
    problems = check(folder, list(map(float, wanted)))
    print("\n".join(problems) or "nothing amiss")
    sys.exit(bool(problems))


def prepare(folder, run):
    """Make the clone and run its pipeline once."""
    folder.mkdir(parents=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    pictures(folder / "data" / "raw" / "tiny")
    for command in (
        ["git", "init", "-q"],
        ["git", "add", "-A"],
        ["git", "add", "-f", "data/raw/tiny"],
    ):
        run(*command)
    run("git", "commit", "-q", "-m", "start")
    run("dvc", "exp", "run", *(flag for setting in SETTINGS for flag in ("-S", setting)))
    run("git", "add", "-A")
    run("git", "commit", "-q", "-m", "first")


def runner(folder):
    """A function that runs a command there, or DVC; what it prints goes to FOLDER.log."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "GIT_"))}
    who = {
        f"GIT_{who}_{what}": "load@localhost"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**kept, **who, "PATH": path, "PYTHONPATH": ""}

    def run(*command):
        command = [sys.executable, "-m", *command] if command[0] == "dvc" else command
        with (folder.parent / f"{folder.name}.log").open("ab") as log:
            subprocess.run(command, cwd=folder, env=environment, check=True, stdout=log, stderr=log)

    return run


def pictures(folder):
    """60 pictures each of squares that are a little more blue, or more green: few models tell them
    apart equally well."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(("blue", "green")):
        (folder / name).mkdir(parents=True)
        for i in range(60):
            pixels = rng.integers(0, 220, (6, 6, 3), dtype=np.uint8)
            pixels[..., 2 - k] += 35
            Image.fromarray(pixels).resize((40, 36), Image.Resampling.BILINEAR).save(
                folder / name / f"{i}.png"
            )


def check(folder, values):
    """Sentences about what is amiss; prints how many of the experiments are recorded right."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("graft").experiment_id
    rows = client.search_runs([experiment], "tags.kind = 'pipeline'", max_results=10_000)
    problems = {
        value: _wrong(
            folder, client, [row for row in rows if float(row.data.params[SWEPT]) == value]
        )
        for value in values
    }
    print(f"{sum(not found for found in problems.values())} of {len(values)} recorded right")
    said = [f"{SWEPT} {value:g}: {found}" for value, found in problems.items() if found]
    open_runs = client.search_runs([experiment], "attributes.status = 'RUNNING'")
    return (
        said + [f"run {row.info.run_name} is still open" for row in open_runs] + _champion(client)
    )


def _wrong(folder, client, rows):
    """What is wrong with the row of one experiment; empty where nothing is."""
    if len(rows) != 1:
        return f"{len(rows)} rows"
    (row,) = rows
    if row.info.status != "FINISHED":
        return row.info.status
    git = partial(subprocess.run, cwd=folder, capture_output=True, text=True, check=True)
    refs = git(["git", "for-each-ref", "--format=%(refname)", "refs/exps"]).stdout.split()
    ref = [name for name in refs if name.endswith(f"/{row.data.tags['pipeline']}")]
    if len(ref) != 1:
        return f"{len(ref)} experiments of DVC named {row.data.tags['pipeline']}"
    for stage in COMPARED:
        file = f"{ref[0]}:data/{stage}/metrics.json"
        text = git(["git", "show", file]).stdout
        if row.data.metrics.get(f"{stage}/accuracy") != json.loads(text)["accuracy"]:
            return f"{stage}/accuracy is not that of the experiment"
    children = client.search_runs(
        [row.info.experiment_id], f"tags.`mlflow.parentRunId` = '{row.info.run_id}'"
    )
    missing = [
        s
        for s in STAGES
        if [c.info.status for c in children if c.data.tags["stage"] == s] != ["FINISHED"]
    ]
    return f"no one finished run of {' and '.join(missing)}" if missing else ""


def _champion(client):
    from graft.tracking import champion, registry

    reigning, history = (
        registry.by_alias(client, "graft", champion.ALIAS),
        champion.history(client, "graft"),
    )
    if reigning is None:
        return ["there is no champion"]
    versions = client.search_model_versions("name = 'graft'", max_results=10_000)
    contested = [
        v for v in versions if v.tags["stage"] == "fine-tune" and "champion.decision" in v.tags
    ]
    print(
        f"{len(contested)} versions contested, the title went to "
        f"{', '.join(entry['version'] for entry in history)}"
    )
    said = [
        f"version {v.version} is better than the champion"
        for v in contested
        if v.tags["val_accuracy"] > reigning.tags["val_accuracy"]
    ]
    if [entry["before"] for entry in history] != [
        None,
        *(entry["version"] for entry in history[:-1]),
    ]:
        said.append("the history has gaps")
    if history[-1]["version"] != str(reigning.version):
        said.append(
            f"the alias is on version {reigning.version}, the history ends with "
            f"{history[-1]['version']}"
        )
    promoted = {str(v.version) for v in contested if v.tags["champion.decision"] == "promoted"}
    if promoted != {entry["version"] for entry in history}:
        said.append("what the versions say of their contests is not what the history says")
    return said


if __name__ == "__main__":
    main()
