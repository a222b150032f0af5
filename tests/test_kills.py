"""The whole pipeline killed at random moments, as `python benchmarks/kills.py` does it more
often."""

import random
import signal
import subprocess
import sys

import pytest

from benchmarks import kills
from tests import small_clone


@pytest.fixture
def run(tmp_path):
    """A Run whose clone is an empty repository."""
    subprocess.run(["git", "init", "-q", tmp_path / "clone"], check=True)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "clone" / "data").mkdir()
    (tmp_path / "clone" / "dvc.lock").touch()
    return kills.Run(tmp_path / "clone")


@pytest.mark.slow
def test_three_kills_and_the_same_bytes(tmp_path, capfd):
    changes = {"fine_tune": {"epochs": 3}, "export": {"formats": ["keras", "saved_model"]}}
    source = small_clone.make(tmp_path, changes)
    status = kills.main(
        [
            "--source",
            str(source.folder),
            "--into",
            str(tmp_path / "clones"),
            "--kills",
            "3",
            "--seed",
            "3",
        ]
    )
    said = capfd.readouterr().out
    assert status == 0, said
    assert "3 of 3 ended with the same bytes" in said


def test_other_bytes_and_what_is_left_behind_are_found(run, tmp_path):
    assert kills.outputs(run.clone) == {"dvc.lock": b""}
    before = kills.files_in(run.clone)
    (run.clone / "data" / "new.csv").write_text("1")
    (run.clone / ".cache" / "features").mkdir(parents=True)
    (run.clone / ".cache" / "features" / ".part-x").touch()
    assert kills.outputs(run.clone)["data/new.csv"] == b"1"
    assert kills.files_in(run.clone) - before == {"data/new.csv", ".cache/features/.part-x"}


def test_damage_is_found(run):
    import numpy as np

    from graft.features.cache import FeatureCache

    space = FeatureCache(run.clone / ".cache" / "features", max_gb=1).space(
        "ab" * 32, (5,), np.dtype(np.float16), {}
    )
    with space.writer() as writer:
        for n in range(3):
            writer.append(f"{n:064x}", np.full(5, n, np.float16))
    assert kills.damaged(run.clone) == []
    (segment,) = space.folder.glob("*.seg")
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)
    assert kills.damaged(run.clone) == [f"{segment.name} has a damaged row"]


@pytest.mark.parametrize("interrupt", [False, True])
def test_a_process_of_the_run_is_killed_and_no_other(run, interrupt):
    code = "import time; print(flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code])
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={kills.MARK: str(run.clone)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    process.stdout.readline()  # it runs: an interrupt while Python starts may be swallowed
    try:
        kills.striking(run, random.Random(0), 0.5, interrupt=interrupt)(process)
        assert process.wait(10) == (-signal.SIGINT if interrupt else -signal.SIGKILL)
        assert other.poll() is None
        assert (run.kills, kills.alive(run)) == (1, [])
    finally:
        process.stdout.close()
        other.kill()
        other.wait()
