"""What dvc.yaml declares of a stage, whether dvc.lock still holds, and a lock of DVC's that a
Ctrl-C has cut off."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from graft.system import files, paths
from graft.system.console import warn

if TYPE_CHECKING:
    from graft.params import Params

DVC_YAML, DVC_LOCK = Path("dvc.yaml"), Path("dvc.lock")
WRITING_SECONDS = 1.0  # DVC writes its locks in place: what is half there now may be whole then


def stage_keys(stage: str, params: Params, file: Path = DVC_YAML) -> dict[str, object]:
    """Those of `params`, flat, that dvc.yaml declares for `stage`; all of them where dvc.yaml says
    nothing."""
    declared, flat = _stage(file, stage).get("params"), params.flat()
    if declared is None:
        return flat
    wanted = [key for key in declared if isinstance(key, str)]
    return {
        k: v for k, v in flat.items() if any(k == key or k.startswith(f"{key}.") for key in wanted)
    }


def stage_files(stage: str, file: Path = DVC_YAML) -> tuple[dict[str, Path], list[Path]]:
    """What `stage` reads and writes below `data/`, as dvc.yaml declares it.

    Returns ({name: path} of its dependencies, [path] of its outputs, metrics and plots); a name is
    the path relative to `data/`, such as "split/manifest.csv". A templated path, the data set's, is
    left out: it may be huge, and the manifest stands for it.
    """
    entry = _stage(file, stage)
    inputs = {path.relative_to(paths.DATA).as_posix(): path for path in _below_data(entry, "deps")}
    return inputs, list(_below_data(entry, "outs", "metrics", "plots"))


def _below_data(entry: dict, *kinds: str) -> Iterator[Path]:
    for item in (item for kind in kinds for item in entry.get(kind) or []):
        text = next(iter(item)) if isinstance(item, dict) else item  # `- path: {cache: false}`
        if "${" not in text and Path(text).is_relative_to(paths.DATA):
            yield Path(text)


def code_paths() -> list[Path]:
    """What the stages depend on and none of them makes: code, pins, `data/weights`; not the data
    set, which is templated."""
    stages = (_yaml(DVC_YAML).get("stages") or {}).values()
    named = sorted({dep for stage in stages for dep in stage.get("deps") or [] if "${" not in dep})
    return [
        Path(name)
        for name in named
        if not any(Path(name).is_relative_to(made) for made in paths.STAGES.values())
    ]


def code_digest() -> str:
    """SHA-256 in hex of the content of `code_paths`, as it is on disk now."""
    content = [(path.as_posix(), files.sha256(path)) for path in code_paths() if path.exists()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def matches_lock(stage: str, *kinds: str) -> bool:
    """Whether every dependency and parameter of `stage` in dvc.lock is as it is on disk; False when
    it is not recorded.

    kinds: "outs" looks at what the stage has made too.
    """
    entry = _stage(DVC_LOCK, stage)
    recorded = [item for kind in ("deps", *kinds) for item in entry.get(kind, [])]
    if not entry or any(files.dvc_md5(item["path"]) != item.get("md5") for item in recorded):
        return False
    for name, recorded in entry.get("params", {}).items():
        tree = _yaml(Path(name))
        if any(_lookup(tree, key) != value for key, value in recorded.items()):
            return False
    return True


def _stage(file: Path, name: str) -> dict:
    return (_yaml(file).get("stages") or {}).get(name) or {}


def _yaml(file: Path) -> dict:
    """What a YAML file holds, {} where there is none. Not to be changed: it is kept while the file
    stays as it is."""
    if not file.exists():
        return {}
    state = file.stat()
    return _parsed(file.absolute(), state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=8)
def _parsed(file: Path, mtime_ns: int, size: int) -> dict:
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(file) or {}


def _lookup(tree: object, key: str) -> object:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def mend_rwlock() -> None:
    """Remove DVC's `.dvc/tmp/rwlock` where a killed process left half of it: every later command of
    DVC would fail.

    Nothing is lost with it: it lists which processes use which files now, and DVC makes it anew.
    """
    file = paths.root() / ".dvc" / "tmp" / "rwlock"
    if _is_json(file):
        return
    time.sleep(WRITING_SECONDS)
    if not _is_json(file):
        file.unlink(missing_ok=True)
        warn(f"{file} was cut off by a process that was killed: removed, DVC makes it anew")


def _is_json(file):
    try:
        files.read_json(file)
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True


if __name__ == "__main__":  # for `make run`, before DVC
    mend_rwlock()
