"""What a person at the console sees: log lines, progress, and one clear line for a mistake of theirs."""

import contextlib
import functools
import os
import sys
import time

PLAIN_INTERVAL = 10.0  # seconds between progress lines where there is no terminal to draw a bar on


class GraftError(Exception):
    """A mistake that the user can mend: the text says what, where and what to do, in one line."""


def log(message):
    """Print one line at once, so that lines of a stage and of DVC stay in order."""
    print(message, flush=True)


def warn(message):
    print(f"warning: {message}", file=sys.stderr, flush=True)


class Progress:
    """Progress over `total` items: a tqdm bar on a terminal, a plain line every few seconds elsewhere.

    Use as a context manager; call `advance(n)` as items complete, `note(text)` to show a value beside it.
    """

    def __init__(self, description, total, unit="image"):
        self.description, self.total, self.unit = description, total, unit
        self.done, self._bar, self._note = 0, None, ""

    def __enter__(self):
        self._started = self._told = time.monotonic()
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, desc=self.description, unit=self.unit, leave=False)
        return self

    def advance(self, n=1):
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
        elif time.monotonic() - self._told > PLAIN_INTERVAL:
            self._told = time.monotonic()
            rate = self.done / (self._told - self._started)
            log(f"{self.description}: {self.done}/{self.total} {self.unit}s, {rate:.0f}/s{self._note}")

    def note(self, text):
        self._note = f", {text}"
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def __exit__(self, *exception):
        if self._bar is not None:
            self._bar.close()


def entry(function):
    """Wrap the `main` of a stage or command: a GraftError becomes one line on stderr and exit status 1."""

    @functools.wraps(function)
    def main(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except GraftError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            sys.exit(130)

    return main


@contextlib.contextmanager
def silence():
    """Hide what converters and runtimes print, from Python's logging to C++ straight to stderr; errors still raise.

    What they wrote is shown after all if the block fails, since it may say why.
    """
    import logging
    import tempfile
    import warnings

    loggers = [logging.getLogger(name) for name in ("absl", "tensorflow", "tf2onnx")]
    levels = [logger.level for logger in loggers]
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as sink, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(sink.fileno(), 2)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            sink.seek(0)
            os.write(kept, sink.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


def prepare_tensorflow():
    """Environment for TensorFlow, to be set before its import; what the user has set stays."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    # Off by default on some processors. On 2 cores of an AMD EPYC it trains the top 50 layers at 160 px 1.6 times as fast for
    # MobileNetV2 and 1.9 times for InceptionV3, and the small network of the demo as fast as without.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def quiet_tensorflow():
    """Import TensorFlow without its start-up chatter (a dozen lines on machines without a GPU)."""
    prepare_tensorflow()
    with silence():
        import tensorflow

        tensorflow.config.list_physical_devices()
