"""The whole pipeline under DVC where MLflow is a server that asks for a password, and in a shell
that grants little."""

import secrets
import sys

import pytest

from tests import small_clone
from tests.tracking import servers

pytestmark = pytest.mark.slow
PATIENCE = 1800  # seconds
STAGES = ["split", "train-head", "second-look", "fine-tune", "evaluate", "export"]


def rows(database):
    """Every row of every table, as text."""
    import psycopg

    with psycopg.connect(database) as connection:
        names = connection.execute(
            "select tablename from pg_tables where schemaname = 'public'"
        ).fetchall()
        return [
            str(row) for (name,) in names for row in connection.execute(f'select * from "{name}"')
        ]


def test_a_server_on_postgresql_with_a_password_that_is_left_nowhere(tmp_path, monkeypatch):
    import mlflow

    # Of MLflow's server; of its database.
    asked, inside = secrets.token_hex(12), secrets.token_hex(12)
    served = tmp_path / "server"
    served.mkdir()
    made = small_clone.make(tmp_path)
    with (
        servers.postgresql(inside) as database,
        servers.mlflow_server(served, database, password=asked) as address,
    ):
        made.env["MLFLOW_TRACKING_URI"] = address.replace("//", f"//admin:{asked}@")
        made.dvc("repro", timeout=PATIENCE)  # such a server hashes the password at every request
        assert made.executed() == STAGES
        said = made.out
        made.env["MLFLOW_TRACKING_URI"] = address.replace("//", "//admin:another-one@")
        made.dvc("repro", "--force", "--single-item", "split", check=False)
        said += made.out
        assert (
            "error: " in made.out and "Traceback" not in made.out and "another-one" not in made.out
        )
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", asked)
        client = mlflow.MlflowClient(tracking_uri=address, registry_uri=address)
        (experiment,) = (each for each in client.search_experiments() if each.name == "graft")
        found = client.search_runs([experiment.experiment_id])
        assert {run.data.tags.get("stage") for run in found} >= set(STAGES)
        assert {run.info.status for run in found} == {"FINISHED"}
        assert all(run.info.artifact_uri.startswith("mlflow-artifacts:/") for run in found)
        assert client.get_model_version_by_alias("graft", "champion").version
        tables = rows(database)
    assert len(tables) > 100
    assert [line for line in (*tables, *said.splitlines()) if asked in line or inside in line] == []
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 100
    assert [
        path
        for path in written
        if any(word.encode() in path.read_bytes() for word in (asked, inside))
    ] == []


def test_a_strict_umask_and_a_home_that_cannot_be_written(tmp_path):
    """/proc is a folder into which not even root can write."""
    made = small_clone.make(tmp_path)
    made.env["HOME"] = "/proc"
    made.run("sh", "-c", 'umask 077 && exec "$0" -m dvc repro', sys.executable, timeout=PATIENCE)
    assert made.executed() == STAGES
    assert made.path("data/export/checks.json").stat().st_mode & 0o077 == 0
    assert "Traceback" not in made.out
