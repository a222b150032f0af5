"""Writing that fails: the n-th step of a piece of work raises an error as of a full disk, or kills
the process there.

A step is an open for writing, a write, a rename, link, fsync or new folder, a statement that
changes an SQLite database or its commit. A write that fails has written half of what it was given.
"""

import builtins
import contextlib
import errno
import functools
import io
import itertools
import json
import os
import signal
import sqlite3
import sys
import traceback
from unittest import mock

CALLS = (
    "replace",
    "rename",
    "link",
    "symlink",
    "mkdir",
    "fsync",
    "sendfile",
    "truncate",
    "ftruncate",
)
REMOVALS = ("unlink", "remove", "rmdir")  # which no full disk keeps from succeeding
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Steps:
    """While the block runs, its step number `at` fails (counted from 1), and from then on every
    open and write. kill: the process gets SIGKILL there instead. struck: whether there were so
    many."""

    def __init__(self, at, *, kill=False):
        self.at, self.kill, self.taken, self.struck = at, kill, 0, False

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            for name in CALLS + REMOVALS * self.kill:
                stack.enter_context(mock.patch.object(os, name, self._before(getattr(os, name))))
            stack.enter_context(mock.patch.object(os, "open", self._os_open(os.open)))
            opened = self._open(io.open)
            for module in (io, builtins):
                stack.enter_context(mock.patch.object(module, "open", opened))
            connect = self._connect(sqlite3.connect)
            for module in (sqlite3, sqlite3.dbapi2):
                stack.enter_context(mock.patch.object(module, "connect", connect))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception):
        self._stack.close()

    def due(self, *, lasting=False):
        """Whether the step that is about to be taken fails."""
        self.taken += 1
        self.struck = self.struck or self.taken == self.at
        return self.taken == self.at or (lasting and self.struck)

    def fail(self):
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _before(self, function):
        def call(*given, **options):
            if self.due():
                self.fail()
            return function(*given, **options)

        return call

    def _os_open(self, function):
        def call(path, flags, *given, **options):
            if flags & WRITING and self.due(lasting=True):
                self.fail()
            return function(path, flags, *given, **options)

        return call

    def _open(self, function):
        steps = self

        class Raw(io.FileIO):
            def write(self, data):
                if steps.due(lasting=True):
                    if steps.taken == steps.at:
                        super().write(memoryview(data).cast("B")[: memoryview(data).nbytes // 2])
                    steps.fail()
                return super().write(data)

        def call(
            file,
            mode="r",
            buffering=-1,
            encoding=None,
            errors=None,
            newline=None,
            closefd=True,
            opener=None,
        ):
            if not set(mode) & set("wax+"):
                return function(file, mode, buffering, encoding, errors, newline, closefd, opener)
            if self.due(lasting=True):
                self.fail()
            raw = Raw(file, mode.replace("t", ""), closefd, opener)
            if buffering == 0:
                return raw
            buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

        return call

    def _connect(self, function):
        def step(sql=""):
            if not sql.lstrip().upper().startswith(("SELECT", "PRAGMA")) and self.due():
                try:
                    self.fail()
                except OSError:
                    raise sqlite3.OperationalError("database or disk is full") from None

        class Cursor(sqlite3.Cursor):
            def execute(self, sql, *given):
                step(sql)
                return super().execute(sql, *given)

            def executemany(self, sql, *given):
                step(sql)
                return super().executemany(sql, *given)

            def executescript(self, sql):
                step(sql)
                return super().executescript(sql)

        class Connection(sqlite3.Connection):
            def cursor(self, factory=Cursor):
                return super().cursor(factory)

            def execute(self, *given):
                return self.cursor().execute(*given)

            def executemany(self, *given):
                return self.cursor().executemany(*given)

            def executescript(self, *given):
                return self.cursor().executescript(*given)

            def commit(self):
                step()
                return super().commit()

        return lambda *given, **options: function(*given, **{"factory": Connection} | options)


def struck(work, at, *, kill, errors=(OSError,)):
    """Do `work()` with its step number `at` failing, in a fork where it kills. Returns whether it
    had so many steps.

    errors: what it may raise then.
    """
    if not kill:
        with Steps(at) as steps, contextlib.suppress(*errors):
            work()
        return steps.struck
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with Steps(at, kill=True):
                work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0


def apart(work):
    """What `work()` returns, as JSON holds it, in a fork: what it opens closes with it, and MLflow
    keeps databases open."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with os.fdopen(writing, "w") as file:
                json.dump(work(), file)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def each(base, prepare, work, *, kill, errors=(OSError,), least=3):
    """For each step of `work(place)`: a new folder that `prepare(place)` has filled, in which that
    step failed.

    Yields these folders, and at the end one in which it got through; least: as many steps there
    must have been.
    """
    for at in itertools.count(1):
        place = base / f"step {at}"
        place.mkdir()
        prepare(place)
        again = struck(functools.partial(work, place), at, kill=kill, errors=errors)
        yield place
        if not again:
            assert at > least, f"only {at - 1} steps were seen"
            return
