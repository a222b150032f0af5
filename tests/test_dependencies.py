"""dvc.yaml names what determines bytes: a changed line in a room reruns the stages whose outputs it
makes, and no other."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALL = ("split", "train-head", "second-look", "fine-tune", "evaluate", "export")
NETWORK = ALL[1:]
TRAINING = ("train-head", "second-look", "fine-tune", "evaluate")
# What is edited, and the stages that must run again for it. Later stages follow where outputs
# change; that is DVC's business.
ROOMS = {
    "graft/system/files.py": ALL,
    "graft/system/environment.py": NETWORK,
    "graft/system/console.py": (),
    "graft/system/cluster.py": (),  # where features are computed changes no byte
    "graft/pixels.py": ALL,
    "graft/resizers.py": ALL,
    "graft/looks.py": ("split", "second-look", "evaluate"),
    "graft/known.py": NETWORK,
    "graft/params.py": ALL,
    "graft/runtimes.py": NETWORK,
    "graft/keras_graph.py": NETWORK,
    "graft/description.py": NETWORK,
    "graft/dataset/splitting.py": ("split",),
    "graft/dataset/importing.py": ("split",),
    "graft/dataset/manifest.py": ALL,
    "graft/dataset/images.py": ALL,
    "graft/features/cache.py": TRAINING,
    "graft/network/cut.py": NETWORK,
    "graft/scoring/metrics.py": NETWORK,
    "graft/second_look/suspects.py": ("second-look",),
    "graft/second_look/unknown.py": ("second-look", "evaluate"),
    "graft/figures/style.py": ("split", "second-look", "evaluate"),
    "graft/figures/curves.py": ("split", "second-look", "evaluate"),
    "graft/reporting/report.py": TRAINING,
    "graft/reporting/plots.py": ("second-look", "evaluate"),
    "graft/reporting/model_card.html.j2": ("second-look", "evaluate"),
    "graft/reporting/data.py": ("split", "second-look", "evaluate"),
    "graft/serving/writers.py": ("evaluate", "export"),
    "graft/tracking/runs.py": (),
    "graft/commands/main.py": (),
    "graft/run.py": (),
    "graft/forkserver/server.py": (),
    "requirements-run.lock": NETWORK,
    "requirements-decode.lock": ("split",),
    "requirements-onnx.lock": ("export",),
    "requirements.lock": (),
    "data/weights/README.md": ("train-head",),  # DVC takes the folder as a whole, or nothing
    "README.md": (),
    **{f"stages/{stage.replace('-', '_')}.py": (stage,) for stage in ALL},
}


@contextlib.contextmanager
def opened(root):
    """DVC's view of the project in `root`, which must be the working folder meanwhile."""
    from dvc.repo import Repo

    before = Path.cwd()
    os.chdir(root)
    try:
        with Repo(".") as repo:
            yield repo
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the project with a small data set and outputs that stand for real ones; dvc.lock
    holds it as it is."""
    root = tmp_path_factory.mktemp("dependencies") / "clone"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(
            ("data/raw/", "tests/", "docs/", "dvc.lock")
        ):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    (root / "data/raw/fashion/a").mkdir(parents=True)
    (root / "data/raw/fashion/a/1.png").write_text("stands for an image")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    with opened(root) as repo:
        for stage in repo.index.stages:
            for out in stage.outs:
                path = Path(out.fs_path)
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.suffix:
                    path.write_text(path.name)
                else:
                    path.mkdir(exist_ok=True)
                    (path / "1").write_text(path.name)
        repo.commit(force=True)
    return root


def changed(root):
    """{stage: what DVC says has changed for it}, of the stages that are not up to date."""
    with opened(root) as repo:
        return repo.status()


def test_the_clone_is_up_to_date_to_begin_with(clone):
    assert changed(clone) == {}


@pytest.mark.parametrize("room", ROOMS)
def test_an_edited_line_reruns_what_it_determines(clone, room):
    path = clone / room
    kept = path.read_bytes()
    try:
        path.write_bytes(kept + b"\n# another line\n")
        assert set(changed(clone)) == set(ROOMS[room])
    finally:
        path.write_bytes(kept)


def test_every_room_is_tried():
    tried = {room.split("/")[1] for room in ROOMS if room.startswith("graft/")}
    there = {p.name for p in (ROOT / "graft").iterdir() if not p.name.startswith(("_", "."))}
    assert there == tried
