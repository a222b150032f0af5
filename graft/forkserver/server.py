"""The fork server of one `dvc`: imports the heavy packages once, forks for each stage, and ends
with its `dvc`.

    python -m graft.forkserver.server PID START_TIME ROOT

PID and START_TIME are the `dvc`'s, ROOT is its clone.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import itertools
import json
import os
import resource
import runpy
import select
import selectors
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping

from graft.forkserver import client
from graft.system import environment

PACKAGES = (
    "tensorflow",
    "keras.layers",
    "scipy.stats",
    "scipy.optimize",
    "sklearn.metrics",
    "matplotlib.pyplot",
    "mlflow",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "PIL.Image",
    "jinja2",
    "pydantic",
    "ruamel.yaml",
)
# What packages read when they are imported: a stage with other values of these is not for this
# server.
READ_AT_IMPORT = (
    "PYTHON",
    "TF_",
    "KERAS",
    "XLA_",
    "CUDA",
    "OMP_",
    "OPENBLAS",
    "MKL_",
    "MPL",
    "MLFLOW_",
    "LD_",
    "LANG",
    "LC_",
)
# Packages that are forgotten before each stage: its code is that of its folder, as it is then.
OWN = ("graft", "stages")
PATIENCE = 10  # seconds that the rest of a task may take to come
GRACE = 10  # seconds between SIGTERM and SIGKILL for a stage that nobody waits for any more


def serve(dvc: tuple[int, int]) -> dict | None:
    """Import the packages, then fork for every stage that asks, until the `dvc` (process id, start
    time) is gone.

    Returns None at the server's end; in a fork, the task to be carried out: the fork unwinds to
    where a process begins.
    """
    folder = client.server_folder(dvc)
    _sweep(folder.parent)
    started_with = at_import(os.environ)
    try:
        watched = os.pidfd_open(dvc[0])
        # Who can enter can run stages; of two servers, the second fails here.
        folder.mkdir(mode=0o700, parents=True)
    except (AttributeError, OSError):  # no such process, or a system that cannot
        return None
    with contextlib.ExitStack() as leaving, socket.socket(socket.AF_UNIX) as listener:
        leaving.callback(shutil.rmtree, folder, ignore_errors=True)
        with client.short_path(folder) as place:
            listener.bind(f"{place}/socket")
        # Before the imports: a stage that comes meanwhile waits less long than for imports of its
        # own.
        listener.listen()
        import_packages()
        os.chdir("/")
        gpu = _has_gpu()
        task = _loop(listener, watched, started_with) if not gpu and _alive(*dvc) else None
        # With a GPU the folder stays, so that no other server tries; else it is not the fork's.
        if gpu or task is not None:
            leaving.pop_all()
    return task


def at_import(variables: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in variables.items() if key.startswith(READ_AT_IMPORT)}


def _alive(pid, started):
    """Whether the process that had the number `pid` since `started` still has it."""
    try:
        return client.process_times(int(pid))[1] == int(started)
    except OSError:
        return False


def _sweep(folder):
    """Remove what servers left that were killed."""
    for old in folder.glob("*-*-*"):
        if not _alive(*old.name.split("-")[:2]):
            shutil.rmtree(old, ignore_errors=True)


def import_packages() -> None:
    environment.set_tensorflow_environment()
    environment.quiet_mlflow()
    gc.disable()  # a collection finds next to nothing in modules: a tenth of the time
    for name in PACKAGES:
        # Whatever it is, the stage that needs the package will say it.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.enable()
    gc.freeze()  # nor need every fork look through them again


def _has_gpu():
    """Whether TensorFlow finds a GPU; asked in a fork, since the question initialises the
    driver."""
    pid = os.fork()
    if pid == 0:
        try:
            tensorflow = sys.modules.get("tensorflow")
            os._exit(bool(tensorflow and tensorflow.config.list_physical_devices("GPU")))
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] != 0


def _loop(listener, watched, started_with):
    """Fork for whoever connects, and report how each fork ended. Returns a task in a fork, None
    when the dvc has ended."""
    stages = set()
    with selectors.DefaultSelector() as waiting:
        waiting.register(watched, selectors.EVENT_READ)
        waiting.register(listener, selectors.EVENT_READ)
        for key, _ in itertools.chain.from_iterable(iter(waiting.select, None)):
            if key.fileobj == watched:
                break
            if key.fileobj is listener:
                stage = _fork(listener.accept()[0], started_with)
                if isinstance(stage, dict):
                    return stage
                if stage is not None:
                    stages.add(stage)
                    waiting.register(stage.descriptor, selectors.EVENT_READ, stage)
                    waiting.register(stage.connection, selectors.EVENT_READ, stage)
            elif key.data in stages:  # else it ended in this very round
                stages.remove(key.data)
                waiting.unregister(key.data.descriptor)
                waiting.unregister(key.data.connection)
                key.data.end(alone=key.fileobj is key.data.connection)
    # A dvc that ends before its stage was killed: the next one runs that stage again, on the same
    # files.
    for stage in stages:
        stage.end(alone=True, grace=0)
    return None


class _Stage:
    """One fork that runs a stage: its process id, a descriptor that becomes readable when it ends,
    who waits for it."""

    def __init__(self, pid, connection):
        self.pid, self.connection, self.descriptor = pid, connection, os.pidfd_open(pid)

    def end(self, *, alone, grace=GRACE):
        """Report its status. alone: nobody waits for it any more; it gets SIGTERM, after `grace`
        seconds SIGKILL."""
        if alone:
            os.kill(self.pid, signal.SIGTERM)
            if not select.select([self.descriptor], [], [], grace)[0]:
                os.kill(self.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.descriptor)
        with self.connection, contextlib.suppress(OSError):
            self.connection.sendall(b"%d\n" % status)


def _fork(connection, started_with):
    """Receive a task and fork. Returns the _Stage; in the fork, the task; None if it is not for
    this server."""
    server, pid, streams = os.getpid(), -1, []
    connection.settimeout(PATIENCE)
    # Whoever asked has hung up, or is too slow: it runs the stage itself.
    with contextlib.suppress(OSError, ValueError):
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("rb") as lines:
            task = json.loads(lines.readline())
        if at_import(task["environment"]) == started_with:
            connection.settimeout(None)
            pid = os.fork()
    if pid == 0:
        _become(task, streams, server)
        with contextlib.suppress(OSError):  # gone already: the loop sees its end
            connection.sendall(b"+%d\n" % os.getpid())
    for descriptor in streams:
        os.close(descriptor)
    if pid > 0:
        return _Stage(pid, connection)
    connection.close()
    return task if pid == 0 else None


def _become(task, streams, server):
    """Take on streams, limits, priority, processors and folder of the process that asked; end where
    this user may not."""
    ctypes.CDLL(None).prctl(client.PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        if os.getppid() != server:
            raise ProcessLookupError("the server has ended")
        os.setpriority(os.PRIO_PROCESS, 0, task["nice"])
        for name, limit in task["limits"].items():
            resource.setrlimit(getattr(resource, name), tuple(limit))
        os.sched_setaffinity(0, task["processors"])
        os.umask(task["umask"])
        os.chdir(task["folder"])
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
    except (OSError, ValueError):
        os._exit(1)  # nothing is lost: whoever asked runs the stage itself


def carry_out(task: dict) -> None:
    """Be the process that the task describes, and run its stage."""
    os.environ.clear()
    os.environ.update(task["environment"] | {client.FORKED: "1"})
    sys.argv = task["arguments"]
    sys.path[0] = task["folder"]
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
        del sys.modules[name]
    importlib.invalidate_caches()
    sys.stdin = os.fdopen(0)
    sys.stdout = os.fdopen(
        1, "w", buffering=1 if os.isatty(1) or os.environ.get("PYTHONUNBUFFERED") else -1
    )
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    time.tzset()
    runpy.run_module(task["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    todo = serve((int(sys.argv[1]), int(sys.argv[2])))
    if todo is not None:
        carry_out(todo)
