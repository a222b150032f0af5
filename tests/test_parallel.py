"""At once: two clones over one folder of photos, and the feature cache emptied while a run uses
it."""

import shutil
import subprocess
import sys
import threading
import time

import pytest

from benchmarks import kills
from tests import small_clone

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A clone whose photos lie outside it, in one folder for all."""
    base = tmp_path_factory.mktemp("parallel")
    photos = base / "photos"
    small_clone.pictures(photos)
    return small_clone.make(base, {"data": {"path": str(photos)}, "export": {"formats": ["keras"]}})


@pytest.fixture(scope="module")
def alone(source):
    return repro(copy(source, "alone"))


def copy(source, name):
    folder = source.folder.parent / name
    shutil.copytree(source.folder, folder)
    return small_clone.Clone(folder, source.folder.parent)


def repro(clone):
    clone.dvc("repro")
    return clone


def same(one, other):
    assert one.path("dvc.lock").read_text() == other.path("dvc.lock").read_text()
    assert kills.outputs(one.folder) == kills.outputs(other.folder)
    assert kills.damaged(one.folder) + kills.record(one.folder) == []


def test_two_clones_over_one_folder_of_photos(source, alone):
    """They share the photos and, by a link, what is known of them: scans, features and
    checkpoints."""
    clones = [copy(source, name) for name in ("first", "second")]
    shared = source.folder.parent / "shared cache"
    shared.mkdir()
    for clone in clones:
        clone.path(".cache").symlink_to(shared)
    photos = {
        p: p.read_bytes() for p in (source.folder.parent / "photos").rglob("*") if p.is_file()
    }
    running = [subprocess.Popen([sys.executable, "-m", "dvc", "repro"], cwd=clone.folder,
                                env=clone.env, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT) for clone in clones]  # fmt: skip
    said = [process.communicate(timeout=900)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    for clone in clones:
        same(clone, alone)
    assert {
        p: p.read_bytes() for p in (source.folder.parent / "photos").rglob("*") if p.is_file()
    } == photos
    assert not list(shared.rglob(".part-*"))


def test_the_cache_is_cleared_in_the_middle_of_a_run_again_and_again(source, alone):
    clone, over, cleared = copy(source, "cleared"), threading.Event(), []

    def clear():
        folder = clone.path(".cache/features")
        while not over.is_set():
            if list(folder.glob("*/[!.]*.seg")):  # as soon as there is anything to lose
                command = [sys.executable, "-m", "graft.commands.main", "cache", "--clear"]
                done = subprocess.run(
                    command, cwd=clone.folder, env=clone.env, capture_output=True, text=True
                )
                cleared.append((done.returncode, done.stderr))
            time.sleep(0.05)

    clearing = threading.Thread(target=clear)
    clearing.start()
    try:
        repro(clone)
    finally:
        over.set()
        clearing.join()
    assert len(cleared) > 1 and {status for status, _ in cleared} == {0}, cleared
    assert "Traceback" not in clone.out
    same(clone, alone)
