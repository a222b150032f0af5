import subprocess
import sys
from pathlib import Path

import pytest

from graft.tracking import dvc_lock


def test_stage_keys_are_those_of_dvc_yaml(params, clone):
    (clone / "dvc.yaml").write_text(
        "stages:\n  split: {cmd: x, params: [seed, data]}\n  fine-tune: {cmd: x, params: [lr, "
        "head.class_weights, features]}\n"
    )
    assert set(dvc_lock.stage_keys("split", params)) == {
        "seed",
        *(k for k in params.flat() if k.startswith("data.")),
    }
    tuned = dvc_lock.stage_keys("fine-tune", params)
    assert tuned == {
        "lr": 1e-4,
        "head.class_weights": "balanced",
        "features.runtime": "auto",
        "features.executor": "local",
    }
    assert dvc_lock.stage_keys("no such stage", params) == params.flat()


def test_stage_files_are_those_of_dvc_yaml_below_data(clone):
    (clone / "dvc.yaml").write_text(
        """
stages:
  split:
    cmd: x
    deps: ["${data.path}", graft/dataset, data/split/manifest.csv, data/weights]
    outs:
      - data/split/classes.json
      - data/split/plots: {cache: false}
      - elsewhere.txt
    metrics: [data/split/metrics.json: {cache: false}]
    plots: [data/split/curves.csv]
  empty: {cmd: x, deps: }
"""
    )
    inputs, outputs = dvc_lock.stage_files("split")
    assert inputs == {
        "split/manifest.csv": Path("data/split/manifest.csv"),
        "weights": Path("data/weights"),
    }
    assert list(map(str, outputs)) == [
        f"data/split/{name}" for name in ("classes.json", "plots", "metrics.json", "curves.csv")
    ]
    assert dvc_lock.stage_files("empty") == dvc_lock.stage_files("no such stage") == ({}, [])
    (clone / "dvc.yaml").unlink()
    assert dvc_lock.stage_files("split") == ({}, [])


@pytest.fixture
def locked(clone):
    """A clone in which DVC itself ran one stage that depends on a file, a folder and two params."""
    (clone / "dvc.yaml").write_text(
        "stages:\n  evaluate:\n    cmd: echo done > out.txt\n    deps: [in.txt, code]\n"
        "    params: [lr, data.path]\n    outs: [out.txt]\n"
    )
    (clone / "in.txt").write_text("one")
    (clone / "code" / "deep").mkdir(parents=True)
    (clone / "code" / "a.py").write_text("a")
    (clone / "code" / "deep" / "ü b.py").write_text("b")
    (clone / ".dvcignore").write_text("__pycache__\n*.pyc\n")
    for command in (["init", "-q", "--no-scm"], ["repro", "-q"]):
        subprocess.run(
            [sys.executable, "-m", "dvc", *command], check=True, cwd=clone, capture_output=True
        )
    return clone


def test_lock_matches_what_dvc_recorded(locked):
    assert dvc_lock.matches_lock("evaluate")
    assert not dvc_lock.matches_lock("export")
    (locked / "code" / "__pycache__").mkdir()
    (locked / "code" / "__pycache__" / "a.pyc").write_bytes(b"x")
    assert dvc_lock.matches_lock("evaluate")
    for file, new in (("in.txt", "two"), ("code/deep/ü b.py", "c"), ("params.yaml", None)):
        before = (locked / file).read_text(encoding="utf-8")
        (locked / file).write_text(
            new or before.replace("lr: 1.0e-4", "lr: 1.0e-05"), encoding="utf-8"
        )
        assert not dvc_lock.matches_lock("evaluate"), file
        (locked / file).write_text(before, encoding="utf-8")
    assert dvc_lock.matches_lock("evaluate")


def test_lock_of_a_missing_dependency(locked):
    (locked / "in.txt").unlink()
    assert not dvc_lock.matches_lock("evaluate")


def test_what_was_made_is_looked_at_where_one_asks(locked):
    assert dvc_lock.matches_lock("evaluate", "outs")
    (locked / "out.txt").write_text("of somebody else")
    assert dvc_lock.matches_lock("evaluate")
    assert not dvc_lock.matches_lock("evaluate", "outs")


def test_a_lock_that_ctrl_c_has_cut_off_is_mended(locked, monkeypatch, capsys):
    """DVC itself says so first: with half a file no command of it works."""
    monkeypatch.setattr(dvc_lock, "WRITING_SECONDS", 0)
    file = locked / ".dvc" / "tmp" / "rwlock"
    file.write_text('{"read": {}, "wri')
    repro = [sys.executable, "-m", "dvc", "repro", "-q", "--force"]
    failed = subprocess.run(repro, cwd=locked, capture_output=True, text=True)
    assert failed.returncode != 0, failed.stderr
    dvc_lock.mend_rwlock()
    (line,) = capsys.readouterr().err.splitlines()
    assert "rwlock was cut off by a process that was killed: removed" in line
    subprocess.run(repro, check=True, cwd=locked)
    before = file.read_bytes()
    dvc_lock.mend_rwlock()
    assert (file.read_bytes(), capsys.readouterr().err) == (before, "")


def test_removing_a_ref_of_git_waits_for_no_other_worker(tmp_path):
    """As DVC's queue workers do it, while another holds the lock on packed-refs (dvc#10673)."""
    from dulwich.repo import Repo

    with Repo.init(str(tmp_path)) as repo:
        repo.refs[b"refs/exps/exec/EXEC_HEAD"] = b"1" * 40
        repo.refs.get_packed_refs()
        (tmp_path / ".git" / "packed-refs.lock").touch()
        assert repo.refs.remove_if_equals(b"refs/exps/exec/EXEC_HEAD", None)
        assert b"refs/exps/exec/EXEC_HEAD" not in repo.refs.allkeys()


def test_a_lock_that_is_being_written_is_left_alone(locked, monkeypatch):
    file = locked / ".dvc" / "tmp" / "rwlock"
    file.write_text("")
    monkeypatch.setattr(dvc_lock.time, "sleep", lambda _: file.write_text('{"read": {}}'))
    dvc_lock.mend_rwlock()
    assert file.read_text() == '{"read": {}}'
