"""`params.yaml`, typed: an unknown key, a wrong type or a value out of range is refused with the key's name."""

import difflib
import math
import re
import types
import typing
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path

from stages import paths
from stages.console import GraftError

Weights = str
FORMATS = ("keras", "h5", "saved_model", "tflite", "tflite_fp16", "tflite_int8", "onnx")
GATES = ("accuracy", "balanced_accuracy", "macro_f1", "min_class_recall")


def bounded(*, low=-math.inf, high=math.inf, above=None, below=None):
    """A required field whose value lies in [low, high]; `above` and `below` are exclusive bounds."""
    return field(metadata={"low": low, "high": high, "above": above, "below": below})


@dataclass(frozen=True)
class Data:
    path: str
    val_fraction: float = bounded(above=0, below=1)
    test_fraction: float = bounded(above=0, below=1)
    on_damaged: typing.Literal["quarantine", "fail"]
    group_by: str | None
    near_duplicates: int = bounded(low=-1, high=16)
    leaks: typing.Literal["warn", "drop_from_train", "fail"]
    min_side: int = bounded(low=1)
    max_megapixels: float = bounded(above=0)


@dataclass(frozen=True)
class Backbone:
    name: str
    alpha: float = bounded(above=0, high=2)
    weights: Weights


@dataclass(frozen=True)
class Augment:
    views: int = bounded(low=0, high=1000)
    flip: typing.Literal["none", "horizontal", "vertical", "both"]
    rotation: float = bounded(low=0, high=0.5)
    zoom: float = bounded(low=0, below=1)
    translation: float = bounded(low=0, below=1)
    contrast: float = bounded(low=0, below=1)


@dataclass(frozen=True)
class Head:
    lr: float = bounded(above=0)
    epochs: int = bounded(low=1)
    patience: int = bounded(low=1)
    hidden_units: int = bounded(low=0)
    dropout: float = bounded(low=0, below=1)
    class_weights: typing.Literal["balanced", "none"]


@dataclass(frozen=True)
class FineTune:
    layers: int = bounded(low=0)
    epochs: int = bounded(low=0)
    warmup: float = bounded(low=0, below=1)
    patience: int = bounded(low=1)


@dataclass(frozen=True)
class Evaluate:
    calibrate: bool
    bootstrap: int = bounded(low=100, high=100_000)
    gates: dict[str, float]


@dataclass(frozen=True)
class Export:
    formats: tuple[str, ...]
    min_agreement: float = bounded(low=0, high=1)


@dataclass(frozen=True)
class Trunk:
    engine: typing.Literal["auto", "tensorflow", "litert", "onnx"]


@dataclass(frozen=True)
class Cache:
    max_gb: float = bounded(above=0)


@dataclass(frozen=True)
class ImportLimits:
    max_files: int = bounded(low=1)
    max_gb: float = bounded(above=0)
    max_ratio: float = bounded(low=1)


@dataclass(frozen=True)
class Tracking:
    experiment: str
    model: str
    promote: typing.Literal["better", "significant", "always", "never"]


@dataclass(frozen=True)
class Params:
    lr: float = bounded(above=0)
    seed: int = bounded(low=0, high=2**31 - 1)
    image_size: int | typing.Literal["auto"] = bounded(low=16, high=4096)
    batch_size: int = bounded(low=1)
    data: Data
    backbone: Backbone
    augment: Augment
    head: Head
    fine_tune: FineTune
    evaluate: Evaluate
    export: Export
    trunk: Trunk
    cache: Cache
    import_limits: ImportLimits
    tracking: Tracking

    def flat(self):
        """{'data.path': …, 'lr': …}: every parameter under its dotted key, as MLflow shows it."""
        return dict(_flatten(asdict(self)))


