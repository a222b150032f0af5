"""The code keeps the plan of docs/architecture.md: who imports whom, what is imported when, how
large a thing grows."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("stages/**/*.py"), *ROOT.glob("graft/**/*.py")])
RECIPES = ("split", "train_head", "second_look", "fine_tune", "evaluate", "export")
# Room -> the rooms that it may import, from the top floor down.
MAY_IMPORT = {
    "stages": "run system dataset features known network scoring second_look reporting serving "
    "description tracking.champion",
    "graft.commands": "params system dataset features serving tracking network scoring "
    "second_look reporting runtimes description known pixels forkserver",
    "graft.run": "params system tracking forkserver",
    "graft.network": "features runtimes scoring system keras_graph description known",
    "graft.serving": "pixels resizers known runtimes scoring tracking system description",
    "graft.reporting": "figures second_look scoring system description looks",
    "graft.features": "pixels resizers runtimes system",
    "graft.tracking": "dataset scoring system",
    "graft.figures": "scoring keras_graph",
    "graft.second_look": "scoring system known looks",
    "graft.dataset": "pixels resizers looks system",
    "graft.scoring": "system",
    "graft.runtimes": "system",
    "graft.params": "system",
    "graft.forkserver": "system",
    "graft.description": "system",
    "graft.keras_graph": "",
    "graft.resizers": "pixels",
    "graft.pixels": "",
    "graft.looks": "",
    "graft.known": "",
    "graft.system": "",
}
HEAVY = ("tensorflow", "keras", "mlflow", "sklearn", "matplotlib", "scipy", "pandas")
MAX_STATEMENTS = 13_000
MAX_RECIPE_LINES = 70  # a page, at 100 columns
MAX_ARGUMENTS, MAX_LINES, MAX_NESTING = 8, 60, 4  # of a function
NESTS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def module(path):
    """graft/system/files.py -> graft.system.files"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(name):
    """graft.system.files -> graft.system; each recipe is a room of its own; None for `graft` and
    `stages` themselves."""
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 else None


TREES = {module(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
PATHS = {module(path): path for path in FILES}


def lies_below(other, name):
    """Whether module `other` lies in a room below that of `name`: hints may name it, for the type
    checker alone."""
    rooms = list(MAY_IMPORT)
    return (
        room(other) in rooms
        and room(name) in rooms
        and rooms.index(room(other)) > rooms.index(room(name))
    )


def imports(name):
    """The project's modules that module `name` imports, in functions too, but for hints from
    below."""
    found, hints = set(), set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            hints |= {
                id(each) for each in node.body if lies_below(getattr(each, "module", ""), name)
            }
        if id(node) in hints:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively, in line {node.lineno}"
            found |= {
                f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}" in TREES
                else node.module
                for alias in node.names
            }
    return {target for target in found if target.split(".")[0] in ("graft", "stages")}


def rooms_imported(name):
    """Those of other rooms; of the modules only where the room's row in MAY_IMPORT names
    modules."""
    return {target for target in imports(name) if room(target) != room(name)}


def statements(tree):
    """As the interpreter counts them, docstrings not included."""
    documented = (ast.Module, ast.ClassDef, *FUNCTIONS)
    return sum(
        isinstance(node, ast.stmt)
        - (isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None)
        for node in ast.walk(tree)
    )


def nesting(node, depth=0):
    """How deep statements lie in blocks within a function; `elif` is no block of its own, an inner
    function begins anew."""
    deepest = depth
    for field, value in ast.iter_fields(node):
        is_elif = (
            isinstance(node, ast.If)
            and field == "orelse"
            and len(value) == 1
            and isinstance(value[0], ast.If)
        )
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, FUNCTIONS):
                deepest = max(
                    deepest, nesting(child, depth + (isinstance(child, NESTS) and not is_elif))
                )
    return deepest


@pytest.mark.parametrize("name", [name for name in TREES if room(name)])
def test_a_room_imports_only_rooms_below_it(name):
    own = "stages" if name.startswith("stages.") else room(name)
    assert own in MAY_IMPORT, f"{PATHS[name]} is in no room of the plan"
    allowed = [f"graft.{each}" for each in MAY_IMPORT[own].split()]
    strangers = [
        t
        for t in rooms_imported(name)
        if not any(f"{t}.".startswith(f"{each}.") for each in allowed)
    ]
    assert strangers == []


