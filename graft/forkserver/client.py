"""The stage's side of the fork server: find the server of this `dvc`, start one where there is
none, hand the stage over.

TensorFlow, MLflow and scikit-learn take 15 to 25 seconds of one processor to import, and DVC starts
every stage as a process of its own: most of an experiment on a few hundred photos would be imports.
So the first stage that runs under a `dvc` starts a server beside itself, which imports the packages
on a processor that the stage leaves idle. Each later stage of the same `dvc` hands it working
folder, environment, arguments, limits and standard streams, and runs in a fork of it: as before a
process of its own, with the code of its own folder as it is then, the same result and the same exit
status, but with nothing to import.

The server belongs to one `dvc` and ends with it; in a search of many experiments to the command
that makes them (LENT), since a trial is often one stage, which would import everything itself and
for a server too. Without a `dvc` among the ancestors (a stage run by hand), under a debugger, with
one processor, on other systems than Linux, and with `GRAFT_FORKSERVER=0`, there is no server. Nor
is there one with a GPU: a fork after the driver has been initialised is not safe.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from graft.system import files, paths

SWITCH = "GRAFT_FORKSERVER"  # 0: no server
# Process id and start time of a command whose server is for all `dvc` that it starts.
LENT = "GRAFT_FORKSERVER_OF"
FORKED = "GRAFT_FORKED"  # set in a fork: the stage shall run here
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1
LIMITS = tuple(sorted(name for name in dir(resource) if name.startswith("RLIMIT_")))


def run(module: str, main: Callable[[], None]) -> None:
    """Run `main` of the stage `module` ("stages.evaluate"): in a fork of the server where there is
    one, else here.

    Where there is none, one is started for the stages to come. Ends the process with the stage's
    exit status if a fork ran it.
    """
    forked = os.environ.pop(FORKED, None)
    dvc = owner() if not forked and usable() else None
    if dvc is not None:
        folder = server_folder(dvc)
        connection = _connect(folder)
        if connection is None:
            _start(dvc)
        else:
            with connection, connection.makefile("rb") as answers:
                _hand_over(connection, answers, module)
    if not forked and sys.platform == "linux":
        _end_with(owner())
    main()


def _end_with(dvc):
    """End where `dvc` has been killed: the next one runs this stage again, on the same files."""
    parent = os.getppid()
    if dvc is not None and dvc[0] == parent:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)


def usable() -> bool:
    """Whether this process may be given to a server, whatever its ancestors are."""
    return (
        os.environ.get(SWITCH, "1") != "0"
        and sys.platform == "linux"
        # With one processor its imports would hold up the stage that starts it.
        and len(os.sched_getaffinity(0)) > 1
        and sys.gettrace() is None
    )


def owner() -> tuple[int, int] | None:
    """(process id, start time in clock ticks) of the ancestor whose server this process may use:
    the one that LENT names, if it made the nearest `dvc`, else that; None without a `dvc`."""
    pid, dvc, lent = os.getppid(), None, os.environ.get(LENT)
    with contextlib.suppress(OSError):
        while pid > 1:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:3]
            names = [Path(os.fsdecode(word)).name for word in words]
            parent, started = process_times(pid)
            if dvc is not None and lent == f"{pid} {started}":
                return pid, started
            if dvc is None and ("dvc" in names[:2] or names[1:] == ["-m", "dvc"]):
                dvc = pid, started
                if lent is None:
                    break
            pid = parent
    return dvc


def lend() -> dict[str, str]:
    """Environment for many `dvc` one after the other, whose stages shall use one server; it ends
    with this process."""
    try:
        return {LENT: f"{os.getpid()} {process_times(os.getpid())[1]}"}
    except OSError:  # no /proc, no server
        return {}


def process_times(pid: int) -> tuple[int, int]:
    """(parent's process id, start time in clock ticks) of a process. Raises OSError where there is
    none."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1]), int(fields[19])


def server_folder(dvc: tuple[int, int]) -> Path:
    """Where the server of this `dvc` has its socket: inside the clone, for this user and this form
    of its code alone."""
    here = Path(__file__)
    code = files.sha256_of(here, here.with_name("server.py"))[:8]
    return (
        paths.root().resolve() / ".dvc" / "tmp" / "graft-forkserver" / f"{dvc[0]}-{dvc[1]}-{code}"
    )


@contextlib.contextmanager
def short_path(folder: Path) -> Iterator[str]:
    """A path to `folder` of a few characters while the block runs: a socket's address has room for
    107 bytes."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def _connect(folder):
    """A connection to the server, or None if there is none, or none of this user's."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        with short_path(folder) as place:
            status = Path(place).stat()
            if status.st_uid == os.getuid() and not status.st_mode & 0o077:
                connection.connect(f"{place}/socket")
                return connection
    except OSError:
        pass
    connection.close()
    return None


def _start(dvc):
    """Start a server in a session of its own: Ctrl-C in this terminal must not end it, nor its
    output appear there."""
    nothing = subprocess.DEVNULL
    command = [
        sys.executable,
        "-m",
        "graft.forkserver.server",
        *map(str, dvc),
        str(paths.root().resolve()),
    ]
    subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)


def _hand_over(connection, answers, module):
    """Send what a process is made of. Returns if no fork has taken it on; else ends as the fork
    ends."""
    task = {
        "module": module,
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
        "arguments": sys.argv,
        "umask": _umask(),
        "processors": sorted(os.sched_getaffinity(0)),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in LIMITS},
    }
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):
        socket.send_fds(connection, [b"\n"], [0, 1, 2])
        connection.sendall(json.dumps(task).encode() + b"\n")
    started = _line(answers)
    if started.startswith(b"+"):
        _follow(int(started), answers)


def _follow(child, answers):
    """Pass signals on to the fork `child`, and end as it ends."""

    def forward(number, _frame):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, forward)
    ended = _line(answers)
    if not ended:  # its forks have ended with it: nobody else writes to the stage's folder now
        print(
            f"error: the fork server ended before the stage; try again, or set {SWITCH}=0",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(1)
    status = int(ended)
    if status < 0:  # the fork was ended by a signal: so is this process, for whoever waits for it
        with contextlib.suppress(OSError):  # SIGKILL has no handler to be reset
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def _line(answers):
    """The server's next line; empty if it has hung up."""
    try:
        return answers.readline()
    except OSError:
        return b""


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
