import hashlib
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graft.system import files, paths
from graft.system.console import GraftError
from graft.tracking import dvc_lock, runs, store

CURVE = [
    {
        "epoch": 0,
        "lr": 1e-5,
        "train_loss": 0.9,
        "train_accuracy": 0.5,
        "val_loss": 1.0,
        "val_accuracy": 0.4,
        "seconds": 2.0,
    },
    {
        "epoch": 1,
        "lr": 5e-6,
        "train_loss": 0.7,
        "train_accuracy": 0.6,
        "val_loss": 0.8,
        "val_accuracy": 0.5,
        "seconds": 2.0,
    },
]


def pipelines(params, **tags):
    return store.connect(params).search(kind="pipeline", **tags)


def stage_runs(params, stage):
    return store.connect(params).search(kind="stage", stage=stage)


def write_metrics(stage, values):
    files.write_json(paths.STAGES[stage] / "metrics.json", values)


# Pipeline run


def experiment(params, stage="fine-tune"):
    """(name, id) of the row under which a stage that does nothing lands."""
    with runs.stage_run(stage, params) as run:
        pass
    return run.pipeline_name, run.pipeline_id


def test_an_experiment_is_params_data_and_code(
    params, with_params, database, write_manifest, declare, clone
):
    declare("fine-tune", deps=["code", "requirements.lock", "data/split/manifest.csv"])
    (clone / "code").mkdir()
    (clone / "code" / "a.py").write_text("a")
    write_manifest(n=9)
    rows = [experiment(params), experiment(with_params(lr=1e-5))]
    write_manifest(n=12)
    rows += [experiment(params)]
    (clone / "code" / "a.py").write_text("b")
    rows += [experiment(params)]
    assert len({name for name, _ in rows}) == len({row for _, row in rows}) == 4
    assert all(name.startswith("repro-") for name, _ in rows)
    write_manifest(n=9)
    (clone / "code" / "a.py").write_text("a")
    assert experiment(with_params(lr=1e-4)) == rows[0]


def test_a_name_that_dvc_gives_is_the_rows(params, database, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "muddy-tofu")
    assert experiment(params)[0] == "muddy-tofu"


@pytest.mark.parametrize("name", [None, "muddy-tofu"])
def test_a_new_split_never_stands_beside_figures_of_the_old_one(
    params, database, write_manifest, monkeypatch, name
):
    """Photos are removed, split runs again, the params are as they were, and what follows is
    stopped."""
    if name:
        monkeypatch.setenv("DVC_EXP_NAME", name)
    for stage in ("split", "evaluate"):
        with runs.stage_run(stage, params):
            write_manifest(n=12)
            write_metrics(stage, {"x": 12})
    with runs.stage_run("split", params) as run:
        # Whose row it is, the manifest will tell.
        assert (run.pipeline_id, len(pipelines(params))) == ("", 1)
        write_manifest(n=9)
        write_metrics("split", {"x": 9})
    new, old = pipelines(params)
    assert (old.data.tags["data.images"], old.data.metrics) == (
        "12",
        {"split/x": 12, "evaluate/x": 12},
    )
    assert (new.data.tags["data.images"], new.data.metrics) == ("9", {"split/x": 9})
    assert ("superseded_by" in old.data.tags) == (name is not None)
    (split,) = (each for each in stage_runs(params, "split") if each.info.run_id == run.run_id)
    assert split.data.tags["mlflow.parentRunId"] == new.info.run_id
    assert new.info.start_time == split.info.start_time


def test_a_split_that_fails_opens_no_row(params, database):
    with pytest.raises(GraftError), runs.stage_run("split", params) as run:
        raise GraftError("no images")
    assert pipelines(params) == []
    assert run.client.get_run(run.run_id).info.status == "FAILED"


def test_time_is_that_of_the_work(params, database, manifest):
    for stage in ("train-head", "fine-tune"):
        with runs.stage_run(stage, params) as run:
            pass
        # The row began, and the stage ran for two seconds, a day ago.
        with sqlite3.connect(database) as connection:
            connection.execute(
                "UPDATE runs SET start_time = start_time - 86400000, end_time = start_time - "
                "86398000"
            )
    with runs.stage_run("evaluate", params) as run:
        pass
    info = run.client.get_run(run.pipeline_id).info
    assert 4000 < info.end_time - info.start_time < 100_000


