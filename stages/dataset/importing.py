"""Bring a data set from wherever it is to data/raw/NAME: a folder, a zip or tar archive, an https URL, TensorFlow Datasets.

Nothing that an archive says is believed: paths that lead out of the target are refused, links are never made, and what is
written is counted as it is written. All work goes on in a hidden folder beside the target, which takes its place by one rename
at the very end, so an interrupted import leaves nothing that looks complete.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import time
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages import console
from stages.console import GraftError
from stages.dataset import images, inventory

BLOCK = 1 << 20
RATIO_FREE = 1 << 26  # bytes: below this, an archive may unpack to any multiple of its size (an all-white BMP does)
TIMEOUT = 60  # seconds without a byte from a server
STALE = 24 * 3600  # seconds after which what a killed import left behind is swept away
STAGING = ".importing-"
ARCHIVES = re.compile(r"\.(zip|tar|tar\.gz|tgz|tar\.bz2|tbz2?|tar\.xz|txz)$", re.IGNORECASE)


@dataclass(frozen=True)
class ImportResult:
    """`folder`: where it lies now; `counts`: {(split or "", class): images}, as the folders' names say; `left_out`: files of
    the source that were not taken along (links, what lies outside the class folders)."""

    folder: Path
    counts: dict
    left_out: int

    @property
    def classes(self):
        return sorted({label for _, label in self.counts})

    @property
    def images(self):
        return sum(self.counts.values())


def import_dataset(source, *, name=None, into=Path("data/raw"), sha256=None, limits):
    """Copy or unpack `source` to `into`/`name`, tell what it holds and how to run on it. Returns ImportResult.

    `source`: folder, archive (.zip, .tar, .tar.gz, .tgz; the content decides), https URL of one, or
    `tfds:NAME[:VERSION][@DATA_DIR]`. `name`: by default that of the source. `sha256`: what the archive's must be, in hex.
    `limits`: params.import_limits.
    The class folders are found at whatever depth they lie; train, val and test above them are kept. Raises GraftError.
    """
    source, into = str(source), Path(into)
    name = _checked_name(name, source)
    target = into / name
    if target.exists() or target.is_symlink():
        raise GraftError(f"{target} is there already; remove it, or choose another --name")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise GraftError(f"--sha256 must be 64 hexadecimal digits, not {sha256!r}")
    if sha256 is not None and (source.startswith("tfds:") or Path(source).is_dir()):
        raise GraftError("--sha256 is for archives; a folder or a TensorFlow Datasets name has no such sum")
    with _staging(into, name) as work:
        budget = _Budget(limits)
        unpacked = work / "files"
        unpacked.mkdir()
        try:
            if source.startswith("tfds:"):
                _from_tfds(source, unpacked, budget)
            elif source.startswith("https://"):
                _unpack(_download(source, work, budget, sha256), unpacked, budget, shown=source)
            elif "://" in source:
                raise GraftError(f"{source}: only https is fetched; download it yourself and import the file")
            elif Path(source).is_dir():
                _copy(Path(source), unpacked, budget, into=into)
            elif Path(source).is_file():
                if sha256 is not None:
                    _check_sum(_sum(Path(source)), sha256, source)
                _unpack(Path(source), unpacked, budget, shown=source)
            else:
                raise GraftError(f"{source}: no such file or folder")
        except OSError as error:
            raise GraftError(f"{source}: {error.strerror or error}; nothing was imported") from None
        top = _class_root(unpacked, source)
        counts, inside = _count(top)
        try:
            top.rename(target)
        except OSError as error:
            raise GraftError(f"{target}: {error.strerror}; nothing was imported") from None
    result = ImportResult(target, counts, budget.files - inside + budget.passed_over)
    _tell(result)
    return result


def _checked_name(name, source):
    if name is None:
        if source.startswith("tfds:"):
            name = re.split("[:@]", source[5:], maxsplit=1)[0].replace("/", "-")
        else:
            path = urllib.parse.unquote(urllib.parse.urlsplit(source).path) if "://" in source else str(Path(source).absolute())
            name = ARCHIVES.sub("", PurePosixPath(path.replace("\\", "/")).name)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", unicodedata.normalize("NFKD", name)).strip("-.")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name or ""):
        raise GraftError(f"--name must be made of letters, digits, . _ and -, not {name!r}")
    return name


@contextlib.contextmanager
def _staging(into, name):
    into.mkdir(parents=True, exist_ok=True)
    for old in into.glob(f"{STAGING}*"):
        if time.time() - old.stat().st_mtime > STALE:
            shutil.rmtree(old, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{STAGING}{name}-", dir=into))
    work.chmod(0o755)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Budget:
    """What may still be written. `files`, `bytes`: written so far; `passed_over`: links and other things that were not."""

    def __init__(self, limits):
        self.limits, self.files, self.bytes, self.passed_over = limits, 0, 0, 0
        self.archive_bytes = None

    def spend(self, size):
        self.bytes += size
        limits = self.limits
        if self.bytes > limits.max_gb * 1e9:
            raise GraftError(f"more than {limits.max_gb:g} GB; raise import_limits.max_gb in params.yaml if that is right")
        if self.archive_bytes and self.bytes > RATIO_FREE and self.bytes > limits.max_ratio * self.archive_bytes:
            raise GraftError(
                f"unpacks to more than {limits.max_ratio:g} times its size, as an archive that is made to fill a disk does; "
                "raise import_limits.max_ratio in params.yaml if it is sound"
            )

    def write(self, source, path):
        """Copy the binary stream `source` to the new file `path`."""
        self.files += 1
        if self.files > self.limits.max_files:
            raise GraftError(
                f"more than {self.limits.max_files:,} files; raise import_limits.max_files in params.yaml if that is right"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as out:  # x: never through a link, never over a file
            while block := source.read(BLOCK):
                self.spend(len(block))
                out.write(block)


def _unpack(archive, folder, budget, *, shown):
    budget.archive_bytes = max(1, archive.stat().st_size)
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, folder, budget)
        elif tarfile.is_tarfile(archive):
            _untar(archive, folder, budget)
        else:
            raise GraftError("neither a zip nor a tar archive")
    except GraftError as error:
        raise GraftError(f"{shown}: {error}; nothing was imported") from None
    except FileExistsError as error:
        raise GraftError(f"{shown}: holds {Path(error.filename).name!r} twice; nothing was imported") from None
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise GraftError(f"{shown}: damaged or not readable ({' '.join(str(error).split())}); nothing was imported") from None


def _unzip(archive, folder, budget):
    with zipfile.ZipFile(archive) as file, console.Progress("unpacking", len(file.infolist()), unit="file") as progress:
        if sum(info.file_size for info in file.infolist()) > budget.limits.max_gb * 1e9:
            budget.spend(sum(info.file_size for info in file.infolist()))
        for info in file.infolist():
            progress.advance()
            place = _place(folder, info.filename)
            if info.is_dir():
                continue
            kind = (info.external_attr >> 16) & 0o170000
            if kind not in (0, 0o100000):  # a link or a device
                budget.passed_over += 1
                continue
            if info.flag_bits & 1:
                raise GraftError("is locked with a password; unlock it first")
            with file.open(info) as stream:
                budget.write(stream, place)


def _untar(archive, folder, budget):
    with tarfile.open(archive) as file, console.Progress("unpacking", 0, unit="file") as progress:
        for member in file:
            progress.advance()
            place = _place(folder, member.name)
            if member.isdir():
                continue
            # A link to a file of the archive is unpacked as a copy of it: extractfile looks nowhere but in the archive.
            stream = None
            if member.isreg() or member.islnk() or member.issym():
                with contextlib.suppress(KeyError, RecursionError):
                    stream = file.extractfile(member)
            if stream is None:
                budget.passed_over += 1
                continue
            with stream:
                budget.write(stream, place)


def _place(folder, name):
    """Where the archive's entry `name` goes. Raises GraftError for one that would leave `folder`."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts:
        return folder
    if parts[0] == "/" or ".." in parts or re.match(r"^[A-Za-z]:", parts[0]) or "\0" in name:
        raise GraftError(f"its entry {name!r} leads out of the folder")
    return folder.joinpath(*parts)


