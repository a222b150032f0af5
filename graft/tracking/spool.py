"""What a server that went away in the middle of a stage could not take: kept on disk, and sent once
it is back.

A folder per run below `.cache/spool`: a line of JSON per call, and copies of the files that it
names.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from graft.system import paths
from graft.system.console import log, warn
from graft.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Calls that write and whose answer nobody needs: they are kept. Others cannot be answered without
# the server.
KEPT = (
    "log_batch",
    "log_artifact",
    "log_artifacts",
    "log_text",
    "log_image",
    "set_tag",
    "set_terminated",
    "update_run",
)
CALLS = "calls.jsonl"
ENTITIES = {"metrics": "Metric", "params": "Param", "tags": "RunTag"}  # of log_batch


def folder() -> Path:
    return paths.cache() / "spool"


class SpoolingClient:
    """An MlflowClient of a server. From the first call that finds the server away, KEPT calls go to
    disk.

    run_id-s are the first argument of each of them. Any other call raises store.Away then. away:
    whether that has happened.
    """

    def __init__(self, client: MlflowClient, uri: str):
        self._client, self._uri = client, uri
        self._locks: dict[str, FileLock] = {}
        self.away = False

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)
        return (
            (lambda *given, **options: self._call(name, given, options)) if callable(call) else call
        )

    def _call(self, name, given, options):
        if not self.away:
            try:
                return getattr(self._client, name)(*given, **options)
            except Exception as error:
                if not store.is_away(self._uri):
                    raise
                self.away = True
                why = store.first_line(error)[:200]
                warn(
                    f"MLflow at {store.shown(self._uri)} has gone away ({why}); the work goes on. "
                    "The next stage or `graft publish` sends what it did not take; models are "
                    "registered by `graft publish`"
                )
        if name not in KEPT:
            raise store.Away(f"MLflow at {store.shown(self._uri)} is away")
        self._keep(name, *given, **options)
        return None

    def _keep(self, name, run_id, *given, **options):
        place = folder() / run_id
        if run_id not in self._locks:
            place.mkdir(parents=True, exist_ok=True)
            # Held until this process ends: nobody sends half of it.
            self._locks[run_id] = FileLock(place / "lock")
            self._locks[run_id].acquire()
        if name == "set_terminated" and len(given) < 2 and "end_time" not in options:
            options["end_time"] = int(time.time() * 1000)
        if name in ("log_artifact", "log_artifacts"):
            given = (_copy(Path(given[0]), place), *given[1:])
        if name == "log_image":
            given = (_save(given[0], place), *given[1:])
        options |= {
            key: [dict(item) for item in options[key]] for key in ENTITIES if key in options
        }
        line = json.dumps(
            {"call": name, "given": given, "options": options, "uri": store.shown(self._uri)}
        )
        with (place / CALLS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def release(self) -> None:
        """Let others send what was kept."""
        for lock in self._locks.values():
            lock.release()
        self._locks.clear()


def _copy(path, place):
    """A copy of a file or folder, under its own name in a folder of its own. Returns where,
    relative to `place`."""
    target = place / f"{len(list(place.iterdir()))}" / path.name
    target.parent.mkdir()
    shutil.copytree(path, target) if path.is_dir() else shutil.copy2(path, target)
    return target.relative_to(place).as_posix()


def _save(pixels, place):
    import numpy as np

    target = place / f"{len(list(place.iterdir()))}.npy"
    np.save(target, pixels)
    return target.name


def send(client: MlflowClient, uri: str) -> list[str]:
    """Send all that was kept for the server at `uri`, and forget it. Returns the ids of the runs
    that it belonged to.

    What another process is still adding to is left alone, and so is, with a warning, what the
    server refuses.
    """
    sent = []
    for place in sorted(folder().glob("*/"), key=lambda path: path.stat().st_mtime):
        calls = list(_calls(place / CALLS))
        if calls and calls[0]["uri"] != store.shown(uri):
            continue
        try:
            with FileLock(place / "lock", timeout=0):
                for entry in calls:
                    _repeat(client, place, entry)
                # Before the files that it names: what is left of them is nobody's.
                (place / CALLS).unlink(missing_ok=True)
                shutil.rmtree(place)
        except Timeout:
            continue
        except Exception as error:  # whatever the server says: the stage at hand goes on
            warn(f"{place}: MLflow does not take what was kept there: {store.first_line(error)}")
            continue
        sent += [place.name] * bool(calls)
    if sent:
        log(f"sent to MLflow what it had missed of {len(sent)} run{'s' * (len(sent) > 1)}")
    return sent


def _calls(file):
    """The calls that were kept; the last one is left out where a killed process wrote half of it,
    which it never made."""
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def _repeat(client, place, entry):
    from mlflow import entities

    name, given, options = entry["call"], list(entry["given"]), entry["options"]
    if name in ("log_artifact", "log_artifacts"):
        given[0] = str(place / given[0])
    if name == "log_image":
        import numpy as np

        given[0] = np.load(place / given[0])
    for key, kind in ENTITIES.items():
        if key in options:
            options[key] = [getattr(entities, kind).from_dictionary(item) for item in options[key]]
    getattr(client, name)(place.name, *given, **options)