def test_code_that_is_not_committed_is_said(params, database, clone, declare):
    declare("split", deps=["code.py"])
    (clone / "code.py").write_text("a")
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first"]
    for command in (["init", "-q"], ["add", "code.py"], commit):
        subprocess.run(["git", *command], check=True)
    states = []
    # metrics, locks and params change all the time: they are recorded themselves.
    for text in ("a", "b"):
        (clone / "code.py").write_text(text)
        for cached in (runs.git_commit, runs.git_state):
            cached.cache_clear()
        with runs.stage_run("split", params) as run:
            states.append(run.provenance["git commit"])
        assert run.client.get_run(run.run_id).data.tags["git.commit"] == states[-1]
    for cached in (runs.git_commit, runs.git_state):
        cached.cache_clear()
    assert states[1] == f"{states[0]} (dirty)"


def test_a_run_whose_process_was_killed_is_closed_at_the_next_connection(params, database, clone):
    with runs.stage_run("train-head", params):
        pass
    with sqlite3.connect(database) as connection:  # a day ago, for two seconds
        connection.execute(
            "UPDATE runs SET start_time = start_time - 86400000, end_time = start_time - 86398000"
        )
    code = (
        "import os, signal; from graft import params; from graft.tracking import runs\n"
        "with runs.stage_run('fine-tune', params.load()) as run:\n"
        "    run.log_metrics({'x': 1}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=clone, env=environment).returncode
        == -signal.SIGKILL
    )
    with runs.stage_run("split", params) as alive:
        connection = store.connect(params)
        assert connection.client.get_run(alive.run_id).info.status == "RUNNING"
        killed = connection.search(stage="fine-tune") + connection.search(kind="pipeline")
    assert [run.info.status for run in killed] == ["KILLED", "KILLED"]
    stage, row = (run.info.end_time - run.info.start_time for run in killed)
    assert 0 <= stage < 60_000
    assert 2000 <= row < 62_000  # milliseconds of work


def test_a_run_that_ends_while_another_process_looks_is_not_called_killed(
    params, database, clone, monkeypatch
):
    with runs.stage_run("split", params) as run:
        run_id, client = run.run_id, run.client

        def alive(tags):
            client.set_terminated(run_id, "FINISHED")  # by its own process, which then ends
            return False

        with monkeypatch.context() as patched:
            patched.setattr(store, "_alive", alive)
            store.connect(params)
        assert client.get_run(run_id).info.status == "FINISHED"


def test_the_experiments_row_holds_card_checks_and_sizes(params, database, manifest, declare):
    declare("evaluate", outs=[paths.EVALUATE / "card.html"])
    for stage in ("evaluate", "export"):
        with runs.stage_run(stage, params) as run:
            if stage == "evaluate":
                files.write_text(paths.EVALUATE / "card.html", "the same on every run")
                run.log_text("with the run's id", "card.html")
            else:
                files.write_json(
                    paths.EXPORT / "checks.json", {"tflite": {"bytes": 9, "agreement": 1.0}}
                )
    found = {
        name: Path(run.client.download_artifacts(run.pipeline_id, name)).read_text()
        for name in runs.ONE_CLICK
    }
    assert found["card.html"] == "with the run's id"
    assert json.loads(found["checks.json"]) == {"tflite": {"bytes": 9, "agreement": 1.0}}
    assert run.client.get_run(run.pipeline_id).data.metrics["export/tflite/bytes"] == 9


def test_an_image_is_the_rows_and_the_grid_of_the_ui_finds_it_by_its_key(
    params, database, manifest
):
    with runs.stage_run("evaluate", params) as run:
        run.log_image(np.zeros((4, 6, 3), np.uint8), "test photos/01")
    names = [item.path for item in run.client.list_artifacts(run.pipeline_id, "images")]
    assert any(
        name.startswith("images/test photos~01+step+0+") and name.endswith(".png") for name in names
    )
    assert run.client.get_run(run.pipeline_id).data.tags["mlflow.loggedImages"] == "True"


