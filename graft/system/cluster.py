"""Work on the machines of a Ray cluster, by Ray Data (extra `ray`): blocks go out, results come
back, none missing, none twice.

A job is one object, sent to each worker once. It says what its results depend on where they are
computed (`identity`): a machine that differs from this one takes no block, and is named. A block
whose worker was killed is computed again. Code of graft goes with the job; what else it needs must
be installed there, and the project's folder must be one that all machines see.

The cluster is `$RAY_ADDRESS`; without one, a cluster of this machine's processors is started, on
127.0.0.1 alone, and ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from graft.system import prefetch
from graft.system.console import GraftError, log, warn
from graft.system.environment import silence

CPUS = 1  # of a worker: blocks are many, and one thread each wastes none
WINDOW = 256  # blocks that are out at a time: memory and order are kept within it
# Bytes of shared memory for blocks and results under way on a cluster of one machine.
STORE = 1 << 28


class Job(Protocol):
    """What workers do. Picklable."""

    def identity(self) -> list[str]:
        """What results depend on, where they are computed: runtime, versions, instruction set."""

    def start(self) -> Callable[[Any], Any]:
        """The function of a block: pickled there and back."""


class Worker:
    """A job on the machine it is computed on. Ray Data makes one per actor, and calls it with
    blocks."""

    def __init__(self, job: Any, folder: str):
        job = _fetched(job)
        os.chdir(folder)  # relative paths mean there what they mean here
        prefetch.use_at_most(CPUS)
        self._job, self._compute = job, None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """{"block": n pickled (number, block)} -> {"result": n pickled (number, result,
        problem)}"""
        return {"result": [pickle.dumps(self._one(*pickle.loads(row))) for row in batch["block"]]}

    def _one(self, number, block):
        try:
            if self._compute is None:
                self._compute = self._job.start()
            return number, self._compute(block), None
        except GraftError as error:
            return number, None, error
        except Exception as error:  # Ray would try again what fails again
            told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return number, None, GraftError(f"ray: a worker failed: {told}")


def differences(mine: list[str], theirs: list[str]) -> str:
    """What a machine has instead of what is wanted, in words; "" where nothing differs."""
    if mine == theirs:
        return ""
    return (
        f"it has {', '.join(sorted(set(theirs) - set(mine)))}; wanted "
        f"{', '.join(sorted(set(mine) - set(theirs)))}"
    )


def look(job: Any, folder: str) -> tuple[list[str], str]:
    """(identity, "") of a job on this machine, or ([], why it cannot be done here)."""
    try:
        if not Path(folder).is_dir():
            return [], f"it does not see {folder}, which must be a folder that all machines share"
        return _fetched(job).identity(), ""
    except Exception as error:  # a package that is missing, or too old for the job to be read
        return [], f"{type(error).__name__}: {error}"


class Cluster:
    """A connection; see `connect`."""

    def __init__(self) -> None:
        self._named: set[tuple[str, str]] = set()

    def run(self, job: Job, blocks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """(block, result) of each of `blocks`, in their order. At most WINDOW of them are out at a
        time.

        Raises GraftError where no machine suits the job, where a block cannot be computed, and
        where workers bring nothing back any more.
        """
        import ray

        sent = ray.put(job)
        blocks = iter(blocks)
        while window := list(islice(blocks, WINDOW)):
            results: dict[int, Any] = {}
            given = 0
            while given < len(window):
                left = [number for number in range(given, len(window)) if number not in results]
                came = False
                for number, result in self._round(
                    sent, job, [(number, window[number]) for number in left]
                ):
                    results[number], came = result, True
                    while given in results:
                        yield window[given], results.pop(given)
                        given += 1
                if not came:
                    raise GraftError(
                        "ray: the workers bring nothing back; `ray status` and the logs of the "
                        "cluster say more"
                    )

    def _round(self, sent, job, blocks):
        """(number, result) of blocks, as they come; of all but those that were lost."""
        import ray

        nodes, cpus = self._suitable(sent, job)
        workers = max(1, min(cpus // CPUS, len(blocks)))
        data = ray.data.from_items(
            [{"block": pickle.dumps(each)} for each in blocks], override_num_blocks=len(blocks)
        )
        done = data.map_batches(
            Worker,
            fn_constructor_args=(sent, str(Path.cwd())),
            batch_size=1,
            num_cpus=CPUS,
            compute=ray.data.ActorPoolStrategy(size=workers),
            label_selector={"ray.io/node-id": f"in({','.join(nodes)})"},
        )
        try:
            rows = iter(done.iter_rows())
            while row := _quietly(lambda: next(rows, None)):
                number, result, problem = pickle.loads(row["result"])
                if problem is not None:
                    raise problem
                yield number, result
        except ray.exceptions.RayError as error:
            warn(f"ray: {type(error).__name__}; blocks that are lost are computed again")

    def _suitable(self, sent, job):
        """(ids, processors) of the machines that compute what this one would. The others are named,
        once."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        mine, folder = job.identity(), str(Path.cwd())
        nodes = {
            node["NodeID"]: node
            for node in ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU")
        }
        probe = ray.remote(num_cpus=0, max_retries=1)(look)
        asked = {
            name: probe.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False)
            ).remote(sent, folder)
            for name in nodes
        }
        suitable = []
        for name, answer in asked.items():
            try:
                theirs, why = ray.get(answer)
            except ray.exceptions.RayError as error:
                theirs, why = [], type(error).__name__
            if why := why or differences(mine, theirs):
                self._name(nodes[name]["NodeManagerAddress"], why)
            else:
                suitable.append(name)
        if not suitable:
            raise GraftError(
                "ray: no machine of the cluster computes what this one would; the warnings say why"
            )
        return suitable, int(sum(nodes[name]["Resources"]["CPU"] for name in suitable))

    def _name(self, address, why):
        if (address, why) not in self._named:
            warn(f"ray: {address} takes no block: {why}")
        self._named.add((address, why))


