"""What git says of the folder that the process works in, whatever a hook or a shell has
exported."""

from __future__ import annotations

import functools
import os
import subprocess

from graft.system.console import warn

# Set inside a git hook, say: they would have git speak of another repository than the one that the
# process works in.
REDIRECTING = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_PREFIX",
    "GIT_NAMESPACE",
)


def environment() -> dict[str, str]:
    """This process's, without what would have git speak of another repository, and in git's own
    words."""
    return {key: value for key, value in os.environ.items() if key not in REDIRECTING} | {
        "LC_ALL": "C"
    }


def output(*arguments: str) -> str | None:
    """What `git <arguments>` prints, or None where git is missing or refuses.

    A repository that git calls dubious, since it belongs to another user, is said once, with what
    to do.
    """
    command = ["git", "-c", "core.quotePath=false", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", env=environment()
        )
    except OSError:
        return None
    if done.returncode and "dubious ownership" in done.stderr:
        _say_dubious(
            next(
                (line.strip() for line in done.stderr.splitlines() if "safe.directory" in line), ""
            )
        )
    return None if done.returncode else done.stdout


@functools.cache
def _say_dubious(remedy):
    warn(
        "the repository belongs to another user, so git says nothing of it and the commit is not "
        f"recorded; {remedy}"
    )
