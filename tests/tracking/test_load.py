"""Eight experiments for four workers, three times, into one store: what benchmarks/load.py does
with DVC and real networks."""

import contextlib
import os
import secrets
import shutil

import numpy as np
import pytest

from graft import params as parameters
from graft.scoring.predictions import Predictions
from graft.system import files, paths
from graft.tracking import champion, registry, runs, store
from tests.tracking import servers

STAGES = ("fine-tune", "evaluate", "export")
ROUNDS, EXPERIMENTS, WORKERS = 3, 8, 4


def _wrong(number):
    """Wrong answers of experiment `number` on 40 validation images: 7 to 30, each once, in no
    order."""
    return 30 - (number * 7) % 24


def _worker(root, store_uri, tasks):
    """Take numbers off the queue until there is a None; each is an experiment with a folder, a name
    and a model of its own."""
    from mlflow.models import Model

    paths_of_val = [f"{'ab'[i % 2]}/{i}.png" for i in range(1, 120, 3)]
    truth = np.array(["ab".index(path[0]) for path in paths_of_val])
    while (number := tasks.get()) is not None:
        os.environ["DVC_ROOT"], os.environ["DVC_EXP_NAME"] = str(root), f"exp-{number}"
        os.environ["MLFLOW_TRACKING_URI"] = store_uri
        os.chdir(root / f"copy {number}")
        params = parameters.load()
        for stage in STAGES:
            with runs.stage_run(stage, params) as run:
                files.write_json(paths.STAGES[stage] / "metrics.json", {"accuracy": number / 100})
                run.log_metrics({"accuracy": number / 100})
                if stage != "evaluate":
                    continue
                folder = root / f"model {number}"
                folder.mkdir()
                Model().save(str(folder / "MLmodel"))
                with registry.lock():
                    version = registry.create(run, folder, digest=str(number), stage="fine-tune")
                    registry.point(run, "fine-tuned", version)
                said = np.where(np.arange(40) < _wrong(number), 1 - truth, truth)
                mine = Predictions(paths_of_val, truth, np.eye(2)[said], "ab")
                champion.challenge(
                    run, version=version, predictions=mine, metrics={"accuracy": 0.5}, ask=None
                )


@pytest.fixture(
    params=["one clone with its own database", "two clones, PostgreSQL behind a server"]
)
def clones(request, clone, tmp_path, monkeypatch):
    """The clones whose experiments go to one store."""
    with contextlib.ExitStack() as running:
        if request.param.startswith("one"):
            request.getfixturevalue("database")
            yield [clone]
            return
        database = running.enter_context(servers.postgresql(secrets.token_hex(12)))
        monkeypatch.setenv(
            "MLFLOW_TRACKING_URI", running.enter_context(servers.mlflow_server(tmp_path, database))
        )
        yield [clone, tmp_path / "of a colleague"]


@pytest.mark.slow
def test_24_of_24_experiments_one_champion_and_its_history_whole(
    params, clone, clones, write_manifest, processes
):
    write_manifest(n=120)
    for other in clones[1:]:
        shutil.copytree(clone, other)
    for number in range(ROUNDS * EXPERIMENTS):
        for each in clones:
            copy = each / f"copy {number}"
            (copy / "data" / "split").mkdir(parents=True)
            (copy / "dvc.yaml").write_bytes((clone / "dvc.yaml").read_bytes())
            text = (
                (clone / "params.yaml")
                .read_text(encoding="utf-8")
                .replace("lr: 1.0e-4", f"lr: {number + 1}.0e-4")
            )
            (copy / "params.yaml").write_text(text, encoding="utf-8")
            for name in ("manifest.csv", "classes.json"):
                (copy / "data" / "split" / name).write_bytes((paths.SPLIT / name).read_bytes())
    for begun in range(0, ROUNDS * EXPERIMENTS, EXPERIMENTS):
        tasks = processes.Queue()
        for number in [*range(begun, begun + EXPERIMENTS), *[None] * WORKERS]:
            tasks.put(number)
        roots, uri = [clones[k % len(clones)] for k in range(WORKERS)], store.tracking_uri()
        workers = [processes.Process(target=_worker, args=(root, uri, tasks)) for root in roots]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(300)
        assert [worker.exitcode for worker in workers] == [0] * WORKERS
    connection = store.connect(params)
    rows = {run.data.tags["pipeline"]: run for run in connection.search(kind="pipeline")}
    assert set(rows) == {f"exp-{number}" for number in range(ROUNDS * EXPERIMENTS)}
    for number in range(ROUNDS * EXPERIMENTS):
        row = rows[f"exp-{number}"]
        stages = {
            run.data.tags["stage"]: run
            for run in connection.search(**{"mlflow.parentRunId": row.info.run_id})
        }
        assert {run.info.status for run in [row, *stages.values()]} == {"FINISHED"}
        assert set(stages) == set(STAGES)
        figures = [row.data.metrics[f"{stage}/accuracy"] for stage in STAGES] + [
            run.data.metrics["accuracy"] for run in stages.values()
        ]
        assert set(figures) == {number / 100}
        assert float(row.data.params["lr"]) == pytest.approx((number + 1) * 1e-4)
    history = champion.history(connection.client, "graft")
    reigning = registry.by_alias(connection.client, "graft", champion.ALIAS)
    assert [entry["before"] for entry in history] == [
        None,
        *(entry["version"] for entry in history[:-1]),
    ]
    assert history[-1]["version"] == str(reigning.version)
    fewest = min(map(_wrong, range(ROUNDS * EXPERIMENTS)))
    assert reigning.tags["val_accuracy"] == f"{1 - fewest / 40:.4f}"
    versions = connection.client.search_model_versions("name = 'graft'")
    assert len(versions) == ROUNDS * EXPERIMENTS
    assert {v.tags["champion.decision"] for v in versions} == {"promoted", "not promoted"}
    promoted = {str(v.version) for v in versions if v.tags["champion.decision"] == "promoted"}
    assert promoted == {entry["version"] for entry in history}
