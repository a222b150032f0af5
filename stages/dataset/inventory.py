"""One parallel pass over a folder: every file is read once, decoded in full, hashed, and judged.

What was learnt of a file is kept in a memo (`.cache/inventory.sqlite`) under its path, size and modification time, so that a
second pass over an unchanged folder reads no picture at all.
"""

import hashlib
import io
import json
import os
import sqlite3
import stat
import time
import unicodedata
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from stages import console
from stages.common.parallel import ahead, processors
from stages.console import GraftError
from stages.dataset import images

DAMAGED = ("undecodable", "truncated", "empty", "too_small", "too_large", "unsupported")  # what data.on_damaged is about
SPLIT_FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
                 "test": "test", "testing": "test"}  # fmt: skip
THUMB = 32  # pixels of a side of the grey thumbnail that near-duplicates are compared by
LEAST_DETAIL = 2.0  # grey levels (of 255): below it a thumbnail holds noise and rounding; photos have 4 to 20
CHUNK = 32  # files per task: large enough that handing out tasks costs nothing, small enough for a smooth progress bar
MEMO_VERSION = f"5 Pillow {PIL.__version__}"
FRESH_SECONDS = 2.0  # a file changed this recently may change again within one tick of its clock: not memoised


@dataclass(frozen=True, slots=True)
class Picture:
    """A usable image. `path`: POSIX, relative to the folder; `label`: class name; `given`: split that its folder fixes, or "";
    `width`, `height`: pixels, upright; `fingerprint`: 64-bit difference hash (see `fingerprint`)."""

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


@dataclass(frozen=True)
class Inventory:
    """What a folder holds: files = pictures + problems + non_images + hidden, at the end of `scan`."""

    root: Path
    pictures: tuple
    problems: tuple
    files: int
    non_images: int
    hidden: int


@dataclass(frozen=True, slots=True)
class _File:
    path: str  # relative, POSIX
    size: int
    mtime_ns: int


def scan(root, *, memo, min_side=1, max_megapixels=images.MAX_MEGAPIXELS, on_damaged="quarantine", workers=None):
    """Inventory of the class folders in `root`. Raises GraftError where there is nothing to learn from: no folder, no class
    folders, no image; and with on_damaged="fail" where any file has one of the problems in DAMAGED."""
    root = Path(root)
    if not root.is_dir():
        raise GraftError(
            f"data.path: {root} is {'not a folder' if root.exists() else 'not there'}; name a folder of class folders"
        )
    files, odd, hidden = _walk(root)
    place = _layout(root, files)
    pictures, problems, non_images = [], [], 0
    for path, problem, action in odd:
        if problem == "non_image":
            non_images += 1
        else:
            problems.append(Problem(path, problem, action))
    with console.Progress(f"inventory of {root}", len(files), unit="file") as progress:
        for file, facts in _facts(root, files, memo, max_megapixels, workers or processors(), progress):
            if facts.problem == "non_image":
                non_images += 1
                continue
            problem, detail = facts.problem, facts.detail
            if not problem and min(facts.width, facts.height) < min_side:
                problem, detail = "too_small", f"{facts.width} x {facts.height} pixels, data.min_side is {min_side}"
            elif not problem and facts.width * facts.height > max_megapixels * 1e6:
                problem, detail = "too_large", f"{facts.width} x {facts.height} pixels"
            label, given = place(file.path)
            if problem:
                problems.append(Problem(file.path, problem, f"set aside: {detail}"))
            elif label is None:
                problems.append(Problem(file.path, "no_class", "set aside: not in a class folder"))
            else:
                pictures.append(
                    Picture(file.path, label, given, facts.sha256.hex(), facts.width, facts.height, facts.fingerprint)
                )
    problems.sort(key=lambda p: p.path)
    damaged = [p for p in problems if p.problem in DAMAGED]
    if damaged and on_damaged == "fail":
        shown = "; ".join(f"{p.path}: {p.problem}" for p in damaged[:20])
        more = f"; and {len(damaged) - 20} more" if len(damaged) > 20 else ""
        raise GraftError(f"{root}: {len(damaged)} damaged file(s), and data.on_damaged is fail: {shown}{more}")
    if not pictures:
        held = f"{len(problems)} set aside, {non_images} not images" if files or odd else "it is empty"
        raise GraftError(f"data.path: no usable image in the class folders of {root} ({held})")
    labels = {picture.label for picture in pictures}
    lost = sorted({place(p.path)[0] for p in damaged} - labels - {None})
    if lost:
        raise GraftError(f"data.path: class {lost[0]!r} of {root} has no usable image; mend it or take the folder out")
    pictures.sort(key=lambda p: p.path)
    if len(labels) == 1:
        raise _one_class(root, pictures)
    return Inventory(root, tuple(pictures), tuple(problems), len(files) + len(odd) + hidden, non_images, hidden)


