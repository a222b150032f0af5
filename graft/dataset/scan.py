"""One parallel pass over a folder: every file is read once, decoded in full, hashed, and judged.

A ScanCache keeps what was learnt of a file, so that a second pass over an unchanged folder reads no image at all.
"""

import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from graft import pixels
from graft.dataset import near_duplicates
from graft.dataset.layout import File, Layout, Walk, find_layout, named_splits, walk
from graft.dataset.scan_cache import THUMB, FileRecord, ScanCache
from graft.system import console
from graft.system.console import GraftError
from graft.system.prefetch import prefetch, processors

DAMAGED = ("undecodable", "truncated", "empty", "too_small", "too_large", "unsupported")  # what data.on_damaged is about
WITHOUT_IMAGE = {  # what is said of a file without an image, by what its name promises
    "non_image": "", "unsupported": "{} files are not read", "undecodable": "no picture in it, whatever its name says",
}  # fmt: skip
CHUNK = 32  # files per task: large enough that handing out tasks costs nothing, small enough for a smooth progress bar


@dataclass(frozen=True, slots=True)
class ScannedImage:
    """A usable image. `path`: POSIX, relative to the folder; `label`: class name; `given`: split that its folder fixes, or "";
    `width`, `height`: pixels, upright; `fingerprint`: 64-bit difference hash, None where the image has too little in it."""

    path: str
    label: str
    given: str
    sha256: str
    width: int
    height: int
    fingerprint: int | None


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of problems.csv. `action` begins with "set aside" where the image is not in the manifest, else with "kept".
    `other`: the image that this one equals or resembles, or ""; for the report."""

    path: str
    problem: str
    action: str
    other: str = ""

    @property
    def set_aside(self) -> bool:
        return self.action.startswith("set aside")


@dataclass(frozen=True)
class ScanResult:
    """What a folder holds: files = images + problems + non_images + hidden."""

    root: Path
    images: tuple[ScannedImage, ...]
    problems: tuple[Problem, ...]
    files: int
    non_images: int
    hidden: int


def scan(
    root: str | Path,
    *,
    cache: ScanCache,
    min_side: int = 1,
    max_megapixels: float = pixels.MAX_MEGAPIXELS,
    on_damaged: str = "quarantine",
    workers: int | None = None,
) -> ScanResult:
    """What the class folders in `root` hold. Raises GraftError where there is nothing to learn from: no folder, no class
    folders, no image; and with on_damaged="fail" where any file has one of the problems in DAMAGED."""
    root = Path(root)
    if not root.is_dir():
        raise GraftError(
            f"data.path: {root} is {'not a folder' if root.exists() else 'not there'}; name a folder of class folders"
        )
    seen = walk(root)
    layout = _layout(root, seen)
    images, problems = [], [Problem(*row) for row in seen.odd if row[1] != "non_image"]
    non_images = len(seen.odd) - len(problems)
    with console.Progress(f"scan of {root}", len(seen.files), unit="file") as progress:
        for file, record in _records(root, seen.files, cache, max_megapixels, workers or processors(), progress):
            label, given = layout.place(file.path)
            problem, detail = _judge(record, min_side=min_side, max_megapixels=max_megapixels)
            if problem == "non_image":
                non_images += 1
            elif problem:
                problems.append(Problem(file.path, problem, f"set aside: {detail}"))
            elif label is None:
                problems.append(Problem(file.path, "no_class", "set aside: not in a class folder"))
            else:
                size = (record.width, record.height)
                images.append(ScannedImage(file.path, label, given, record.sha256.hex(), *size, record.fingerprint))
    images.sort(key=lambda image: image.path)
    problems.sort(key=lambda problem: problem.path)
    total = len(seen.files) + len(seen.odd) + seen.hidden
    result = ScanResult(root, tuple(images), tuple(problems), total, non_images, seen.hidden)
    _check(result, layout, on_damaged)
    return result


def _layout(root: Path, seen: Walk) -> Layout:
    """The Layout of `root`; raises GraftError where its folders contradict each other."""
    # By name alone: to look into the files would cost reads that the cache spares.
    paths = (file.path for file in seen.files)
    layout = find_layout(path for path in paths if pixels.may_be_image(Path(path), look=False))
    tops, named = layout.tops, named_splits(layout.tops)
    if layout.splits and len(named) < len(tops):
        raise GraftError(
            f"data.path: {root} holds {', '.join(sorted(named))} and beside them {min(tops - set(named))!r}; "
            "keep only train, val and test there (or only class folders)"
        )
    if not layout.splits and len(set(named.values())) > 1 and len(named) == len(tops):
        raise GraftError(
            f"data.path: {', '.join(sorted(named))} in {root} hold no class folders; each needs one folder per class"
        )
    if not tops:
        more = "" if seen.files else " and no files"
        raise GraftError(f"data.path: {root} holds no folders{more}; it needs one folder per class")
    return layout


def _judge(record, *, min_side, max_megapixels):
    """(problem or "", detail) of a file under the limits of the params."""
    size = f"{record.width} x {record.height} pixels"
    if not record.problem and min(record.width, record.height) < min_side:
        return "too_small", f"{size}, data.min_side is {min_side}"
    if not record.problem and record.width * record.height > max_megapixels * 1e6:
        return "too_large", size
    return record.problem, record.detail


def _check(found: ScanResult, layout: Layout, on_damaged: str) -> None:
    root, damaged = found.root, [p for p in found.problems if p.problem in DAMAGED]
    if damaged and on_damaged == "fail":
        shown = "; ".join(f"{p.path}: {p.problem}" for p in damaged[:20])
        more = f"; and {len(damaged) - 20} more" if len(damaged) > 20 else ""
        raise GraftError(f"{root}: {len(damaged)} damaged file(s), and data.on_damaged is fail: {shown}{more}")
    if not found.images:
        empty = found.files == found.hidden
        held = "it is empty" if empty else f"{len(found.problems)} set aside, {found.non_images} not images"
        raise GraftError(f"data.path: no usable image in the class folders of {root} ({held})")
    labels = {image.label for image in found.images}
    lost = sorted({layout.place(p.path)[0] for p in damaged} - labels - {None})
    if lost:
        raise GraftError(f"data.path: class {lost[0]!r} of {root} has no usable image; mend it or take the folder out")
    if len(labels) == 1:
        (only,) = labels
        inside = {parts[1] for parts in (image.path.split("/") for image in found.images) if len(parts) > 2}
        below = len(inside) > 1 and not found.images[0].given
        hint = f" (or are its classes one level down, in {root / only}?)" if below else ""
        raise GraftError(f"data.path: {root} has images of one class only, {only!r}; a classifier needs two or more{hint}")


def examine(path: Path, *, max_megapixels: float = pixels.MAX_MEGAPIXELS) -> FileRecord:
    """The FileRecord of the file at `path`, which is read once. Never raises for what the file holds."""
    suffix = path.suffix.lower()
    # What it is if no image is found in it.
    named = "undecodable" if suffix in pixels.SUFFIXES else "non_image"
    named = "unsupported" if suffix in pixels.UNSUPPORTED_SUFFIXES else named
    try:
        with path.open("rb") as file:
            content = file.read(64)
            if pixels.sniff(content) is None:
                if not content and named != "non_image":
                    return FileRecord("empty", "no bytes in the file")
                return FileRecord(named, WITHOUT_IMAGE[named].format(suffix))
            size = os.fstat(file.fileno()).st_size
            if size > max_megapixels * 8e6 + 2**26:  # 8 bytes per pixel is the most a format here takes; spare the memory
                return FileRecord("too_large", f"{size / 2**20:.0f} MiB")
            content += file.read()
        # Decoding at a reduced scale goes through every byte all the same, so a cut-off file is found, at a third of the cost.
        image, seen = pixels.decode(io.BytesIO(content), at_least=2 * THUMB, max_megapixels=max_megapixels)
    except OSError as error:
        return FileRecord(named, f"cannot be read ({error.strerror})")
    except pixels.ImageProblem as error:
        return FileRecord(error.kind, error.detail)
    thumb, width, height = near_duplicates.thumbnail(image), seen["width"], seen["height"]
    fingerprint = near_duplicates.fingerprint(thumb) if near_duplicates.comparable(thumb, width, height) else None
    return FileRecord("", "", hashlib.sha256(content).digest(), width, height, fingerprint, thumb.tobytes())


def _records(root, files, cache, max_megapixels, workers, progress) -> Iterator[tuple[File, FileRecord]]:
    """Yield (file, FileRecord) of every file, those in the cache first. Bounded memory whatever their number."""
    unknown = []
    for file, record in cache.records(files):
        if record is None:
            unknown.append(file)
        else:
            progress.advance()
            yield file, record

    def task(chunk):
        return [(file, examine(root / file.path, max_megapixels=max_megapixels)) for file in chunk]

    chunks = [unknown[start : start + CHUNK] for start in range(0, len(unknown), CHUNK)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of oddities in metadata; what matters becomes a problem
        for results in prefetch(task, chunks, workers=workers, depth=4 * workers):
            cache.keep_records(results)
            progress.advance(len(results))
            yield from results


def settled(problems: Iterable[Problem]) -> list[Problem]:
    """`problems` by path; of a path that was set aside in the end, only the rows that say so."""
    problems = list(problems)
    gone = {p.path for p in problems if p.set_aside}
    return sorted((p for p in problems if p.set_aside or p.path not in gone), key=lambda p: (p.path, p.problem))
