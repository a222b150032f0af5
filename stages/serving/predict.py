"""Batch prediction: photos, folders, patterns in; a table, CSV or JSON lines out. A damaged file is listed, not fatal."""

import contextlib
import csv
import glob
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages import paths
from stages.common.parallel import ahead, processors
from stages.console import GraftError, Progress, log, quiet_tensorflow, warn
from stages.dataset import images
from stages.serving import formats

BATCH = 32
COLUMNS = ("path", "predicted", "confidence", "problem")


@dataclass(frozen=True)
class Model:
    """Any model that graft made: `run` maps uint8 (n, size, size, 3) to probabilities (n, C) of `classes`."""

    name: str
    classes: tuple
    size: int
    run: object


@dataclass(frozen=True)
class Prediction:
    """What one file shows. `probabilities`: float (C,) in the order of the model's classes, None where there is a `problem`."""

    path: str
    predicted: str = ""
    confidence: float = float("nan")
    probabilities: object = None
    problem: str = ""


def command(model, sources, *, output=None, tracking_uri=None):
    """`graft predict`: see `open_model`, `find` and `predict`. Writes `output` (.csv or .jsonl), or prints a line per file.

    Returns (number of files predicted, number of files with a problem).
    """
    writer = None
    if output is not None:
        output = Path(output)
        if output.suffix.lower() not in WRITERS:
            raise GraftError(f"--output {output}: must end in {' or '.join(WRITERS)}")
        writer = WRITERS[output.suffix.lower()]
    files, skipped = find(sources)
    opened = open_model(model, tracking_uri=tracking_uri)
    done = problems = 0
    with contextlib.ExitStack() as stack:
        if writer is None:
            width = max(len(name) for name in opened.classes)
            put = lambda row: log(_line(row, width))  # noqa: E731
        else:
            put = writer(stack.enter_context(_atomic(output)), opened.classes)
            progress = stack.enter_context(Progress("predict", len(files)))
        for row in predict(opened, files):
            put(row)
            done, problems = done + (not row.problem), problems + bool(row.problem)
            if writer is not None:
                progress.advance()
                if row.problem:
                    warn(f"{row.path}: {row.problem}")
    parts = [f"{done} image{'s' * (done != 1)} predicted by {opened.name}"]
    parts += [f"{problems} could not be read"] * bool(problems) + [f"{skipped} other files skipped"] * bool(skipped)
    log(f"predict: {', '.join(parts)}" + (f"; written to {output}" if writer else ""))
    return done, problems


def predict(model, files, *, batch_size=BATCH, workers=None):
    """Iterate over the Prediction of each of `files`, in order; files are decoded in threads while the model runs.

    model: a Model. A file that cannot be read gives a Prediction with a `problem`. Memory does not grow with their number.
    """
    rows, pixels = [], []

    def flush():
        probabilities = iter(model.run(np.stack(pixels)) if pixels else ())
        for path, problem in rows:
            if problem:
                yield Prediction(path, problem=problem)
            else:
                p = np.asarray(next(probabilities), dtype=np.float64)
                yield Prediction(path, model.classes[p.argmax()], float(p.max()), p)
        rows.clear()
        pixels.clear()

    for path, image, problem in _decoded(files, model.size, workers or processors()):
        rows.append((Path(path).as_posix(), problem))
        if image is not None:
            pixels.append(image)
        if len(rows) == batch_size:
            yield from flush()
    yield from flush()


def _decoded(files, size, workers):
    """(path, uint8 (size, size, 3) or None, problem) of each file, in order, decoded up to 2 batches ahead."""

    def one(path):
        try:
            return path, images.load(path, size), ""
        except images.ImageProblem as error:
            return path, None, str(error)
        except OSError as error:
            return path, None, f"unreadable: {error.strerror or error}"

    return ahead(one, files, workers=workers, depth=2 * BATCH)


def find(sources):
    """(image files, number of files passed over) of paths, folders and patterns such as `photos/**/*.jpg`.

    A named file is always taken, whatever it is called. In a folder, searched to any depth, the content decides, or else a
    picture's suffix: a damaged photo is listed, a text passed over, as are hidden files and folders. Each file comes once.
    Raises GraftError for a source that does not exist and where there is no image at all.
    """
    found, skipped = {}, 0
    for source in map(str, sources):
        path = Path(source).expanduser()
        if path.is_dir():
            for file in _walk(path):
                if _looks_like_picture(file):
                    found[file] = None
                else:
                    skipped += 1
        elif path.exists():
            found[path] = None
        else:
            matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(source) else []  # noqa: PTH207
            if not matches:
                raise GraftError(f"{source}: no such file, folder or pattern with a match")
            found.update(dict.fromkeys(p for p in map(Path, matches) if p.is_file()))
    if not found:
        raise GraftError(f"{', '.join(map(str, sources))}: no image there ({skipped} other files)")
    return list(found), skipped


