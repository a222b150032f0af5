"""`graft publish` from files that lie there; what it registers of real models is part of
tests/test_pipeline.py."""

import shutil

import pytest
from ruamel.yaml import YAML

from graft import params as parameters
from graft.commands import main, publish
from graft.scoring.history import History
from graft.system import files, paths
from graft.tracking import dvc_lock, store

MADE = ("split", "train-head", "second-look", "fine-tune")


@pytest.fixture
def outputs(clone, monkeypatch):
    """What the first four stages left, as dvc.lock has it, and nothing in MLflow; [(stage, name of
    the model)] registered."""
    stages = {
        "split": {"outs": ["data/split/manifest.csv"]},
        "train-head": {"deps": ["data/split/manifest.csv"], "outs": ["data/train-head/curves.csv"]},
        "second-look": {
            "deps": ["data/train-head/curves.csv"],
            "outs": ["data/second-look/oof.csv"],
        },
        "fine-tune": {
            "deps": ["data/train-head/curves.csv"],
            "outs": ["data/fine-tune/curves.csv"],
        },
    }
    for stage in MADE:
        stages[stage]["metrics"] = [f"data/{stage}/metrics.json"]
        files.write_json(paths.STAGES[stage] / "metrics.json", {"accuracy": 0.5})
    YAML().dump({"stages": stages}, clone / "dvc.yaml")
    columns = ["path", "label", "split", "sha256", "width", "height", "group"]
    rows = [
        (f"{i}.png", "ab"[i % 2], ("train", "val", "test")[i % 3], f"{i:064x}", 8, 8, "")
        for i in range(9)
    ]
    files.write_csv(paths.SPLIT / "manifest.csv", columns, rows)
    epochs = [
        {
            "epoch": k,
            "lr": 0.1,
            "train_loss": 1.0,
            "train_accuracy": 0.5,
            "val_loss": 1.0,
            "val_accuracy": 0.5,
        }
        for k in (0, 1)
    ]
    History(tuple(epochs[:1])).write(paths.TRAIN_HEAD / "curves.csv")
    History(tuple(epochs), unfrozen_at=1).write(paths.FINE_TUNE / "curves.csv")
    registered = []
    monkeypatch.setattr(dvc_lock, "matches_lock", lambda stage, *_: stage in MADE)
    monkeypatch.setattr(
        publish, "_register", lambda run: registered.append((run.stage, run.params.tracking.model))
    )
    return registered


def recorded():
    """(metrics of the experiments' rows, how many stage runs there are of each)."""
    connection = store.connect(parameters.load())
    stages = [run.data.tags["stage"] for run in connection.search(kind="stage")]
    rows = [
        {k: v for k, v in run.data.metrics.items() if "seconds" not in k}
        for run in connection.search(kind="pipeline")
    ]
    return rows, {stage: stages.count(stage) for stage in set(stages)}


def test_a_new_server_gets_what_there_is_once(outputs, clone, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{clone / 'first'}.db")
    store.connect(parameters.load())
    shutil.copy(clone / "first.db", clone / "second.db")  # making a database takes seconds
    for server in ("first", "first", "second"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{clone / server}.db")
        main.main(["publish"])
        said = capsys.readouterr()
        rows, stages = recorded()
        assert rows == [{f"{stage}/accuracy": 0.5 for stage in MADE}]
        assert stages == dict.fromkeys(MADE, 1)
        assert "not published, since not as dvc.lock records it: evaluate, export" in said.err
    connection = store.connect(parameters.load())
    for stage, steps in (("train-head", [0]), ("fine-tune", [1])):
        (run,) = connection.search(kind="stage", stage=stage)
        history = connection.client.get_metric_history(run.info.run_id, "train/loss")
        assert (
            [metric.step for metric in history],
            run.info.status,
            run.data.tags["published"],
        ) == (steps, "FINISHED", "true")


def test_another_name_in_the_registry_is_served_without_another_run(outputs, clone):
    main.main(["publish"])
    text = (clone / "params.yaml").read_text(encoding="utf-8")
    (clone / "params.yaml").write_text(
        text.replace("  model: graft\n", "  model: birds\n"), encoding="utf-8"
    )
    main.main(["publish"])
    assert outputs == [*((stage, "graft") for stage in MADE), *((stage, "birds") for stage in MADE)]
    assert recorded()[1] == dict.fromkeys(MADE, 1)


def test_nothing_that_dvc_lock_does_not_know_is_published(clone, capsys):
    with pytest.raises(SystemExit):
        main.main(["publish"])
    assert "data/split is not what dvc.lock records" in capsys.readouterr().err