def load(path=paths.PARAMS):
    """Read and check `path`. Raises GraftError, naming the key, for anything that does not fit."""
    from ruamel.yaml import YAML, YAMLError  # reads 1e-05 as a number (YAML 1.2), which PyYAML does not

    path = Path(path)
    try:
        tree = YAML(typ="safe").load(path)
    except FileNotFoundError:
        raise GraftError(f"{path}: no such file; run from the root of the project") from None
    except YAMLError as error:
        raise GraftError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    params = _build(Params, tree, where="", file=path)
    _check_together(params, path)
    return params


def _build(kind, tree, *, where, file):
    if not isinstance(tree, dict):
        raise GraftError(f"{file}: {where.rstrip('.') or 'the file'} must be a block of keys, not {tree!r}")
    known = {f.name: f for f in fields(kind)}
    for key in tree:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {where}{near[0]}?" if near else f"; known here: {', '.join(known)}"
            raise GraftError(f"{file}: unknown key {where}{key}{hint}")
    missing = [key for key in known if key not in tree]
    if missing:
        raise GraftError(f"{file}: missing key {where}{missing[0]}")
    hints = typing.get_type_hints(kind)
    return kind(**{
        key: _build(hints[key], tree[key], where=f"{where}{key}.", file=file) if is_dataclass(hints[key])
        else _value(hints[key], tree[key], f.metadata, key=where + key, file=file)
        for key, f in known.items()
    })  # fmt: skip


def _value(hint, value, limits, *, key, file):
    """`value` as the type that `hint` names, within `limits`."""

    def refuse(wanted):
        raise GraftError(f"{file}: {key} must be {wanted}, not {value!r}")

    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value if value in args and not isinstance(value, bool) else refuse("one of " + ", ".join(map(str, args)))
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        words = [word for a in args for word in typing.get_args(a)]
        if value in words:
            return value
        plain = next(a for a in args if a in (int, float, str))
        if plain in (int, float) and words and isinstance(value, str):
            refuse(f"a whole number or {', '.join(words)}")
        return _value(plain, value, limits, key=key, file=file)
    if origin is tuple:
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            refuse("a list of words")
        return tuple(value)
    if origin is dict:
        if not isinstance(value, dict) or not all(_is_number(v) for v in value.values()):
            refuse("a block of numbers")
        return {str(k): float(v) for k, v in value.items()}
    if hint is bool:
        return value if isinstance(value, bool) else refuse("true or false")
    if hint is str:
        return value if isinstance(value, str) and value else refuse("a word")
    if hint is int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not _is_number(value) or isinstance(value, float):
            refuse("a whole number")
    elif not _is_number(value) or not math.isfinite(value):
        refuse("a number")
    low, high = limits.get("low", -math.inf), limits.get("high", math.inf)
    above, below = limits.get("above"), limits.get("below")
    if value < low or value > high or (above is not None and value <= above) or (below is not None and value >= below):
        bounds = [f"above {above}" if above is not None else f"at least {low}" if low > -math.inf else "",
                  f"below {below}" if below is not None else f"at most {high}" if high < math.inf else ""]  # fmt: skip
        refuse(" and ".join(b for b in bounds if b))
    return hint(value)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_together(params, file):
    """What no single key can get wrong."""
    data = params.data
    if data.val_fraction + data.test_fraction >= 1:
        raise GraftError(
            f"{file}: data.val_fraction + data.test_fraction must stay below 1, so that images are left to train on"
        )
    if data.group_by is not None:
        try:
            groups = re.compile(data.group_by).groups
        except re.error as error:
            raise GraftError(f"{file}: data.group_by is not a regular expression: {error}") from None
        if groups != 1:
            raise GraftError(f"{file}: data.group_by must have one (group), not {groups}")
    for key, values, known in (
        ("export.formats", params.export.formats, FORMATS),
        ("evaluate.gates", params.evaluate.gates, GATES),
    ):
        for value in values:
            if value not in known:
                raise GraftError(f"{file}: {key} must be made of {', '.join(known)}, not {value!r}")
    if "keras" not in params.export.formats:
        raise GraftError(f"{file}: export.formats must hold keras, the original that the others are checked against")


def _flatten(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
