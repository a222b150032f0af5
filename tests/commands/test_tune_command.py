"""`graft tune` with a stand-in for DVC: an experiment's loss is known from its lr and layers, and
nothing is trained."""

import argparse
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from graft.commands import tune as command
from graft.scoring.calibration import calibrated_losses
from graft.scoring.predictions import Predictions
from graft.system.console import GraftError
from graft.tracking import experiments, study
from tests.tracking import servers

ROOT = Path(__file__).parents[2]
optuna = pytest.importorskip("optuna")
SPACE = ["-S", "lr=1e-5..1e-2:log", "-S", "fine_tune.layers=20,100"]


def loss(values):
    """Least at lr = 1e-3 with 100 layers; today's are 3e-4 and auto."""
    values = {"lr": "3e-4", "fine_tune.layers": "auto", **values}
    return (
        abs(math.log10(float(values["lr"])) + 3)
        + {"20": 0.5, "auto": 0.2, "100": 0.0}[values["fine_tune.layers"]]
    )


class Dvc:
    """Experiments by name: what they were run with, and how often."""

    def __init__(self):
        self.ran, self.kept, self.manifest, self.fail = [], {}, "m1", lambda name: None

    def run(self, name, values, log, *targets):
        self.ran.append((name, values, targets))
        error = self.fail(name)
        if error:
            raise error
        self.kept[name] = values
        return name

    def commit(self, name):
        return name if name in self.kept else None

    def read(self, commit, path):
        if path.name == "dvc.lock":
            return (
                "stages: {fine-tune: {deps: [{path: data/split/manifest.csv, md5: "
                f"{self.manifest}}}]}}}}"
            )
        raise AssertionError(path)

    def predictions(self, commit):
        """More wrong ones, and so a larger loss after the temperature, the larger `loss` is; all of
        one confidence."""
        labels = np.arange(1000) % 2
        wrong = np.arange(1000) < 100 * loss(self.kept[commit])
        probabilities = np.where(np.stack([labels == wrong, labels != wrong], axis=1), 0.99, 0.01)
        return Predictions(tuple(map(str, range(1000))), labels, probabilities, ("a", "b"))


class Run:
    """A stand-in for the study's run in MLflow."""

    def __init__(self, *_):
        self.recorded, self.tags = [], {}
        Run.last = self

    def record(self, *what):
        self.recorded.append(what)

    def end(self, **tags):
        self.tags |= tags


@pytest.fixture
def dvc(clone, monkeypatch):
    shutil.copy(ROOT / "dvc.yaml", clone)
    made = Dvc()
    for name in ("run", "commit", "read"):
        monkeypatch.setattr(experiments, name, getattr(made, name))
    monkeypatch.setattr(command, "_predictions", made.predictions)
    monkeypatch.setattr(command, "StudyRun", Run)
    return made


