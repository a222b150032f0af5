"""Batch prediction: photos, folders, patterns, lists in; what each shows out. A damaged file is
listed, not fatal."""

import contextlib
import glob
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from graft import pixels
from graft.description import FILES
from graft.known import FILE
from graft.serving import pyfunc, readers
from graft.system.console import GraftError
from graft.system.environment import missing, quiet_tensorflow
from graft.system.prefetch import prefetch, processors

BATCH = 32
WITHOUT_TENSORFLOW = (".onnx", ".tflite")  # files whose runtimes need none
UNKNOWN = "(unknown)"  # no class: a folder of photos cannot be called so everywhere


@dataclass(frozen=True)
class Prediction:
    """What one file shows. `probabilities`: float (C,) in the order of the model's classes, None
    where there is a `problem`. known: p-value as of `graft.known`, where the model is `judged`;
    below the limit, `predicted` is UNKNOWN."""

    path: str
    predicted: str = ""
    confidence: float = float("nan")
    probabilities: np.ndarray | None = None
    known: float = float("nan")
    problem: str = ""


def predict(
    model: readers.Loaded,
    files: Iterable[Path],
    *,
    batch_size: int = BATCH,
    workers: int | None = None,
    unknown_below: float | None = None,
) -> Iterator[Prediction]:
    """Iterate over the Prediction of each of `files`, in order; files are decoded in threads while
    the model runs.

    A file that cannot be read gives a Prediction with a `problem`. Memory does not grow with their
    number. Raises GraftError for a model that gives no numbers.
    """
    own = threading.local()  # a lane for each thread that comes to need one

    def judge(batch):
        images = [image for _, image, _ in batch if image is not None]
        if not images:
            return batch, (), ()
        known: Sequence[float] | np.ndarray = ()
        if model.judged:
            found, known = model.judged(np.stack(images))
        else:
            if not hasattr(own, "lane"):
                own.lane = readers.lane(model)
            found = own.lane(np.stack(images))
        if not np.isfinite(found).all():
            raise GraftError(
                f"{model.name}: gives probabilities that are not finite; its weights hold NaN, or "
                "are damaged"
            )
        return batch, found, known

    decoded = prefetch(
        _decoder(model.description), files, workers=workers or processors(), depth=2 * BATCH
    )
    batches = iter(lambda: list(islice(decoded, batch_size)), [])
    lanes = 1 if model.judged else readers.lanes(model)
    for batch, found, p_values in prefetch(judge, batches, workers=lanes, depth=lanes + 1):
        probabilities, known = iter(found), iter(p_values)
        for path, image, problem in batch:
            if image is None:
                yield Prediction(path.as_posix(), problem=problem)
            else:
                p = np.asarray(next(probabilities), dtype=np.float64)
                p_value = float(next(known, np.nan))
                name = (
                    UNKNOWN
                    if unknown_below is not None and p_value < unknown_below
                    else model.description.classes[p.argmax()]
                )
                yield Prediction(path.as_posix(), name, float(p.max()), p, p_value)


def _decoder(described):
    """path -> (path, pixels or None, problem), in any thread; of large photos one at a time, for
    the memory."""
    one_large = threading.Lock()
    how = {
        "resize": described.resize,
        "max_megapixels": described.max_megapixels,
        "white": described.white,
    }

    def decode(path):
        try:
            with one_large if pixels.is_large(path) else contextlib.nullcontext():
                return path, pixels.load(path, described.image_size, **how), ""
        except pixels.ImageProblem as error:
            return path, None, str(error)
        except OSError as error:
            return path, None, f"unreadable: {error.strerror or error}"

    return decode


