"""One parallel pass over a folder: every file is read once, decoded in full, hashed, and judged.

A ScanCache keeps what was learnt of a file, so that a second pass over an unchanged folder reads no
image at all.
"""

import difflib
import hashlib
import io
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graft import looks, pixels
from graft.dataset import near_duplicates
from graft.dataset.labels import BY_FOLDER, Labels, Rules, alike, doubtful_names, read
from graft.dataset.layout import File, Unclear, Walk, walk
from graft.dataset.scan_cache import THUMB, FileRecord, ScanCache
from graft.system import console
from graft.system.console import GraftError
from graft.system.prefetch import prefetch, processors

# What data.on_damaged is about.
DAMAGED = ("undecodable", "truncated", "empty", "too_small", "too_large", "unsupported")
WITHOUT_IMAGE = {  # what is said of a file without an image, by what its name promises
    "non_image": "",
    "unsupported": "{} files are not read",
    "undecodable": "no picture in it, whatever its name says",
}
ONE_COLOUR = "one colour only"
# Files per task: large enough that handing out tasks costs nothing, small enough for a smooth
# progress bar.
CHUNK = 32


@dataclass(frozen=True, slots=True)
class ScannedImage:
    """A usable image. `path`: POSIX, relative to the folder; `label`: class name; `given`: split
    that its folder fixes, or ""; `width`, `height`: pixels, upright; `pixels`: None where the image
    has thumbnails to be compared by, else the digest of its pixels if it is small, or "";
    `group`: what a table of labels says that it must not be parted from, or ""; `white`: the 16-bit
    sample that is white in this set, for an image that states none, else 0; `looks`: six float32,
    of `graft.looks`."""

    path: str
    label: str
    given: str
    sha256: str
    width: int
    height: int
    pixels: str | None
    group: str = ""
    white: int = 0
    looks: bytes = b""


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of problems.csv. `action` begins with "set aside" where the image is not in the
    manifest, else with "kept". `other`: the image that this one equals or resembles, or ""; for the
    report."""

    path: str
    problem: str
    action: str
    other: str = ""

    @property
    def set_aside(self) -> bool:
        return self.action.startswith("set aside")


@dataclass(frozen=True)
class ScanResult:
    """What a folder holds: files = images + problems + non_images + hidden, but for problems that
    keep an image. `walked`: the files as they were met."""

    root: Path
    images: tuple[ScannedImage, ...]
    problems: tuple[Problem, ...]
    files: int
    non_images: int
    hidden: int
    walked: tuple[File, ...] = ()


def scan(
    root: str | Path,
    *,
    cache: ScanCache,
    rules: Rules = BY_FOLDER,
    min_side: int = 1,
    max_megapixels: float = pixels.MAX_MEGAPIXELS,
    on_damaged: str = "quarantine",
    workers: int | None = None,
) -> ScanResult:
    """What the photos in `root` are. rules: where their labels come from.

    Raises GraftError where there is nothing to learn from: no folder, no image, no classes or
    doubtful ones; and with on_damaged="fail" where any file has one of the problems in DAMAGED.
    """
    root = Path(root)
    seen = _walked(root)
    labels = _labels(root, seen, rules)
    images: list[ScannedImage] = []
    notes: dict[str, str] = {}
    most: dict[str, int] = {}
    problems = [Problem(*row) for row in seen.odd if row[1] != "non_image"]
    non_images = len(seen.odd) - len(problems)
    with console.Progress(f"scan of {root}", len(seen.files), unit="file") as progress:
        for file, record in _records(
            root, seen.files, cache, max_megapixels, workers or processors(), progress
        ):
            place = labels.place(file.path)
            problem, detail = _judge(record, min_side=min_side, max_megapixels=max_megapixels)
            if problem == "non_image":
                non_images += 1
            elif problem:
                problems.append(Problem(file.path, problem, f"set aside: {detail}"))
            elif place.label is None:
                problems.append(Problem(file.path, "no_class", f"set aside: {place.why}"))
            else:
                images.append(_image(file.path, place, record))
                notes |= {file.path: record.note} if record.note else {}
                most |= {file.path: record.most} if record.most else {}
    images.sort(key=lambda image: image.path)
    images, of_one_colour = _set_aside_of_one_colour(images, notes)
    problems += of_one_colour
    images = _on_one_scale(images, notes, most)
    _tell(images, notes)
    problems.sort(key=lambda problem: problem.path)
    total = len(seen.files) + len(seen.odd) + seen.hidden
    result = ScanResult(
        root, tuple(images), tuple(problems), total, non_images, seen.hidden, seen.files
    )
    _check(result, labels, on_damaged)
    for line in doubtful_names(labels, root, {image.label for image in images}):
        console.warn(line)
    return result


def _walked(root: Path) -> Walk:
    """What lies in `root`. Raises GraftError where that is no folder, and where it holds a link to
    one."""
    if not root.is_dir():
        raise GraftError(
            f"data.path: {root} is {'not a folder' if root.exists() else 'not there'}; name a "
            "folder of class folders"
        )
    seen = walk(root)
    if seen.links:
        raise GraftError(
            f"data.path: {root / seen.links[0]} is a link to a folder, and what changes behind it "
            "DVC does not see; put the folder itself there, or make a set of both by "
            "`graft import`"
        )
    return seen


def _image(path, place, record):
    shape = record.sha256.hex(), record.width, record.height
    exact = None if record.pixels is None else record.pixels.hex()
    return ScannedImage(
        path, place.label, place.split, *shape, exact, place.group, looks=record.looks
    )


def _labels(root: Path, seen: Walk, rules: Rules) -> Labels:
    try:
        found = read(root, [file.path for file in seen.files], rules)
    except Unclear as unclear:
        raise Unclear(
            f"data.path: {root}: {unclear.problem}", unclear.readings, flat=unclear.flat
        ) from None
    except GraftError as error:
        raise GraftError(f"data.path: {root}: {error}") from None
    for line in found.told():
        console.log(f"{root}: {line}")
    return found


def _judge(record, *, min_side, max_megapixels):
    """(problem or "", detail) of a file under the limits of the params."""
    size = f"{record.width} x {record.height} pixels"
    if not record.problem and min(record.width, record.height) < min_side:
        return "too_small", f"{size}, data.min_side is {min_side}"
    if not record.problem and record.megapixels > max_megapixels:
        return (
            "too_large",
            (
                f"{size}, {record.megapixels:.0f} megapixels to decode, data.max_megapixels is "
                f"{max_megapixels:g}"
            ),
        )
    return record.problem, record.detail


def _check(found: ScanResult, labels: Labels, on_damaged: str) -> None:
    root, damaged = found.root, [p for p in found.problems if p.problem in DAMAGED]
    if damaged and on_damaged == "fail":
        shown = "; ".join(f"{p.path}: {p.problem}" for p in damaged[:20])
        more = f"; and {len(damaged) - 20} more" if len(damaged) > 20 else ""
        raise GraftError(
            f"{root}: {len(damaged)} damaged file(s), and data.on_damaged is fail: {shown}{more}"
        )
    if not found.images:
        held = f"{len(found.problems)} set aside, {found.non_images} not images"
        raise GraftError(f"data.path: no usable image in the class folders of {root} ({held})")
    classes = {image.label for image in found.images}
    lost = sorted(
        name for name in {labels.place(p.path).label for p in damaged} - classes if name is not None
    )
    if lost:
        raise GraftError(
            f"data.path: class {lost[0]!r} of {root} has no usable image; mend it or take the "
            "folder out"
        )
    learnt = {image.label for image in found.images if image.given in ("", "train")}
    if classes - learnt:
        raise GraftError(
            f"data.path: {root}: {_not_in_train(found.images, classes - learnt, learnt)}"
        )
    if len(classes) == 1:
        (only,) = classes
        raise GraftError(
            f"data.path: {root} has images of one class only, {only!r}; a classifier needs two or "
            "more"
        )


def _not_in_train(images, strays, learnt):
    """Why there is nothing to learn the classes `strays` from: another spelling, or no photo in
    train."""
    name = min(strays)
    where = sorted({image.path.split("/")[0] for image in images if image.label == name})
    folders = {image.path.split("/")[0] for image in images}
    train = " and ".join(
        sorted({image.path.split("/")[0] for image in images if image.given == "train"})
    )
    held, train = (
        (" and ".join(f"{top}/" for top in where), f"{train}/")
        if len(folders) < 5
        else ("val or test", "train")
    )
    same = [
        other for other in sorted(learnt) if alike(other) == alike(name)
    ] or difflib.get_close_matches(name, learnt, 1, 0.75)
    if same:
        has, mend = (
            repr(same[0]),
            f"give both one name, or set data.class_map: {{{name}: {same[0]}}}",
        )
    else:
        has = ", ".join(sorted(learnt)[:5]) + (", …" if len(learnt) > 5 else "")
        mend = (
            f"move some of its photos to {train}, or leave it out by data.class_map: {{{name}: "
            "null}"
        )
    more = f" (and {len(strays) - 1} more)" if len(strays) > 1 else ""
    return f"class {name!r}{more} is only in {held}, {train} has {has}; {mend}"


def examine(path: Path, *, max_megapixels: float = pixels.MAX_MEGAPIXELS) -> FileRecord:
    """The FileRecord of the file at `path`, which is read once. Never raises for what the file
    holds."""
    return examine_all([path], max_megapixels=max_megapixels)[0]


def examine_all(
    paths: Iterable[Path], *, max_megapixels: float = pixels.MAX_MEGAPIXELS
) -> list[FileRecord]:
    """`examine` of each file; cheaper for many."""
    found = [_examined(path, max_megapixels) for path in paths]
    at = [i for i, (_, small) in enumerate(found) if small is not None]
    records = [record for record, _ in found]
    for i, row in zip(at, looks.measure([found[i][1] for i in at])):
        records[i] = replace(records[i], looks=row.tobytes())
    return records


def _examined(path, max_megapixels):
    """(the FileRecord of a file without its looks, what they are measured by or None)."""
    suffix = path.suffix.lower()
    # What it is if no image is found in it.
    named = "undecodable" if suffix in pixels.SUFFIXES else "non_image"
    named = "unsupported" if suffix in pixels.UNSUPPORTED_SUFFIXES else named
    try:
        with path.open("rb") as file:
            content = file.read(64)
            if pixels.sniff(content) is None:
                if not content and named != "non_image":
                    return FileRecord("empty", "no bytes in the file"), None
                return FileRecord(named, WITHOUT_IMAGE[named].format(suffix)), None
            size = os.fstat(file.fileno()).st_size
            # 8 bytes per pixel is the most a format here takes; spare the memory.
            if size > max_megapixels * 8e6 + 2**26:
                return FileRecord("too_large", f"{size / 2**20:.0f} MiB"), None
            content += file.read()
        # Decoding at a reduced scale goes through every byte all the same, so a cut-off file is
        # found, at a third of the cost.
        image, seen = pixels.decode(
            io.BytesIO(content), at_least=2 * THUMB, max_megapixels=max_megapixels
        )
    except OSError as error:
        return FileRecord(named, f"cannot be read ({error.strerror})"), None
    except pixels.ImageProblem as error:
        return FileRecord(error.kind, error.detail), None
    small = min(seen["width"], seen["height"]) < THUMB
    grey = near_duplicates.reduced(image)
    thumbs = b"" if small else near_duplicates.thumbnails(grey).tobytes()
    exact = near_duplicates.pixel_digest(image) if small else b""
    notes = seen["notes"]
    if not thumbs and _is_even(image):
        hidden = f": {pixels.HIDDEN}" if pixels.HIDDEN in notes else ""
        notes = [ONE_COLOUR + hidden]
    known = (
        hashlib.sha256(content).digest(),
        seen["width"],
        seen["height"],
        seen["megapixels"],
        seen["most"],
    )
    record = FileRecord("", "", *known, None if thumbs else exact, "\n".join(notes), thumbs=thumbs)
    return record, looks.small(grey)


def _is_even(image):
    """Whether an RGB image shows one colour only."""
    bands: Any = image.getextrema()  # (lowest, highest) of red, green and blue
    return all(high - low <= 2 for low, high in bands)


def _set_aside_of_one_colour(images, notes):
    """(images, problems): what shows one colour only goes, unless most of its class does: that may
    be what the class is."""
    even = [image for image in images if notes.get(image.path, "").startswith(ONE_COLOUR)]
    of_class, even_of_class = (
        Counter(image.label for image in images),
        Counter(image.label for image in even),
    )
    full = {label for label, n in even_of_class.items() if 2 * n > of_class[label]}
    for label in sorted(full):
        example = next(image.path for image in even if image.label == label)
        some = f"{even_of_class[label]} of {of_class[label]} pictures of class {label!r}"
        console.warn(f"{some} show {notes[example]}, such as {example}")
    problems = [
        Problem(
            image.path,
            "one_colour",
            f"{'kept' if image.label in full else 'set aside'}: {notes[image.path]}",
        )
        for image in even
    ]
    gone = {problem.path for problem in problems if problem.set_aside}
    return [image for image in images if image.path not in gone], problems


def _on_one_scale(images, notes, most):
    """`images`, those with 16-bit samples that state no white with that of the set: the most that
    the bits of 19 in 20 of them hold; what goes beyond has its own. Changes their `notes`. most:
    {path: largest sample}."""
    bits = {image.path: most[image.path].bit_length() for image in images if image.path in most}
    if not bits or min(bits.values()) == 16:
        return images
    ordered = sorted(bits.values())
    shared = ordered[(len(ordered) - 1) * 19 // 20]
    white = (1 << shared) - 1
    inside = {path for path, own in bits.items() if own <= shared}
    told = f"{pixels.SET_RANGE} (0 to {max(most[path] for path in inside)}, read as {shared} bits)"
    for path in inside:
        others = [
            line
            for line in notes.get(path, "").splitlines()
            if not line.startswith(pixels.OWN_RANGE)
        ]
        notes[path] = "\n".join([*others, told])
    dark = [path for path in sorted(inside) if bits[path] <= shared - 3]
    if dark:
        console.warn(
            f"{len(dark)} pictures of 16 bits use an eighth of the range of the set, 0 to "
            f"{white}, or less: they look dark, such as {dark[0]}; if another device made them, "
            "give them the range of the others"
        )
    return [replace(image, white=white) if image.path in inside else image for image in images]


def _tell(images, notes):
    """Say how pictures were read, where that was not as a matter of course."""
    told = defaultdict(list)
    for image in images:
        for note in notes.get(image.path, "").splitlines():
            kind, _, detail = note.partition(" (")
            told[kind].append(f"{image.path} ({detail}" if detail else image.path)
    for kind, paths in sorted(told.items()):
        if not kind.startswith(ONE_COLOUR):
            console.log(
                f"{len(paths)} picture(s) with {kind}: {paths[0]}{', …' if len(paths) > 1 else ''}"
            )


def check_unchanged(found: ScanResult) -> None:
    """Raises GraftError where a file of the folder came, changed or went since it was scanned, with
    the names of three."""
    before, after = (
        {file.path: file for file in files} for files in (found.walked, walk(found.root).files)
    )
    changed = sorted(
        path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    )
    if changed:
        named = [
            f"{path} {'came' if path not in before else 'went' if path not in after else 'changed'}"
            for path in changed[:3]
        ]
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise GraftError(
            f"data.path: {found.root} changed while it was being read: {', '.join(named)}{more}; "
            "run again when nothing writes there any more"
        )


def _records(
    root: Path,
    files: Sequence[File],
    cache: ScanCache,
    max_megapixels: float,
    workers: int,
    progress: console.Progress,
) -> Iterator[tuple[File, FileRecord]]:
    """Yield (file, FileRecord) of every file, those in the cache first. Bounded memory whatever
    their number."""
    unknown = []
    for file, record in cache.records(files):
        if record is None:
            unknown.append(file)
        else:
            progress.advance()
            yield file, record

    def task(chunk):
        return list(
            zip(
                chunk,
                examine_all([root / file.path for file in chunk], max_megapixels=max_megapixels),
            )
        )

    chunks = [unknown[start : start + CHUNK] for start in range(0, len(unknown), CHUNK)]
    with warnings.catch_warnings():
        # Pillow warns of oddities in metadata; what matters becomes a problem.
        warnings.simplefilter("ignore")
        for results in prefetch(task, chunks, workers=workers, depth=4 * workers):
            cache.keep_records(results)
            progress.advance(len(results))
            yield from results


def settled(problems: Iterable[Problem]) -> list[Problem]:
    """`problems` by path; of a path that was set aside in the end, only the rows that say so."""
    problems = list(problems)
    gone = {p.path for p in problems if p.set_aside}
    return sorted(
        (p for p in problems if p.set_aside or p.path not in gone),
        key=lambda p: (p.path, p.problem),
    )
