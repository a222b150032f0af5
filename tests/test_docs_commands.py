"""Every command of README and docs, run on a small stand-in for its data; or, where that cannot be,
its options and params.

Commands are the lines of the fenced blocks of sh, in the order of the pages; in NOT_RUN are those
that are not run, with the reason. Of them the parsers are asked: graft's, DVC's, and the check of
params.yaml.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graft import params as parameters
from graft.commands import main
from tests import small_clone

ROOT = Path(__file__).parents[1]
FILES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "CONTRIBUTING.md",
    *ROOT.glob("data/**/README.md"),
]
WEIGHTS = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{}_224_no_top.h5"
NETWORK, SERVES, MINUTES = "needs a network", "serves until Ctrl-C", "takes minutes"
# Begin of a command -> why it is not run.
NOT_RUN = {
    "make run": f"{NETWORK}: it installs the packages; what it runs then, `dvc repro`, runs in "
    "test_pipeline.py",
    "make test": f"{MINUTES}: all tests, this one among them",
    "make lint": "looks at the code, not at data",
    "make ui": SERVES,
    "graft serve": f"{SERVES}: tests/commands/test_serve_command.py runs it, and asks it as "
    "docs/server.md does",
    "mlflow models serve": f"{SERVES}: tests/serving/test_pyfunc.py runs it",
    "curl": "asks a server: tests/commands/test_serve_command.py",
    "printf '{": "for curl",
    "docker": "needs a daemon of Docker; tests/test_deploy.py runs what the container holds",
    "npm pack": f"{NETWORK}: tests/test_browser.py runs these where the registry of npm can be "
    "reached",
    "mkdir -p site": "unpacks ONNX Runtime Web: tests/test_browser.py",
    "cp ": "tests/test_browser.py",
    "unzip ": "tests/test_browser.py",
    "python -m http.server": SERVES,
    "graft relabel": "needs labels that a person has corrected; test_relabel_command.py runs it",
    "graft predict photos/ --unknown-below": "loads TensorFlow for a column; "
    "tests/serving/test_known.py runs it",
    "graft next": "needs photos without labels; test_next_command.py runs it",
    "graft check photos --deep": "needs features of a run; test_check_command.py runs it",
    "graft similar": "takes a photo of yours; test_next_command.py runs it",
    "graft drift": "needs new photos; test_drift_command.py runs it",
    "dvc exp run -S features.executor=ray": "needs Ray, an extra; tests/features/test_blocks.py "
    "runs it without DVC",
    "graft predict photos/ --output predictions.csv --executor ray": "needs Ray; "
    "tests/serving/test_distributed.py runs it",
    "source": "sets up the shell",
    "pip install": NETWORK,
    "graft new": "needs an installed wheel, in whose environment test_new_project.py runs it",
    "cd flowers": "in test_new_project.py likewise",
    "make wheel": "test_new_project.py builds it",
    "pre-commit": f"{NETWORK}: it installs itself",
    "dvc exp run --queue": f"{MINUTES}: six experiments; two of the queue run in test_pipeline.py",
    "dvc exp run --run-all": f"{MINUTES}: the six experiments of the queue",
    "dvc exp run $(graft preset alpaca)": f"{NETWORK}: Keras' weights",
    "dvc exp run $(graft preset top_50_layers)": f"{NETWORK}: Keras' weights, or the file of them",
    "dvc exp run $(graft preset cifar10)": f"{NETWORK}: Keras' weights",
    "dvc exp run $(graft preset flowers": f"{NETWORK}: Keras' weights",
    "dvc exp run $(graft preset best)": f"{NETWORK}: the package with its weights",
    "dvc exp run -S backbone.name=mobilenet_v2": f"{NETWORK}: the file of weights",
    "dvc exp run -S data.path=/home/me/photos -S": f"{MINUTES}: one more pipeline; such labels "
    "are read in tests/dataset",
    "graft import tfds:": NETWORK,
    "graft tune": f"{MINUTES}: forty experiments; two run in test_tune.py",
    "graft champion --rollback": "needs a champion before this one",
}
# Programs whose options are not checked here.
SHOWN = (
    "source",
    "cd",
    "pip",
    "pre-commit",
    "curl",
    "printf",
    "mlflow",
    "docker",
    "npm",
    "mkdir",
    "cp",
    "unzip",
    "python",
)
CLASSES = small_clone.CLASSES
QUOTED_OR_COMMENT = r"""('[^']*'|"[^"]*")|(?:^|\s)#.*$"""


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def commands(text):
    """The commands of a page: lines of its blocks of sh, joined where they end in a backslash,
    parted at ";", no comments."""
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(QUOTED_OR_COMMENT, lambda match: match[0] if match[1] else "", line)
            yield from (" ".join(part.split()) for part in line.split("; ") if part.strip())


PAGES = {page: page.read_text(encoding="utf-8") for page in FILES if page.exists()}
FOUND = list(dict.fromkeys(command for text in PAGES.values() for command in commands(text)))


def why_not(command):
    """The reason of the longest entry of NOT_RUN that it begins with, or None."""
    found = max((begin for begin in NOT_RUN if command.startswith(begin)), key=len, default=None)
    return found and NOT_RUN[found]


def preset_flags(name):
    """As `graft preset` prints them, where the weights are not at hand too."""
    values, _ = parameters.load_part(ROOT / "configs" / f"{name}.yaml", ROOT / "params.yaml")
    return [
        word
        for key, value in values.items()
        for word in ("-S", f"{key}={str(value).replace(' ', '')}")
    ]


