"""Do the tests bite? One small change to the code at a time, each run against its module's own
tests, which ought to fail.

    python benchmarks/mutants.py [--sample 150] [--seed 0] [--seconds 2700]

Changes ("mutants"): a comparison, operator, number or condition turned, a statement left out, an
element of a list, tuple or dict left out, None returned. Only what decides results: how photos are
dealt out, where the network is cut, what features are known by, metrics, who becomes champion.
Texts are left alone, and so are type hints. A seeded sample of them is tried, for at most so many
seconds. The heavy packages are imported once; each mutant lives in a fork, and no file is changed.

Prints every survivor as a line of code and what became of it, and the share that was killed, by
module.
"""

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Module: (its tests, the functions and classes that are changed; None: all of them).
TARGETS = {
    "graft.dataset.splitting": (["tests/dataset/test_splitting.py"], None),
    "graft.network.cut": (["tests/network/test_cut.py"], None),
    "graft.features.extractor": (
        ["tests/features/test_extractor.py"],
        ["FeatureExtractor._space", "Features"],
    ),
    "graft.features.cache": (["tests/features/test_cache.py"], None),
    "graft.scoring.metrics": (["tests/scoring/test_metrics.py"], None),
    "graft.tracking.champion": (
        ["tests/tracking/test_champion.py"],
        ["decide", "failed_gates", "active_versions"],
    ),
}
PACKAGES = (
    "tensorflow",
    "keras",
    "scipy.stats",
    "sklearn.metrics",
    "mlflow",
    "pytest",
    "PIL.Image",
    "pydantic",
    "ruamel.yaml",
)
# -k: what takes too long for what it adds.
MORE = {"tests/features/test_cache.py": "not memory_does_not_grow"}
LIMIT = 120  # seconds of processor time after which a mutant that does not end counts as killed
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


