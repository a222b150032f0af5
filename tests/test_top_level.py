"""What a user meets at the root: the Makefile, the locks, the demo, what git takes and what it
leaves."""

import collections
import importlib.metadata
import os
import pty
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from graft import pixels
from graft.system import files

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "data" / "raw" / "fashion"
CLASSES = [
    "ankle-boot",
    "bag",
    "coat",
    "dress",
    "pullover",
    "sandal",
    "shirt",
    "sneaker",
    "t-shirt",
    "trouser",
]
LOCKS = ("requirements-run.lock", "requirements-decode.lock", "requirements-onnx.lock")


def pins(name):
    """{(package, version)} of a lock, every Python version's."""
    return set(
        re.findall(
            r"^([a-z0-9-]+)==([^\s;]+)",
            (ROOT / name).read_text(encoding="utf-8"),
            flags=re.MULTILINE,
        )
    )


def packages(name):
    return {package for package, _ in pins(name)}


@pytest.mark.parametrize("name", LOCKS)
def test_locks_agree_and_name_no_host(name):
    assert pins(name) <= pins("requirements.lock")
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "://" not in text
    assert all(re.match(r"#|[a-z0-9-]+==", line) for line in text.splitlines())


def test_the_lock_of_make_has_hashes_and_names_no_host():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text and "index-url" not in text
    assert "--hash=sha256:" in text


def test_each_lock_holds_what_it_is_about():
    declared = importlib.metadata.requires("graft-vision")
    names = collections.defaultdict(set)
    for line in declared:
        extra = re.search(r"extra == .(\w+)", line)
        names[extra.group(1) if extra else ""].add(
            re.match(r"[\w.-]+", line).group().replace(".", "-").lower()
        )
    assert names[""] | names["onnx"] | names["dev"] <= packages("requirements.lock")
    assert names[""] - {"dvc"} <= packages("requirements-run.lock")
    assert packages("requirements-run.lock").isdisjoint(
        {"dvc", *names["onnx"], *names["dev"], *names["tfds"]}
    )
    assert {"numpy", "pillow", "matplotlib"} <= packages("requirements-decode.lock")
    assert packages("requirements-decode.lock").isdisjoint({"tensorflow", "mlflow", *names["dev"]})
    assert names["onnx"] <= packages("requirements-onnx.lock")
    assert packages("requirements-onnx.lock").isdisjoint({"tensorflow", "mlflow", *names["dev"]})


def test_the_command_is_called_graft():
    (script,) = importlib.metadata.distribution("graft-vision").entry_points.select(
        group="console_scripts"
    )
    assert (script.name, script.value) == ("graft", "graft.commands.main:main")