def _walk(root):
    """(regular files by path, [(path, problem or "non_image", action)] of what cannot be read, number of hidden files)."""
    files, odd, hidden = [], [], 0
    stack = [("", str(root), False, frozenset())]
    while stack:
        prefix, folder, is_hidden, above = stack.pop()
        try:
            info = Path(folder).stat()
            if (info.st_dev, info.st_ino) in above:  # a link to a folder that contains it: its files have been seen
                continue
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            odd.append((_printable(prefix.rstrip("/")), "undecodable", f"set aside: folder cannot be read ({error.strerror})"))
            continue
        for entry in entries:
            path = prefix + entry.name
            veiled = is_hidden or entry.name.startswith(".") or entry.name in ("__MACOSX", "Thumbs.db", "desktop.ini")
            try:
                if entry.is_dir():
                    stack.append((path + "/", entry.path, veiled, above | {(info.st_dev, info.st_ino)}))
                    continue
                if veiled:
                    hidden += 1
                    continue
                status = entry.stat()
            except OSError as error:
                image = Path(path).suffix.lower() in images.SUFFIXES
                why = f"set aside: cannot be read ({error.strerror})"
                odd.append((_printable(path), "undecodable" if image else "non_image", why))
                continue
            if not stat.S_ISREG(status.st_mode):  # a pipe or device: reading it might never end
                odd.append((_printable(path), "non_image", ""))
            elif _printable(path) != path:
                odd.append((_printable(path), "unsupported", "set aside: its name is not valid Unicode"))
            else:
                files.append(_File(path, status.st_size, status.st_mtime_ns))
    files.sort(key=lambda file: file.path)
    return files, odd, hidden


def _printable(path):
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _layout(root, files):
    """A function path -> (class name or None, given split or ""), from the names of the folders at the top."""
    pictures = [file.path.split("/") for file in files if _may_be_picture(file.path)]
    tops = {parts[0] for parts in pictures if len(parts) > 1}
    named = {top: SPLIT_FOLDERS[top.casefold()] for top in tops if top.casefold() in SPLIT_FOLDERS}
    deep = {parts[0] for parts in pictures if len(parts) > 2}
    several = len(set(named.values())) > 1
    # One folder called train among others is a class of trains; train and test together are what they say.
    predefined = "train" in named.values() and (several or len(named) == len(tops)) and bool(set(named) & deep)
    if predefined and len(named) < len(tops):
        raise GraftError(
            f"data.path: {root} holds {', '.join(sorted(named))} and beside them {sorted(tops - set(named))[0]!r}; "
            "keep only train, val and test there (or only class folders)"
        )
    if several and not predefined and len(named) == len(tops):
        raise GraftError(
            f"data.path: {', '.join(sorted(named))} in {root} hold no class folders; each needs one folder per class"
        )
    if not tops:
        raise GraftError(f"data.path: {root} holds no folders{'' if files else ' and no files'}; it needs one folder per class")

    def place(path):
        parts = path.split("/")
        if predefined:
            return (_name(parts[1]), named[parts[0]]) if len(parts) > 2 else (None, "")
        return (_name(parts[0]), "") if len(parts) > 1 else (None, "")

    return place


