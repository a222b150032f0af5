"""What dvc.yaml declares of a stage, and whether dvc.lock still holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from graft.system import files, paths

DVC_YAML, DVC_LOCK = Path("dvc.yaml"), Path("dvc.lock")


def stage_keys(stage: str, params, file: Path = DVC_YAML) -> dict[str, object]:
    """Those of `params`, flat, that dvc.yaml declares for `stage`; all of them where dvc.yaml says nothing."""
    declared, flat = _stage(file, stage).get("params"), params.flat()
    if declared is None:
        return flat
    wanted = [key for key in declared if isinstance(key, str)]
    return {k: v for k, v in flat.items() if any(k == key or k.startswith(f"{key}.") for key in wanted)}


def stage_files(stage: str, file: Path = DVC_YAML) -> tuple[dict[str, Path], list[Path]]:
    """What `stage` reads and writes below `data/`, as dvc.yaml declares it.

    Returns ({name: path} of its dependencies, [path] of its outputs, metrics and plots); a name is the path relative to
    `data/`, such as "split/manifest.csv". A templated path, the data set's, is left out: it may be huge, and the manifest
    stands for it.
    """
    entry = _stage(file, stage)
    inputs = {path.relative_to(paths.DATA).as_posix(): path for path in _below_data(entry, "deps")}
    return inputs, list(_below_data(entry, "outs", "metrics", "plots"))


def _below_data(entry: dict, *kinds: str) -> Iterator[Path]:
    for item in (item for kind in kinds for item in entry.get(kind) or []):
        text = next(iter(item)) if isinstance(item, dict) else item  # `- path: {cache: false}`
        if "${" not in text and Path(text).is_relative_to(paths.DATA):
            yield Path(text)


def matches_lock(stage: str) -> bool:
    """Whether every dependency and parameter of `stage` in dvc.lock is as it is on disk; False when it is not recorded."""
    entry = _stage(DVC_LOCK, stage)
    if not entry or any(files.dvc_md5(dep["path"]) != dep.get("md5") for dep in entry.get("deps", [])):
        return False
    for name, recorded in entry.get("params", {}).items():
        tree = _yaml(Path(name))
        if any(_lookup(tree, key) != value for key, value in recorded.items()):
            return False
    return True


def _stage(file: Path, name: str) -> dict:
    return (_yaml(file).get("stages") or {}).get(name) or {}


def _yaml(file: Path) -> dict:
    from ruamel.yaml import YAML

    return (YAML(typ="safe").load(file) or {}) if file.exists() else {}


def _lookup(tree: object, key: str) -> object:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
