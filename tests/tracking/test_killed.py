"""A stage killed at every step in which it changes MLflow's database or writes a file: experiment,
run, version, title."""

import os
import shutil
import sqlite3

import numpy as np
import pytest

from graft.scoring.predictions import Predictions
from graft.tracking import champion, registry, runs
from tests import faults

# Of the some 250 steps, each of which costs two stages; 1: all of them.
STRIDE = int(os.environ.get("GRAFT_TEST_STRIDE", 29))


@pytest.fixture
def contest(write_manifest, register, params, monkeypatch):
    """contest(name, wrong): the stage evaluate registers a model and lets it challenge the
    champion, in a fork."""

    def challenge(name, wrong):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        paths = write_manifest(n=120)["val"]
        truth = np.array(["ab".index(path[0]) for path in paths])
        said = np.where(np.arange(len(paths)) < wrong, 1 - truth, truth)
        mine = Predictions(paths, truth, np.eye(2)[said], ["a", "b"])
        with runs.stage_run("evaluate", params) as run:
            version = register(run, name, "fine-tuned", stage="fine-tune")
            champion.renew(run, version)
            champion.challenge(run, version=version, predictions=mine, metrics={}, ask=None)

    return challenge


def record(database):
    """What MLflow's database says, read without MLflow."""
    with sqlite3.connect(database) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

        def all_of(query):
            return sorted(tuple(row) for row in db.execute(query))

        return {
            "aliases": all_of("SELECT alias, version FROM registered_model_aliases"),
            "digests": all_of("SELECT version, value FROM model_version_tags WHERE key = 'digest'"),
            "titles": [
                v
                for (v,) in all_of(
                    "SELECT version FROM model_version_tags WHERE key LIKE 'champion.at.%'"
                )
            ],
            "decided": all_of(
                "SELECT version, value FROM model_version_tags WHERE key = 'champion.decision'"
            ),
            "models": [name for (name,) in all_of("SELECT name FROM registered_models")],
            "running": [
                name for (name,) in all_of("SELECT name FROM runs WHERE status = 'RUNNING'")
            ],
            "rows": all_of(
                "SELECT t.value, r.status FROM runs r JOIN tags t USING (run_uuid) WHERE t.key = "
                "'pipeline' AND run_uuid IN (SELECT run_uuid FROM tags WHERE key = 'kind' AND "
                "value = 'pipeline')"
            ),
        }


@pytest.mark.slow
def test_a_contest_killed_at_any_step_ends_as_one_that_was_not(
    contest, database, clone, tmp_path, monkeypatch
):
    monkeypatch.setattr(registry, "SETTLE_SECONDS", 0.01)
    faults.apart(lambda: contest("one", 8))
    kept = tmp_path / "kept"
    shutil.copytree(clone, kept)

    def fresh():
        for name in ("mlruns", ".cache"):
            shutil.rmtree(clone / name, ignore_errors=True)
            shutil.copytree(kept / name, clone / name)
        for folder in tmp_path.glob("model*"):
            shutil.rmtree(folder)

    faults.apart(lambda: contest("two", 0))
    undisturbed = record(database)
    assert undisturbed["aliases"] == [("champion", 2), ("fine-tuned", 2)] and undisturbed[
        "titles"
    ] == [1, 2]
    at, again = 1, True
    while again:
        fresh()
        again = faults.struck(lambda: contest("two", 0), at, kill=True)
        found = record(database)
        assert dict(found["aliases"])["champion"] in (1, 2), at  # never without one
        for folder in tmp_path.glob("model*"):
            shutil.rmtree(folder)
        faults.apart(lambda: contest("two", 0))
        assert record(database) == undisturbed, at
        assert not (clone / "mlruns").joinpath("mlflow.db-journal").exists()
        at += STRIDE
    assert at > 200
