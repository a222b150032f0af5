"""Fetch and unpack an archive of which nothing is believed.

Paths that lead out of the target are refused, links are never made, and what is written is counted
as it is written.
"""

import contextlib
import os
import re
import struct
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Protocol

from graft.system import console, files
from graft.system.console import GraftError

BLOCK = 1 << 20
# bytes: below this, an archive may unpack to any multiple of its size (an all-white BMP does).
RATIO_FREE = 1 << 26
TIMEOUT = 60  # seconds without a byte from a server
SUFFIX = re.compile(r"\.(zip|tar|tar\.gz|tgz|tar\.bz2|tbz2?|tar\.xz|txz)$", re.IGNORECASE)


# Relative path of a file and its content; None: a link or such, passed over.
Entry = tuple[PurePath, IO[bytes] | None]


class Limits(Protocol):
    """params.import_limits."""

    max_files: int
    max_gb: float
    max_ratio: float


class Budget:
    """What may still be written. `files`, `bytes`: written so far; `passed_over`: links and other
    things that were not."""

    def __init__(self, limits: Limits):
        self.limits, self.files, self.bytes, self.passed_over = limits, 0, 0, 0
        self.archive_bytes: int | None = None

    def spend(self, size: int) -> None:
        self.bytes += size
        limits = self.limits
        if self.bytes > limits.max_gb * 1e9:
            raise GraftError(
                f"more than {limits.max_gb:g} GB; raise import_limits.max_gb in params.yaml if "
                "that is right"
            )
        if (
            self.archive_bytes
            and self.bytes > RATIO_FREE
            and self.bytes > limits.max_ratio * self.archive_bytes
        ):
            raise GraftError(
                f"unpacks to more than {limits.max_ratio:g} times its size, as an archive that is "
                "made to fill a disk does; raise import_limits.max_ratio in params.yaml if it is "
                "sound"
            )

    def foresee(self, listed: Sequence[zipfile.ZipInfo]) -> None:
        """Refuse before the first byte what a zip says that it holds."""
        self._check_count(sum(not info.is_dir() for info in listed))
        Budget(self.limits).spend(sum(info.file_size for info in listed))

    def _check_count(self, files):
        if files > self.limits.max_files:
            raise GraftError(
                f"more than {self.limits.max_files:,} files; raise import_limits.max_files in "
                "params.yaml if that is right"
            )

    def write(
        self, source: IO[bytes], path: Path, *, after_block: Callable[[], None] = lambda: None
    ) -> None:
        """Copy the stream `source` to the new file `path`, calling `after_block` after every
        MiB."""
        self.files += 1
        self._check_count(self.files)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as out:  # x: never through a link, never over a file
            while block := source.read(BLOCK):
                self.spend(len(block))
                out.write(block)
                after_block()


def store(
    entries: Iterable[Entry], folder: Path, budget: Budget, *, doing: str, total: int = 0
) -> None:
    """Write `entries` (about `total` of them, 0: unknown) into `folder`. Never makes a link, never
    overwrites a file."""
    with console.Progress(doing, total, unit="file") as progress:
        for path, stream in entries:
            progress.advance()
            if stream is None:
                budget.passed_over += 1
                continue
            with stream:
                budget.write(stream, folder / path)


def unpack(archive: Path, folder: Path, budget: Budget, *, shown: str) -> None:
    """Unpack a zip or tar archive (the content decides) into `folder`. Raises GraftError, which
    names it as `shown`."""
    budget.archive_bytes = max(1, archive.stat().st_size)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                budget.foresee(file.infolist())
                store(unzip(file), folder, budget, doing="unpacking", total=len(file.infolist()))
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as file:
                store(untar(file), folder, budget, doing="unpacking")
        else:
            raise GraftError("neither a zip nor a tar archive")
    except GraftError as error:
        raise GraftError(f"{shown}: {error}; nothing was imported") from None
    except FileExistsError as error:
        raise GraftError(
            f"{shown}: holds {Path(error.filename).name!r} twice; nothing was imported"
        ) from None
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
    ) as error:
        raise GraftError(
            f"{shown}: damaged or not readable ({' '.join(str(error).split())}); nothing was "
            "imported"
        ) from None


