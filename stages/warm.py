"""A helper process that holds the heavy packages, imported once, and forks itself for each stage.

TensorFlow, MLflow and scikit-learn take 15 to 25 seconds of one processor to import, and DVC starts every stage as a process of
its own: most of an experiment on a few hundred photos would be imports. So the first stage that runs starts a helper beside
itself, which imports the packages on a processor that the imports leave idle. Each later stage hands it working folder,
environment, arguments and standard streams, and runs in a fork of it: as before a process of its own, with the code of its own
folder, the same result and the same exit status, but with nothing to import.

The helper ends when it has had nothing to do for `IDLE_SECONDS`, or when its clone is gone. `GRAFT_WARM=0` does without. So do
machines where a fork is not safe or not known to be: other systems than Linux, and hosts with an NVIDIA driver.
"""

import contextlib
import gc
import hashlib
import importlib
import json
import os
import selectors
import signal
import socket
import stat
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from stages import console, paths

IDLE_SECONDS = 600
CHECK_SECONDS = 2  # between looks at whether the clone is still there
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
    "ruamel.yaml",
)
# What packages read when they are imported: with other values of these, a stage needs a helper of its own.
READ_AT_IMPORT = ("PYTHON", "TF_", "KERAS", "XLA_", "CUDA", "OMP_", "OPENBLAS", "MKL_", "MPL", "MLFLOW_", "LD_", "LANG", "LC_")
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(module, main):
    """Run `main` of the stage `module` ("stages.evaluate"): in a fork of the helper where there is one, else here.

    Where there is none, one is started for the stages to come. Ends the process with the stage's exit status if a fork ran it.
    """
    if not usable():
        return main()
    address = _address()
    connection = _connect(address)
    if connection is None:
        _start(address)
        return main()
    with connection:
        if _hand_over(connection, module):
            _follow(connection)
    return main()


def usable():
    return (
        os.environ.get("GRAFT_WARM", "1") != "0"
        and sys.platform == "linux"
        and hasattr(os, "pidfd_open")
        and len(os.sched_getaffinity(0)) > 1  # with one processor its imports would hold up the stage that starts it
        and not Path("/dev/nvidiactl").exists()
    )


# -- the stage's side ----------------------------------------------------------------------------------------------------------


def _address():
    """Path of the helper's socket: another one for another clone, interpreter, set of packages, or environment.

    Not inside the clone, since a socket's path may have 107 bytes at most; in a folder that only this user can enter, since
    who can connect can run stages.
    """
    folder = Path(tempfile.gettempdir()) / f"graft-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    packages = Path(sysconfig.get_paths()["purelib"])  # its time changes with every installation
    facts = [
        str(paths.root().resolve()),
        sys.executable,
        packages.stat().st_mtime_ns,
        Path(__file__).read_text(encoding="utf-8"),
        sorted((key, value) for key, value in os.environ.items() if key.startswith(READ_AT_IMPORT)),
    ]
    return folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.sock"


def _connect(address):
    """A connection to the helper, or None if there is none, or none to be trusted."""
    folder = address.parent.lstat()
    if not stat.S_ISDIR(folder.st_mode) or folder.st_uid != os.getuid() or folder.st_mode & 0o077:
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(address))
    except OSError:
        connection.close()
        return None
    return connection


