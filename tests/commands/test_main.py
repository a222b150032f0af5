import re
from importlib import metadata

import pytest

from graft.commands import main

COMMANDS = (
    "check",
    "freeze-split",
    "import",
    "import-weights",
    "suggest",
    "params",
    "preset",
    "predict",
    "serve",
    "benchmark",
    "cache",
    "champion",
    "compare",
    "ui",
)


def run(capsys, *arguments):
    """(exit status, stdout, stderr) of `graft`."""
    try:
        main.main(arguments)
        status = 0
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


def test_help_names_every_command_and_what_it_does(capsys):
    status, text, _ = run(capsys, "--help")
    assert status == 0
    for command in COMMANDS:
        # Beside a short name, below a long one.
        (said,) = re.findall(rf"^    {command}\s+(\S.*)", text, re.MULTILINE)
        assert len(said.split()) > 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_a_function(command, capsys):
    status, text, _ = run(capsys, command, "--help")
    assert (status, text.split()[:3]) == (0, ["usage:", "graft", command])
    source = (
        ["x"]
        if command in ("check", "import", "import-weights", "preset", "predict", "suggest")
        else []
    )
    assert callable(main.parser().parse_args([command, *source]).function)


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"graft {metadata.version('graft-vision')}\n", "")


def test_no_command_is_a_mistake(capsys):
    status, _, err = run(capsys)
    assert status == 2
    assert "required: COMMAND" in err


def test_a_users_mistake_is_one_line_and_exit_1(clone, capsys):
    status, out, err = run(capsys, "import", str(clone / "nowhere"))
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: ")
    assert "nowhere" in err