def tune(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.tune(parser.parse_args([str(word) for word in words]))


def test_todays_params_are_first_and_the_best_alone_runs_through(dvc, capsys):
    tune("--trials", 14, *SPACE)
    (name, values, _), *_ = dvc.ran
    assert values == {"lr": "0.0003", "fine_tune.layers": "auto"} and name.endswith("-0")
    assert [targets for _, _, targets in dvc.ran] == [("fine-tune",)] * (len(dvc.ran) - 1) + [()]
    name, best, _ = dvc.ran[-1]
    assert name.endswith("-best") and loss(best) <= min(map(loss, dvc.kept.values())) + 0.01 < loss(
        values
    )
    assert all(1e-5 <= float(values["lr"]) <= 1e-2 for values in dvc.kept.values())
    out = capsys.readouterr().out
    assert re.search(
        "trial 0: lr=0.0003 fine_tune.layers=auto: loss 0.26.., accuracy 0.9270; best so far: "
        "trial 0\n",
        out,
    )
    assert (
        "validation accuracy against today's params +0." in out and f"dvc exp apply {name}" in out
    )
    assert [number for number, *_ in Run.last.recorded[:-1]] == list(range(14)) and Run.last.tags[
        "best"
    ] in dvc.kept


def test_a_study_is_gone_on_with_and_no_trial_runs_twice(dvc, capsys):
    def stop(name):
        return KeyboardInterrupt() if name.endswith("-2") and len(dvc.ran) == 3 else None

    dvc.fail = stop
    with pytest.raises(KeyboardInterrupt):
        tune("--trials", 5, *SPACE)
    assert "tune: interrupted; the same command goes on" in capsys.readouterr().out
    interrupted = dvc.ran[-1]
    tune("--trials", 5, *SPACE)
    assert dvc.ran[3] == interrupted
    names = [name for name, *_ in dvc.ran]
    assert len(names) == len(set(names)) + 1
    before = len(dvc.ran)
    tune("--trials", 5, *SPACE)  # nothing is left to do
    assert len(dvc.ran) == before and "5 of 5 trials done" in capsys.readouterr().out


def test_an_experiment_that_was_made_before_the_kill_is_not_run_again(dvc, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(experiments, "read", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        tune("--trials", 2, *SPACE)
    tune("--trials", 2, *SPACE)
    names = [name for name, *_ in dvc.ran]
    assert len(names) == len(set(names))


def test_the_same_values_again_are_no_experiment(dvc):
    tune("--trials", 12, "-S", "fine_tune.layers=20,100")
    assert len(dvc.kept) == 3 + 1  # 46, 20, 100; the best
    assert len(Run.last.recorded) == 12 + 1


def test_where_todays_params_are_the_best_nothing_runs_through(dvc, capsys):
    tune("--trials", 4, "-S", "lr=1e-7..1e-6:log")
    assert "today's params are the best of 4 trials: nothing was gained" in capsys.readouterr().out
    assert [targets for _, _, targets in dvc.ran] == [("fine-tune",)] * 4


def test_accuracy_is_made_large(dvc):
    tune("--trials", 6, "--metric", "accuracy", *SPACE)
    best = dvc.kept[next(name for name in dvc.kept if name.endswith("-best"))]
    assert loss(best) <= min(map(loss, dvc.kept.values())) + 0.01


def test_overconfidence_alone_does_not_count(dvc):
    """The loss is that after the temperature, which ships with the model."""
    labels = np.arange(1000) % 2
    wrong = np.arange(1000) < 100
    sure, surer = (
        np.where(np.stack([labels == wrong, labels != wrong], axis=1), p, 1 - p)
        for p in (0.8, 0.9999)
    )
    losses = [calibrated_losses(p, labels).mean() for p in (sure, surer)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    tune("--trials", 1, "-S", "lr=1e-5..1e-2:log")
    number, _, figures = Run.last.recorded[0]
    assert number == 0 and figures["loss"] == pytest.approx(
        -(0.073 * math.log(0.073) + 0.927 * math.log(0.927)), abs=1e-3
    )


def test_a_trial_that_fails_is_named_and_the_search_goes_on(dvc, capsys):
    dvc.fail = lambda name: GraftError("NaN in epoch 2") if name.endswith("-2") else None
    tune("--trials", 4, *SPACE)
    assert "warning: trial 2 (lr=" in (err := capsys.readouterr().err) and "NaN in epoch 2" in err
    dvc.fail = lambda name: GraftError("no space left") if name.startswith("other") else None
    with pytest.raises(GraftError, match="no space left"):
        tune("--trials", 4, "--name", "other", *SPACE)
    dvc.fail = lambda name: GraftError("no space left") if name[-1] in "12345" else None
    with pytest.raises(GraftError, match="no space left"):
        tune("--trials", 9, "--name", "third", *SPACE)
    assert [name for name, *_ in dvc.ran if name.startswith("third")] == [
        f"third-{k}" for k in range(4)
    ]


def test_other_photos_are_no_trial_of_the_same_study(dvc, capsys):
    tune("--trials", 2, "--name", "a", *SPACE)
    dvc.manifest = "m2"
    with pytest.raises(
        GraftError, match="are not those of the trials before: the data have changed; --name OTHER"
    ):
        tune("--trials", 9, "--name", "a", *SPACE)


def test_a_trial_of_another_worker_is_left_alone(dvc, clone, capsys):
    """While it runs, and while what it has started runs on after it was killed."""
    code = (
        "import subprocess, sys, time; from graft.tracking.study import Range, Study\n"
        "s = Study('both', {'lr': Range(1e-5, 1e-2, True)}, {'lr': 3e-4}, "
        "f'sqlite:///{sys.argv[1]}/mlruns/tune.db')\n"
        "with s.next(3, 42) as t:\n"
        "    print(t.number, subprocess.Popen(['sleep', '60'], stdout=t.log).pid, flush=True); "
        "time.sleep(60)"
    )
    (clone / "mlruns").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", code, clone], stdout=subprocess.PIPE, text=True
    )
    try:
        number, child = map(int, process.stdout.readline().split())
        assert number == 0
        tune("--trials", 3, "--name", "both", *SPACE[:2])
        assert [name for name, *_ in dvc.ran] == ["both-1", "both-2"]
        assert "tune: trials 0 are under way elsewhere" in capsys.readouterr().out
        process.kill()
        process.wait()
        tune("--trials", 3, "--name", "both", *SPACE[:2])
        assert len(dvc.ran) == 2
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text():
        time.sleep(0.01)
    tune("--trials", 3, "--name", "both", *SPACE[:2])
    assert [name for name, *_ in dvc.ran][2] == "both-0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrr=1e-5..1e-2", "-S lrr=1e-5..1e-2: no such parameter; did you mean lr?"),
        ("lr=1e-2..1e-5", "-S lr=1e-2..1e-5: the range must rise"),
        ("lr=0..1e-2:log", "only numbers above 0 have a logarithm"),
        ("lr=-1..1e-2", "-S lr must be above 0"),
        ("lr=1e..2", "numbers are wanted on both sides"),
        ("fine_tune.epochs=1.5..3", "whole numbers are wanted on both sides"),
        ("lr=", "neither KEY=LOW..HIGH"),
        ("lr=a b", "neither KEY=LOW..HIGH"),
        ("lr=fast,slow", "-S lr must be a number"),
        ("augment.flip=1..2", "no number: name the values"),
        ("seed=1,2", "changes the validation photos"),
        ("data.val_fraction=0.1..0.2", "changes the validation photos"),
        ("export.on_miss=drop,fail", "no stage up to fine-tune reads it"),
    ],
)
def test_what_cannot_be_searched_is_one_line(text, message, dvc):
    with pytest.raises(GraftError) as error:
        tune("--trials", 2, "-S", text)
    assert message in str(error.value) and dvc.ran == []


