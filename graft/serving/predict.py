"""Batch prediction: photos, folders, patterns in; what each shows out. A damaged file is listed, not fatal."""

import contextlib
import glob
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from graft import pixels
from graft.description import FILES
from graft.serving import pyfunc, readers
from graft.system.console import GraftError
from graft.system.environment import missing, quiet_tensorflow
from graft.system.prefetch import prefetch, processors

BATCH = 32
UNKNOWN = "(unknown)"  # no class: a folder of photos cannot be called so everywhere


@dataclass(frozen=True)
class Prediction:
    """What one file shows. `probabilities`: float (C,) in the order of the model's classes, None where there is a
    `problem`. known: p-value as of `graft.known`, where it was asked for; below the limit, `predicted` is UNKNOWN."""

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
    """Iterate over the Prediction of each of `files`, in order; files are decoded in threads while the model runs.

    A file that cannot be read gives a Prediction with a `problem`. Memory does not grow with their number.
    """
    one_large = threading.Lock()
    described = model.description
    how = {"resize": described.resize, "max_megapixels": described.max_megapixels, "white": described.white}

    def decode(path):
        try:
            with one_large if pixels.is_large(path) else contextlib.nullcontext():
                return path, pixels.load(path, described.image_size, **how), ""
        except pixels.ImageProblem as error:
            return path, None, str(error)
        except OSError as error:
            return path, None, f"unreadable: {error.strerror or error}"

    decoded = prefetch(decode, files, workers=workers or processors(), depth=2 * BATCH)
    while batch := list(islice(decoded, batch_size)):
        images = [image for _, image, _ in batch if image is not None]
        judge = model if unknown_below is None else model.judged
        found = judge(np.stack(images)) if images else ((), ())
        probabilities, known = (iter(some) for some in ((found, ()) if unknown_below is None else found))
        for path, image, problem in batch:
            if image is None:
                yield Prediction(path.as_posix(), problem=problem)
            else:
                p = np.asarray(next(probabilities), dtype=np.float64)
                p_value = float(next(known, np.nan))
                name = UNKNOWN if unknown_below is not None and p_value < unknown_below else described.classes[p.argmax()]
                yield Prediction(path.as_posix(), name, float(p.max()), p, p_value)


def find(sources: Iterable[str | Path]) -> tuple[list[Path], int]:
    """(image files, number of files passed over) of paths, folders and patterns such as `photos/**/*.jpg`.

    A named file is always taken, whatever it is called. In a folder, searched to any depth, `pixels.may_be_image` decides: a
    damaged photo is listed, a text passed over, as are hidden files and folders. Each file comes once.
    Raises GraftError for a source that does not exist and where there is no image at all.
    """
    found, skipped, sources = {}, 0, list(map(str, sources))
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            inside = list(_walk(path))
            images = [file for file in inside if pixels.may_be_image(file)]
            skipped += len(inside) - len(images)
        elif path.exists():
            images = [path]
        else:
            matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(source) else []  # noqa: PTH207
            if not matches:
                raise GraftError(f"{source}: no such file, folder or pattern with a match")
            images = [file for file in map(Path, matches) if file.is_file()]
        found.update(dict.fromkeys(images))
    if not found:
        raise GraftError(f"{', '.join(sources)}: no image there ({skipped} other files)")
    return list(found), skipped


def _walk(folder):
    """The files of a folder, by the rule of `split`; no pipe or device, which reading might never end."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not pixels.passed_over(name))
        paths = (Path(place, name) for name in sorted(names) if not pixels.passed_over(name))
        yield from (path for path in paths if path.is_file() or not path.exists())


def open_model(source: str | Path, *, knowing: bool = False) -> readers.Loaded:
    """A model from an export folder, one of its files, an MLflow model folder, or a URI such as `models:/graft@champion`.

    Of an export folder model.onnx is taken if it is there and ONNX Runtime is installed: it gives the same answers
    (checks.json) and is ready in 0.3 s, while TensorFlow takes 10 s to import. knowing: `judged` will be asked for, which of an
    export folder model.keras alone can answer.
    """
    text, path = str(source), Path(source).expanduser()
    if text.startswith(pyfunc.IN_STORE) or (path / "MLmodel").exists():
        model = pyfunc.load(text)
    else:
        if knowing:
            quiet_tensorflow()
            return readers.load_knowing(path if path.is_dir() else path.parent)
        if path.is_dir() and not (path / "saved_model.pb").exists():
            path = _best_of(path)
        if path.suffix != ".onnx":
            quiet_tensorflow()
        model = readers.load_file(path)
    if model.description.resize not in pixels.RESIZE:
        raise GraftError(f"{model.name}: resizes photos by a rule that is not known here: {model.description.resize}")
    return model


def _best_of(folder):
    """The file of an export folder that is ready first, of those whose packages are installed."""
    for format in ("onnx", *FILES):
        if (folder / FILES[format]).exists() and not missing(readers.NEEDS.get(format, ())):
            return folder / FILES[format]
    raise GraftError(f"{folder}: no exported model in it; run `dvc repro export` first")
