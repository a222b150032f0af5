"""Explain the parameters: type, limits, default, meaning, and which stages run again; all of them,
or one."""

import argparse
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from graft import params as parameters
from graft.system import paths
from graft.system.console import GraftError, log
from graft.tracking import dvc_lock

KINDS = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "word",
    type(None): "null",
}
HEADER = """# Parameters

All of them stand in [params.yaml](../params.yaml), are set with `dvc exp run -S key=value`, and
are checked when read: an unknown key or a value out of range stops the stage with a line that
names it. `graft params` prints what this table says, `graft params KEY` one row of it. *Runs
again* names the stages that read the parameter, and those that read what these make; DVC skips
one whose inputs come out as they were.

This page is made of the descriptions in `graft/params.py`: `graft params --markdown >
docs/parameters.md`.

| key | type and limits | default | meaning | runs again |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """A parameter as it is explained. kind: type and limits in words. default: what params.yaml
    says, as JSON. stages: those that a change runs again."""

    key: str
    kind: str
    default: str
    meaning: str
    stages: tuple[str, ...]

    @property
    def runs_again(self) -> str:
        return (
            "all stages"
            if len(self.stages) == len(paths.STAGES)
            else ", ".join(self.stages) or "nothing"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "key", nargs="?", help="a parameter such as fine_tune.layers, or a block such as fine_tune"
    )
    parser.add_argument("--markdown", action="store_true", help="print docs/parameters.md")


def params_(args: argparse.Namespace) -> None:
    """`graft params [KEY] [--markdown]`. Raises GraftError for a key that there is not, naming the
    nearest."""
    found = rows()
    if args.markdown:
        log(markdown(found).rstrip("\n"))
        return
    if args.key is not None:
        found = [row for row in found if f"{row.key}.".startswith(f"{args.key}.")]
    if not found:
        near = parameters.nearest(args.key)
        raise GraftError(
            f"no parameter {args.key}; "
            f"{f'did you mean {near[0]}?' if near else '`graft params` lists all'}"
        )
    log("\n".join(map(_text, found)))


def rows() -> list[Row]:
    """A Row for each parameter, in the order of params.yaml, whose values are the defaults."""
    given = parameters.load()
    values = given.model_dump(mode="json")
    return [
        Row(
            key,
            kind(field),
            _shown(_value(values, key)),
            field.description or "",
            stages_again(key, given),
        )
        for key, field in parameters.fields().items()
    ]


def stages_again(key: str, given: parameters.Params) -> tuple[str, ...]:
    """The stages that `key` is declared for in dvc.yaml, and those below them that read what they
    make."""
    found: list[str] = []
    made: set[Path] = set()
    for stage in paths.STAGES:
        inputs, outputs = dvc_lock.stage_files(stage)
        declared = any(
            f"{name}.".startswith(f"{key}.") for name in dvc_lock.stage_keys(stage, given)
        )
        if declared or made & set(inputs.values()):
            found.append(stage)
            made |= set(outputs)
    return tuple(found)


def kind(field: FieldInfo) -> str:
    """Type and limits of a field in words: "number above 0", "whole number from 16 to 4096, or
    auto"."""
    parts = _alternatives(field.annotation)
    limits = [*field.metadata, *(m for part in parts for m in getattr(part, "__metadata__", ()))]
    words = [_kind(part, _limits(limits)) for part in parts]
    return words[0] + "".join(f", or {word}" for word in words[1:])


def _alternatives(annotation):
    """int | Literal["auto"] -> (int, Literal["auto"])"""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _kind(part, limits):
    if get_origin(part) is Annotated:
        part = get_args(part)[0]
    arguments = get_args(part)
    if get_origin(part) is Literal:
        return " | ".join(arguments)
    if get_origin(part) is tuple:
        return f"list of {_kind(arguments[0], '')}"
    if get_origin(part) is dict:
        return (
            f"block of {_kind(arguments[0], '')}: {kind(FieldInfo.from_annotation(arguments[1]))}"
        )
    return KINDS[part] + (limits if part in (int, float) else "")


def _limits(metadata):
    """above 0 and below 1"""
    bounds = {
        name: getattr(each, name)
        for each in metadata
        for name in parameters.BOUNDS
        if hasattr(each, name)
    }
    if set(bounds) == {"ge", "le"}:
        return f" from {bounds['ge']} to {bounds['le']}"
    return " " * bool(bounds) + " and ".join(
        f"{parameters.BOUNDS[name]} {value}" for name, value in bounds.items()
    )


def _value(tree, key):
    for name in key.split("."):
        tree = tree[name]
    return tree


def _shown(value):
    """As one writes it in params.yaml."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def _text(row):
    meaning = textwrap.fill(row.meaning, 96, initial_indent="    ", subsequent_indent="    ")
    return f"{row.key}: {row.default}    ({row.kind})\n{meaning}\n    runs again: {row.runs_again}"


def markdown(found: list[Row]) -> str:
    """docs/parameters.md."""
    cells = ([f"`{r.key}`", r.kind, f"`{r.default}`", r.meaning, r.runs_again] for r in found)
    return HEADER + "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in cells
    )