def test_figures_of_a_skipped_chain_end_where_it_breaks(params, database, manifest, monkeypatch):
    """export's own inputs are as they were, but evaluate, which it follows, will run again."""
    for stage in paths.STAGES:
        write_metrics(stage, {"x": 1})
    monkeypatch.setattr(dvc_lock, "matches_lock", lambda stage: stage == "export")
    with runs.stage_run("fine-tune", params):
        pass
    (pipeline,) = pipelines(params)
    assert pipeline.data.metrics == {
        "split/x": 1,
        "train-head/x": 1,
        "second-look/x": 1,
        "fine-tune/x": 1,
    }


def test_stages_gather_under_one_pipeline_run_with_all_params(
    with_params, database, manifest, monkeypatch
):
    params = with_params(lr=1e-05)
    monkeypatch.setenv("DVC_EXP_NAME", "it's-mine")
    for stage in ("train-head", "fine-tune"):
        with runs.stage_run(stage, params):
            write_metrics(stage, {"val_accuracy": 0.9})
    (pipeline,) = pipelines(params)
    assert pipeline.info.run_name == "it's-mine" and pipeline.info.status == "FINISHED"
    assert pipeline.data.params.keys() == params.flat().keys()
    assert pipeline.data.params["lr"] == "1e-05"
    assert pipeline.data.params["export.formats"].startswith("[keras, h5, ")
    assert (
        pipeline.data.params["evaluate.calibrate"] == "true"
        and pipeline.data.params["data.group_by"] == "null"
    )
    assert pipeline.data.metrics == {"train-head/val_accuracy": 0.9, "fine-tune/val_accuracy": 0.9}
    assert pipeline.data.tags["stages"] == "train-head, fine-tune"
    assert pipeline.data.tags["data.images"] == "9" and pipeline.data.tags["data.test"] == "3"
    assert [d.dataset.name for d in pipeline.inputs.dataset_inputs] == ["fashion"]
    (run,) = stage_runs(params, "fine-tune")
    assert run.data.tags["mlflow.parentRunId"] == pipeline.info.run_id
    assert pipeline.data.tags["run.fine-tune"] == run.info.run_id
    assert run.data.params["lr"] == "1e-05" and "head.lr" not in run.data.params
    assert run.info.run_name == "fine-tune" and run.data.tags["mlflow.user"]


def test_git_commit_is_recorded(params, database, clone):
    commands = ["init -q", "-c user.name=a -c user.email=a@b commit -q --allow-empty -m first"]
    for command in commands:
        subprocess.run(["git", *command.split()], check=True)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    runs.git_commit.cache_clear()
    try:
        with runs.stage_run("split", params):
            pass
    finally:
        runs.git_commit.cache_clear()
    assert {
        run.data.tags["mlflow.source.git.commit"] for run in store.connect(params).search()
    } == {commit}


def test_same_name_with_other_params_starts_a_new_pipeline_run(
    params, with_params, database, monkeypatch
):
    monkeypatch.setenv("DVC_EXP_NAME", "again")
    for lr in (1e-4, 1e-5, 1e-5):
        with runs.stage_run("fine-tune", with_params(lr=lr)):
            pass
    new, old = pipelines(params)
    assert (new.data.params["lr"], old.data.params["lr"]) == ("1e-05", "0.0001")
    assert (
        old.data.tags["superseded_by"] == new.info.run_id and "superseded_by" not in new.data.tags
    )


def test_a_stage_that_runs_again_supersedes_itself(params, database):
    for _ in range(2):
        with runs.stage_run("fine-tune", params):
            pass
    connection = store.connect(params)
    killed = connection.client.create_run(
        connection.experiment_id,
        tags={
            "kind": "stage",
            "stage": "fine-tune",
            "mlflow.parentRunId": pipelines(params)[0].info.run_id,
        },
    )  # as a process leaves it that was killed outright
    with runs.stage_run("fine-tune", params) as last:
        pass
    found = {run.info.run_id: run for run in stage_runs(params, "fine-tune")}
    assert len(found) == 4 and len(pipelines(params)) == 1
    assert [i for i, run in found.items() if "superseded_by" not in run.data.tags] == [last.run_id]
    assert found[killed.info.run_id].info.status == "KILLED"


