"""`benchmarks/mutants.py`: each mutant is the code with one change, and tests that see it count it
as killed."""

import ast

import pytest

from benchmarks import mutants


@pytest.fixture
def target(tmp_path, monkeypatch):
    """target(code): a module of that code, and the line of each of its mutants as it then is."""

    def make(code, names=None):
        (tmp_path / "target.py").write_text(code)
        monkeypatch.setattr(mutants, "ROOT", tmp_path)
        found = mutants.mutants("target", names)
        changed = []
        for mutant in found:
            _, tree = mutants.source("target")
            node = list(ast.walk(tree))[mutant.number]
            changed.append((mutant.way, ast.unparse(mutants.changed(node, mutant.way))))
            mutants.compiled(mutant)
        return changed

    return make


def test_what_is_changed_and_how(target):
    code = """
import os
LIMIT = 3
def f(a: int = 1, *, b=True) -> tuple[int, int]:
    "Text with 1 < 2."
    if a <= 2 and not b:
        raise ValueError(f"{a + 1}")
    return [a * 2, {"x": a, "y": 1.5}]
"""
    changed = target(code)
    assert ("comparison 0", "a < 2") in changed
    assert ("operator", "a <= 2 or not b") in changed
    assert ("sign", "b") in changed
    assert ("left out", "pass") in changed
    assert ("without element 0", "[{'x': a, 'y': 1.5}]") in changed
    assert ("without key 1", "{'x': a}") in changed
    assert ("None returned", "return None") in changed
    assert ("number + 1", "2") in changed and ("not", "False") in changed
    assert (
        "condition",
        "if not (a <= 2 and (not b)):\n    raise ValueError(f'{a + 1}')",
    ) in changed
    assert len(changed) == 16


def test_only_the_functions_that_are_named(target):
    code = "def f(a):\n    return a + 1\nclass C:\n    def g(self):\n        return 1 < 2\n"
    assert {way for way, _ in target(code, ["C.g"])} == {
        "comparison 0",
        "number + 1",
        "None returned",
    }
    assert target(code, ["h"]) == []


@pytest.mark.parametrize(
    ("line", "killed"), [("assert target.f(1) == 2", True), ("target.f(1)", False)]
)
def test_a_test_that_sees_the_change_kills_it(tmp_path, monkeypatch, line, killed):
    (tmp_path / "target.py").write_text("def f(a):\n    return a + 1\n")
    test = tmp_path / "test_it.py"
    test.write_text(f"import target\ndef test():\n    {line}\n")
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (mutant,) = (m for m in mutants.mutants("target", None) if m.way == "operator")
    assert mutants.killed([str(test)], mutant) is killed
    assert mutants.killed([str(test)], None) is False
