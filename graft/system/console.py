"""What a person at the console sees: log lines, progress, and one clear line for a mistake of
theirs."""

from __future__ import annotations

import codecs
import functools
import os
import select
import sys
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")

FULL = ("No space left on device", "Disk quota exceeded", "database or disk is full")
STDOUT = 1  # its file descriptor
PIPE_CLOSED = 128 + 13  # the exit status of what SIGPIPE ends
PLAIN_INTERVAL = 10.0  # seconds between progress lines where there is no terminal to draw a bar on


class GraftError(Exception):
    """A mistake that the user can mend: the text says what, where and what to do, in one line."""


def log(message: object) -> None:
    """Print one line at once, so that lines of a stage and of DVC stay in order."""
    print(message, flush=True)


def warn(message: object) -> None:
    """Print one line on stderr at once: something is amiss, and the work goes on."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


class Progress:
    """Progress over `total` items (None: nobody knows how many): a tqdm bar on a terminal, now and
    then a plain line elsewhere.

    Use as a context manager; call `advance(n)` as items complete, `note(text)` to show a value
    beside it.
    """

    def __init__(self, description: str, total: int | None, unit: str = "image"):
        self.description, self.total, self.unit = description, total, unit
        self.done, self._bar, self._note = 0, None, ""

    def __enter__(self) -> Progress:
        self._started = self._told = time.monotonic()
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, desc=self.description, unit=self.unit, leave=False)
        return self

    def advance(self, n: int = 1) -> None:
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
        elif time.monotonic() - self._told > PLAIN_INTERVAL:
            self._told = time.monotonic()
            rate = self.done / (self._told - self._started)
            done = f"{self.done}/{self.total}" if self.total else self.done
            log(f"{self.description}: {done} {self.unit}s, {rate:.0f}/s{self._note}")

    def note(self, text: str) -> None:
        self._note = f", {text}"
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()


def entry(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Wrap the `main` of a stage or command: a GraftError, or a full disk, becomes one line on
    stderr and exit status 1."""

    @functools.wraps(function)
    def main(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            _check_locale()
            return function(*args, **kwargs)
        except GraftError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(1)
        except BrokenPipeError:
            if not _reader_gone():
                raise
            sys.exit(PIPE_CLOSED)
        except Exception as error:
            if not (full := _full(error)):
                raise
            print(
                f"error: {full}; make room, then the same command goes on",
                file=sys.stderr,
                flush=True,
            )
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            sys.exit(130)

    return main


def _reader_gone() -> bool:
    """Whether what read this output has ended, as `| head` does; stdout leads nowhere then, and
    nothing more is said."""
    poll = select.poll()
    poll.register(STDOUT, 0)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return gone


def _full(error: BaseException | None) -> str:
    """What an error, or what it came of, says of a full disk; "" for others. HDF5, SQLite and
    TensorFlow tell no errno."""
    while error is not None:
        text = " ".join(str(error).split())
        if found := next((words for words in FULL if words in text), ""):
            # The second: where it was copied to.
            name = getattr(error, "filename2", None) or getattr(error, "filename", None)
            return f"{name}: {found}" if name else found
        error = error.__cause__ or error.__context__
    return ""


def _check_locale():
    """Names of files, and so of classes, are read as UTF-8 or not at all; what the terminal cannot
    show is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what stands in for it in a notebook has none
            stream.reconfigure(errors="backslashreplace")
    if codecs.lookup(sys.getfilesystemencoding()).name != "utf-8":
        raise GraftError(
            f"in this locale Python takes names of files for {sys.getfilesystemencoding()}, and "
            "classes would get other names; export PYTHONUTF8=1 or LC_ALL=C.UTF-8"
        )