def test_metrics_of_skipped_stages(params, database, manifest, monkeypatch):
    """Earlier stages are valid; later ones as far as dvc.lock vouches for them."""
    for stage in paths.STAGES:
        write_metrics(stage, {"x": 1})
    monkeypatch.setattr(dvc_lock, "matches_lock", lambda stage: stage in ("evaluate", "export"))
    with runs.stage_run("fine-tune", params):
        pass
    (pipeline,) = pipelines(params)
    assert pipeline.data.metrics == {f"{stage}/x": 1 for stage in paths.STAGES}


def test_pipeline_run_names_the_runs_behind_skipped_stages(
    params, with_params, database, manifest, monkeypatch
):
    with runs.stage_run("train-head", params) as head:
        write_metrics("train-head", {"val_accuracy": 0.8})
    monkeypatch.setenv("DVC_EXP_NAME", "muddy-tofu")
    with runs.stage_run("fine-tune", with_params(lr=1e-5)) as tuned:
        write_metrics("fine-tune", {"val_accuracy": 0.9})
    (pipeline,) = pipelines(params, pipeline="muddy-tofu")
    assert (pipeline.data.tags["run.train-head"], pipeline.data.tags["run.fine-tune"]) == (
        head.run_id,
        tuned.run_id,
    )
    assert pipeline.data.tags["stages"] == "fine-tune"
    assert (
        f"{head.run_id}) (unchanged, from an earlier experiment)"
        in pipeline.data.tags["mlflow.note.content"]
    )
    assert pipeline.data.metrics["train-head/val_accuracy"] == 0.8


# Stage run


def test_curves_metrics_and_times(params, database):
    with runs.stage_run("fine-tune", params) as run:
        for row in CURVE:
            run.log_epoch(row)
        run.log_metrics(
            {"val_accuracy": 0.5, "nested": {"loss": 0.8, "skipped": "text"}, "nan": math.nan}
        )
        with run.timed("convert"):
            pass
    history = {
        key: [(m.step, m.value) for m in run.client.get_metric_history(run.run_id, key)]
        for key in ("lr", "val/loss")
    }
    assert history == {"lr": [(0, 1e-5), (1, 5e-6)], "val/loss": [(0, 1.0), (1, 0.8)]}
    metrics = run.client.get_run(run.run_id).data.metrics
    assert {
        "train/loss",
        "train/accuracy",
        "val/accuracy",
        "seconds/epoch",
        "seconds/convert",
        "seconds/total",
    } < set(metrics)
    assert (
        metrics["nested/loss"] == 0.8
        and "nested/skipped" not in metrics
        and math.isnan(metrics["nan"])
    )
    assert not any("seconds" in key for key in pipelines(params)[0].data.metrics)


def test_an_epoch_that_the_store_refuses_is_sent_again(params, database, monkeypatch, capsys):
    with runs.stage_run("fine-tune", params) as run:
        send, calls = run.client.log_batch, []

        def fail_once(*args, **kwargs):
            calls.append(args)
            if len(calls) == 1:
                raise ConnectionError("the server is away")
            return send(*args, **kwargs)

        monkeypatch.setattr(run.client, "log_batch", fail_once)
        run.log_epoch(CURVE[0])
        assert "epoch 0" in capsys.readouterr().err
        run.log_epoch(CURVE[1])
        monkeypatch.undo()
    assert [m.step for m in run.client.get_metric_history(run.run_id, "train/loss")] == [0, 1]


def test_figures_that_metrics_json_has_no_room_for(params, database):
    """`dvc exp show` has about eight columns per stage, MLflow all of report.json's summary."""
    with runs.stage_run("evaluate", params):
        write_metrics("evaluate", {"n": 40, "accuracy": 0.9})
        summary = {"accuracy": 0.9, "macro_f1_low": 0.8, "nested": {"x": 1}, "text": "y"}
        files.write_json(paths.EVALUATE / "report.json", {"classes": [], "summary": summary})
    figures = {"n": 40, "accuracy": 0.9, "macro_f1_low": 0.8, "nested/x": 1}
    assert pipelines(params)[0].data.metrics == {
        f"evaluate/{key}": value for key, value in figures.items()
    }


