"""`graft tune` with DVC and MLflow as they are: two trials, killed in between, on a few tiny
pictures."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests import small_clone


@pytest.mark.slow
def test_trials_are_experiments_and_the_best_runs_through(tmp_path):
    pytest.importorskip("optuna")
    clone = small_clone.make(tmp_path)
    words = [sys.executable, "-m", "graft.commands.main", "tune", "--trials", "2", "--name", "t"]
    words += ["-S", "lr=1e-3..1e-2:log", "-S", "head.dropout=0.1,0.2"]
    options = {
        "cwd": clone.folder,
        "env": clone.env,
        "stdout": subprocess.PIPE,
        "text": True,
        "start_new_session": True,
    }
    process = subprocess.Popen(words, **options)
    while not process.stdout.readline().startswith("tune: trial 0"):
        assert process.poll() is None
    second = clone.path(".cache/tune/t/0001.log")
    while not second.exists() or "Running stage" not in second.read_text():  # it is under way
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 130
    clone.run("git", "status", "--porcelain")
    assert clone.out == ""  # the working folder is as it was

    clone.run(*words)
    assert "study t, 1 of 2 trials done" in clone.out and "tune: trial 1: lr=" in clone.out
    clone.run("git", "for-each-ref", "--format=%(refname)", "refs/exps/*/*/t-*")
    names = sorted(line.rpartition("/")[2] for line in clone.out.split())
    shown = clone.dvc("exp", "show", "--csv").stdout
    assert all(name in shown for name in names)
    script = (
        "import mlflow, sys; mlflow.set_tracking_uri('sqlite:///mlruns/mlflow.db'); client = "
        "mlflow.MlflowClient()\n"
        "rows = client.search_runs(['1', '0'], max_results=100)\n"
        "(study,) = [r for r in rows if r.data.tags.get('kind') == 'study']\n"
        "names = [r.data.tags['pipeline'] for r in rows if r.data.tags.get('mlflow.parentRunId') "
        "== study.info.run_id]\n"
        "evaluated = [r.data.tags['pipeline'] for r in rows if 'evaluate/accuracy' in "
        "r.data.metrics]\n"
        "print(study.info.status, sorted(names), sorted({*evaluated}))"
    )
    clone.run(sys.executable, "-c", script)
    best = ["t-best"] if "t-best" in names else []
    assert names == ["t-0", "t-1", *best]
    assert f"FINISHED {names} {best}" in clone.out