def _start(address):
    """Start a helper in a session of its own: Ctrl-C in this terminal must not end it, nor its output appear there."""
    subprocess.Popen(
        [sys.executable, "-m", "stages.warm", str(address), str(paths.root().resolve())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _hand_over(connection, module):
    """Send what a process is made of. Returns whether the helper has forked."""
    task = {
        "module": module,
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
        "arguments": sys.argv,
        "umask": _umask(),
        "processors": sorted(os.sched_getaffinity(0)),
    }
    text = json.dumps(task).encode()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        socket.send_fds(connection, [struct.pack("!Q", len(text))], [0, 1, 2])
        connection.sendall(text)
        return _receive(connection, 1) == b"+"
    except OSError:
        return False


def _follow(connection):
    """Pass signals on to the fork, and end as it ends."""
    (child,) = struct.unpack("!q", _receive(connection, 8) or struct.pack("!q", 0))

    def forward(number, _frame):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    if child:
        for number in FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, forward)
    ended = _receive(connection, 4)
    if ended is None:
        print("error: the helper process ended before the stage; try again, or set GRAFT_WARM=0", file=sys.stderr, flush=True)
        sys.exit(1)
    (status,) = struct.unpack("!i", ended)
    if status < 0:  # the fork was ended by a signal: so is this process, for whoever waits for it
        with contextlib.suppress(OSError):  # SIGKILL has no handler to be reset
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _receive(connection, size):
    """Exactly `size` bytes, or None if the other side hung up first."""
    data = b""
    while len(data) < size:
        try:
            part = connection.recv(size - len(data))
        except ConnectionError:
            return None
        if not part:
            return None
        data += part
    return data


# -- the helper's side ---------------------------------------------------------------------------------------------------------


def serve(address, root):
    """Import the packages, then fork for every stage that asks.

    Returns None at the helper's end; in a fork, the task to be carried out: the fork unwinds to where a process begins.
    """
    import fcntl

    with address.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return None  # another one serves, or is about to
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as waiting:
            listener.bind(str(address))
            listener.listen()  # before the imports: a stage that comes meanwhile waits less long than for imports of its own
            _import_packages()
            os.chdir("/")
            waiting.register(listener, selectors.EVENT_READ)
            task = _loop(listener, waiting, root)
        if task is None:
            address.unlink(missing_ok=True)
        return task


def _import_packages():
    from stages.tracking import store

    console.prepare_tensorflow()
    store.quiet_mlflow()
    gc.disable()  # a collection finds next to nothing in modules: a tenth of the time
    for name in PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.enable()
    gc.freeze()  # nor need every fork look through them again


def _loop(listener, waiting, root):
    """Fork for whoever connects, and report how each fork ended. Returns a task in a fork, None when it is time to end."""
    stages, last = set(), time.monotonic()
    while stages or (time.monotonic() - last < IDLE_SECONDS and Path(root, "dvc.yaml").exists()):
        for key, _ in waiting.select(CHECK_SECONDS):
            last = time.monotonic()
            if key.fileobj is listener:
                connection, _ = listener.accept()
                stage = _fork(connection)
                if isinstance(stage, dict):
                    return stage
                if stage:
                    stages.add(stage)
                    waiting.register(stage.descriptor, selectors.EVENT_READ, stage)
                    waiting.register(connection, selectors.EVENT_READ, stage)
            elif key.data not in stages:  # it ended in this very round
                continue
            elif key.fileobj is key.data.connection:  # whoever waits for the stage was killed: then so is the stage
                waiting.unregister(key.fileobj)
                os.kill(key.data.pid, signal.SIGTERM)
            else:
                stages.remove(key.data)
                waiting.unregister(key.data.descriptor)
                with contextlib.suppress(KeyError):
                    waiting.unregister(key.data.connection)
                key.data.report()
    return None


class _Stage:
    """One fork that runs a stage: its process id, a descriptor that becomes readable when it ends, who waits for it."""

    def __init__(self, pid, connection):
        self.pid, self.connection, self.descriptor = pid, connection, os.pidfd_open(pid)

    def report(self):
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.descriptor)
        with self.connection, contextlib.suppress(OSError):
            self.connection.sendall(struct.pack("!i", status))


def _fork(connection):
    """Receive a task and fork. Returns the _Stage; in the fork, the task; None if the other side hung up."""
    connection.settimeout(10)
    try:
        size, streams, _, _ = socket.recv_fds(connection, 8, 3)
        text = _receive(connection, struct.unpack("!Q", size)[0])
        task = json.loads(text)
    except (OSError, struct.error, TypeError, ValueError):
        connection.close()
        return None
    connection.settimeout(None)
    pid = os.fork()
    if pid:
        for descriptor in streams:
            os.close(descriptor)
        with contextlib.suppress(OSError):  # gone already: its end is seen by the loop
            connection.sendall(b"+" + struct.pack("!q", pid))
        return _Stage(pid, connection)
    for target, descriptor in enumerate(streams):
        os.dup2(descriptor, target)
        os.close(descriptor)
    return task


def carry_out(task):
    """Become the process that the task describes, and run its stage."""
    os.environ.clear()
    os.environ.update(task["environment"])
    os.chdir(task["folder"])
    os.umask(task["umask"])
    os.sched_setaffinity(0, task["processors"])
    sys.argv = task["arguments"]
    sys.path[0] = task["folder"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "stages"]:
        del sys.modules[name]  # the code is that of the task's folder, as it is now
    importlib.invalidate_caches()
    sys.stdin = os.fdopen(0)
    sys.stdout = os.fdopen(1, "w", buffering=1 if os.isatty(1) or os.environ.get("PYTHONUNBUFFERED") else -1)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    time.tzset()
    importlib.import_module(task["module"]).main()


if __name__ == "__main__":
    todo = serve(Path(sys.argv[1]), sys.argv[2])
    if todo is not None:
        carry_out(todo)