def _one_class(root, pictures):
    only = pictures[0].label
    inside = {parts[1] for parts in (picture.path.split("/") for picture in pictures) if len(parts) > 2}
    hint = f" (or are its classes one level down, in {root / only}?)" if len(inside) > 1 and not pictures[0].given else ""
    return GraftError(f"data.path: {root} has images of one class only, {only!r}; a classifier needs two or more{hint}")


def _may_be_picture(path):
    suffix = Path(path).suffix.lower()
    return not suffix or suffix in images.SUFFIXES or suffix in images.UNSUPPORTED_SUFFIXES


def _name(folder):
    return unicodedata.normalize("NFC", folder)  # macOS writes é as two code points: one class, not two


@dataclass(frozen=True, slots=True)
class Facts:
    """What one file is, whatever the params say. `problem`: "", one of DAMAGED, or "non_image"; `thumb`: 32 x 32 grey bytes."""

    problem: str = ""
    detail: str = ""
    sha256: bytes = b""
    width: int = 0
    height: int = 0
    fingerprint: int | None = None
    thumb: bytes = b""


def examine(path, *, size=None, max_megapixels=images.MAX_MEGAPIXELS):
    """Facts of the file at `path`, which is read once. Never raises for what the file holds."""
    path = Path(path)
    suffix = path.suffix.lower()
    problem = "undecodable" if suffix in images.SUFFIXES else "non_image"  # what it is if no picture is found in it
    problem = "unsupported" if suffix in images.UNSUPPORTED_SUFFIXES else problem
    try:
        with path.open("rb") as file:
            head = file.read(64)
            kind = images.sniff(head)
            if not head:
                return Facts("empty", "no bytes in the file") if problem != "non_image" else Facts("non_image")
            if kind is None:
                detail = (
                    f"{suffix} files are not read" if problem == "unsupported" else "no picture in it, whatever its name says"
                )
                return Facts(problem, "" if problem == "non_image" else detail)
            size = os.fstat(file.fileno()).st_size if size is None else size
            if size > max_megapixels * 8e6 + 2**26:  # 8 bytes per pixel is the most a format here takes; spare the memory
                return Facts("too_large", f"{size / 2**20:.0f} MiB")
            content = head + file.read()
    except OSError as error:
        return Facts(problem, f"cannot be read ({error.strerror})")
    try:
        # Decoding at a reduced scale goes through every byte all the same, so a cut-off file is found, at a third of the cost.
        picture, seen = images.decode(io.BytesIO(content), at_least=2 * THUMB, max_megapixels=max_megapixels)
    except images.ImageProblem as error:
        return Facts(error.kind, error.detail)
    thumb, digest = thumbnail(picture), hashlib.sha256(content).digest()
    comparable = min(seen["width"], seen["height"]) >= THUMB and fine_detail(thumb[None]).std() >= LEAST_DETAIL
    return Facts("", "", digest, seen["width"], seen["height"], fingerprint(thumb) if comparable else None, thumb.tobytes())


