"""Bring a data set from wherever it is to data/raw/NAME: a folder, a zip or tar archive, an https
URL, TensorFlow Datasets.

All work goes on in a hidden folder beside the target, which takes its place by one rename at the
very end, so an interrupted import leaves nothing that looks complete.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import tempfile
import threading
import time
import unicodedata
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from graft import pixels
from graft.dataset import archives
from graft.dataset.archives import Budget, Entry, Limits
from graft.dataset.labels import (
    BY_FOLDER,
    TABLE,
    ByFolder,
    Place,
    Rules,
    doubtful_names,
    images_among,
    read,
    write_table,
)
from graft.dataset.layout import Unclear, split_named, walk
from graft.system import console
from graft.system.console import GraftError
from graft.system.environment import set_tensorflow_environment
from graft.system.override import override

STALE = 24 * 3600  # seconds after which what a killed import left behind is swept away
STAGING = ".importing-"


@dataclass(frozen=True)
class ImportResult:
    """`folder`: where it lies now; `counts`: {(split or "", class): images}, as the folders or the
    table of labels say; `left_out`: files of the source that were not taken along (links, what lies
    outside the class folders); `table`: whether its labels stand in labels.csv."""

    folder: Path
    counts: dict[tuple[str, str], int]
    left_out: int
    table: bool = False

    @property
    def classes(self) -> list[str]:
        return sorted({label for _, label in self.counts})

    @property
    def images(self) -> int:
        return sum(self.counts.values())


def import_dataset(
    *sources: str | Path,
    limits: Limits,
    name: str | None = None,
    into: Path = Path("data/raw"),
    sha256: str | None = None,
    rules: Rules = BY_FOLDER,
) -> ImportResult:
    """Copy or unpack `sources` to `into`/`name`, say what it holds and how to run on it.

    `sources`: one or several of folder, archive (.zip, .tar, .tar.gz, .tgz; the content decides),
    https URL of one, or `tfds:NAME[:VERSION][@DATA_DIR]`; several become one set. `name`: by
    default that of the source. `sha256`: what the archive's must be, in hex. `limits`:
    params.import_limits. `rules`: where the labels come from; `rules.labels` is a file here or in
    the source.
    The class folders are found at whatever depth they lie; train, val and test above them are kept.
    Where labels do not come from folders, labels.csv holds them. Raises GraftError.
    """
    names, into = [str(source) for source in sources], Path(into)
    if len(names) > 1 and (name is None or sha256 is not None or rules.labels is not None):
        raise GraftError(
            "several sources need a --name for the set that they become, and take neither "
            "--sha256 nor --labels"
        )
    target = into / _checked_name(name, names[0])
    if target.exists() or target.is_symlink():
        raise GraftError(f"{target} is there already; remove it, or choose another --name")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise GraftError(f"--sha256 must be 64 hexadecimal digits, not {sha256!r}")
    if sha256 is not None and (names[0].startswith("tfds:") or Path(names[0]).is_dir()):
        raise GraftError(
            "--sha256 is for archives; a folder or a TensorFlow Datasets name has no such sum"
        )
    with _staging(into, target.name) as work:
        budget = Budget(limits)
        folders = _folders(work / "files", names)
        for source, folder in folders.items():
            try:
                _fetch(source, work, folder, budget, sha256)
            except OSError as error:
                raise GraftError(
                    f"{source}: {error.strerror or error}; nothing was imported"
                ) from None
        if len(names) > 1:
            top, counts, table = _joined(work / "files", folders, rules)
        else:
            top, counts, table = _look(names[0], folders[names[0]], rules)
        left_out = budget.files - sum(len(names) for *_, names in os.walk(top)) + budget.passed_over
        try:
            top.rename(target)
        except OSError as error:
            raise GraftError(f"{target}: {error.strerror}; nothing was imported") from None
    result = ImportResult(target, counts, max(0, left_out), table)
    _log_summary(result)
    return result


def _folders(folder, sources):
    """{source: where it is brought to}: into `folder` itself, or of several each into one of its
    own."""
    if len(sources) == 1:
        return {sources[0]: folder}
    found = {source: folder / _checked_name(None, source) for source in sources}
    if len(set(found.values())) < len(sources):
        raise GraftError(
            "two of the sources have the same name; rename one, since theirs becomes a folder of "
            "the set"
        )
    return found


def _checked_name(name, source):
    if name is None:
        if source.startswith("tfds:"):
            name = re.split("[:@]", source[5:], maxsplit=1)[0].replace("/", "-")
        else:
            path = (
                urllib.parse.unquote(urllib.parse.urlsplit(source).path)
                if "://" in source
                else str(Path(source).absolute())
            )
            name = archives.SUFFIX.sub("", PurePosixPath(path.replace("\\", "/")).name)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", unicodedata.normalize("NFKD", name)).strip("-.")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name or ""):
        raise GraftError(f"--name must be made of letters, digits, . _ and -, not {name!r}")
    return name


@contextlib.contextmanager
def _staging(into: Path, name: str) -> Iterator[Path]:
    into.mkdir(parents=True, exist_ok=True)
    for old in into.glob(f"{STAGING}*"):
        if time.time() - old.stat().st_mtime > STALE:
            shutil.rmtree(old, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{STAGING}{name}-", dir=into))
    work.chmod(0o755)
    (work / "files").mkdir()
    try:
        with _ended_by_exceptions():
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _ended_by_exceptions() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit, so that what is to be swept away is."""

    def stop(number, _):
        raise SystemExit(128 + number)

    signals = (
        (signal.SIGTERM, signal.SIGHUP)
        if threading.current_thread() is threading.main_thread()
        else ()
    )
    before = {each: signal.signal(each, stop) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _fetch(source, work, folder, budget, sha256):
    """Bring what `source` names to `folder`."""
    archive = Path(source)
    if source.startswith("tfds:"):
        entries, total = _tfds_entries(source)
        return archives.store(entries, folder, budget, doing="writing", total=total)
    if source.startswith("https://"):
        archive = work / f"download-{folder.name}"
        archives.download(source, archive, budget.limits)
    elif "://" in source:
        raise GraftError(
            f"{source}: only https is fetched; download it yourself and import the file"
        )
    elif archive.is_dir():
        if work.resolve().is_relative_to(archive.resolve()):
            raise GraftError(
                f"{source} contains {work.parent}, where it would be copied to; name the folder "
                "of the photos"
            )
        return archives.store(_folder_entries(archive), folder, budget, doing="copying")
    elif not archive.is_file():
        raise GraftError(f"{source}: no such file or folder")
    archives.check_sum(archive, sha256, shown=source)
    archives.unpack(archive, folder, budget, shown=source)


def _folder_entries(source: Path) -> Iterator[Entry]:
    """The files of a folder but hidden ones; links out of it, and to folders, without content."""
    home = source.resolve()
    for here, names, files in os.walk(source):
        names[:] = sorted(name for name in names if not pixels.passed_over(name))
        for path in (Path(here, name) for name in (*names, *sorted(files))):
            inside = path.is_file() and path.resolve().is_relative_to(home)
            if inside or not path.is_dir() or path.is_symlink():  # os.walk does not go into links
                yield path.relative_to(source), path.open("rb") if inside else None


def _look(source, folder, rules):
    """(the folder in `folder` that becomes the set, {(split or "", class): images} of it, whether
    labels.csv holds them)."""
    if rules.labels is not None and Path(rules.labels).is_file():
        given, rules = (
            Path(rules.labels),
            ByFolder(rules.layout, Path(rules.labels).name, rules.label_by),
        )
        own = folder / given.name
        if own.exists() and own.read_bytes() != given.read_bytes():
            raise GraftError(
                f"--labels {given}: the source has a {given.name} of its own; rename yours"
            )
        shutil.copyfile(given, own)
    labels, places = _places(source, folder, rules)
    if not labels.table and not labels.label_by and rules.layout == "auto":
        return folder / labels.layout.base, _counts(places), False
    if labels.table != TABLE:
        _write_table(folder, places, source)
    return folder, _counts(places), True


def _joined(folder, folders, rules):
    """As `_look`, of several sources that lie in `folders`, below `folder`: class folders of one
    name are one class; where all are photos alone, each is a class."""
    found, flat = {}, {}
    for source, inside in folders.items():
        try:
            found[source] = _places(source, inside, rules)[1]
        except _Flat as error:
            flat[source] = error.label or inside.name
    if found and flat:
        raise GraftError(
            f"{next(iter(flat))} holds photos alone and {next(iter(found))} class folders; put "
            "the photos into a folder that is called like their class, in a folder of its own"
        )
    for source, label in flat.items():
        images = images_among(folders[source], [file.path for file in walk(folders[source]).files])
        found[source] = dict.fromkeys(images, Place(label))
        console.log(f"{source}: its {len(images)} photos are class {label!r}")
    places = {
        f"{folders[source].name}/{path}": place
        for source, part in found.items()
        for path, place in part.items()
    }
    _write_table(folder, places, folder)
    return folder, _counts(places), True


class _Flat(GraftError):
    """A source of photos alone. `label`: the folder that they lie in, or ""."""

    def __init__(self, message, label):
        super().__init__(message)
        self.label = label


def _places(source, folder, rules):
    """(Labels, {path: Place} of the labelled photos) of a folder. Raises GraftError, _Flat for
    photos alone in one folder."""
    paths = [file.path for file in walk(folder).files]
    try:
        labels = read(folder, paths, rules)
    except Unclear as unclear:
        told = unclear.as_options(source)
        folders = {path.rpartition("/")[0] for path in images_among(folder, paths)}
        if unclear.flat and len(folders) == 1:
            raise _Flat(told, folders.pop().rpartition("/")[2]) from None
        raise GraftError(told) from None
    except GraftError as error:
        raise GraftError(f"{source}: {error}") from None
    places = {
        path: place
        for path in images_among(folder, paths)
        if (place := labels.place(path)).label is not None
    }
    for line in labels.told():
        console.log(f"{source}: {line}")
    for line in doubtful_names(labels, folder, {place.label for place in places.values()}):
        console.warn(line)
    return labels, places


def _counts(places):
    return dict(sorted(Counter((place.split, place.label) for place in places.values()).items()))


def _write_table(folder, places, source):
    if (folder / TABLE).exists():
        raise GraftError(
            f"{source}: has a {TABLE} of its own, and its labels come from elsewhere; take it out"
        )
    write_table(folder / TABLE, places)


def _tfds_entries(source: str) -> tuple[Iterator[Entry], int]:
    """(entries, how many) of a TensorFlow Datasets set: its images as they are encoded there, one
    folder per class, below one per split; those without a label (-1, as some test images have)
    without content."""
    set_tensorflow_environment()
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise GraftError(
            f"{source}: needs TensorFlow Datasets ({error}); pip install 'graft-vision[tfds]'"
        ) from None
    given, _, data_dir = source[5:].partition("@")
    try:
        builder = tfds.builder(given, data_dir=data_dir or None)
        builder.download_and_prepare()
    except Exception as error:  # whatever a data set's own code, the network or the disk raise
        raise GraftError(
            f"{source}: {' '.join(str(error).split('Available')[0].split())[:300]}"
        ) from None
    image, label = _tfds_keys(builder.info, tfds, source)
    names = [_folder_name(name) for name in builder.info.features[label].names]
    if len(set(names)) < len(names):
        raise GraftError(
            f"{source}: two of its classes have the same name on disk: "
            f"{Counter(names).most_common(1)[0][0]!r}"
        )
    splits = _tfds_splits(builder.info, source)

    def entries():
        for name, split in splits.items():
            examples = builder.as_dataset(
                split=name,
                shuffle_files=False,
                # The original bytes: no second JPEG compression.
                decoders={image: tfds.decode.SkipDecoding()},
                read_config=tfds.ReadConfig(interleave_cycle_length=1),
            )
            for number, example in enumerate(tfds.as_numpy(examples)):
                index, content = int(example[label]), bytes(example[image])
                suffix = {"JPEG": ".jpg", None: ".jpg"}.get(pixels.sniff(content[:32]), ".png")
                labelled = 0 <= index < len(names)
                folder = PurePosixPath(
                    split if len(splits) > 1 else "", names[index] if labelled else ""
                )
                yield folder / f"{number:06d}{suffix}", io.BytesIO(content) if labelled else None

    return entries(), sum(builder.info.splits[name].num_examples for name in splits)


def _tfds_splits(info, source):
    """{name: "train", "val" or "test"} of those of the set's splits that are one of these."""
    splits = {name: split for name in info.splits if (split := split_named(name))}
    others = ", ".join(sorted(set(info.splits) - set(splits)))
    if not splits:
        raise GraftError(f"{source}: none of its splits ({others}) is train, validation or test")
    if others:
        console.log(f"{source}: splits {others} are left out")
    return splits


def _tfds_keys(info, tfds, source):
    """Names of the image and the label among the features."""
    features = dict(info.features)
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    found = {}
    for (what, kind), supervised in zip(kinds.items(), info.supervised_keys or (None, None)):
        candidates = [key for key, feature in features.items() if isinstance(feature, kind)]
        if not candidates:
            raise GraftError(
                f"{source}: has no {what} among its features ({', '.join(features)}); graft "
                "classifies images"
            )
        found[what] = supervised if supervised in candidates else candidates[0]
    return found["image"], found["label"]


def _folder_name(name):
    name = re.sub(r'[/\\\0:*?"<>|]', "_", name).strip()
    return f"_{name}" if name.startswith(".") or not name else name


def _log_summary(result):
    console.log(f"{result.folder}: {result.images:,} images in {len(result.classes)} classes")
    splits = sorted({split for split, _ in result.counts}, key=["", "train", "val", "test"].index)
    for label in result.classes[:20]:
        numbers = (f"{split} {result.counts.get((split, label), 0):,}".strip() for split in splits)
        console.log(f"  {label}: {', '.join(numbers)}")
    if len(result.classes) > 20:
        console.log(f"  … and {len(result.classes) - 20} more classes")
    if result.left_out:
        console.log(f"  {result.left_out:,} links or files outside the class folders were left out")
    path = result.folder.as_posix()
    table = f" -S data.labels={TABLE}" if result.table else ""
    console.log(
        f"check it:    graft check {shlex.quote(path)}"
        + (f" --labels {TABLE}" if result.table else "")
    )
    console.log(f"run on it:   dvc exp run -S {override('data.path', path)}{table}")
    console.log(
        f"version it:  dvc add {shlex.quote(path)}   (needed for `dvc exp run --temp` and "
        "`--queue`)"
    )