def _copy(source, folder, budget, *, into):
    home = source.resolve()
    if into.resolve().is_relative_to(home):
        raise GraftError(f"{source} contains {into}, where it would be copied to; name the folder of the photos")
    with console.Progress("copying", 0, unit="file") as progress:
        for here, names, files in os.walk(source):
            names[:] = sorted(name for name in names if not name.startswith("."))
            budget.passed_over += sum(Path(here, name).is_symlink() for name in names)  # os.walk does not go into them
            for name in sorted(files):
                path = Path(here, name)
                progress.advance()
                if not path.is_file() or not path.resolve().is_relative_to(home):
                    budget.passed_over += 1
                    continue
                with path.open("rb") as stream:
                    budget.write(stream, folder / path.relative_to(source))


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, url):
        if not url.startswith("https://"):
            raise GraftError(f"{request.full_url}: sends on to {url}, which is not https")
        return super().redirect_request(request, file, code, message, headers, url)


def _download(url, work, budget, sha256):
    """The file at `url`, checked against `sha256`."""
    path = work / "download"
    request = urllib.request.Request(url, headers={"User-Agent": "graft"})
    total, received = hashlib.sha256(), 0
    try:
        with urllib.request.build_opener(_HttpsOnly).open(request, timeout=TIMEOUT) as answer, path.open("xb") as out:
            length = int(answer.headers.get("Content-Length") or 0)
            if length > budget.limits.max_gb * 1e9:
                raise GraftError(f"{url}: {length / 1e9:.1f} GB, more than import_limits.max_gb in params.yaml")
            with console.Progress("downloading", length // 1_000_000 or None, unit="MB") as progress:
                while block := answer.read(BLOCK):
                    progress.advance((received + len(block)) // 1_000_000 - received // 1_000_000)
                    received += len(block)
                    if received > budget.limits.max_gb * 1e9:
                        raise GraftError(f"{url}: more than import_limits.max_gb in params.yaml")
                    total.update(block)
                    out.write(block)
    except urllib.error.URLError as error:
        code = f"HTTP {error.code} " if isinstance(error, urllib.error.HTTPError) else ""
        raise GraftError(f"{url}: {code}{error.reason}; nothing was imported") from None
    except ValueError as error:
        raise GraftError(f"{url}: {error}; nothing was imported") from None
    if received < length:
        raise GraftError(f"{url}: the connection broke after {received:,} of {length:,} bytes; try again")
    if sha256 is not None:
        _check_sum(total.hexdigest(), sha256, url)
    return path


def _sum(path):
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            total.update(block)
    return total.hexdigest()


def _check_sum(found, wanted, shown):
    if found != wanted.lower():
        raise GraftError(f"{shown}: SHA-256 is {found}, not {wanted.lower()}; the file is damaged or another one")


def _from_tfds(source, folder, budget):
    """Write the images of a TensorFlow Datasets set as they are encoded there, one folder per class, below one per split."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # it imports TensorFlow, whose start-up chatter nobody needs
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise GraftError(f"{source}: needs TensorFlow Datasets ({error}); pip install 'graft[tfds]'") from None
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
    splits = {name: inventory.SPLIT_FOLDERS[name] for name in builder.info.splits if name in inventory.SPLIT_FOLDERS}
    others = sorted(set(builder.info.splits) - set(splits))
    if others:
        console.log(f"{source}: splits {', '.join(others)} are left out")
    if not splits:
        raise GraftError(f"{source}: none of its splits ({', '.join(others)}) is train, validation or test")
    total = sum(builder.info.splits[name].num_examples for name in splits)
    with console.Progress("writing", total) as progress:
        for name, split in splits.items():
            top = folder / split if len(splits) > 1 else folder
            examples = builder.as_dataset(
                split=name,
                shuffle_files=False,
                decoders={image: tfds.decode.SkipDecoding()},  # the original bytes: no second JPEG compression
                read_config=tfds.ReadConfig(interleave_cycle_length=1),
            )
            for number, example in enumerate(tfds.as_numpy(examples)):
                progress.advance()
                index, content = int(example[label]), bytes(example[image])
                if not 0 <= index < len(names):  # -1: a test image without a label
                    budget.passed_over += 1
                    continue
                suffix = {"JPEG": ".jpg", None: ".jpg"}.get(images.sniff(content[:32]), ".png")
                with contextlib.closing(_Bytes(content)) as stream:
                    budget.write(stream, top / names[index] / f"{number:06d}{suffix}")


class _Bytes:
    def __init__(self, content):
        self._left = content

    def read(self, size):
        block, self._left = self._left[:size], self._left[size:]
        return block

    def close(self):
        self._left = b""


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


def _class_root(top, source):
    """The folder whose sub-folders are the classes, or train, val and test of them."""
    looks = _pictures_below(top)
    if not looks:
        raise GraftError(f"{source}: no image in it ({', '.join(images.FORMATS)})")
    here = ()
    while True:
        depth = len(here)
        below = sorted({path[depth] for path in looks if path[:depth] == here and len(path) > depth})
        deeper = {path[depth] for path in looks if path[:depth] == here and len(path) > depth + 1}
        if len(below) == 1 and below[0] in deeper and below[0].casefold() not in inventory.SPLIT_FOLDERS:
            here = (*here, below[0])  # a wrapper: nothing but another folder of folders
            continue
        break
    if not below:
        raise GraftError(
            f"{source}: its images lie in one folder ({'/'.join(here) or 'the top'}); there must be one folder per class"
        )
    if len(below) == 1 and below[0].casefold() not in inventory.SPLIT_FOLDERS:
        raise GraftError(f"{source}: holds one class only, {below[0]!r}; there must be two folders of images or more")
    return top.joinpath(*here)


def _pictures_below(top):
    """{path parts of every folder that holds pictures itself}, hidden ones left out."""
    found = set()
    for here, names, files in os.walk(top):
        names[:] = [n for n in names if not n.startswith(".") and n != "__MACOSX"]
        if any(_is_picture(Path(here, name)) for name in files if not name.startswith(".")):
            found.add(Path(here).relative_to(top).parts)
    return found


def _is_picture(path):
    if path.suffix.lower() in images.SUFFIXES:
        return True
    with path.open("rb") as file:
        return images.sniff(file.read(32)) not in (None, "other")


def _count(top):
    """({(split or "", class): pictures}, files) of the class folders in `top`."""
    counts, files = Counter(), 0
    tops = [p.name for p in top.iterdir() if p.is_dir() and not p.name.startswith(".")]
    splits = any(inventory.SPLIT_FOLDERS.get(name.casefold()) == "train" for name in tops) and all(
        name.casefold() in inventory.SPLIT_FOLDERS for name in tops
    )
    for here, _, names in os.walk(top):
        parts = Path(here).relative_to(top).parts
        files += len(names)
        if any(part.startswith(".") for part in parts):
            continue
        split, rest = (inventory.SPLIT_FOLDERS[parts[0].casefold()], parts[1:]) if splits and parts else ("", parts)
        if rest:
            found = sum(_is_picture(Path(here, name)) for name in names if not name.startswith("."))
            if found:
                counts[split, rest[0]] += found
    return dict(sorted(counts.items())), files


def _tell(result):
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