def unzip(file: zipfile.ZipFile) -> Iterator[Entry]:
    """The archive's files, and its links and devices without content. Raises GraftError for what
    leads out of the folder."""
    strange = [info.filename for info in file.infolist() if _is_of_a_code_page(info)]
    if strange:
        console.warn(
            "names that are not UTF-8 are read as those of MS-DOS (code page 437), e.g. "
            f"{strange[0]!r}"
        )
    for info in file.infolist():
        path = _inside(_zip_name(info))
        if info.flag_bits & 1:
            raise GraftError("is locked with a password; unlock it first")
        if not info.is_dir():
            yield (
                path,
                file.open(info) if (info.external_attr >> 16) & 0o170000 in (0, 0o100000) else None,
            )


def untar(file: tarfile.TarFile) -> Iterator[Entry]:
    """As `unzip`; a link to a file of the archive is a copy of it: extractfile looks nowhere but in
    the archive."""
    for member in file:
        path = _inside(_decoded(os.fsencode(member.name), "cp1252"))
        stream: IO[bytes] | None = None
        if member.isreg() or member.islnk() or member.issym():
            with contextlib.suppress(KeyError, RecursionError):
                stream = file.extractfile(member)
        if not member.isdir():
            yield path, stream


def _zip_name(info):
    """Many archivers write UTF-8 and do not say so; zipfile then reads it as the code page of
    MS-DOS. Info-ZIP and 7-Zip keep that code page's name for old readers, and the true one in an
    extra field."""
    if info.flag_bits & 0x800:
        return info.filename
    raw = info.orig_filename.encode("cp437")
    return _unicode_path(info.extra, raw) or _decoded(raw, "cp437")


def _unicode_path(extra, raw):
    """The name in Info-ZIP's Unicode Path extra field (0x7075) of an entry whose plain name is
    `raw`, in bytes; "" where there is none, or it is about another name."""
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if (
            kind == 0x7075
            and len(field) == size > 5
            and field[0] == 1
            and field[1:5] == struct.pack("<I", zlib.crc32(raw))
        ):
            with contextlib.suppress(UnicodeDecodeError):
                return field[5:].decode()
    return ""


def _is_of_a_code_page(info):
    if info.flag_bits & 0x800 or info.orig_filename.isascii():
        return False
    return _zip_name(info) == info.orig_filename


def _decoded(name, otherwise):
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode(otherwise, "replace")


def _inside(name):
    """The archive's entry `name` as a path. Raises GraftError for one that would leave the
    folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if (
        path.is_absolute()
        or ".." in path.parts
        or re.match(r"^[A-Za-z]:", str(path))
        or "\0" in name
    ):
        raise GraftError(f"its entry {name!r} leads out of the folder")
    return path


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, url):
        if not url.startswith("https://"):
            raise GraftError(f"sends on to {url}, which is not https")
        return super().redirect_request(request, file, code, message, headers, url)


def download(url: str, path: Path, limits: Limits) -> None:
    """Fetch `url` to the new file `path`, at most limits.max_gb. Raises GraftError for anything
    that goes wrong on the way."""
    request, budget = urllib.request.Request(url, headers={"User-Agent": "graft"}), Budget(limits)
    try:
        with urllib.request.build_opener(_HttpsOnly).open(request, timeout=TIMEOUT) as answer:
            length = int(answer.headers.get("Content-Length") or 0)
            Budget(limits).spend(length)  # before the first byte comes
            with console.Progress("downloading", length // BLOCK or None, unit="MiB") as progress:
                budget.write(answer, path, after_block=progress.advance)
    except urllib.error.URLError as error:
        code = f"HTTP {error.code} " if isinstance(error, urllib.error.HTTPError) else ""
        raise GraftError(f"{url}: {code}{error.reason}; nothing was imported") from None
    except (GraftError, ValueError) as error:
        raise GraftError(f"{url}: {error}; nothing was imported") from None
    if budget.bytes < length:
        raise GraftError(
            f"{url}: the connection broke after {budget.bytes:,} of {length:,} bytes; try again"
        )


def check_sum(path: Path, sha256: str | None, *, shown: str) -> None:
    """Raise GraftError unless the file's SHA-256 is `sha256` (64 hex digits in any case; None: no
    check)."""
    if sha256 and (found := files.sha256(path)) != sha256.lower():
        raise GraftError(
            f"{shown}: SHA-256 is {found}, not {sha256.lower()}; the file is damaged or another one"
        )