class Sources:
    """The image files of photos, folders, patterns such as `photos/**/*.jpg`, and lists: iterate,
    as often as you like.

    A named file is always taken, whatever it is called. In a folder, searched to any depth,
    `pixels.may_be_image` decides: a damaged photo is listed, a text passed over, as are hidden
    files and folders. `@FILE` is a list, `-` one on standard input: a path per line, each taken,
    even twice. Of the others each file comes once. Folders and lists are read as one goes. Raises
    GraftError for a source that does not exist, and on iteration where there is no image at all.

    skipped: number of files passed over, when an iteration has ended. once: standard input is among
    them, which can be read only once.
    """

    def __init__(self, sources: Iterable[str | Path]) -> None:
        self.names = list(map(str, sources))
        self.once = "-" in self.names
        self.skipped = 0
        for name in self.names:
            path = Path(name.removeprefix("@")).expanduser()
            if name != "-" and not (
                path.is_file() if name.startswith("@") else path.exists() or _matches(name)
            ):
                raise GraftError(f"{name}: no such file, folder, list or pattern with a match")

    def __iter__(self) -> Iterator[Path]:
        self.skipped, found = 0, 0
        seen: set[str] | None = set() if len(self.names) > 1 else None
        for name in self.names:
            listed = name == "-" or name.startswith("@")
            for path in _lines(name) if listed else self._inside(name):
                if seen is not None and not listed:
                    if str(path) in seen:
                        continue
                    seen.add(str(path))
                found += 1
                yield path
        if not found:
            raise GraftError(
                f"{', '.join(self.names)}: no image there ({self.skipped} other files)"
            )

    def _inside(self, name):
        path = Path(name).expanduser()
        if path.is_dir():
            for file in _walk(path):
                if pixels.may_be_image(file):
                    yield file
                else:
                    self.skipped += 1
        else:
            yield from [path] if path.exists() else _matches(name)


def _matches(pattern):
    """The files that a pattern means, sorted."""
    pattern = str(Path(pattern).expanduser())
    found = sorted(set(glob.glob(pattern, recursive=True))) if glob.has_magic(pattern) else []  # noqa: PTH207
    return [file for file in map(Path, found) if file.is_file()]


def _lines(name):
    """The paths of a list, without empty lines; "-" is standard input."""
    with contextlib.ExitStack() as stack:
        file = Path(name.removeprefix("@")).expanduser()
        lines = sys.stdin.buffer if name == "-" else stack.enter_context(file.open("rb"))
        yield from (Path(os.fsdecode(line.rstrip(b"\r\n"))) for line in lines if line.strip())


def _walk(folder):
    """The files of a folder, by the rule of `split`; no pipe or device, which reading might never
    end."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not pixels.passed_over(name))
        paths = (Path(place, name) for name in sorted(names) if not pixels.passed_over(name))
        yield from (path for path in paths if path.is_file() or not path.exists())


def open_model(
    source: str | Path,
    *,
    suits_litert: Callable[[str], bool] = lambda backbone: True,
    knowing: bool = False,
) -> readers.Loaded:
    """A model from an export folder, one of its files, an MLflow model folder, or a URI such as
    `models:/graft@champion`.

    Of an export folder model.tflite is taken if the backbone suits LiteRT, else model.onnx, if it
    is there and ONNX Runtime is installed: both give the same answers (checks.json) and are ready
    in 0.3 s, while TensorFlow takes 10 s to import. suits_litert: whether LiteRT runs a backbone,
    by its name, faster than ONNX Runtime does. knowing: `judged` will be asked for, which of an
    export folder model.keras alone can answer; it is where the model costs nothing more by it.
    Raises GraftError where it cannot be.
    """
    text, path = str(source), Path(source).expanduser()
    if text.startswith(pyfunc.IN_STORE) or (path / "MLmodel").exists():
        model = pyfunc.load(text)
        if knowing and model.judged is None:
            raise GraftError(
                f"{text}: a model of before, which does not say what it knows; train it anew"
            )
    elif knowing or (path.name == FILES["keras"] and (path.parent / FILE).exists()):
        quiet_tensorflow()
        model = readers.load_knowing(path if path.is_dir() else path.parent)
    else:
        if path.is_dir() and not (path / "saved_model.pb").exists():
            path = _best_of(path, suits_litert)
        if path.suffix not in WITHOUT_TENSORFLOW:
            quiet_tensorflow()
        model = readers.load_file(path)
    if model.description.resize not in pixels.RESIZE:
        raise GraftError(
            f"{model.name}: resizes photos by a rule that is not known here: "
            f"{model.description.resize}"
        )
    return model


def _best_of(folder, suits_litert):
    """The file of an export folder that is fastest, of those whose packages are installed."""
    usable = [
        f
        for f in ("onnx", "tflite", *FILES)
        if (folder / FILES[f]).exists() and not missing(readers.NEEDS.get(f, ()))
    ]
    if not usable:
        raise GraftError(f"{folder}: no exported model in it; run `dvc repro export` first")
    tflite = folder / FILES["tflite"]
    if "tflite" in usable and suits_litert(readers.read_description(tflite).backbone):
        return tflite
    return folder / FILES[usable[0]]