def artifacts(run, folder=None):
    return {file.path for file in run.client.list_artifacts(run.run_id, folder)}


def test_reports_become_artifacts_and_weights_do_not(params, database, declare):
    folder = paths.FINE_TUNE
    (folder / "plots" / "deep").mkdir(parents=True)
    (folder / "saved_model").mkdir()
    for name in (
        "model.weights.h5",
        "report.json",
        "plots/größe 1.png",
        "plots/deep/x.csv",
        "saved_model/weights.bin",
    ):
        (folder / name).write_bytes(b"{}")
    declare(
        "fine-tune",
        outs=[
            folder / n
            for n in ("model.weights.h5", "report.json", "plots", "saved_model", "not written.txt")
        ],
    )
    with runs.stage_run("fine-tune", params) as run:
        write_metrics("fine-tune", {"x": 1})
    assert artifacts(run) == {"report.json", "metrics.json", "plots"}
    assert artifacts(run, "plots") == {"plots/größe 1.png", "plots/deep"}
    tags = run.client.get_run(run.run_id).data.tags
    assert tags["output.data/fine-tune/model.weights.h5"] == hashlib.sha256(b"{}").hexdigest()
    assert "output.data/fine-tune/saved_model" in tags
    assert "output.data/fine-tune/not written.txt" not in tags


def test_a_folder_that_is_the_stages_only_output_is_taken_apart(params, database):
    with runs.stage_run("export", params) as run:
        (paths.EXPORT / "saved_model").mkdir(parents=True)
        for name in ("model.keras", "labels.txt", "saved_model/saved_model.pb"):
            (paths.EXPORT / name).write_bytes(b"x")
    assert artifacts(run) == {"labels.txt"}
    outputs = {key for key in run.client.get_run(run.run_id).data.tags if key.startswith("output.")}
    assert outputs == {
        f"output.data/export/{name}" for name in ("model.keras", "labels.txt", "saved_model")
    }


def test_what_the_stage_logged_itself_is_not_overwritten(params, database, declare):
    declare("evaluate", outs=[paths.EVALUATE / "card.html"])
    with runs.stage_run("evaluate", params) as run:
        files.write_text(paths.EVALUATE / "card.html", "the same on every run")
        run.log_text("with the run's id", "card.html")
    assert (
        Path(run.client.download_artifacts(run.run_id, "card.html")).read_text()
        == "with the run's id"
    )


def test_a_folder_of_figures_that_is_no_output(params, database, tmp_path):
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "curves.png").write_bytes(b"x")
    with runs.stage_run("fine-tune", params) as run:
        run.log_artifacts(tmp_path / "drawn", "plots")
    assert artifacts(run, "plots") == {"plots/curves.png"}


def test_inputs_lead_to_the_runs_that_made_them(params, database, manifest, declare):
    declare("split", outs=[manifest])
    declare("train-head", deps=[manifest, "data/no such file"])
    with runs.stage_run("split", params) as split:
        pass
    with runs.stage_run("train-head", params) as run:
        pass
    tags = run.client.get_run(run.run_id).data.tags
    assert tags["input.split/manifest.csv.run"] == split.run_id
    assert (
        tags["input.split/manifest.csv"]
        == split.client.get_run(split.run_id).data.tags[f"output.{manifest}"]
    )
    assert f"[split of {split.pipeline_name}](#/experiments/" in tags["mlflow.note.content"]
    assert "input.no such file" not in tags
    manifest.write_text(manifest.read_text() + "c/9.png,c,train,0,8,8,\n")
    with runs.stage_run("train-head", params) as changed:
        pass
    assert "input.split/manifest.csv.run" not in changed.client.get_run(changed.run_id).data.tags


