"""What the folders of a data set mean: which hold classes, which a split of them, and what is
passed over."""

import os
import re
import shlex
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from graft import pixels
from graft.system.console import GraftError
from graft.system.override import override


@dataclass(frozen=True, slots=True)
class File:
    """A regular file, and what changes when it does. `path`: POSIX, relative to the folder that was
    walked; `size`: bytes."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(frozen=True)
class Walk:
    """Everything below a folder. `files`: by path; `odd`: (path, problem or "non_image", action) of
    what cannot be read; `hidden`: number of files that are passed over; `links`: folders that are
    links to others."""

    files: tuple[File, ...]
    odd: tuple[tuple[str, str, str], ...]
    hidden: int
    links: tuple[str, ...]


def walk(root: Path) -> Walk:
    """Go through `root`, links to folders too; never raises for what it meets."""
    files, odd, links, hidden = [], [], [], 0
    stack: list[tuple[str, str, bool, frozenset]] = [("", str(root), False, frozenset())]
    while stack:
        prefix, folder, is_hidden, above = stack.pop()
        try:
            info = Path(folder).stat()
            here = (info.st_dev, info.st_ino)
            if here in above:  # a link to a folder that contains it: its files have been seen
                continue
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            odd.append(
                (
                    printable(prefix.rstrip("/")),
                    "undecodable",
                    f"set aside: folder cannot be read ({error.strerror})",
                )
            )
            continue
        for entry in entries:
            path = prefix + entry.name
            veiled = is_hidden or pixels.passed_over(entry.name)
            try:
                if entry.is_dir():
                    links += (
                        [path] if not veiled and _leads_elsewhere(entry, {*above, here}) else []
                    )
                    stack.append((path + "/", entry.path, veiled, above | {here}))
                    continue
                status = None if veiled else entry.stat()
            except OSError as error:
                problem = (
                    "undecodable" if Path(path).suffix.lower() in pixels.SUFFIXES else "non_image"
                )
                odd.append(
                    (printable(path), problem, f"set aside: cannot be read ({error.strerror})")
                )
                continue
            if status is None:
                hidden += 1
            elif not stat.S_ISREG(status.st_mode):  # a pipe or device: reading it might never end
                odd.append((printable(path), "non_image", ""))
            elif printable(path) != path:
                odd.append(
                    (printable(path), "unsupported", "set aside: its name is not valid Unicode")
                )
            else:
                files.append(
                    File(
                        path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
                    )
                )
    return Walk(
        tuple(sorted(files, key=lambda file: file.path)), tuple(odd), hidden, tuple(sorted(links))
    )


def _leads_elsewhere(entry, above):
    """Whether a folder is a link, and to none of those `above`, (device, inode) each."""
    status = entry.stat()
    return entry.is_symlink() and (status.st_dev, status.st_ino) not in above


def printable(path: str) -> str:
    """A path with what is not UTF-8 in it escaped."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class Reading:
    """One way to take a folder. `text`: what it would be, for a person; `key`, `value`: the
    parameter that says so."""

    text: str
    key: str
    value: str


class Unclear(GraftError):
    """A folder that can be taken in several ways, or in none without help. `problem`: in words;
    `readings`: what it may be; `flat`: its folders say nothing of classes."""

    def __init__(self, problem: str, readings: Iterable[Reading] = (), *, flat: bool = False):
        self.problem, self.readings, self.flat = problem, tuple(readings), flat
        super().__init__(self.told(lambda key, value: f"-S {override(f'data.{key}', value)}"))

    def as_options(self, source: str) -> str:
        """The line with the options of `graft import` and `graft check` instead of parameters;
        `source`: what it is about."""
        return f"{source}: " + self.told(
            lambda key, value: f"--{key.replace('_', '-')} {shlex.quote(value)}"
        )

    def told(self, flag: Callable[[str, str], str]) -> str:
        """The line for a person; flag: (key, value) of a Reading to what is typed for it."""
        parts = [
            f"({i}) {reading.text}: {flag(reading.key, reading.value)}"
            for i, reading in enumerate(self.readings, 1)
        ]
        table = (
            ["or give a table of labels (columns file, label): " + flag("labels", "labels.csv")]
            if self.flat
            else []
        )
        return "; ".join([self.problem, *parts, *table])


