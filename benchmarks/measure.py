"""One command in a process of its own, measured from outside: wall time, processor time, memory,
and when it printed what."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.5
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere


@dataclass(frozen=True)
class Measured:
    """seconds: wall time from start to end of the command. cpu_seconds: user and system time of its
    whole tree of processes. largest_mib: peak resident memory of the largest process of the tree,
    as the kernel accounts it. This counts pages of mapped
        files, which the kernel takes back whenever it wants.
    anonymous_mib: the same without files (sampled; None where there is no /proc).
    tree_mib: resident memory of all processes together (sampled); pages that a fork shares with its
    parent count twice. All of them cover graft's fork server and the stages that it runs, which no
    longer descend from the command; theirs are sampled, so that up to half a second of a process
    that ends is missed.
    lines: (seconds since the start, text) of what it printed.
    """

    status: int
    seconds: float
    cpu_seconds: float
    largest_mib: float
    anonymous_mib: float | None
    tree_mib: float
    lines: tuple

    def facts(self):
        return {
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "largest_mib": round(self.largest_mib),
            "anonymous_mib": None if self.anonymous_mib is None else round(self.anonymous_mib),
            "tree_mib": round(self.tree_mib),
        }

    def when(self, start):
        """Seconds from the start of the command to its first line that begins with `start`; None if
        there is none."""
        return next((at for at, text in self.lines if text.startswith(start)), None)


def run(command, *, cwd, env, log):
    """Run `command` (a list) and wait for it. What it prints goes to the file `log`, each line with
    its time."""
    lines, samples = [], {"anonymous": None, "tree": 0.0, "largest": 0.0, "cpu": {}}
    before = {process.pid: _cpu_seconds(process) for process in servers(cwd)}
    done = threading.Event()
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )

    def read():
        with Path(log).open("w", encoding="utf-8") as file:
            for raw in process.stdout:
                at, text = time.monotonic() - started, raw.decode("utf-8", "replace").rstrip()
                lines.append((at, text))
                file.write(f"{at:9.2f}  {text}\n")
                file.flush()

    threads = [
        threading.Thread(target=read, daemon=True),
        threading.Thread(target=_sample, args=(process.pid, cwd, samples, done)),
    ]
    for thread in threads:
        thread.start()
    try:
        # wait4 and not wait: it brings the usage of this very child, descendants that it waited for
        # included. A child starts with its parent's peak as its own (fork), so whoever calls this
        # must be small: no TensorFlow in this process.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        done.set()
        if process.returncode is None:  # this benchmark itself is being ended
            _end(process.pid)
    threads[1].join()
    threads[0].join(timeout=5)  # a daemon that outlives the command would hold the pipe
    return Measured(
        status=process.returncode,
        seconds=seconds,
        cpu_seconds=usage.ru_utime
        + usage.ru_stime
        + sum(cpu - before.get(pid, 0.0) for pid, cpu in samples["cpu"].items()),
        largest_mib=max(usage.ru_maxrss * MAXRSS_UNIT / 2**20, samples["largest"]),
        anonymous_mib=samples["anonymous"],
        tree_mib=samples["tree"],
        lines=tuple(lines),
    )


def servers(folder):
    """The fork server of the clone in `folder` and the stages that it runs, as psutil's
    processes."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()  # a fork has the command line of its parent
            if "graft.forkserver.server" in command and command[-1] == str(Path(folder).resolve()):
                found.append(process)
    return found


def _cpu_seconds(process):
    import psutil

    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def _sample(pid, folder, samples, done):
    import psutil

    while not done.wait(SAMPLE_SECONDS):
        try:
            root = psutil.Process(pid)
            family = [root, *root.children(recursive=True)]
        except psutil.Error:
            return
        serving = servers(folder)
        for process in serving:
            samples["cpu"][process.pid] = _cpu_seconds(process)
        total = 0.0
        for member in [*family, *serving]:
            try:
                resident = member.memory_info().rss / 2**20
                anonymous = _anonymous_mib(member.pid)
            except (psutil.Error, OSError):  # it has just ended
                continue
            total += resident
            samples["largest"] = max(samples["largest"], resident)
            if anonymous is not None:
                samples["anonymous"] = max(samples["anonymous"] or 0.0, anonymous)
        samples["tree"] = max(samples["tree"], total)


def _end(pid):
    import psutil

    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for member in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                member.terminate()


def _anonymous_mib(pid):
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return None
    for line in status.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return None
