"""Which graft is installed, as a line of requirements.txt, and whether it is the one that a project
pins.

In a clone the stages depend on the library's files. A project that `graft new` made has none of
them: there they depend on requirements.txt, which pins graft by its version, or by the wheel or
commit that it was installed from.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from graft.system import files
from graft.system.console import GraftError

NAME = "graft-vision"
REQUIREMENTS = Path("requirements.txt")


def pin(extras: tuple[str, ...] = ()) -> str:
    """The requirement (PEP 508) that is met by the graft that is installed, and by no other where
    that can be said.

    Raises GraftError where it runs from a folder, whose code changes while its version does not.
    """
    origin = _origin()
    name = f"{NAME}[{','.join(extras)}]" if extras else NAME
    if "dir_info" in origin:
        raise GraftError(
            "graft runs from a clone, which no project can pin: `make wheel` there, and install "
            "dist/*.whl"
        )
    if vcs := origin.get("vcs_info"):
        return f"{name} @ {vcs['vcs']}+{origin['url']}@{vcs['commit_id']}"
    if digest := _digest(origin):
        return f"{name} @ {origin['url']}#sha256={digest}"
    return f"{name}=={metadata.version(NAME)}"


def check_pin(file: Path = REQUIREMENTS) -> None:
    """Raise GraftError where `file` pins another graft than the one that is installed; a project
    without a pin may run."""
    if not file.exists():
        return
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    line = next((line for line in lines if line.startswith(NAME)), None)
    if line is not None and not _meets(line):
        raise GraftError(
            f"{file}: asks for {line}, and graft {metadata.version(NAME)} is installed, another "
            f"one; pip install --force-reinstall --no-deps -r {file}"
        )


def _meets(line: str) -> bool:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = Requirement(line)
    except InvalidRequirement:
        return False
    if not wanted.url:
        return wanted.specifier.contains(metadata.version(NAME), prereleases=True)
    origin = _origin()
    vcs = origin.get("vcs_info")
    digest = str(vcs["commit_id"]) if vcs else _digest(origin)
    return digest is not None and digest in wanted.url


def _origin() -> dict[str, Any]:
    """What the installer noted of where graft came from (PEP 610); {} for a package index."""
    found: dict[str, Any] = json.loads(
        metadata.distribution(NAME).read_text("direct_url.json") or "{}"
    )
    return found


def _digest(origin: dict[str, Any]) -> str | None:
    """SHA-256 in hex of the wheel that it was installed from; pip notes it, others leave the file
    to be asked."""
    noted = origin.get("archive_info")
    if noted is None:
        return None
    digest: str | None = (noted.get("hashes") or {}).get("sha256") or (
        noted.get("hash") or ""
    ).removeprefix("sha256=")
    wheel = Path(unquote(urlsplit(origin["url"]).path))
    return digest or (
        files.sha256(wheel) if origin["url"].startswith("file:") and wheel.is_file() else None
    )