@dataclass(frozen=True)
class Layout:
    """How the folders of a data set are taken.

    `base`: the folder below which everything lies, "" or ending in "/". `splits`: {folder below it,
    ending in "/": "train", "val" or "test"}, empty where no folder holds a split. `level`: what is
    a class there: "classes" the folders, "deepest" the folder that a photo lies in, "class_splits"
    the folders, each with folders for the splits in it; "flat" nothing is.
    """

    base: str
    splits: Mapping[str, str]
    level: str

    def place(self, path: str) -> tuple[str | None, str]:
        """(class or None, split or "") of the file at `path`."""
        parts, split = self._inside(path)
        if self.level == "flat" or len(parts) < 2:
            return None, split
        if self.level == "class_splits":
            split = named_splits(parts[1:2]).get(parts[1], "") if len(parts) > 2 else ""
        return unicodedata.normalize("NFC", parts[-2 if self.level == "deepest" else 0]), split

    def split_of(self, path: str) -> str:
        """The split that the folders give the file at `path`, or ""."""
        return self._inside(path)[1]

    def _inside(self, path):
        if not path.startswith(self.base):
            return [], ""
        path = path[len(self.base) :]
        for folder, split in self.splits.items():
            if path.startswith(folder):
                return path[len(folder) :].split("/"), split
        return ([] if self.splits else path.split("/")), ""

    def class_folders(self) -> list[str]:
        """The folders, "" or ending in "/", whose sub-folders are classes."""
        return (
            [self.base + folder for folder in self.splits or [""]] if self.level != "flat" else []
        )

    def told(self) -> list[str]:
        """What was taken for what, in lines for a person; none where the folders at the top are
        simply the classes."""
        where = [f"everything is taken from {self.base}"] if self.base else []
        taken = [f"{folder} is taken for {split}" for folder, split in self.splits.items()]
        if self.level == "class_splits":
            taken.append("each class has its own folders for train, val and test")
        if self.level == "deepest":
            taken.append("the folder that a photo lies in is its class")
        return [", ".join(where + taken)] if where + taken else []


def find_layout(paths: Iterable[str], wanted: str = "auto") -> Layout:
    """The Layout of images at `paths` (POSIX, relative). `wanted`: params.data.layout.

    Raises Unclear where the folders can be taken in several ways, or in none.
    """
    base, images = _base([path.split("/") for path in paths], wanted)
    tops = {parts[0] for parts in images if len(parts) > 1}
    if not tops:
        where, readings = (
            base.rstrip("/") or "the top",
            _by_names(base + "/".join(parts) for parts in images),
        )
        raise Unclear(
            f"its photos lie in one folder ({where}); there must be one folder per class",
            readings,
            flat=True,
        )
    splits = {} if wanted == "classes" else _splits(images, tops, wanted)
    inner = [parts for parts in images if not splits or parts[0] in splits]
    prefixes = _prefixes(inner, splits)
    if not splits:
        return Layout(base, {}, _level(inner, tops, wanted))
    inside = [
        parts[len(prefixes[parts[0]]) :]
        for parts in inner
        if tuple(parts[: len(prefixes[parts[0]])]) == prefixes[parts[0]]
    ]
    inside, common = _common(inside)
    found = {"/".join((*prefix, *common)) + "/": splits[top] for top, prefix in prefixes.items()}
    _check_depth(images, splits, inside, base)
    return Layout(
        base, found, _level(inside, {parts[0] for parts in inside if len(parts) > 1}, wanted)
    )


def find_splits(paths: Iterable[str]) -> Layout:
    """The Layout, of level "flat", of images whose classes are told otherwise: the folders may give
    the split, nothing more."""
    images = [path.split("/") for path in paths]
    base, images = _base(images, "auto")
    tops = {parts[0] for parts in images if len(parts) > 1}
    named = named_splits(tops)
    clear = "train" in named.values() and (len(set(named.values())) > 1 or len(named) == len(tops))
    return Layout(
        base if clear else "",
        {f"{top}/": split for top, split in sorted(named.items())} if clear else {},
        "flat",
    )


