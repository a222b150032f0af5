"""What can be said of files without MLflow: digests, the data set behind a manifest, whether dvc.lock still holds."""

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from stages import paths

CHUNK = 1 << 20
MODEL_FILES = ("model.weights.h5", "model.json")


@dataclass(frozen=True)
class DataFacts:
    """A data set as the manifest has it. `counts`: images, classes, train, val, test."""

    name: str
    path: str
    digest: str
    test_digest: str
    counts: dict


def digest(path):
    """SHA-256 in hex of a file's bytes, or of a folder's relative paths and bytes."""
    path, total = Path(path), hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file() and not _ignored(p)):
            total.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode())
        return total.hexdigest()
    return _hash(path, total)


def model_digest(folder):
    """SHA-256 of a stage folder's model: its weights followed by its model.json."""
    total = hashlib.sha256()
    for name in MODEL_FILES:
        _hash(Path(folder) / name, total)
    return total.hexdigest()


def _hash(path, into):
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            into.update(chunk)
    return into.hexdigest()


def data_facts(params, folder=paths.SPLIT):
    """Facts of the data set that the manifest in `folder` lists; None when there is no manifest yet.

    `test_digest` covers what two evaluations must share to be comparable: path, label and bytes of every test image,
    and the class list.
    """
    manifest = folder / "manifest.csv"
    if not manifest.exists():
        return None
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    test = sorted((row["path"], row["label"], row["sha256"]) for row in rows if row["split"] == "test")
    classes = sorted({row["label"] for row in rows})
    counts = {"images": len(rows), "classes": len(classes)}
    counts.update({split: sum(row["split"] == split for row in rows) for split in ("train", "val", "test")})
    test_digest = hashlib.sha256(json.dumps([classes, test]).encode()).hexdigest()[:12]
    return DataFacts(Path(params.data.path).name, params.data.path, digest(manifest), test_digest, counts)


def flat_metrics(values, prefix=""):
    """{'a/b': number} of a nested dict; bools, texts, lists and None are left out."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flat_metrics(value, f"{prefix}{key}/"))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[prefix + key] = value
    return flat


def stage_keys(stage, params, file=Path("dvc.yaml")):
    """Those of `params`, flat, that dvc.yaml declares for `stage`; all of them where dvc.yaml says nothing."""
    declared = (_yaml(file).get("stages", {}).get(stage) or {}).get("params")
    flat = params.flat()
    if declared is None:
        return flat
    wanted = [key for key in declared if isinstance(key, str)]
    return {k: v for k, v in flat.items() if any(k == key or k.startswith(f"{key}.") for key in wanted)}


def matches_lock(stage):
    """Whether every dependency and parameter of `stage` in dvc.lock is as it is on disk; False when it is not recorded."""
    entry = (_yaml(Path("dvc.lock")).get("stages") or {}).get(stage)
    if not entry:
        return False
    if not all(_dvc_md5(Path(dep["path"])) == dep.get("md5") for dep in entry.get("deps", [])):
        return False
    return all(
        _lookup(_yaml(Path(file)), key) == value
        for file, keys in entry.get("params", {}).items()
        for key, value in keys.items()
    )


def _yaml(file):
    from ruamel.yaml import YAML

    return (YAML(typ="safe").load(file) or {}) if file.exists() else {}


def _lookup(tree, key):
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _dvc_md5(path):
    """The md5 that DVC records: of a file's bytes, or of the JSON list of a folder's files."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not _ignored(p))
        listing = [{"md5": _dvc_md5(p), "relpath": p.relative_to(path).as_posix()} for p in files]
        listing.sort(key=lambda row: row["relpath"])
        return hashlib.md5(json.dumps(listing).encode(), usedforsecurity=False).hexdigest() + ".dir"
    return _hash(path, hashlib.md5(usedforsecurity=False)) if path.exists() else None


def _ignored(path):
    return path.suffix == ".pyc" or path.name in (".DS_Store", "Thumbs.db")
