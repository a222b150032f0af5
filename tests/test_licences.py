"""docs/licences.md names every package of the lock, and nothing in it forbids selling what is made
with graft."""

import re
from pathlib import Path

import pytest

from docs import licences

ROOT = Path(__file__).parents[1]


def test_every_locked_package_is_on_the_page_with_its_version_and_a_licence():
    rows = re.findall(
        r"^\| ([\w.-]+) \| (\S+) \| (.+?) \|$",
        licences.PAGE.read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    listed = {name: version for name, version, _ in rows if name != "package"}
    lock = licences.LOCK.read_text(encoding="utf-8")
    assert set(listed) == set(licences.locked())
    assert [name for name, version in listed.items() if f"{name}=={version}" not in lock] == []
    assert [
        name
        for name, _, text in rows
        if text in ("not stated", "UNKNOWN") or licences.forbids(text)
    ] == []


@pytest.mark.parametrize(
    ("text", "forbidden"),
    [
        ("MIT", False),
        ("GPL-2.0-or-later", True),
        ("Apache-2.0 OR GPL-2.0-or-later", False),
        ("LGPL-3.0-only", False),
        ("GPLv2 with linking exception", False),
        ("AGPL-3.0", True),
        ("CC-BY-NC-4.0", True),
        ("GNU General Public License v2", True),
        ("EPL-2.0 OR GPL-2.0-or-later", False),
        ("SSPL-1.0", True),
    ],
)
def test_what_is_forbidden(text, forbidden):
    assert licences.forbids(text) is forbidden


def test_a_version_for_other_pythons_stands_for_none_that_is_installed(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text(
        "a==1.0 ; python_full_version < '3.11' \\\n    --hash=sha256:00\npytest==0.1\n# via b\n"
    )
    assert licences.locked(lock)["a"] == "1.0"