@pytest.fixture
def clone(tmp_path):
    """A folder with the Makefile, a .venv whose python does nothing, and runs in mlruns."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (
        "requirements.lock",
        "pyproject.toml",
        ".venv/bin/python",
        ".venv/ready",
        ".cache/features/0",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\nexit 0\n")
        path.chmod(0o755)
    for name in ("README.md", "mlflow.db", "artifacts/1/model.json", ".hidden"):
        path = tmp_path / "mlruns" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def make(clone, *arguments, **options):
    kept = {
        k: v for k, v in os.environ.items() if k not in ("YES", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    }
    return subprocess.run(
        ["make", *arguments],
        cwd=clone,
        env=kept,
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


def runs(clone):
    return sorted(
        path.relative_to(clone / "mlruns").as_posix()
        for path in (clone / "mlruns").rglob("*")
        if path.is_file()
    )


EVERYTHING = [".hidden", "README.md", "artifacts/1/model.json", "mlflow.db"]


def test_make_clean_leaves_runs_and_models(clone):
    assert make(clone, "clean").returncode == 0
    assert runs(clone) == EVERYTHING
    assert not (clone / ".venv").exists() and not (clone / ".cache").exists()


def test_make_distclean_refuses_without_a_terminal(clone):
    done = make(clone, "distclean", stdin=subprocess.DEVNULL)
    assert done.returncode != 0
    assert "error: this deletes mlruns" in done.stderr and "YES=1" in done.stderr
    assert runs(clone) == EVERYTHING
    assert (clone / ".venv").exists()


@pytest.mark.parametrize(
    ("answer", "left"), [("yes", ["README.md"]), ("y", EVERYTHING), ("", EVERYTHING)]
)
def test_make_distclean_asks_at_a_terminal(clone, answer, left):
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    try:
        done = make(clone, "distclean", stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert "Type yes" in done.stdout
    assert (done.returncode == 0) == (answer == "yes")
    assert runs(clone) == left
    assert (clone / ".venv").exists() == (answer != "yes")


def test_make_distclean_goes_on_where_it_is_told_to(clone):
    assert make(clone, "distclean", "YES=1", stdin=subprocess.DEVNULL).returncode == 0
    assert runs(clone) == ["README.md"]
    shutil.rmtree(clone / "mlruns")
    assert make(clone, "distclean", "YES=1").returncode == 0


@pytest.mark.parametrize(("status", "passes"), [(0, True), (5, True), (1, False), (2, False)])
def test_make_test_slow_passes_where_there_is_no_slow_test(clone, status, passes):
    python = clone / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$@"\nexit {status}\n')
    done = make(clone, "test-slow")
    assert "-m pytest -m slow" in done.stdout
    assert (done.returncode == 0) == passes


def test_ci_runs_lint_and_all_tests():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-3:] == ["make lint", "make test", "make test-slow"]


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("mlruns/README.md", False),
        ("mlruns/mlflow.db", True),
        ("mlruns/artifacts/1/model.json", True),
        ("data/README.md", False),
        ("data/raw/fashion/LICENSE", False),
        ("data/raw/fashion/bag/00000.png", False),
        ("data/raw/photos/cat/1.jpg", True),
        ("data/raw/photos.dvc", False),
        ("data/weights/README.md", False),
        ("data/weights/mine.h5", True),
        ("data/weights/mine.h5.dvc", False),
        (".cache/features/0", True),
    ],
)
def test_what_git_ignores(path, ignored):
    done = subprocess.run(["git", "check-ignore", "--no-index", "--quiet", path], cwd=ROOT)
    assert done.returncode == (0 if ignored else 1)


@pytest.mark.parametrize("folder", ["data/raw", "data/weights"])
def test_dvc_looks_for_its_files_where_users_add_data(folder):
    """Where it takes the folder itself for ignored, the next experiment removes what `dvc add` has
    linked there as unused."""
    from dvc.repo import Repo

    with Repo(ROOT) as repo:
        assert not repo.scm.is_ignored(f"{ROOT / folder}/")


def test_the_demo_is_whole():
    names = {path.parent.name: path.parent for path in DEMO.glob("*/*.png")}
    assert sorted(names) == CLASSES
    for folder in names.values():
        images = sorted(folder.iterdir())
        assert len(images) == 200
        with Image.open(images[0]) as image:
            assert (image.mode, image.size) == ("L", (28, 28))
    assert files.sha256(DEMO) == "c4ef049048fca54a85871e4f7ec26dfc6460bfe70dffe29b06fdf75a7d271f12"


def test_the_licence_lies_beside_the_demo_and_is_no_image():
    assert "Copyright (c) 2017 Zalando SE" in (DEMO / "LICENSE").read_text(encoding="utf-8")
    assert not pixels.may_be_image(DEMO / "LICENSE")


def test_mlruns_says_in_five_lines_what_it_is():
    assert len((ROOT / "mlruns" / "README.md").read_text(encoding="utf-8").splitlines()) == 5


def test_the_store_is_made_beside_the_readme(tmp_path, monkeypatch):
    from graft import params
    from graft.tracking import store

    (tmp_path / "mlruns").mkdir()
    shutil.copy(ROOT / "mlruns" / "README.md", tmp_path / "mlruns")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    connection = store.connect(params.load(ROOT / "params.yaml"))
    assert connection.search() == []
    assert sorted(path.name for path in (tmp_path / "mlruns").iterdir()) == [
        "README.md",
        "mlflow.db",
    ]