def _base(images, wanted):
    """(folder that holds all, [parts of each image below it]): folders that hold nothing but one
    other are gone through."""
    base = ""
    while True:
        below = {parts[0] for parts in images if len(parts) > 1}
        # A train/ is none to go through; a folder that is called like another split and is all
        # there is may be.
        if len(below) != 1 or "train" in named_splits(below).values() or wanted == "splits":
            return base, images
        (only,) = below
        inside = [parts[1:] for parts in images if len(parts) > 1]
        base, images = f"{base}{only}/", inside


def _splits(images, tops, wanted):
    """{folder at the top: split}, empty where the folders at the top are the classes."""
    named = named_splits(tops)
    kinds, others = (
        set(named.values()),
        sorted(tops - set(named) - {top for top in tops if is_unlabelled(top)}),
    )
    others = (
        [top for top in others if not _repeats(top, tops, images)] if "train" in kinds else others
    )
    if wanted == "splits" and (others or "train" not in kinds):
        odd = (
            f"{others[0]!r} is called like none"
            if others
            else "none of its folders is called like train"
        )
        raise Unclear(f"data.layout is splits, but {odd} (train, val, test)")
    joined = _class_and_split(tops)
    if joined and wanted == "auto":
        raise Unclear(
            "its folders are called like a class and a split at once",
            [*_by_both(joined, tops), _as_classes(tops)],
        )
    if not kinds or (others and len(kinds) < 2):
        _refuse_plain(tops, wanted)
        return {}
    if wanted == "auto" and others:
        raise Unclear(
            f"it holds {_some(named)} and beside them {others[0]!r}; keep only train, val and "
            "test there, or only class folders",
            [_as_classes(tops)],
        )
    if "train" not in kinds:
        raise Unclear(
            f"it holds {_some(named)}, but no train/: nothing is left to train on; call the "
            "folder to train on train",
            [_as_classes(tops)],
        )
    return named


def _repeats(top, tops, images):
    """Whether the folder `top` holds nothing but what lies beside it once more: set/train/a and
    set/set/train/a."""
    beside = {tuple(parts) for parts in images if parts[0] != top}
    inside = [tuple(parts[1:]) for parts in images if parts[0] == top and len(parts) > 1]
    while {parts[0] for parts in inside} == {top}:
        inside = [parts[1:] for parts in inside]
    return bool(beside) and all(parts in beside for parts in inside)


def _prefixes(images, splits):
    """{folder at the top: the parts of the path to what it really holds}: train/train/cat,
    train/images/cat."""
    found = {}
    for top in sorted(splits):
        prefix, inside = (top,), [parts[1:] for parts in images if parts[0] == top]
        while True:
            below = {parts[0] for parts in inside if len(parts) > 1}
            if len(below) != 1 or any(len(parts) == 1 for parts in inside):
                break
            (only,) = below
            if not (
                only.casefold() == top.casefold()
                or _parsed(only)[0] == splits[top]
                or _is_plain(only)
            ):
                break
            prefix, inside = (*prefix, only), [parts[1:] for parts in inside]
        found[top] = prefix
    return found


def _common(inside):
    """(images, parts of the path) without the folders that alone hold all class folders of every
    split: train/animals/cat."""
    common = ()
    while True:
        below = {parts[0] for parts in inside if len(parts) > 1}
        if len(below) != 1 or not all(len(parts) > 2 for parts in inside if len(parts) > 1):
            return inside, common
        common, inside = (*common, *below), [parts[1:] for parts in inside if len(parts) > 1]


def _check_depth(images, splits, inside, base):
    """Raises Unclear unless train/ has class folders. Others may be flat: a test set whose labels
    nobody gave away."""
    deep = {top for top in splits if any(parts[0] == top and len(parts) > 2 for parts in images)}
    if any(len(parts) > 1 for parts in inside) and "train" in {splits[top] for top in deep}:
        return
    names = [base + "/".join(parts) for parts in images if parts[0] in splits]
    readings = [*_by_names(names), *([_as_classes(splits)] if len(splits) > 1 else [])]
    raise Unclear(f"{_some(splits)} hold photos but no class folders", readings, flat=True)


