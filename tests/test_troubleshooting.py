"""docs/troubleshooting.md explains every error and warning that graft can print, and none that it
cannot."""

import ast
import re
from pathlib import Path

import pytest

from graft import looks
from graft.dataset.scan import DAMAGED

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
GAP = "…"  # stands for what differs from time to time
# What is called with a line for a person; print with "error: …" only.
SAID = ("GraftError", "Unclear", "warn", "print")
# Functions whose strings become such a line elsewhere, where a call above holds nothing but "…".
MAKERS = (
    "_refusal",
    "_unknown",
    "_check",
    "_compiled",
    "check_label_pattern",
    "_not_in_train",
    "doubtful_counts",
)
MAKERS += ("doubtful_names", "_hazards", "_hazard")


def skeleton(node):
    """The text of a string expression, "…" for what is put into it; None for what is no string
    expression."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else GAP for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return f"{skeleton(node.left) or GAP}{skeleton(node.right) or GAP}"
    return None


def normal(text):
    return re.sub(f"{GAP}+", GAP, " ".join(text.replace("`", "").split())).strip()


def in_words(text):
    """Whether the text says anything beside what is put into it."""
    return len(re.findall(r"[a-zA-Z]{2,}", text.replace(GAP, " "))) > 1 and " " in text


def called(node):
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


def lines_of(tree):
    """The skeleton of every line that the module can print as an error or a warning."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) in SAID and node.args:
            text = skeleton(node.args[0])
            if text and (called(node) != "print" or text.startswith("error: ")):
                yield text.removeprefix("error: ")
        elif isinstance(node, ast.FunctionDef) and node.name in MAKERS:
            yield from made(node)


def made(function):
    """What it returns, yields, appends to a list of lines, or raises as ValueError."""
    for node in ast.walk(function):
        given = []
        if isinstance(node, ast.Return | ast.Yield) and node.value is not None:
            given = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        elif isinstance(node, ast.Call) and called(node) in ("append", "ValueError"):
            given = node.args
        yield from (text for text in map(skeleton, given) if text)


def printed(root=ROOT):
    """{skeleton: the file that it stands in}"""
    found = {}
    for path in sorted([*root.glob("graft/**/*.py"), *root.glob("stages/*.py")]):
        for text in map(normal, lines_of(ast.parse(path.read_text(encoding="utf-8")))):
            if in_words(text):
                found.setdefault(text, path.relative_to(root).as_posix())
    return found


def explained():
    """{skeleton: what is said of it}: the first cell of each row is the line, the second why it is
    there and what to do."""
    rows = re.findall(
        r"^\| `(.+?)` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    return {normal(line): text for line, text in rows}


PRINTED = printed()


@pytest.mark.parametrize("line", PRINTED)
def test_every_line_is_explained(line):
    text = explained().get(line)
    assert text, f"{PAGE.name} lacks a row: | `{line}` | why, and what to do |   ({PRINTED[line]})"
    assert len(text.split()) > 2


def test_no_line_is_explained_that_nothing_prints():
    assert sorted(line for line in explained() if in_words(line) and line not in PRINTED) == []


def test_every_maker_is_a_function_of_the_project():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.glob("graft/**/*.py")]
    there = {
        node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    }
    assert set(MAKERS) <= there


def kinds_of_problems():
    """Those that problems.csv can hold, as the code names them."""
    found = set(DAMAGED) | set(looks.WORDS)
    for path in ROOT.glob("graft/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and called(node) in ("Problem", "ImageProblem"):
                found |= {skeleton(argument) for argument in node.args[:2]}
    # "changed" ends the stage instead.
    return {text for text in found - {None, "changed"} if re.fullmatch("[a-z_]+", text)}


def test_every_kind_of_problem_is_explained_and_no_other():
    assert {"undecodable", "near_duplicate", "one_colour"} <= kinds_of_problems()
    assert sorted(line for line in explained() if not in_words(line)) == sorted(kinds_of_problems())


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ('raise GraftError("a plain word")', ["a plain word"]),
        ('raise GraftError(f"{path}: no such `file`") from None', ["…: no such file"]),
        ('console.warn(f"{a}{b} is " "gone")', ["… is gone"]),
        ('raise GraftError("holds none" + (f" ({x})" if x else ""))', ["holds none…"]),
        ('raise GraftError(f"{a}: {b}")', []),
        ('print("error: it ended", file=f)\nprint("hello there")', ["it ended"]),
        ('def _hazard(x):\n return f"{x} is odd"', ["… is odd"]),
        ('def other(x):\n return f"{x} is odd"', []),
    ],
)
def test_what_is_taken_for_a_line(code, lines):
    assert [text for text in map(normal, lines_of(ast.parse(code))) if in_words(text)] == lines
