"""Killed at any moment: `dvc repro`, its processes killed at random ones, and started again. The
same bytes?

    python benchmarks/kills.py [--kills 20] [--seed 0] [--source REPOSITORY] [--into FOLDER]

First an undisturbed run in a fresh clone says how long it takes and what comes out. Then, in fresh
clones, up to four kills each: at a moment drawn evenly from that time one of the processes that run
then gets SIGKILL (every fifth time all of them SIGINT, as from Ctrl-C; about half of the clones
have no fork server), and `dvc repro` is started again at once, to be killed again or to end.
Afterwards: the last start got through, with the same outputs and dvc.lock, no process left, every
SQLite file whole, every row of the feature cache as it was written, no run of MLflow that runs for
ever, no version registered twice, and no file left beside those of the undisturbed run.

Prints a line per kill, and a line per clone with what its kills cost: stages that were begun again,
and seconds beyond the undisturbed run's. Ends with 1 where one of them is not as it should be; its
clone stays then.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
# An environment variable by which the processes of a run are found, whoever their parent is.
MARK = "GRAFT_KILLS"
EACH = 4  # kills of one clone, at most
ATTEMPTS = 3  # after the last kill, of which the first should get through
LINGER = 30  # seconds that processes may take to end after their dvc
# Folders in which a killed process may leave something.
WHERE = (".cache", ".dvc/tmp", "data", "mlruns")
ARE_MANY = (".seg", "/artifacts/")  # of such names there are others in each run


@dataclass
class Run:
    """A clone, and what `dvc repro` in it did: `attempts`, each (exit status, output); `kills`;
    `seconds` in all; how often DVC's own lock file was `mended`."""

    clone: Path
    attempts: list[tuple[int, str]] = field(default_factory=list)
    kills: int = 0
    seconds: float = 0.0
    mended: int = 0

    def begun(self, attempt: int) -> list[str]:
        """The stages that an attempt began."""
        lines = self.attempts[attempt][1].splitlines()
        return [line.split("'")[1] for line in lines if line.startswith("Running stage")]

    def again(self) -> list[str]:
        """Stages that were begun more than once, and how often: `split x 2`."""
        begun = [name for attempt in range(len(self.attempts)) for name in self.begun(attempt)]
        return [
            f"{name} x {begun.count(name)}"
            for name in dict.fromkeys(begun)
            if begun.count(name) > 1
        ]


def fresh(source: Path, folder: Path) -> Run:
    """A clone of `source` in `folder`, with a folder for temporary files beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", source, folder / "clone"], check=True)
    (folder / "tmp").mkdir()
    return Run(folder / "clone")


def repro(run: Run, *, forkserver: bool = True, strike=None) -> int:
    """`dvc repro` in the clone; returns its status. strike: called with its process meanwhile."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "GRAFT_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {
        "PATH": path,
        "PYTHONPATH": str(run.clone),
        "TMPDIR": str(run.clone.parent / "tmp"),
        MARK: str(run.clone),
    }
    own["GRAFT_FORKSERVER"] = str(int(forkserver))
    started = time.monotonic()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro"],
            cwd=run.clone,
            env=kept | own,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_interruptible,
        )
        if strike is not None:
            strike(process)
        status = process.wait()
        out.seek(0)
        run.attempts.append((status, out.read().decode(errors="replace")))
    run.seconds += time.monotonic() - started
    return status


def _interruptible():
    """What a shell starts in the background ignores SIGINT, and so does all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def alive(run: Run) -> list[psutil.Process]:
    """The processes of the run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                process.environ().get(MARK) == str(run.clone)
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
    return found


