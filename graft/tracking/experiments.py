"""Experiments of DVC, each run in a working folder of its own (`dvc exp run --temp`), and what they
left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from graft.system import git, paths
from graft.system.console import GraftError

TOLD = 300  # characters of a failed experiment's last line


def run(name: str, overrides: Mapping[str, str], log: BinaryIO, *targets: str) -> str:
    """`dvc exp run --temp --name NAME -S key=value … [TARGET …]`, what it prints into `log`, a
    file. Returns its commit.

    The working folder is left as it is. On Ctrl-C it waits until DVC has ended too. Raises
    GraftError where it fails.
    """
    words = [word for key, value in overrides.items() for word in ("-S", f"{key}={value}")]
    command = [
        sys.executable,
        "-m",
        "dvc",
        "exp",
        "run",
        "--temp",
        "--name",
        name,
        *words,
        *targets,
    ]
    # `python` in dvc.yaml is this one, whether its environment is activated or not.
    environment = git.environment() | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    }
    process = subprocess.Popen(command, cwd=paths.root(), env=environment, stdout=log, stderr=log)
    try:
        process.wait()
    except KeyboardInterrupt:  # which DVC has got as well
        process.wait()
        raise
    found = commit(name)
    if process.returncode or found is None:
        raise GraftError(
            f"experiment {name} failed: {_last_line(Path(log.name))}; all of it: {log.name}"
        )
    return found


def commit(name: str) -> str | None:
    """The commit that DVC keeps the experiment `name` in, or None where there is none of that
    name."""
    listed = git.output(
        "for-each-ref", "--sort=-committerdate", "--format=%(objectname)", f"refs/exps/*/*/{name}"
    )
    return next(iter((listed or "").split()), None)


def read(commit: str, path: Path) -> str:
    """The text of a file that git or DVC keeps of an experiment. Raises GraftError where neither
    has it."""
    import dvc.api
    from dvc.exceptions import DvcException

    try:
        return dvc.api.read(path.as_posix(), repo=str(paths.root()), rev=commit, encoding="utf-8")
    except (DvcException, OSError) as error:
        raise GraftError(
            f"{path} of {commit[:8]}: neither git nor DVC's cache has it: {error}"
        ) from None


def _last_line(log):
    lines = [
        line.strip()
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    errors = [line for line in lines if line.startswith("error:")] or lines or ["it said nothing"]
    return errors[-1][:TOLD]