def _level(inside, tops, wanted):
    """What is a class among folders of images, by Layout.level."""
    if wanted in ("classes", "deepest"):
        return wanted
    folders = {tuple(parts[:-1]) for parts in inside if len(parts) > 1}
    pairs = {(folder[0], folder[-1]) for folder in folders}
    deepest = {last for _, last in pairs}
    # a/b and c/d: the photos are parted in the same way, but which of the names are the classes'?
    one_to_one = len(pairs) == len(tops) == len(deepest) and (
        any(len(folder) == 1 for folder in folders)
        or all(_says_the_same(top, last) for top, last in pairs)
    )
    if (
        tops == {folder[0] for folder in folders if len(folder) == 1}
        or one_to_one
        or len(deepest) == 1
    ):
        return "classes"
    seconds = {folder[1] for folder in folders if len(folder) > 1}
    kinds = named_splits(seconds)
    if (
        set(kinds) == seconds
        and "train" in kinds.values()
        and len(set(kinds.values())) > 1
        and max(map(len, folders)) == 2
    ):
        return "class_splits"
    shared = any(len({top for top, last in pairs if last == name}) > 1 for name in deepest)
    why = (
        "its folders share the names of their sub-folders" if shared else "its folders hold folders"
    )
    below = Reading(f"{len(deepest)} classes, {_some(deepest)}", "layout", "deepest")
    raise Unclear(f"{why}, so its classes are unclear", [_as_classes(tops), below])


def _says_the_same(top, last):
    """Whether a folder in a folder names nothing new: cat/cat, cat/cats_images, n01/images."""
    names = [{word.rstrip("s") for word in _words(name)} for name in (top, last)]
    return (
        top.casefold() == last.casefold()
        or _is_plain(last)
        or bool(names[0] & names[1] - PLAIN_WORDS)
    )


def _as_classes(tops):
    return Reading(f"{len(tops)} classes, {_some(tops)}", "layout", "classes")


def _some(names):
    names = sorted(names)
    return ", ".join(names[:4]) + (f", … {names[-1]}" if len(names) > 4 else "")


def _refuse_plain(tops, wanted):
    if wanted == "auto" and len(tops) > 1 and all(map(_is_plain, tops)):
        raise Unclear(
            f"its folders, {_some(tops)}, are not called like classes",
            [_as_classes(tops)],
            flat=True,
        )


# A name in front of a number, or behind one: cat.0.jpg, great dane_12.jpg, cat (3).jpg,
# 0001-cat.jpg.
NAME_PATTERNS = (r"(?:^|/)([^/\d]+?)[ ._-]*\(?\d+\)?\.\w+$", r"(?:^|/)\d+[ ._-]+([^/\d]+?)\.\w+$")


def _by_names(paths):
    """The Reading of images whose file names tell their class, if they do: two classes or more, few
    for their number."""
    stems = list(paths)
    for pattern in NAME_PATTERNS:
        labels = Counter(label for path in stems if (label := label_in(pattern, path)))
        if 2 <= len(labels) <= max(2, sum(labels.values()) // 3) and 2 * sum(
            labels.values()
        ) >= len(stems):
            return [
                Reading(
                    f"{len(labels)} classes by file names, {_some(labels)}", "label_by", pattern
                )
            ]
    return []


def label_in(pattern: str, path: str) -> str:
    """What the group `label` of a regular expression, else its first, captures in `path`; "" where
    it matches nothing."""
    match = re.search(pattern, path)
    return (
        unicodedata.normalize("NFC", match["label" if "label" in match.re.groupindex else 1] or "")
        if match
        else ""
    )


def named_splits(folders: Iterable[str]) -> dict[str, str]:
    """{folder: split} of those that are called as a split is: train, Training, trn, train_images,
    test_set, valid2017.

    More than such a word may stand in a name where other folders share it: seg_train and seg_test,
    pets-train and pets-val.
    """
    parsed = {folder: _parsed(folder) for folder in folders}
    shared: dict[str, set[str]] = {}
    for split, rest in parsed.values():
        if split and rest:
            shared.setdefault(rest, set()).add(split)
    whole = [rest for rest, splits in shared.items() if "train" in splits and len(splits) > 1]
    found = {
        f: split for f, (split, rest) in parsed.items() if split and (not rest or whole == [rest])
    }
    late = [
        f for f, split in found.items() if split == "val" and re.search("eval", f, re.IGNORECASE)
    ]
    if "test" not in found.values() and len(late) < sum(split == "val" for split in found.values()):
        found |= dict.fromkeys(late, "test")  # train, dev and eval
    return found


