"""The whole pipeline as its users run it: DVC in a clone of the project, few tiny images, one
epoch, MLflow as the witness."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import small_clone
from tests.small_clone import CLASSES


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    made = small_clone.make(tmp_path_factory.mktemp("pipeline"))
    made.dvc("repro")
    made.first = made.executed()
    made.run("git", "add", "-A")
    made.run("git", "commit", "-q", "-m", "first")
    return made


@pytest.fixture(scope="module")
def client(clone):
    from mlflow import MlflowClient

    address = f"sqlite:///{clone.path('mlruns/mlflow.db')}"
    return MlflowClient(tracking_uri=address, registry_uri=address)


def runs(client, **tags):
    (experiment,) = (e for e in client.search_experiments() if e.name == "graft")
    clauses = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    return client.search_runs([experiment.experiment_id], clauses)


def test_repro_runs_every_stage_and_leaves_every_file(clone):
    assert clone.first == ["split", "train-head", "second-look", "fine-tune", "evaluate", "export"]
    reports = "predictions.csv metrics.json report.json report.txt confusion_matrix.csv"
    for stage, files in {
        "split": "manifest.csv classes.json problems.csv metrics.json plots",
        "train-head": f"model.weights.h5 model.json curves.csv {reports}",
        "second-look": "features.npy oof.csv suspects.csv section.html metrics.json plots",
        "fine-tune": f"model.weights.h5 model.json curves.csv {reports}",
        "evaluate": "metrics.json predictions.csv report.json report.txt confusion_matrix.csv "
        "plots card.html",
        "export": "model.keras model.h5 saved_model model.tflite labels.txt checks.json",
    }.items():
        for name in files.split():
            assert clone.path(f"data/{stage}/{name}").exists(), (stage, name)
    assert clone.json("data/split/metrics.json")["images"] == 24
    assert "broken.jpg" in clone.path("data/split/problems.csv").read_text(encoding="utf-8")
    metrics = clone.json("data/evaluate/metrics.json")
    assert metrics["n"] == 6
    assert list(metrics) == [
        "n",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "macro_f1",
        "loss",
        "ece",
        "head_accuracy",
    ]
    assert clone.path("data/export/labels.txt").read_text(encoding="utf-8").split("\n")[:2] == list(
        CLASSES
    )


def test_a_second_repro_does_nothing_and_git_is_clean(clone):
    clone.dvc("repro")
    assert clone.executed() == []
    assert clone.run("git", "status", "--porcelain").stdout == ""


# What another project's shell exports, and a hook of another repository.
HOSTILE = {
    "KERAS_BACKEND": "torch", "TF_ENABLE_ONEDNN_OPTS": "0", "TF_USE_LEGACY_KERAS": "1",
    "KERAS_MAX_EPOCHS": "1", "MPLBACKEND": "module://no_such_module",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "true", "MLFLOW_EXPERIMENT_NAME": "theirs",
    "MLFLOW_RUN_ID": "0" * 32, "MLFLOW_TRACKING_URI": "sqlite:///mlruns/mlflow.db",
    "PYTHONOPTIMIZE": "1", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7", "NO_COLOR": "1",
    "COLUMNS": "20", "LC_ALL": "C", "TMPDIR": "/nowhere",
}  # fmt: skip
KERAS_JSON = {
    "backend": "jax",
    "floatx": "float16",
    "image_data_format": "channels_first",
    "epsilon": 0.5,
}


@pytest.mark.slow
def test_another_projects_shell_changes_no_byte(clone, monkeypatch):
    """All over again without the feature cache: every output comes out as dvc.lock has it."""
    before = clone.path("dvc.lock").read_text()
    monkeypatch.setattr(clone, "env", clone.env | HOSTILE)
    settings = Path(clone.env["HOME"]) / ".keras" / "keras.json"
    settings.parent.mkdir(exist_ok=True)
    settings.write_text(json.dumps(KERAS_JSON))
    shutil.rmtree(clone.path(".cache"))
    clone.dvc("repro", "--force")
    assert len(clone.executed()) == 6
    assert clone.path("dvc.lock").read_text() == before


def test_mlflow_has_one_pipeline_run_with_nested_stage_runs(clone, client):
    (pipeline,) = runs(client, kind="pipeline")
    assert pipeline.info.run_name.startswith("repro-")
    assert pipeline.info.status == "FINISHED"
    params = pipeline.data.params
    assert params["lr"] == "0.0003"
    assert params["data.path"] == "data/raw/tiny"
    assert len(params) > 40
    expected = clone.json("data/evaluate/metrics.json")["accuracy"]
    assert pipeline.data.metrics["evaluate/accuracy"] == pytest.approx(expected)
    # Of report.json, for which metrics.json has no room.
    assert "evaluate/balanced_accuracy_low" in pipeline.data.metrics
    assert pipeline.data.tags["mlflow.source.git.commit"]
    stages = [
        r
        for r in runs(client, **{"mlflow.parentRunId": pipeline.info.run_id})
        if "superseded_by" not in r.data.tags
    ]
    assert {r.info.run_name for r in stages} == {
        "split",
        "train-head",
        "second-look",
        "fine-tune",
        "evaluate",
        "export",
    }
    assert {r.info.status for r in stages} == {"FINISHED"}
    by_name = {r.info.run_name: r for r in stages}
    iterations = len(clone.path("data/train-head/curves.csv").read_text().splitlines()) - 1
    for name, epochs in (("train-head", iterations), ("fine-tune", 1)):
        run = by_name[name]
        for metric in (
            "train/loss",
            "train/accuracy",
            "val/loss",
            "val/accuracy",
            *["lr"] * (name == "fine-tune"),
        ):
            assert len(client.get_metric_history(run.info.run_id, metric)) == epochs, (name, metric)
    steps = [
        m.step for m in client.get_metric_history(by_name["fine-tune"].info.run_id, "val/loss")
    ]
    assert steps == [iterations]  # those of the head came before
    for name, wanted in (
        (
            "fine-tune",
            {"curves.csv", "predictions.csv", "report.txt", "confusion_matrix.csv", "plots"},
        ),
        ("evaluate", {"report.json", "predictions.csv", "card.html", "plots"}),
    ):
        found = {item.path for item in client.list_artifacts(by_name[name].info.run_id)}
        assert wanted <= found, (name, found)
    trained = by_name["train-head"].data.tags
    used = by_name["fine-tune"].data.tags
    assert (
        used["input.train-head/model.weights.h5"]
        == trained["output.data/train-head/model.weights.h5"]
    )
    assert used["input.train-head/model.weights.h5.run"] == by_name["train-head"].info.run_id


def test_the_registry_has_a_version_of_each_kind_and_the_champion_predicts_in_a_fresh_process(
    clone, client, tmp_path
):
    aliases = client.get_registered_model("graft").aliases
    assert set(aliases) == {"head", "fine-tuned", "exported", "champion"}
    assert aliases["champion"] == aliases["fine-tuned"]
    assert len({aliases["head"], aliases["fine-tuned"], aliases["exported"]}) == 3
    picture = next((clone.path("data/raw/tiny") / CLASSES[1]).glob("*.png"))
    code = (
        "import mlflow, json, sys; model = mlflow.pyfunc.load_model('models:/graft@champion');"
        "row = model.predict([open(sys.argv[1], 'rb').read()]).iloc[0];"
        "print(json.dumps([row['label'], row['confidence'], row['probabilities']]))"
    )
    env = clone.env | {"MLFLOW_TRACKING_URI": f"sqlite:///{clone.path('mlruns/mlflow.db')}"}
    done = subprocess.run(
        [sys.executable, "-c", code, picture], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    label, confidence, probabilities = json.loads(done.stdout.splitlines()[-1])
    assert list(probabilities) == list(CLASSES)
    assert confidence == max(probabilities.values()) == probabilities[label]
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_an_empty_server_gets_what_there_is_and_nothing_twice(clone, client):
    from mlflow import MlflowClient

    uri = f"sqlite:///{clone.path('mlruns/another.db')}"
    clone.env["MLFLOW_TRACKING_URI"] = uri
    seen = []
    try:
        for _ in range(2):
            clone.run(sys.executable, "-m", "graft.commands.main", "publish")
            other = MlflowClient(tracking_uri=uri)
            (row,) = runs(other, kind="pipeline")
            versions = {
                v.tags["digest"]: v.tags["stage"]
                for v in other.search_model_versions("name = 'graft'")
            }
            history = [
                key
                for v in other.search_model_versions("name = 'graft'")
                for key in v.tags
                if key.startswith("champion.at.")
            ]
            aliases = {k: str(v) for k, v in other.get_registered_model("graft").aliases.items()}
            seen.append(
                (versions, aliases, history, len(runs(other, kind="stage")), len(runs(other)))
            )
    finally:
        del clone.env["MLFLOW_TRACKING_URI"]
    assert seen[0] == seen[1]
    versions, aliases, history, stage_runs, _ = seen[0]
    assert (stage_runs, len(history), aliases["champion"]) == (6, 1, aliases["fine-tuned"])
    known = {
        v.tags["digest"]: v.tags["stage"] for v in client.search_model_versions("name = 'graft'")
    }
    assert versions.items() <= known.items()
    assert set(aliases) == {"head", "fine-tuned", "exported", "champion"}
    (first,) = runs(client, kind="pipeline")
    for name, value in first.data.metrics.items():
        assert row.data.metrics[name] == pytest.approx(value), name


@pytest.mark.slow
def test_another_lr_reruns_fine_tune_evaluate_export_and_nothing_else_in_place_and_in_temp(
    clone, client
):
    commit = clone.run("git", "rev-parse", "HEAD").stdout
    for name, lr, shown, where in (
        ("in-place", "1e-5", "1e-05", ()),
        ("in-temp", "2e-5", "2e-05", ("--temp",)),
    ):
        clone.dvc("exp", "run", "-n", name, "-S", f"lr={lr}", *where)
        executed = clone.executed()
        assert executed[:2] == ["fine-tune", "evaluate"], clone.out
        # Which is skipped where fine-tuning gained nothing and the head stayed.
        assert set(executed[2:]) <= {"export"}
        # Principle 2: nothing frozen was computed again.
        assert "train: cached features of 12 images x 2 views" in clone.out
        (pipeline,) = runs(client, kind="pipeline", pipeline=name)
        assert pipeline.info.run_name == name
        assert pipeline.data.params["lr"] == shown
        assert float(pipeline.data.params["lr"]) == float(lr)
        # The metrics of the stages that DVC skipped are there too: two rows compare completely.
        assert {
            "split/images",
            "train-head/accuracy",
            "fine-tune/accuracy",
            "evaluate/accuracy",
        } <= set(pipeline.data.metrics)
    assert clone.run("git", "rev-parse", "HEAD").stdout == commit
    shown = json.loads(clone.dvc("exp", "show", "--json").stdout)
    names = {e["name"] for branch in shown for e in (branch["experiments"] or [])}
    assert {"in-place", "in-temp"} <= names
    difference = json.loads(clone.dvc("params", "diff", "--json", "HEAD").stdout)
    # Of the experiment in the workspace against HEAD.
    assert float(difference["params.yaml"]["lr"]["new"]) == 1e-5


@pytest.mark.slow
def test_queue_workers_land_in_the_one_store(clone, client):
    clone.dvc("exp", "run", "--queue", "-S", "lr=3e-5,4e-5")
    clone.dvc("exp", "run", "--run-all", "-j", "2")
    found = {r.data.params["lr"]: r for r in runs(client, kind="pipeline")}
    for lr in ("3e-05", "4e-05"):
        assert found[lr].info.status == "FINISHED"
        assert "evaluate/accuracy" in found[lr].data.metrics


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lr: fast", "lr must be a number"),
        ("lrr: 1", "unknown key lrr"),
        ("seed: -1", "seed must be at least 0"),
    ],
)
def test_bad_params_stop_the_stage_with_one_line_that_names_the_key(clone, line, words):
    path = clone.path("params.yaml")
    kept = path.read_bytes()
    key = line.split(":")[0]
    lines = [row for row in kept.decode().splitlines() if not row.startswith(f"{key}:")]
    path.write_text("\n".join([line, *lines]) + "\n", encoding="utf-8")
    try:
        for module in (
            "stages.split",
            "stages.train_head",
            "stages.fine_tune",
            "stages.evaluate",
            "stages.export",
        ):
            done = clone.run(sys.executable, "-m", module, check=False)
            assert done.returncode == 1
            assert done.stderr.startswith("error: params.yaml: ")
            assert words in done.stderr
            assert done.stderr.count("\n") == 1
    finally:
        path.write_bytes(kept)


def test_an_unreachable_server_is_refused_before_any_work(clone):
    clone.env["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    try:
        before = clone.path("data/split/manifest.csv").stat().st_mtime_ns
        done = clone.run(sys.executable, "-m", "stages.split", check=False)
        assert done.returncode == 1
        assert "http://127.0.0.1:9 cannot be reached" in done.stderr
        assert clone.path("data/split/manifest.csv").stat().st_mtime_ns == before
    finally:
        del clone.env["MLFLOW_TRACKING_URI"]