def test_a_database_that_cannot_be_used_is_one_line(dvc, clone):
    for address in (f"sqlite:///{clone}/nowhere/tune.db", "postgresql://me:secret@127.0.0.1:1/db"):
        with pytest.raises(GraftError, match="--storage") as error:
            tune("--trials", 2, "--storage", address, *SPACE)
        assert "secret" not in str(error.value)


def test_without_optuna_it_says_what_to_install(dvc, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        GraftError, match=r"graft tune needs optuna: pip install 'graft-vision\[tune\]'"
    ):
        tune("--trials", 2, *SPACE)


def test_two_workers_draw_differently_and_one_draws_the_same_again(clone):
    def draws(name, trials):
        made = study.Study(
            name, {"lr": study.Range(1e-5, 1e-2, True)}, {"lr": 3e-4}, f"sqlite:///{clone / name}"
        )
        for _ in range(trials):
            with made.next(trials, 42) as trial:
                made.finish(trial, loss(trial.values))
                yield trial.values["lr"]

    first = list(draws("a", 6))
    assert len(set(first)) == 6 and list(draws("b", 6)) == first


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.1, "it gained"), (-0.1, -0.01, "it lost"), (-0.1, 0.1, "not settled")],
)
def test_the_gain_is_said_with_its_interval(low, high, said):
    from graft.scoring.statistics import Comparison

    line = command.gain(Comparison(100, 0.8, 0.85, 0.05, low, high, 3, 8, 0.2, "McNemar"))
    assert said in line and f"{low:+.4f} to {high:+.4f}" in line and "n = 100" in line


WORKER = """
import sys, time
from graft.tracking.study import Range, Study
made = Study('team', {'lr': Range(1e-5, 1e-2, True)}, {'lr': 3e-4}, sys.argv[1])
while True:
    with made.next(12, 42) as trial:
        if trial is None: break
        print(trial.number, trial.values['lr'], flush=True)
        time.sleep(0.05)
        made.finish(trial, trial.values['lr'])
"""


@pytest.mark.slow
def test_clones_share_a_study_in_postgresql(tmp_path):
    """Each trial is one clone's alone, and today's params come once."""
    with servers.postgresql("a secret") as address:
        workers = []
        for name in ("one", "two", "three"):
            (tmp_path / name).mkdir()
            environment = {**os.environ, "DVC_ROOT": str(tmp_path / name), "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-c", WORKER, address]
            workers.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            )
        drawn = [
            line.split()
            for worker in workers
            for line in worker.communicate(timeout=100)[0].splitlines()
        ]
    numbers, values = zip(*drawn)
    assert (
        sorted(map(int, numbers))[:12] == list(range(12))
        and len(numbers) == len(set(numbers)) <= 14
    )
    assert len(set(values)) == len(values) and dict(drawn)["0"] == "0.0003"
