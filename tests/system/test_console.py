import subprocess
import sys

import pytest

from graft.system import console

LINES = """
from graft.system.console import entry, log
entry(lambda: [log(f"line {k}") for k in range(100_000)])()
"""


def test_a_reader_that_ends_early_ends_the_command_without_a_word():
    """`graft predict photos | head`."""
    with subprocess.Popen(
        [sys.executable, "-c", LINES], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == (b"", console.PIPE_CLOSED)


def test_another_pipe_that_breaks_is_an_error():
    def work():
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        console.entry(work)()
