"""Bring a data set from wherever it is to data/raw/NAME: a folder, a zip or tar archive, an https URL, TensorFlow Datasets.

All work goes on in a hidden folder beside the target, which takes its place by one rename at the very end, so an interrupted
import leaves nothing that looks complete.
"""

import contextlib
import io
import os
import re
import shutil
import tempfile
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
from graft.dataset.layout import class_root, find_layout, named_splits, walk
from graft.system import console
from graft.system.console import GraftError
from graft.system.environment import set_tensorflow_environment

STALE = 24 * 3600  # seconds after which what a killed import left behind is swept away
STAGING = ".importing-"


@dataclass(frozen=True)
class ImportResult:
    """`folder`: where it lies now; `counts`: {(split or "", class): images}, as the folders' names say; `left_out`: files of
    the source that were not taken along (links, what lies outside the class folders)."""

    folder: Path
    counts: dict[tuple[str, str], int]
    left_out: int

    @property
    def classes(self) -> list[str]:
        return sorted({label for _, label in self.counts})

    @property
    def images(self) -> int:
        return sum(self.counts.values())


def import_dataset(
    source: str | Path, *, limits: Limits, name: str | None = None, into: Path = Path("data/raw"), sha256: str | None = None
) -> ImportResult:
    """Copy or unpack `source` to `into`/`name`, say what it holds and how to run on it.

    `source`: folder, archive (.zip, .tar, .tar.gz, .tgz; the content decides), https URL of one, or
    `tfds:NAME[:VERSION][@DATA_DIR]`. `name`: by default that of the source. `sha256`: what the archive's must be, in hex.
    `limits`: params.import_limits.
    The class folders are found at whatever depth they lie; train, val and test above them are kept. Raises GraftError.
    """
    source, into = str(source), Path(into)
    target = into / _checked_name(name, source)
    if target.exists() or target.is_symlink():
        raise GraftError(f"{target} is there already; remove it, or choose another --name")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise GraftError(f"--sha256 must be 64 hexadecimal digits, not {sha256!r}")
    if sha256 is not None and (source.startswith("tfds:") or Path(source).is_dir()):
        raise GraftError("--sha256 is for archives; a folder or a TensorFlow Datasets name has no such sum")
    with _staging(into, target.name) as work:
        budget = Budget(limits)
        try:
            _fetch(source, work, budget, sha256)
        except OSError as error:
            raise GraftError(f"{source}: {error.strerror or error}; nothing was imported") from None
        top, counts = _look(work / "files", source)
        left_out = budget.files - sum(len(names) for *_, names in os.walk(top)) + budget.passed_over
        try:
            top.rename(target)
        except OSError as error:
            raise GraftError(f"{target}: {error.strerror}; nothing was imported") from None
    result = ImportResult(target, counts, left_out)
    _log_summary(result)
    return result


def _checked_name(name, source):
    if name is None:
        if source.startswith("tfds:"):
            name = re.split("[:@]", source[5:], maxsplit=1)[0].replace("/", "-")
        else:
            path = urllib.parse.unquote(urllib.parse.urlsplit(source).path) if "://" in source else str(Path(source).absolute())
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
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fetch(source, work, budget, sha256):
    """Bring what `source` names to `work`/files."""
    folder, archive = work / "files", Path(source)
    if source.startswith("tfds:"):
        entries, total = _tfds_entries(source)
        return archives.store(entries, folder, budget, doing="writing", total=total)
    if source.startswith("https://"):
        archive = work / "download"
        archives.download(source, archive, budget.limits)
    elif "://" in source:
        raise GraftError(f"{source}: only https is fetched; download it yourself and import the file")
    elif archive.is_dir():
        if work.resolve().is_relative_to(archive.resolve()):
            raise GraftError(f"{source} contains {work.parent}, where it would be copied to; name the folder of the photos")
        return archives.store(_folder_entries(archive), folder, budget, doing="copying")
    elif not archive.is_file():
        raise GraftError(f"{source}: no such file or folder")
    archives.check_sum(archive, sha256, shown=source)
    archives.unpack(archive, folder, budget, shown=source)


def _folder_entries(source) -> Iterator[Entry]:
    """The files of a folder but hidden ones; links out of it, and to folders, without content."""
    home = source.resolve()
    for here, names, files in os.walk(source):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for path in (Path(here, name) for name in (*names, *sorted(files))):
            inside = path.is_file() and path.resolve().is_relative_to(home)
            if inside or not path.is_dir() or path.is_symlink():  # os.walk does not go into links
                yield path.relative_to(source), path.open("rb") if inside else None


def _look(folder, source):
    """(the folder in `folder` that holds the class folders or splits of them, {(split or "", class): images} of it)."""
    images = [file.path for file in walk(folder).files if pixels.may_be_image(folder / file.path)]
    if not images:
        raise GraftError(f"{source}: no image in it ({', '.join(pixels.FORMATS)})")
    try:
        prefix = class_root(images)
    except GraftError as error:
        raise GraftError(f"{source}: {error}") from None
    images = [path.removeprefix(prefix) for path in images if path.startswith(prefix)]
    places = map(find_layout(images).place, images)
    return folder / prefix, dict(sorted(Counter((split, label) for label, split in places if label).items()))


def _tfds_entries(source) -> tuple[Iterator[Entry], int]:
    """(entries, how many) of a TensorFlow Datasets set: its images as they are encoded there, one folder per class, below one
    per split; those without a label (-1, as some test images have) without content."""
    set_tensorflow_environment()
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise GraftError(f"{source}: needs TensorFlow Datasets ({error}); pip install 'graft-vision[tfds]'") from None
    given, _, data_dir = source[5:].partition("@")
    try:
        builder = tfds.builder(given, data_dir=data_dir or None)
        builder.download_and_prepare()
    except Exception as error:  # whatever a data set's own code, the network or the disk raise
        raise GraftError(f"{source}: {' '.join(str(error).split('Available')[0].split())[:300]}") from None
    image, label = _tfds_keys(builder.info, tfds, source)
    names = [_folder_name(name) for name in builder.info.features[label].names]
    if len(set(names)) < len(names):
        raise GraftError(f"{source}: two of its classes have the same name on disk: {Counter(names).most_common(1)[0][0]!r}")
    splits = _tfds_splits(builder.info, source)

    def entries():
        for name, split in splits.items():
            examples = builder.as_dataset(
                split=name,
                shuffle_files=False,
                decoders={image: tfds.decode.SkipDecoding()},  # the original bytes: no second JPEG compression
                read_config=tfds.ReadConfig(interleave_cycle_length=1),
            )
            for number, example in enumerate(tfds.as_numpy(examples)):
                index, content = int(example[label]), bytes(example[image])
                suffix = {"JPEG": ".jpg", None: ".jpg"}.get(pixels.sniff(content[:32]), ".png")
                labelled = 0 <= index < len(names)
                folder = PurePosixPath(split if len(splits) > 1 else "", names[index] if labelled else "")
                yield folder / f"{number:06d}{suffix}", io.BytesIO(content) if labelled else None

    return entries(), sum(builder.info.splits[name].num_examples for name in splits)


def _tfds_splits(info, source):
    """{name: "train", "val" or "test"} of those of the set's splits that are one of these."""
    splits = named_splits(info.splits)
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
            raise GraftError(f"{source}: has no {what} among its features ({', '.join(features)}); graft classifies images")
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
    console.log(f"run on it:   dvc exp run -S data.path={result.folder.as_posix()}")
    console.log(f"version it:  dvc add {result.folder.as_posix()}   (needed for `dvc exp run --temp` and `--queue`)")