def is_unlabelled(folder: str) -> bool:
    """Whether a folder is called as photos without labels are: pred, seg_pred, unlabeled."""
    return any(word in UNLABELLED for word in _words(folder))


def split_named(word: str) -> str:
    """The split that a cell of a table names, or ""."""
    split, rest = _parsed(word)
    return "" if rest else split


def _set(words):
    return frozenset(words.split())


SPLIT_WORDS = {
    **dict.fromkeys(_set("train training trn tr"), "train"),
    **dict.fromkeys(_set("val valid validation validate dev eval evaluation"), "val"),
    **dict.fromkeys(_set("test testing tst te holdout"), "test"),
}
PLAIN_WORDS = _set(  # they say nothing of what is in a folder
    "set sets data dataset datasets image images img imgs photo photos picture pictures pic pics "
    "folder folders split splits sample samples file files jpg jpeg png raw all"
)
ASIDE_WORDS = PLAIN_WORDS | _set(
    "mask masks label labels annotation annotations ann anns gt groundtruth"
)
UNLABELLED = _set(
    "pred predict prediction predictions inference unlabelled unlabeled unsup unsupervised"
)
SPLIT_WORD = "|".join(sorted(SPLIT_WORDS, key=len, reverse=True))
GLUED = re.compile(f"({'|'.join(SPLIT_WORDS)})({'|'.join(PLAIN_WORDS)})")  # trainset


def _words(name):
    """TrainingSet_2017 -> [training, set]."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFC", name)).casefold()
    return [
        word for word in re.split(r"[\W\d_]+", re.sub(r"h[oe]ld[\W_]?out", "holdout", name)) if word
    ]


def _parsed(name):
    """(split or "", the words that are neither a split's nor plain) of a folder's name."""
    split, rest = [], []
    for word in _words(name):
        glued = GLUED.fullmatch(word)
        word = glued[1] if glued else word
        if word in SPLIT_WORDS:
            split.append(SPLIT_WORDS[word])
        elif word not in PLAIN_WORDS:
            rest.append(word)
    return (split[0], " ".join(rest)) if len(split) == 1 else ("", name)


def _is_plain(name):
    words = _words(name)
    return bool(words) and all(word in ASIDE_WORDS for word in words)


def _class_and_split(tops):
    """{folder: (class, split)} where each folder at the top names one and a split: cats_train,
    cats_test, dogs_train …"""
    found = {}
    for top in tops:
        split, rest = _parsed(top)
        if not split or not rest:
            return {}
        found[top] = rest, split
    splits = {}
    for rest, split in found.values():
        splits.setdefault(rest, set()).add(split)
    return found if len(splits) > 1 and all(len(each) > 1 for each in splits.values()) else {}


def _by_both(joined, tops):
    """The Reading of folders that name a class and a split, as of `_class_and_split`, by an
    expression that captures both."""
    words = "|".join(
        sorted(
            {word for top in tops for word in re.findall(SPLIT_WORD, top, re.IGNORECASE)},
            key=len,
            reverse=True,
        )
    )
    for inner in (
        rf"(?P<label>[^/]+?)[ _-]*(?P<split>{words})",
        rf"(?P<split>{words})[ _-]*(?P<label>[^/]+)",
    ):
        pattern = f"(?:^|/){inner}/"
        found = {top: re.match(pattern, f"{top}/") for top in tops}
        if all(
            match and split_named(match["split"]) == joined[top][1] for top, match in found.items()
        ):
            labels = {match["label"] for match in found.values()}
            if len(labels) == len({rest for rest, _ in joined.values()}):
                return [
                    Reading(
                        f"classes {_some(labels)}, each split by its folders", "label_by", pattern
                    )
                ]
    return []