def thumbnail(picture):
    """RGB image -> uint8 (32, 32): grey, each value the mean of its part of the picture."""
    small = picture.resize((THUMB, THUMB), Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(small.convert("L"), dtype=np.uint8)


def fine_detail(thumbs):
    """(n, 32, 32) -> float32 (n, 32, 32): what is left when the mean of the 5 x 5 pixels around each pixel is taken away."""
    x = np.asarray(thumbs, dtype=np.float32)
    for axis in (1, 2):
        x = np.cumsum(np.pad(x, [(0, 0) if a != axis else (3, 2) for a in range(3)], mode="edge"), axis=axis)
        x = (np.take(x, range(5, THUMB + 5), axis) - np.take(x, range(THUMB), axis)) / 5
    return thumbs - x


def fingerprint(thumb):
    """uint8 (32, 32) -> 64-bit difference hash: for 8 rows, whether each of 9 columns is brighter than its left neighbour.

    Neal Krawetz, "Kind of Like That" (2013). Unchanged by brightness and contrast, scale and re-encoding; not by rotation.
    """
    small = np.asarray(Image.fromarray(thumb).resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _facts(root, files, memo, max_megapixels, workers, progress):
    """Yield (file, Facts) of every file, the remembered ones first. Bounded memory whatever their number."""
    unknown = []
    for file, facts in memo.recall(files):
        if facts is None:
            unknown.append(file)
        else:
            progress.advance()
            yield file, facts

    def task(chunk):
        return [(file, examine(root / file.path, size=file.size, max_megapixels=max_megapixels)) for file in chunk]

    chunks = [unknown[start : start + CHUNK] for start in range(0, len(unknown), CHUNK)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of oddities in metadata; what matters becomes a problem
        for results in ahead(task, chunks, workers=workers, depth=4 * workers):
            memo.remember(results)
            progress.advance(len(results))
            yield from results


class Memo:
    """What is known of the files under one folder: an SQLite file, safe under parallel experiments. A context manager.

    `path`: the database, or None for one in memory. A database that is damaged or of another version is started afresh.
    """

    COMMIT_SECONDS = 2.0  # how much work a kill may cost, and how long another process may have to wait

    def __init__(self, path, root):
        self.path = path
        folder, here = Path(root).resolve(), Path.cwd().resolve()
        # Relative where it can be: the throw-away copies of `dvc exp run --temp` then share what is known of data/raw.
        self.root = folder.relative_to(here).as_posix() if folder.is_relative_to(here) else folder.as_posix()

    def __enter__(self):
        try:
            self._open()
        except (sqlite3.DatabaseError, OSError) as error:
            if isinstance(error, (sqlite3.OperationalError, OSError)):  # locked for a minute, disk full, folder read-only
                console.warn(f"{self.path}: {error}; hashes are not kept")
                self.path = None
            else:
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            self._open()
        return self

    def _open(self):
        if self.path is not None:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(self.path or ":memory:", timeout=60)
        if self.path is not None:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS version (version TEXT)")
        if self._db.execute("SELECT version FROM version").fetchall() != [(MEMO_VERSION,)]:
            for table in ("files", "thumbs", "pairs", "results", "version"):
                self._db.execute(f"DROP TABLE IF EXISTS {table}")
            self._db.execute("CREATE TABLE version (version TEXT)")
            self._db.execute("INSERT INTO version VALUES (?)", (MEMO_VERSION,))
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS files (root TEXT, path TEXT, size INTEGER, mtime_ns INTEGER, problem TEXT, detail TEXT,"
            " sha256 BLOB, width INTEGER, height INTEGER, fingerprint INTEGER, PRIMARY KEY (root, path)) WITHOUT ROWID"
        )
        self._db.execute("CREATE TABLE IF NOT EXISTS thumbs (sha256 BLOB PRIMARY KEY, thumb BLOB) WITHOUT ROWID")
        self._db.execute("CREATE TABLE IF NOT EXISTS pairs (a BLOB, b BLOB, alike INTEGER, PRIMARY KEY (a, b)) WITHOUT ROWID")
        self._db.execute("CREATE TABLE IF NOT EXISTS results (root TEXT, key TEXT, pairs TEXT, PRIMARY KEY (root, key))")
        self._db.commit()
        self._committed = time.monotonic()

    def __exit__(self, *exception):
        self._db.commit()
        self._db.close()

    def recall(self, files):
        """Yield (file, Facts or None) for `files`, sorted by path; forgets what is no longer there."""
        rows = self._db.execute(
            "SELECT path, size, mtime_ns, problem, detail, sha256, width, height, fingerprint FROM files WHERE root = ?"
            " ORDER BY path", (self.root,),
        )  # fmt: skip
        row, gone = next(rows, None), []
        for file in files:
            while row is not None and row[0] < file.path:
                gone.append((self.root, row[0]))
                row = next(rows, None)
            if row is not None and row[0] == file.path:
                known = None
                if row[1:3] == (file.size, file.mtime_ns):
                    known = Facts(*row[3:8], None if row[8] is None else row[8] % 2**64)
                row = next(rows, None)
                yield file, known
            else:
                yield file, None
        if row is not None:
            gone += [(self.root, path) for path, *_ in (row, *rows)]
        if gone:
            self._db.executemany("DELETE FROM files WHERE root = ? AND path = ?", gone)
            self._db.execute("DELETE FROM thumbs WHERE sha256 NOT IN (SELECT sha256 FROM files)")
            self._db.execute("DELETE FROM pairs WHERE a NOT IN (SELECT sha256 FROM thumbs)")
            self._db.commit()

    def remember(self, results):
        now = time.time_ns()
        rows, thumbs = [], []
        for file, facts in results:
            if facts.problem == "too_large" or facts.detail.startswith("cannot be read"):
                continue  # depends on data.max_megapixels, or may pass
            settled = now - file.mtime_ns > FRESH_SECONDS * 1e9
            hashed = facts.fingerprint
            signed = hashed - 2**64 if hashed is not None and hashed >= 2**63 else hashed  # SQLite's integers are signed
            rows.append((self.root, file.path, file.size, file.mtime_ns if settled else -1, facts.problem, facts.detail,
                         facts.sha256, facts.width, facts.height, signed))  # fmt: skip
            if facts.thumb:
                thumbs.append((facts.sha256, facts.thumb))
        self._db.executemany("INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?,?,?)", rows)
        self._db.executemany("INSERT OR IGNORE INTO thumbs VALUES (?,?)", thumbs)
        if time.monotonic() - self._committed > self.COMMIT_SECONDS:
            self._db.commit()
            self._committed = time.monotonic()

    def thumbs(self, digests):
        """uint8 (n, 32, 32): the thumbnails of the images with these SHA-256 (hex)."""
        blobs = dict(self._among("SELECT sha256, thumb FROM thumbs WHERE sha256 IN", digests))
        flat = b"".join(blobs[bytes.fromhex(digest)] for digest in digests)
        return np.frombuffer(flat, np.uint8).reshape(len(digests), THUMB, THUMB)

    def _among(self, query, digests):
        """Rows of a query that ends in IN, for many digests at once: one query each would take four times as long."""
        wanted = [bytes.fromhex(digest) for digest in sorted(set(digests))]
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            yield from self._db.execute(f"{query} ({','.join('?' * len(part))})", part)

    def pairs(self, key):
        """The near-duplicates that were found in a set of images with this key: [[i, j], …], or None."""
        row = self._db.execute("SELECT pairs FROM results WHERE root = ? AND key = ?", (self.root, key)).fetchone()
        return None if row is None else json.loads(row[0])

    def keep_pairs(self, key, pairs):
        self._db.execute("DELETE FROM results WHERE root = ?", (self.root,))  # one set per folder: the last
        self._db.execute("INSERT INTO results VALUES (?,?,?)", (self.root, key, json.dumps(pairs)))
        self._db.commit()

    def verdicts(self, pairs):
        """For pairs of SHA-256 (hex): whether they have been found alike (True, False), None where not yet judged."""
        known = {
            (a, b): bool(alike)
            for a, b, alike in self._among("SELECT a, b, alike FROM pairs WHERE a IN", [a for a, _ in pairs])
        }
        return [known.get((bytes.fromhex(a), bytes.fromhex(b))) for a, b in pairs]

    def keep_verdicts(self, judged):
        rows = [(bytes.fromhex(a), bytes.fromhex(b), int(alike)) for a, b, alike in judged]
        self._db.executemany("INSERT OR REPLACE INTO pairs VALUES (?,?,?)", rows)
        self._db.commit()
