"""Blocks on a cluster: each result once and in order, whoever is killed; who differs takes none;
mistakes in one line."""

import builtins
import os
import pickle
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from graft.system import cluster, prefetch
from graft.system.console import GraftError


@dataclass(frozen=True)
class Doubler:
    """Twice the block, and who computed it. marks: folder where the first to come to block `kill`
    leaves a mark, and dies."""

    marks: Path
    kill: int = -1

    def identity(self):
        return ["doubler 1", os.environ.get("GRAFT_TEST_MACHINE", "like the others")]

    def start(self):
        def double(block):
            (self.marks / f"{block}-{time.monotonic_ns()}").touch()
            if block == self.kill and len(list(self.marks.glob(f"{block}-*"))) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if block == "ten":
                raise GraftError("ten is no number")
            return (
                2 * block,
                os.getpid(),
                prefetch.processors(),
                os.environ.get("GRAFT_TEST_MACHINE"),
            )

        return double


@pytest.fixture
def given(tmp_path, monkeypatch):
    """A working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


def test_a_worker_answers_with_the_blocks_number_its_result_and_what_went_wrong(given, monkeypatch):
    monkeypatch.setattr(cluster, "_fetched", lambda job: job)
    monkeypatch.setattr(prefetch, "_most", None)
    worker = cluster.Worker(Doubler(given), str(given))
    assert Path.cwd() == given
    rows = [pickle.dumps(each) for each in ((7, 4), (8, "ten"), (9, None))]
    first, second, third = (pickle.loads(row) for row in worker({"block": rows})["result"])
    assert first == (7, (8, os.getpid(), 1, None), None)
    assert (second[:2], str(second[2])) == ((8, None), "ten is no number")
    assert third[:2] == (9, None) and str(third[2]).startswith("ray: a worker failed: TypeError: ")


def test_what_a_machine_has_instead_of_what_is_wanted_is_said(given, monkeypatch):
    assert cluster.differences(["litert", "2.1"], ["litert", "2.1"]) == ""
    assert (
        cluster.differences(["litert", "2.1", "avx2"], ["litert", "2.0", "avx2"])
        == "it has 2.0; wanted 2.1"
    )
    monkeypatch.setattr(cluster, "_fetched", lambda job: job)
    assert cluster.look(Doubler(given), str(given)) == (["doubler 1", "like the others"], "")
    assert cluster.look(Doubler(given), "/no/such/folder")[1].startswith(
        "it does not see /no/such/folder, which must be"
    )
    assert cluster.look(None, str(given))[1].startswith("AttributeError: ")


def test_a_missing_package_is_named_with_the_extra(given, monkeypatch):
    def lacking(name, *args, **options):
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return real(name, *args, **options)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lacking)
    with (
        pytest.raises(
            GraftError, match=r"ray: needs the package ray: pip install 'graft-vision\[ray\]'"
        ),
        cluster.connect(),
    ):
        pass


def test_an_address_where_nobody_listens_is_said_at_once(given):
    with pytest.raises(
        GraftError,
        match=r"ray: 127\.0\.0\.1:1: Connection refused; RAY_ADDRESS says where the cluster is",
    ):
        cluster._check("127.0.0.1:1")
    cluster._check("auto")
    cluster._check(None)


@pytest.mark.slow
def test_every_result_comes_once_and_in_order_though_a_worker_is_killed(
    ray, given, monkeypatch, capfd
):
    from ray import cloudpickle

    # Workers have graft, and not the tests.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(cluster, "WINDOW", 7)
    with cluster.connect() as workers:
        (address,) = {node["NodeManagerAddress"] for node in ray.nodes()}
        assert address == "127.0.0.1"
        answers = list(workers.run(Doubler(given, kill=4), iter(range(20))))
        with pytest.raises(GraftError, match="ten is no number"):
            list(workers.run(Doubler(given), ["ten"]))
    assert [(block, result[0]) for block, result in answers] == [(n, 2 * n) for n in range(20)]
    assert {result[2] for _, result in answers} == {1}  # threads
    # Begun by the one that was killed, and done by another.
    assert len(list(given.glob("4-*"))) == 2
    assert not ray.is_initialized()
    assert not [
        folder
        for folder in Path("/tmp").glob("graft-ray-*")
        if folder.stat().st_mtime > given.stat().st_ctime
    ]
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_machine_that_differs_takes_no_block_and_says_so(ray, given, monkeypatch, capfd):
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    machines = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        machines.add_node(num_cpus=1, env_vars={"GRAFT_TEST_MACHINE": "another processor"})
        monkeypatch.setenv("RAY_ADDRESS", machines.address)
        with cluster.connect() as workers:
            answers = [result for _, result in workers.run(Doubler(given), range(12))]
            assert {machine for *_, machine in answers} == {None}
        with pytest.raises(
            GraftError, match="no machine of the cluster computes what this one would"
        ):
            monkeypatch.setenv("GRAFT_TEST_MACHINE", "a third")
            with cluster.connect() as workers:
                list(workers.run(Doubler(given), [1]))
    finally:
        ray.shutdown()
        machines.shutdown()
    said = capfd.readouterr().err
    assert "takes no block: it has another processor; wanted like the others" in said
    assert said.count("takes no block") == 3