@contextlib.contextmanager
def connect() -> Iterator[Cluster]:
    """The cluster at `$RAY_ADDRESS`, or one of this machine that ends with the block. Raises
    GraftError where there is none."""
    address = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with contextlib.ExitStack() as stack:
        options = {} if address else stack.enter_context(_of_this_machine())
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise GraftError(
                f"ray: needs the package {error.name}: pip install 'graft-vision[ray]'"
            ) from None
        if not ray.is_initialized():
            # A worker's graft is this one, whatever is installed.
            code = {"py_modules": [str(Path(__file__).parents[1])]}
            options |= {"runtime_env": code, "log_to_driver": False, "logging_level": logging.ERROR}
            _check(address)
            try:
                _quietly(lambda: ray.init(address, **options))
            except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise GraftError(
                    f"ray: {address or 'this machine'} gives no cluster: "
                    f"{' '.join(str(error).split())[:300]}"
                ) from None
            stack.callback(ray.shutdown)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        log(
            f"ray: {int(ray.cluster_resources().get('CPU', 0))} processors at "
            f"{address or 'this machine'}"
        )
        yield Cluster()


@contextlib.contextmanager
def _of_this_machine():
    """Options of ray.init for a cluster that nobody else reaches, and that leaves nothing
    behind."""
    # So it is called: servers on 127.0.0.1 alone, Linux too.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # Ray reads its token when it is imported.
    if "ray" not in sys.modules and not {
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
    } & set(os.environ):
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    # Addresses of sockets are 107 bytes long at most.
    folder = tempfile.mkdtemp(prefix="graft-ray-", dir="/tmp")
    try:
        yield {
            "num_cpus": prefetch.processors(),
            "include_dashboard": False,
            "object_store_memory": STORE,
            "_temp_dir": folder,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check(address):
    """Ray itself tries an address at which nobody listens for minutes."""
    host, found, port = (address or "").rpartition(":")
    if found and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise GraftError(
                f"ray: {address}: {error.strerror or error}; RAY_ADDRESS says where the cluster is"
            ) from None


def _quietly(call):
    """What `call` returns; what Ray's libraries say meanwhile is shown where it fails."""
    with silence():
        return call()


def _fetched(job):
    """The job itself: what is handed on as a reference may come as one."""
    import ray

    return ray.get(job) if isinstance(job, ray.ObjectRef) else job
