"""Make a project of its own in an empty folder: recipes, dvc.yaml, params, git, DVC; graft itself
stays installed."""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from graft.system import files, git, installed
from graft.system.console import GraftError, log
from graft.system.environment import missing

PROJECT = Path(__file__).parents[1] / "project"  # what the wheel brings along, see setup.py
# A dependency of a stage that a project has not.
LIBRARY = re.compile(r"      - (graft/\S+|requirements\S*\.lock)\n")
ONNX = ("onnx", "tf2onnx", "onnxruntime")
# Of the first commit, where git knows none.
IDENTITY = ("-c", "user.name=graft", "-c", "user.email=graft@localhost")
README = """\
# {name}

An image classifier, trained by graft on the photos in `{data}`: DVC runs the stages, MLflow keeps
the records.

    pip install -r requirements.txt  # where it is to run; pins graft, which the stages depend on
    dvc repro                        # trains, measures, exports; see data/evaluate/card.html
    dvc exp run -S lr=1e-4           # an experiment; `graft params` explains what can be set
    graft compare                    # experiments side by side; `graft ui` shows them in a browser
    graft predict NEW_PHOTOS         # what other photos show
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="of the new project: empty, or not there yet")
    parser.add_argument("--data", type=Path, required=True, help="photos, a folder per class")


def new(args: argparse.Namespace) -> None:
    """`graft new FOLDER --data PHOTOS`: a project in which `dvc repro` runs, committed to git.

    It appears whole or not at all. Raises GraftError for a folder that is not empty, photos that
    are not there, a graft that runs from a clone, and where git is missing.
    """
    folder, data = args.folder.expanduser().absolute(), args.data.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise GraftError(f"{args.folder}: is there already, and not empty; name another folder")
    if not data.is_dir():
        raise GraftError(f"--data {args.data}: no such folder")
    if shutil.which("git") is None:
        raise GraftError("git is missing: DVC keeps experiments in it; install git first")
    onnx = not missing(ONNX)
    requirement = installed.pin(("onnx",) if onnx else ())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
        made = Path(place) / "project"
        shutil.copytree(PROJECT, made)
        files.write_text(
            made / "dvc.yaml", without_library((made / "dvc.yaml").read_text(encoding="utf-8"))
        )
        files.write_text(made / installed.REQUIREMENTS, f"{requirement}\n")
        files.write_text(made / "README.md", README.format(name=folder.name, data=data))
        _set_params(made / "params.yaml", str(data), onnx)
        _commit(made)
        made.replace(folder)
    if not onnx:
        log(
            "new: model.onnx is left out of export.formats: pip install 'graft-vision[onnx]' for it"
        )
    log(f"new: {folder} trains on {data}: cd {folder} && dvc repro")


def without_library(text: str) -> str:
    """dvc.yaml of the repository as a project has it: requirements.txt in place of the first of the
    dependencies of each stage on graft/… and the locks, and none of the others."""
    lines, stage_has = [], False
    for line in text.splitlines(keepends=True):
        if line.strip() == "deps:":
            stage_has = False
        if not LIBRARY.fullmatch(line):
            lines.append(line)
        elif not stage_has:
            lines.append(f"      - {installed.REQUIREMENTS}\n")
            stage_has = True
    return "".join(lines)


def _set_params(file, data, onnx):
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 4096
    yaml.representer.add_representer(
        type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    tree = yaml.load(file)
    tree["data"]["path"] = data
    if not onnx:
        tree["export"]["formats"].remove("onnx")
    yaml.dump(tree, file)


def _commit(folder):
    """git init, dvc init and the first commit."""
    _run(folder, "git", "init", "--quiet")
    config = (folder / ".dvc" / "config").read_bytes()
    shutil.rmtree(folder / ".dvc")
    _run(folder, sys.executable, "-m", "dvc", "init", "--quiet")
    (folder / ".dvc" / "config").write_bytes(config)
    _run(folder, "git", "add", "--all")
    identity = () if git.output("config", "user.email") else IDENTITY
    options = ("-c", "commit.gpgsign=false", *identity)
    _run(folder, "git", *options, "commit", "--quiet", "--no-verify", "--message", "A new project")


def _run(folder, *command):
    done = subprocess.run(
        command, cwd=folder, env=git.environment(), capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [
            f"exit status {done.returncode}"
        ]
        raise GraftError(f"{' '.join(command[:4])}: {said[-1]}")
