import shlex

import pytest

from graft.system.override import override


@pytest.mark.parametrize(
    "value, typed",
    [
        ("/home/me/photos", "data.path=/home/me/photos"),
        ("/home/me/photos (1)", """'data.path="/home/me/photos (1)"'"""),
        ("/home/me/it's", """"data.path='/home/me/it\\'s'\""""),
        ("a,b", """'data.path="a,b"'"""),
        (None, "data.path=null"),
    ],
)
def test_how_it_is_typed(value, typed):
    assert override("data.path", value) == typed


ODD = ["a b", "a(b)", "a,b", "it's", 'say "x"', "it's \"x\" $y", "b\\s", "b\\'s", 'b\\"s', "end\\",
       "end\\\\", "a=b", "[a]", "{a: b}", "#a", "a:b", "null", "true", "Inf", "1e-5", "100", ".5",
       "~a", "`a`", "!a", "$HOME", "a;b&c|d>e", "*?", " a ", "ü 図 🦙",
       r"(?:^|/)([^/\d]+?)[ ._-]*\(?\d+\)?\.\w+$"]  # fmt: skip


@pytest.mark.parametrize("value", ODD)
def test_the_shell_and_hydra_read_it_as_it_was(value):
    parser = pytest.importorskip(
        "hydra.core.override_parser.overrides_parser"
    ).OverridesParser.create()
    (word,) = shlex.split(override("data.path", value))
    (read,) = parser.parse_overrides([word])
    found = read.value()
    assert (
        read.key_or_group == "data.path"
        and (found if isinstance(found, str) else found.text) == value
    )