NAMED = (ast.FunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Mutant:
    """`number` of a node of the module's tree, in the order of ast.walk, the `way` in which it is
    changed, its `line`."""

    module: str
    number: int
    way: str
    line: int

    def __str__(self) -> str:
        path = Path(*self.module.split(".")).with_suffix(".py")
        return (
            f"{path}:{self.line}: {self.way}: "
            f"{(ROOT / path).read_text(encoding='utf-8').splitlines()[self.line - 1].strip()}"
        )


def ways(node: ast.AST) -> Iterator[str]:
    """How a node can be changed."""
    if isinstance(node, ast.Compare):
        yield from (f"comparison {k}" for k, op in enumerate(node.ops) if type(op) in SWAPS)
    elif isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in SWAPS:
        yield "operator"
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield "not" if isinstance(node.value, bool) else "number + 1"
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield "condition"
    elif isinstance(node, ast.comprehension):
        yield from (f"filter {k}" for k in range(len(node.ifs)))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield "sign"
    elif (
        isinstance(node, (ast.List, ast.Tuple))
        and isinstance(node.ctx, ast.Load)
        and len(node.elts) > 1
    ):
        yield from (f"without element {k}" for k in range(len(node.elts)))
    elif isinstance(node, ast.Dict) and len(node.keys) > 1:
        yield from (f"without key {k}" for k in range(len(node.keys)))
    elif isinstance(node, ast.Return) and getattr(node.value, "value", node.value) is not None:
        # None would stay None.
        yield "None returned"
    elif isinstance(node, (ast.Raise, ast.Continue, ast.Break)) or (
        isinstance(node, ast.Expr) and not isinstance(node.value, (ast.Constant, ast.Yield))
    ):
        yield "left out"


def changed(node: ast.AST, way: str) -> ast.AST:
    """A copy of `node`, changed in that way."""
    node = copy.deepcopy(node)
    kind, _, number = way.rpartition(" ")
    if kind == "comparison":
        node.ops[int(number)] = SWAPS[type(node.ops[int(number)])]()
    elif way == "operator":
        node.op = SWAPS[type(node.op)]()
    elif way in ("not", "number + 1"):
        node.value = not node.value if way == "not" else node.value + 1
    elif way == "condition":
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif kind == "filter":
        del node.ifs[int(number)]
    elif way == "sign":
        return node.operand
    elif kind == "without element":
        del node.elts[int(number)]
    elif kind == "without key":
        del node.keys[int(number)], node.values[int(number)]
    elif way == "None returned":
        node.value = ast.Constant(None)
    else:
        return ast.Pass()
    return node


def source(module: str) -> tuple[Path, ast.Module]:
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return path, ast.parse(path.read_text(encoding="utf-8"))


def mutants(module: str, names: list[str] | None) -> list[Mutant]:
    """All mutants of a module, or of the functions and classes with these names in it."""
    _, tree = source(module)
    numbers = {id(node): number for number, node in enumerate(ast.walk(tree))}
    found = []

    def visit(node, name):
        for field, value in ast.iter_fields(node):
            if field not in ("annotation", "returns", "decorator_list"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST) and not isinstance(
                        child, (ast.Import, ast.ImportFrom, ast.JoinedStr)
                    ):
                        take(
                            child,
                            f"{name}.{child.name}".lstrip(".")
                            if isinstance(child, NAMED)
                            else name,
                        )

    def take(node, name):
        if name and (names is None or any(name == n or name.startswith(f"{n}.") for n in names)):
            line = (
                node.iter.lineno
                if isinstance(node, ast.comprehension)
                else getattr(node, "lineno", 0)
            )
            found.extend(Mutant(module, numbers[id(node)], way, line) for way in ways(node))
        visit(node, name)

    visit(tree, "")
    return found


def compiled(mutant: Mutant):
    """The module's code with the mutant in it."""
    path, tree = source(mutant.module)
    target = list(ast.walk(tree))[mutant.number]

    class Change(ast.NodeTransformer):
        def visit(self, node):
            return changed(node, mutant.way) if node is target else self.generic_visit(node)

    return compile(ast.fix_missing_locations(Change().visit(tree)), str(path), "exec")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the mutant in its module's place."""

    def __init__(self, mutant):
        self.mutant, self.code = mutant, compiled(mutant)

    def find_spec(self, name, path=None, target=None):
        if name != self.mutant.module:
            return None
        return importlib.util.spec_from_file_location(name, source(name)[0], loader=self)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(self.code, module.__dict__)


def killed(tests: list[str], mutant: Mutant | None) -> bool:
    """Whether the tests fail with the mutant (None: with the code as it is), in a fork of this
    process."""
    pid = os.fork()
    if pid == 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        status = 1
        with contextlib.suppress(BaseException):
            os.chdir(ROOT)
            if mutant is not None:
                sys.meta_path.insert(0, _Finder(mutant))
            import pytest

            chosen = [option for test in tests if test in MORE for option in ("-k", MORE[test])]
            options = [
                "-x",
                "-q",
                "-p",
                "no:cacheprovider",
                "-m",
                "not slow and not gpu",
                "--no-header",
            ]
            status = int(pytest.main([*tests, *chosen, *options]))
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


def _import_packages():
    """What all tests need and no mutant changes; graft's own modules are imported by each fork."""
    sys.path.insert(0, str(ROOT))
    from graft.system import environment

    environment.set_tensorflow_environment()
    for name in PACKAGES:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "graft"]:
        del sys.modules[name]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--sample", type=int, default=150, help="how many mutants, in all modules together"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=2700)
    parser.add_argument(
        "--module", choices=TARGETS, action="append", help="only this one; may be repeated"
    )
    args = parser.parse_args(arguments)
    chosen = {name: TARGETS[name] for name in args.module or TARGETS}
    _import_packages()
    everything = [
        mutant for module, (_, names) in chosen.items() for mutant in mutants(module, names)
    ]
    for module, (tests, _) in chosen.items():
        if killed(tests, None):
            print(f"mutants: {module}: its tests fail without any", flush=True)
            return 1
    sample = random.Random(args.seed).sample(everything, min(args.sample, len(everything)))
    print(f"mutants: {len(sample)} of {len(everything)}", flush=True)
    tried, survived, begun = Counter(), Counter(), time.monotonic()
    for mutant in sample:
        if time.monotonic() - begun > args.seconds:
            break
        tried[mutant.module] += 1
        if not killed(chosen[mutant.module][0], mutant):
            survived[mutant.module] += 1
            print(f"mutants: survived: {mutant}", flush=True)
    for module in tried:
        print(f"mutants: {module}: {tried[module] - survived[module]} of {tried[module]} killed")
    total, left = tried.total(), survived.total()
    print(
        f"mutants: {total - left} of {total} killed, {1 - left / max(1, total):.0%}; {args.seed=}"
    )
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