def test_what_a_stage_follows_from_is_known_to_it_and_digested_once(
    params, database, manifest, declare, monkeypatch
):
    digested, sha256 = [], files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: digested.append(str(path)) or sha256(path))
    weights = paths.TRAIN_HEAD / "model.weights.h5"
    files.write_text(weights, "weights")
    declare("fine-tune", deps=[manifest, weights])
    with runs.stage_run("fine-tune", params) as run:
        assert run.digests == {
            "split/manifest.csv": run.dataset.digest,
            "train-head/model.weights.h5": sha256(weights),
        }
        inputs = {**run.digests}
        assert run.identity == {
            "params": dvc_lock.stage_keys("fine-tune", params),
            "inputs": inputs,
        }
    assert sorted(digested) == [str(manifest), str(weights)]


def test_what_a_card_says_of_a_run(params, database):
    with runs.stage_run("evaluate", params) as run:
        assert run.shown_params == run.client.get_run(run.pipeline_id).data.params
        names = {
            "git commit": runs.git_state() or "none",
            "pipeline run": run.pipeline_name,
            "MLflow run": run.run_id,
        }
        assert run.provenance == names


def test_dataset_is_an_input(params, database, manifest):
    with runs.stage_run("evaluate", params) as run:
        pass
    (found,) = run.client.get_run(run.run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("fashion", run.dataset.digest[:12])
    assert json.loads(found.dataset.profile) == {
        "images": 9,
        "classes": 2,
        "train": 3,
        "val": 3,
        "test": 3,
    }
    assert json.loads(found.dataset.source) == {"uri": "data/raw/fashion"}
    assert found.tags[0].value == "testing"


def test_a_dataset_that_another_run_writes_at_that_moment(params, database, manifest, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    write, refused = MlflowClient.log_inputs, []

    def slower(client, run_id, **inputs):
        if run_id not in refused:
            refused.append(run_id)
            raise MlflowException(
                "UNIQUE constraint failed: datasets.experiment_id, datasets.name, datasets.digest"
            )
        write(client, run_id, **inputs)

    monkeypatch.setattr(MlflowClient, "log_inputs", slower)
    with runs.stage_run("train-head", params) as run:
        pass
    assert run.run_id in refused
    assert len(run.client.get_run(run.run_id).inputs.dataset_inputs) == 1


def test_flat_metrics():
    nested = {
        "accuracy": 0.5,
        "keras": {"mb": 2, "name": "x", "ok": True},
        "list": [1],
        "none": None,
    }
    assert runs.flat_metrics(nested) == {"accuracy": 0.5, "keras/mb": 2}


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (GraftError("data/x: no images"), "FAILED", "data/x: no images"),
        (ZeroDivisionError("by zero"), "FAILED", "ZeroDivisionError: by zero"),
        (KeyboardInterrupt(), "KILLED", "interrupted"),
    ],
)
def test_a_stage_that_fails(params, database, error, status, text):
    with pytest.raises(type(error)), runs.stage_run("fine-tune", params) as run:
        run._pending += runs.metric_entities({"last": 1})
        raise error
    found, pipeline = run.client.get_run(run.run_id), run.client.get_run(run.pipeline_id)
    assert (found.info.status, pipeline.info.status) == (status, status)
    assert found.data.tags["error"] == text and found.data.metrics["last"] == 1
    with runs.stage_run("fine-tune", params):
        pass
    assert run.client.get_run(run.pipeline_id).info.status == "FINISHED"


def test_sigterm_ends_a_run_as_ctrl_c_does(params, database):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), runs.stage_run("fine-tune", params) as run:
        os.kill(os.getpid(), signal.SIGTERM)
    assert run.client.get_run(run.run_id).info.status == "KILLED"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_store_that_breaks_at_the_end_is_one_line(params, database, monkeypatch):
    from mlflow.exceptions import MlflowException

    def broken(*_, **__):
        raise MlflowException("disk is full\nwith a long story")

    with (
        pytest.raises(GraftError, match=r"^MLflow at sqlite:.*: disk is full$"),
        runs.stage_run("fine-tune", params) as run,
    ):
        monkeypatch.setattr(run.client, "log_batch", broken)