def test_rooms_form_no_circle_and_nor_do_modules():
    for graph in (
        {own: {room(f"graft.{each}") for each in row.split()} for own, row in MAY_IMPORT.items()},
        {
            own: {room(t) for name in TREES if room(name) == own for t in rooms_imported(name)}
            for own in map(room, TREES)
        },
        {name: imports(name) - {name} for name in TREES},
    ):
        graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


def test_stages_are_six_recipes_of_a_page_each():
    assert sorted(name for name in TREES if name.startswith("stages.")) == sorted(
        f"stages.{name}" for name in RECIPES
    )
    lengths = {
        name: len(PATHS[f"stages.{name}"].read_text(encoding="utf-8").splitlines())
        for name in RECIPES
    }
    assert {name: n for name, n in lengths.items() if n > MAX_RECIPE_LINES} == {}
    for name in RECIPES:
        last = TREES[f"stages.{name}"].body[-1]
        assert ast.unparse(last).startswith(f"if __name__ == '__main__':\n    run_stage({name}"), (
            name
        )


@pytest.mark.parametrize(
    "code",
    [
        *(f"import stages.{name}" for name in RECIPES),
        "import graft.params",
        "from graft.commands.main import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
    ids=lambda code: code.split("\n")[0],
)
def test_what_needs_no_tensorflow_imports_none(code):
    code = f"{code}\nimport sys; print([name for name in {HEAVY} if name in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert out.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", TREES)
def test_functions_are_short_flat_and_take_few_arguments(name):
    found = []
    for node in ast.walk(TREES[name]):
        if not isinstance(node, FUNCTIONS):
            continue
        given = [
            *node.args.posonlyargs,
            *node.args.args,
            *node.args.kwonlyargs,
            node.args.vararg,
            node.args.kwarg,
        ]
        arguments = sum(
            argument is not None and argument.arg not in ("self", "cls") for argument in given
        )
        lines = node.end_lineno - node.lineno + 1
        if arguments > MAX_ARGUMENTS or lines > MAX_LINES or nesting(node) > MAX_NESTING:
            found.append(
                f"{node.name}: {arguments} arguments, {lines} lines, nesting {nesting(node)}"
            )
    assert found == []


def public_functions(tree):
    """Functions of a module, and methods of its classes, without an underscore."""
    blocks = [
        tree,
        *(
            node
            for node in tree.body
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        ),
    ]
    nodes = [node for block in blocks for node in block.body if isinstance(node, FUNCTIONS)]
    return [node for node in nodes if not node.name.startswith("_")]


# MLflow takes hints of the model that it serves for a schema.
@pytest.mark.parametrize(
    "name", [n for n in TREES if n.startswith("graft.") and n != "graft.serving.pyfunc_model"]
)
def test_public_functions_have_hints(name):
    for node in public_functions(TREES[name]):
        given = [
            *node.args.posonlyargs,
            *node.args.args,
            *node.args.kwonlyargs,
            node.args.vararg,
            node.args.kwarg,
        ]
        bare = [
            each.arg
            for each in given
            if each and each.annotation is None and each.arg not in ("self", "cls")
        ]
        assert node.returns is not None and bare == [], node.name


def test_the_code_stays_small():
    total = sum(map(statements, TREES.values()))
    assert total <= MAX_STATEMENTS


@pytest.mark.parametrize(
    ("code", "deep"),
    [
        ("return 1", 0),
        ("if a:\n  for b in c:\n   with d: pass", 3),
        ("if a: pass\n elif b: pass\n elif c: pass\n else: pass", 1),
        ("if a: pass\n else:\n  if b: pass\n  d()", 2),
        ("try: pass\n except E:\n  while a: pass", 2),
        ("for a in b:\n  def g():\n   if c: pass", 1),
    ],
)
def test_nesting(code, deep):
    assert nesting(ast.parse(f"def f():\n {code}").body[0]) == deep
