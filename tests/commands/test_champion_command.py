import ast
import re
from pathlib import Path

import pytest

from graft.commands import main
from graft.tracking import champion

GRAFT = Path(main.__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "shown"),
        (["--set", "3"], "version 3 set"),
        (["--set", "head"], "version head set"),
        (["--rollback"], "back"),
    ],
)
def test_what_each_option_does(arguments, expected, clone, monkeypatch, capsys):
    monkeypatch.setattr(champion, "show", lambda params: "shown")
    monkeypatch.setattr(champion, "set_champion", lambda params, version: f"version {version} set")
    monkeypatch.setattr(champion, "rollback", lambda params: "back")
    main.main(["champion", *arguments])
    assert capsys.readouterr().out == f"{expected}\n"


def test_set_and_rollback_exclude_each_other(clone, capsys):
    with pytest.raises(SystemExit):
        main.main(["champion", "--set", "3", "--rollback"])
    assert "not allowed with" in capsys.readouterr().err


def test_every_use_of_it_that_a_text_recommends_exists():
    """What stands in backticks after `graft champion` is taken by the parser."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in GRAFT.rglob("*.py"))
    texts = (
        str(node.value)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
    )
    recommended = [
        line for text in texts for line in re.findall(r"; `graft (champion [^`\n]*)`", text)
    ]
    assert len(recommended) == 3
    for line in recommended:
        assert main.parser().parse_args(line.split()).set in ("VERSION", "exported")
