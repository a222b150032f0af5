"""Are these the same bytes? `dvc repro` in two fresh clones under conditions that must not matter,
and what differs, by file.

    make reproduce        # or: python benchmarks/reproduce.py [--source REPOSITORY] [--into FOLDER]

The first clone has no cache at all. The second lies in another folder, finds the first one's
features computed, has another PYTHONHASHSEED and no fork server. Both use the environment that runs
this script. Neither has DVC's run cache.

Ends with 1 where the two differ. Where both agree with each other and not with the dvc.lock that is
committed, that one was made by other code, or on another kind of processor, whose kernels sum in
another order: then what counts is whether the figures agree, and it ends with 1 where an accuracy
lies outside the committed one's 95% interval.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
CONDITIONS = {
    "first": {"PYTHONHASHSEED": "1"},
    "a second one": {"PYTHONHASHSEED": "2", "GRAFT_FORKSERVER": "0"},
}
FIGURES = Path("data/evaluate/metrics.json")


def reproduce(
    source: Path, folder: Path, conditions: dict[str, str], features: Path | None = None
) -> float:
    """`dvc repro` in a fresh clone of `source` in `folder`, with the feature cache `features`.
    Returns seconds."""
    subprocess.run(["git", "clone", "--quiet", source, folder], check=True)
    if features is not None:
        shutil.copytree(features, folder / ".cache" / "features")
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("DVC_", "MLFLOW_", "GRAFT_", "PYTHONHASHSEED"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    started = time.monotonic()
    command = [sys.executable, "-m", "dvc", "repro", "--no-run-cache"]
    subprocess.run(
        command,
        cwd=folder,
        env=kept | conditions | {"PATH": path, "PYTHONPATH": str(folder)},
        check=True,
    )
    return time.monotonic() - started


def outputs(lock: str) -> dict[str, str]:
    """{path of an output: digest} of all stages of a dvc.lock."""
    stages = (YAML(typ="safe").load(lock) or {}).get("stages", {}).values()
    return {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", [])}


def different(one: Path, other: Path) -> list[str]:
    """The files of the outputs of two clones that are not the same, relative to them, sorted."""
    locks = [outputs((clone / "dvc.lock").read_text(encoding="utf-8")) for clone in (one, other)]
    names = sorted(
        name for name in {*locks[0], *locks[1]} if locks[0].get(name) != locks[1].get(name)
    )
    found: set[str] = set()
    for name in names:
        inside = {
            p.relative_to(clone)
            for clone in (one, other)
            for p in [clone / name, *(clone / name).rglob("*")]
            if p.is_file()
        }
        found |= {p.as_posix() for p in inside if _content(one / p) != _content(other / p)}
    return sorted(found) or names


def _content(path):
    return path.read_bytes() if path.is_file() else None


def figures_agree(committed: dict, made: dict) -> bool:
    """Whether the accuracies of metrics.json lie in the committed one's 95% interval."""
    low, high = committed["accuracy_low"], committed["accuracy_high"]
    return committed["n"] == made["n"] and all(
        low <= made[key] <= high for key in ("accuracy", "head_accuracy")
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--source",
        type=Path,
        default=ROOT,
        help="repository whose HEAD is cloned (default: this one)",
    )
    parser.add_argument(
        "--into", type=Path, help="folder that keeps the clones (default: a temporary one)"
    )
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="graft-reproduce-") as place:
        clones = [(args.into or Path(place)) / name for name in CONDITIONS]
        features = [None, clones[0] / ".cache" / "features"]
        for clone, conditions, cache in zip(clones, CONDITIONS.values(), features):
            seconds = reproduce(args.source, clone, conditions, cache)
            print(
                f"reproduce: {clone.name} clone in {seconds:.0f} s, with {conditions}", flush=True
            )
        if files := different(*clones):
            print(f"reproduce: the two differ in {len(files)} files: {', '.join(files)}")
            return 1
        print(
            "reproduce: the two have the same "
            f"{len(outputs((clones[0] / 'dvc.lock').read_text()))} outputs, byte for byte"
        )
        return _against_what_is_committed(args.source, clones[0])


def _against_what_is_committed(source, clone):
    shown = [subprocess.run(["git", "show", f"HEAD:{name}"], cwd=source, capture_output=True,
                            text=True, encoding="utf-8")
             for name in ("dvc.lock", FIGURES.as_posix())]  # fmt: skip
    if any(done.returncode for done in shown):
        print("reproduce: no dvc.lock and figures are committed to compare with")
        return 0
    committed, made = (
        outputs(shown[0].stdout),
        outputs((clone / "dvc.lock").read_text(encoding="utf-8")),
    )
    others = sorted(name for name in made if committed.get(name) != made[name])
    if not others:
        print("reproduce: so has the dvc.lock that is committed")
        return 0
    agree = figures_agree(
        json.loads(shown[1].stdout), json.loads((clone / FIGURES).read_text(encoding="utf-8"))
    )
    print(
        "reproduce: the dvc.lock that is committed, of other code or another processor, differs "
        f"in {', '.join(others)}; test accuracies {'agree' if agree else 'DO NOT AGREE'} with its "
        "95% interval"
    )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