def name(process: psutil.Process) -> str:
    """Who that is, for a person."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        return (
            "dvc"
            if words[1:3] == ["-m", "dvc"]
            else " ".join(w for w in words if not w.startswith("/"))[:60]
        )
    return "?"


def striking(run: Run, rng: random.Random, after: float, *, interrupt: bool):
    """What `repro` calls: wait `after` seconds, then kill one of the run's processes, or interrupt
    all in its terminal."""

    def strike(process):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
            return  # it was through before
        victims = sorted(alive(run), key=lambda p: p.pid)
        victim = rng.choice(victims)
        who = "all, by SIGINT" if interrupt else name(victim)
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if interrupt:
                os.killpg(process.pid, signal.SIGINT)
            else:
                victim.kill()
        run.kills += 1
        print(f"kills: at {after:.1f} s {who}, of {len(victims)} processes", flush=True)

    return strike


def outputs(clone: Path) -> dict[str, bytes]:
    """{path: content} of dvc.lock and of every file below data/ that git does not hold."""
    ours = subprocess.run(
        ["git", "ls-files", "-z"], cwd=clone, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    made = {
        p.relative_to(clone).as_posix(): p
        for p in [clone / "dvc.lock", *(clone / "data").rglob("*")]
        if p.is_file()
    }
    metrics = {path for path in made if path.endswith("metrics.json")}
    return {
        path: file.read_bytes()
        for path, file in made.items()
        if path == "dvc.lock" or path in metrics or path not in ours
    }


def damaged(clone: Path) -> list[str]:
    """SQLite files that are not whole, and segments of the feature cache with a row that is not
    what was written."""
    from graft.features.cache import INDEX, _checksum

    found = []
    for file in [
        *(clone / "mlruns").glob("*.db"),
        *(p for p in (clone / ".cache").rglob("*") if is_sqlite(p)),
    ]:
        with contextlib.closing(sqlite3.connect(file)) as database:
            if database.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                found.append(f"{file.name} is damaged")
    for file in (clone / ".cache").rglob("*.seg"):
        content = file.read_bytes()
        count = 0
        while (
            content[count * INDEX.itemsize :][:64].isalnum()
            and len(content) > (count + 1) * INDEX.itemsize
        ):
            count += 1
        index = np.frombuffer(content, INDEX, count)
        rows = np.frombuffer(content, np.uint8, offset=index.nbytes).reshape(count, -1)
        if any(_checksum(sha, row) != checksum for (sha, checksum), row in zip(index, rows)):
            found.append(f"{file.name} has a damaged row")
    return found


def is_sqlite(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(15) == b"SQLite format 3"


def record(clone: Path) -> list[str]:
    """What is wrong with MLflow's record: runs that run for ever, experiments without an end,
    versions registered twice."""
    with contextlib.closing(sqlite3.connect(clone / "mlruns" / "mlflow.db")) as database:
        running = database.execute("SELECT COUNT(*) FROM runs WHERE status = 'RUNNING'").fetchone()[
            0
        ]
        kind = (
            "SELECT r.status FROM runs r JOIN tags t USING (run_uuid) WHERE t.key = 'kind' AND "
            "t.value = 'pipeline'"
        )
        rows = [status for (status,) in database.execute(kind)]
        twice = database.execute(
            "SELECT value FROM model_version_tags WHERE key = 'digest' GROUP BY value HAVING "
            "COUNT(*) > 1"
        ).fetchall()
        aliases = {
            alias for (alias,) in database.execute("SELECT alias FROM registered_model_aliases")
        }
    wrong = [f"{running} runs still running"] * (running > 0)
    wrong += [f"rows of experiments: {rows}"] * (rows.count("FINISHED") != 1)
    wrong += [f"{len(twice)} models registered twice"] * bool(twice)
    return wrong + [f"aliases: {sorted(aliases)}"] * (
        aliases != {"head", "fine-tuned", "exported", "champion"}
    )


def files_in(clone: Path) -> set[str]:
    """Names of the files in WHERE, but for those that are others each time."""
    found = (
        p.relative_to(clone).as_posix()
        for folder in WHERE
        for p in (clone / folder).rglob("*")
        if p.is_file()
    )
    return {path for path in found if not any(part in path for part in ARE_MANY)}


def faults(run: Run, undisturbed: Run) -> list[str]:
    """All that is not as it should be, a clause each."""
    if run.attempts[-1][0]:
        return [
            f"not through after {len(run.attempts)} attempts: {run.attempts[-1][1].strip()[-400:]}"
        ]
    wrong = []
    if len(run.attempts) > run.kills + run.mended + 1:
        wrong.append(
            f"{len(run.attempts)} attempts after {run.kills} kills: "
            f"{run.attempts[-2][1].strip()[-400:]}"
        )
    ours, theirs = outputs(run.clone), outputs(undisturbed.clone)
    others = sorted(path for path in {*ours, *theirs} if ours.get(path) != theirs.get(path))
    wrong += [f"other bytes: {', '.join(others)}"] * bool(others)
    end = time.monotonic() + LINGER
    while (left := alive(run)) and time.monotonic() < end:
        time.sleep(0.2)
    for process in left:
        wrong.append(f"still running: {name(process)}")
        process.kill()
    wrong += damaged(run.clone) + record(run.clone)
    more = sorted(files_in(run.clone) - files_in(undisturbed.clone))
    return wrong + [f"left behind: {', '.join(more)}"] * bool(more)


def in_tmp(run: Run) -> str:
    """What lies in the system's folder for temporary files: no code runs after SIGKILL, so that is
    the system's to sweep."""
    left = [p for p in (run.clone.parent / "tmp").rglob("*") if p.is_file()]
    return f", {sum(p.stat().st_size for p in left) / 1e6:.1f} MB in $TMPDIR" if left else ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--source",
        type=Path,
        default=ROOT,
        help="repository whose HEAD is cloned (default: this one)",
    )
    parser.add_argument(
        "--into", type=Path, help="folder for the clones (default: a temporary one)"
    )
    args = parser.parse_args(arguments)
    rng, good, done, clones = random.Random(args.seed), 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="graft-kills-") as place:
        folder = (args.into or Path(place)).resolve()
        undisturbed = fresh(args.source, folder / "undisturbed")
        if repro(undisturbed):
            print(undisturbed.attempts[-1][1])
            return 1
        print(f"kills: undisturbed {undisturbed.seconds:.0f} s", flush=True)
        while done < args.kills:
            clones += 1
            run = fresh(args.source, folder / f"{clones}")
            _kill_until_through(run, undisturbed.seconds, rng, done, args.kills)
            done += run.kills
            wrong = faults(run, undisturbed)
            good += run.kills * (not wrong)
            cost = (
                f"{run.seconds - undisturbed.seconds:+.0f} s, begun again: "
                f"{', '.join(run.again()) or 'nothing'}{in_tmp(run)}"
            )
            print(
                f"kills: clone {clones}, {run.kills} kills, {cost}: "
                f"{'; '.join(wrong) or 'the same'}",
                flush=True,
            )
            if not wrong:
                shutil.rmtree(run.clone.parent)
    print(f"kills: {good} of {done} ended with the same bytes and left nothing behind")
    return 0 if good == done else 1


def _kill_until_through(run, seconds, rng, done, most):
    """Start `dvc repro` in the clone and kill it, up to EACH times, then let it end. done, most:
    kills so far, and in all."""
    forkserver = rng.random() < 0.5
    while run.kills < EACH and done + run.kills < most:
        interrupt = (done + run.kills) % 5 == 4
        if not repro(
            run,
            forkserver=forkserver,
            strike=striking(run, rng, rng.uniform(0, seconds), interrupt=interrupt),
        ):
            return
        print(f"kills:   in {(run.begun(-1) or ['its start'])[-1]}", flush=True)
    for _ in range(ATTEMPTS):
        if not repro(run, forkserver=forkserver):
            return
        # DVC's own, half written; any command of graft mends it.
        if "RWLock-file" in run.attempts[-1][1]:
            own = {"PYTHONPATH": str(run.clone), "DVC_ROOT": str(run.clone)}
            command = [sys.executable, "-m", "graft.commands.main", "cache"]
            subprocess.run(
                command, cwd=run.clone, env=os.environ | own, check=True, capture_output=True
            )
            run.mended += 1


if __name__ == "__main__":
    sys.exit(main())