def _walk(folder):
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def _looks_like_picture(file):
    if file.suffix.lower() in images.SUFFIXES | images.UNSUPPORTED_SUFFIXES:
        return True
    try:
        with file.open("rb") as opened:
            return images.sniff(opened.read(32)) is not None
    except OSError:
        return False


def open_model(model, *, tracking_uri=None):
    """A Model from an export folder, one of its files, an MLflow model folder, or a URI such as `models:/graft@champion`.

    Of an export folder model.onnx is taken if it is there and ONNX Runtime is installed: it gives the same answers
    (checks.json) and is ready in 0.3 s, while TensorFlow takes 10 s to import.
    tracking_uri: of the MLflow store for a URI; None = `$MLFLOW_TRACKING_URI`, else the store of this clone.
    """
    text, path = str(model), Path(model).expanduser()
    if text.startswith(("models:/", "runs:/")) or (path / "MLmodel").exists():
        return _open_registered(text, tracking_uri)
    if path.is_dir() and not (path / "saved_model.pb").exists():
        present = [name for name in ("onnx", *formats.FILES) if (path / formats.FILES[name]).exists()]
        usable = [name for name in present if not formats.missing(name)]
        if not usable:
            raise GraftError(f"{path}: no exported model in it; run `dvc repro export` first")
        path = path / formats.FILES[usable[0]]
    if path.suffix != ".onnx":
        quiet_tensorflow()
    loaded = formats.load_file(path)
    about = loaded.metadata
    return _checked(Model(str(path), about.classes, about.image_size, loaded), about.resize)


def _open_registered(uri, tracking_uri):
    in_store = uri.startswith(("models:/", "runs:/"))  # else it is a folder
    if in_store and tracking_uri is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        tracking_uri = f"sqlite:///{(paths.root() / 'mlruns' / 'mlflow.db').resolve()}"
    database = Path((tracking_uri or "").removeprefix("sqlite:///"))
    if in_store and (tracking_uri or "").startswith("sqlite:///") and not database.exists():  # MLflow would make an empty one
        raise GraftError(f"{uri}: no MLflow store at {database}; run `dvc repro` first")
    quiet_tensorflow()
    from mlflow.exceptions import MlflowException

    from stages.serving import pyfunc

    try:
        model = pyfunc.load(uri, tracking_uri=tracking_uri)
    except MlflowException as error:
        raise GraftError(f"{uri}: {(str(error).strip().splitlines() or ['cannot be loaded'])[0]}") from None
    about = model.metadata.metadata or {}
    if not {"classes", "image_size", "resize"} <= set(about):
        raise GraftError(f"{uri}: not a model that graft registered")

    def run(batch):
        return [list(row.values()) for row in model.predict(list(batch))["probabilities"]]

    return _checked(Model(uri, tuple(about["classes"]), about["image_size"], run), about["resize"])


def _checked(model, resize):
    if resize != images.RESIZE:
        warn(f"{model.name} was trained on photos resized otherwise ({resize}); its predictions may be worse here")
    return model


def _line(row, width):
    if row.problem:
        return f"{'-':>6}  {'-':{width}}  {row.path}  ({row.problem})"
    return f"{row.confidence:6.1%}  {row.predicted:{width}}  {row.path}"


@contextlib.contextmanager
def _atomic(path):
    """A text file that appears at `path` when the block ends well, and not at all otherwise."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise GraftError(f"--output {path}: cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
        mask = os.umask(0)
        os.umask(mask)
        Path(part).chmod(0o666 & ~mask)  # mkstemp makes files that only their owner may read
        Path(part).replace(path)
    finally:
        Path(part).unlink(missing_ok=True)


def _csv(file, classes):
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*COLUMNS, *classes])

    def put(row):
        figures = [""] * len(classes) if row.problem else [f"{p:.6f}" for p in row.probabilities]
        writer.writerow([row.path, row.predicted, "" if row.problem else f"{row.confidence:.6f}", row.problem, *figures])

    return put


def _jsonl(file, classes):
    def put(row):
        if row.problem:
            tree = {"path": row.path, "problem": row.problem}
        else:
            figures = {name: round(float(p), 6) for name, p in zip(classes, row.probabilities)}
            tree = {"path": row.path, "predicted": row.predicted, "confidence": round(row.confidence, 6)}
            tree["probabilities"] = figures
        file.write(json.dumps(tree, ensure_ascii=False) + "\n")

    return put


WRITERS = {".csv": _csv, ".jsonl": _jsonl}
