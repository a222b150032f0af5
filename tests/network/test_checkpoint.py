import os
import time

import keras
import numpy as np
import pytest

from graft.network import checkpoint as module
from graft.network.checkpoint import Checkpoint

LIKE = {"now": [np.ones(2, np.float32)], "best": []}


@pytest.fixture(autouse=True)
def clone(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


@pytest.fixture
def saved():
    mine = Checkpoint("fine-tune", {"lr": 1})
    mine.save({"rows": [1]}, LIKE)
    return mine


def test_what_is_saved_is_loaded_by_the_same_training_alone(saved, monkeypatch):
    state, arrays = Checkpoint("fine-tune", {"lr": 1}).load(LIKE)
    assert state == {"rows": [1]}
    assert arrays["now"][0].tolist() == [1, 1]
    assert arrays["best"] == []
    assert Checkpoint("fine-tune", {"lr": 2}).load(LIKE) is None
    assert Checkpoint("train-head", {"lr": 1}).load(LIKE) is None
    monkeypatch.setattr(keras, "__version__", "0")
    assert Checkpoint("fine-tune", {"lr": 1}).load(LIKE) is None
    saved.remove()
    assert not saved.path.exists()


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ({"now": [np.ones(3, np.float32)], "best": []}, "another shape or precision"),
        ({"now": [np.ones(2, np.float16)], "best": []}, "another shape or precision"),
        ({"now": [], "best": []}, "another shape or precision"),
        ({"now": [np.ones(2, np.float32)], "best": [np.ones(2, np.float32)]}, "cannot be read"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_set_aside_with_a_line(saved, like, words, capsys):
    assert saved.load(like) is None
    assert words in capsys.readouterr().err
    assert saved.load(like) is None  # and not met again
    assert capsys.readouterr().err == ""


def test_a_damaged_one_is_set_aside_with_a_line(saved, capsys):
    saved.path.write_bytes(saved.path.read_bytes()[:-40])
    assert saved.load(LIKE) is None
    assert capsys.readouterr().err.count("\n") == 1
    assert not saved.path.exists()


def test_a_save_that_fails_is_one_warning_and_leaves_the_one_before_and_nothing_else(
    saved, monkeypatch, capsys
):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    for _ in range(2):
        saved.save({"rows": [1, 2]}, LIKE)
    assert capsys.readouterr().err.count("No space left on device; going on without it") == 1
    assert saved.load(LIKE)[0] == {"rows": [1]}
    assert list(saved.path.parent.iterdir()) == [saved.path]


def test_one_that_nobody_went_on_from_is_removed(saved):
    old = saved.path.with_name("train-head-0.npz")
    old.write_bytes(b"")
    os.utime(old, (time.time() - 2 * module.KEPT_SECONDS,) * 2)
    saved.load(LIKE)
    assert not old.exists()
    assert saved.path.exists()