def check(command, folder):
    """Raise where its options are none, or its params do not fit; nothing is run. folder: for a
    params.yaml."""
    command = re.sub(
        r"\$\(graft preset (\w+)\)", lambda match: shlex.join(preset_flags(match[1])), command
    )
    words = shlex.split(command)
    if words[0] == "graft":
        main.parser().parse_args(words[1:])
    elif words[0] == "dvc":
        check_dvc(words[1:], folder)
    elif words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    else:
        assert words[0] in SHOWN, command


def check_dvc(words, folder):
    from dvc.cli import parse_args
    from dvc.utils.hydra import apply_overrides, get_hydra_sweeps

    given = parse_args(words)
    for override in getattr(given, "set_param", None) or []:
        sweeps = get_hydra_sweeps({"params.yaml": [override]})
        for values in sweeps if "range(" in override else [{"params.yaml": [override]}]:
            path = folder / "params.yaml"
            shutil.copy(ROOT / "params.yaml", path)
            apply_overrides(path, values["params.yaml"])
            parameters.load(path)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A small clone in which nothing has run yet, with what the commands name: photos, archives,
    weights."""
    import h5py

    made = small_clone.make(tmp_path_factory.mktemp("docs"))
    root, home = made.folder, Path(made.env["HOME"])
    small_clone.pictures(home / "photos")
    for name in ("photos", "garden"):
        small_clone.pictures(root / name)
    # `graft predict` ends with 2 where a file cannot be read.
    (root / "photos" / CLASSES[0] / "broken.jpg").unlink()
    shutil.copytree(root / "photos", home / "new")
    shutil.copy(root / "photos" / CLASSES[0] / "0 ä.png", root / "photo.jpg")
    for name, kind in (("photos", "zip"), ("walk", "zip"), ("alpaca", "tar")):
        shutil.make_archive(str(root / name), kind, root / "photos")
    (home / "Downloads").mkdir()
    for path in (root / WEIGHTS.format("1.0"), home / "Downloads" / WEIGHTS.format("0.35")):
        with h5py.File(path, "w") as file:
            file["kernel"] = [0.5]
    made.env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{made.env['PATH']}"
    made.env["PYTHONPATH"] = str(root)
    return made


def stand_in(command, clone):
    """The command, with the folders that are there."""
    home = Path(clone.env["HOME"])
    command = re.sub(r"^\.venv/bin/", "", command)
    command = re.sub(r"/home/me/(photos|new)", lambda match: str(home / match[1]), command)
    # The last one: the data are still what they were for it.
    return re.sub(r"\bNAME\b", lambda _: clone.experiment, command)


@pytest.mark.slow
def test_every_command_and_the_python_run(clone):
    """In one test, since a command may need what those before it have left, and workers of pytest
    would part them."""
    failed = {}
    for command in (command for command in FOUND if not why_not(command)):
        started = time.monotonic()
        done = clone.run("bash", "-ec", stand_in(command, clone), check=False)
        for name in re.findall(r"^Ran experiment\(s\): (\S+)", clone.out, flags=re.MULTILINE):
            clone.experiment = name
        print(f"{time.monotonic() - started:6.1f} s  {command}")
        if done.returncode or "error:" in clone.out:
            failed[command] = clone.out[-2000:]
    for block in (
        block for text in PAGES.values() for block in blocks(text, "python") if "pyfunc" in block
    ):
        asked = f"{block}\nassert len(model.predict([Path('photo.jpg')])) == 1"
        if clone.run(sys.executable, "-c", asked, check=False).returncode:
            failed[block] = clone.out[-2000:]
    assert failed == {}
    (script,) = (block for text in PAGES.values() for block in blocks(text, "bash"))
    clone.path("deploy.sh").write_text("#!/bin/sh\necho once >> deployed\n")
    clone.path("deploy.sh").chmod(0o755)
    for _ in range(2):
        clone.run("bash", "-ec", script)
    assert clone.path("deployed").read_text() == "once\n"


def test_python_that_needs_a_server_is_python():
    (block,) = (
        block
        for text in PAGES.values()
        for block in blocks(text, "python")
        if "create_webhook" in block
    )
    compile(block, "docs", "exec")  # tests/tracking/test_webhook.py runs the same call on a server


@pytest.mark.parametrize("command", [command for command in FOUND if why_not(command)])
def test_a_command_that_is_not_run_has_options_and_params_that_there_are(command, tmp_path):
    check(command, tmp_path)


def test_nothing_is_listed_that_no_page_says():
    assert [
        begin for begin in NOT_RUN if not any(command.startswith(begin) for command in FOUND)
    ] == []


@pytest.mark.parametrize(
    "command",
    [
        "graft predict photos/ --modle x",
        "graft predicts photos/",
        "dvc exp run -S lr=fast",
        "dvc exp run -S lrr=1e-5",
        "dvc exp run --queued",
        "dvc exp run -S 'lr=range(-1,1)'",
        "dvc exp run $(graft preset bets)",
        "make runs",
        "rm -rf /",
    ],
)
def test_what_is_wrong_is_found(command, tmp_path):
    with pytest.raises((Exception, SystemExit)):
        check(command, tmp_path)


def test_commands_of_a_page():
    text = "```sh\na b  # why\nc 'd # e' \\\n  f; g h\n```\n```python\nx = 1\n```\n"
    assert list(commands(text)) == ["a b", "c 'd # e' f", "g h"]
