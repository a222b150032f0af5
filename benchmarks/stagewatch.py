"""Where the seconds of one stage go: run it with its imports and its functions timed, exclusively, in its own process.

    python benchmarks/stagewatch.py OUT.json stages.fine_tune

A stack of buckets: the time between two events goes to the innermost one, so that the buckets of a process add up to its wall
time. "import NAME" is the execution of that package's modules; "wing.module.function" a public function or method of the
pipeline's own packages on the main thread, without what it calls of the others. A wrapped call costs about a microsecond: far
less than a profiler that sees every call of TensorFlow.
"""

import atexit
import functools
import importlib.machinery
import inspect
import json
import os
import runpy
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

OWN = "stages."


class Buckets:
    def __init__(self):
        self.seconds, self.stack, self.since = defaultdict(float), ["the stage itself"], time.monotonic()
        self.thread = threading.get_ident()

    def _charge(self):
        now = time.monotonic()
        self.seconds[self.stack[-1]] += now - self.since
        self.since = now

    def timed(self, name, function):
        """`function`, its time charged to bucket `name`; other threads run beside the clock."""

        @functools.wraps(function)
        def call(*args, **kwargs):
            if threading.get_ident() != self.thread:
                return function(*args, **kwargs)
            self._charge()
            self.stack.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self._charge()
                self.stack.pop()

        return call

    def report(self):
        self._charge()
        return dict(sorted(self.seconds.items(), key=lambda item: -item[1]))


def watch_imports(buckets):
    """Every module is executed by one of these two; what a package imports of another one is charged to the other."""
    for loader in (importlib.machinery.SourceFileLoader, importlib.machinery.ExtensionFileLoader):
        for step in ("create_module", "exec_module"):
            setattr(loader, step, _watched(buckets, getattr(loader, step), own=step == "exec_module"))


def _watched(buckets, step, *, own):
    def call(loader, what):  # `what`: a ModuleSpec for create_module, a module for exec_module
        name = getattr(what, "__name__", None) or what.name
        result = buckets.timed(f"import {name.partition('.')[0]}", step)(loader, what)
        if own and name.startswith(OWN):
            _watch_functions(buckets, what)
        return result

    return call


def _watch_functions(buckets, module):
    place = module.__name__.removeprefix(OWN)
    for name, thing in list(vars(module).items()):
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if _is_plain(thing):
            setattr(module, name, buckets.timed(f"{place}.{name}", thing))
        elif inspect.isclass(thing):
            for method, function in list(vars(thing).items()):
                if not method.startswith("_") and _is_plain(function):
                    setattr(thing, method, buckets.timed(f"{place}.{name}.{method}", function))


def _is_plain(thing):
    """A function that does its work when called: not a generator, nor a context manager made of one."""
    return inspect.isfunction(thing) and not inspect.isgeneratorfunction(inspect.unwrap(thing))


def main():
    out, module = Path(sys.argv[1]).resolve(), sys.argv[2]
    try:
        import psutil

        before = time.time() - psutil.Process(os.getpid()).create_time()
    except ImportError:
        before = 0.0
    buckets = Buckets()
    watch_imports(buckets)

    def write():
        out.write_text(json.dumps({"start of the interpreter": before, **buckets.report()}, indent=1) + "\n", encoding="utf-8")

    atexit.register(write)
    sys.path[0] = str(Path.cwd())
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
