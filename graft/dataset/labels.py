"""What each photo of a folder shows: its folder says so, or its name, or a table that people or
their tools have written."""

import contextlib
import csv
import difflib
import io
import json
import os
import posixpath
import re
import unicodedata
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from graft import pixels
from graft.dataset.layout import (
    Layout,
    Reading,
    Unclear,
    find_layout,
    find_splits,
    label_in,
    split_named,
)
from graft.system import console, files
from graft.system.console import GraftError

TABLE = "labels.csv"
COLUMNS = ("file", "label", "split", "group")
# Tables that tools write under these names, taken without being asked for where the folders say
# nothing.
KNOWN = (TABLE, "_classes.csv", "metadata.csv", "metadata.jsonl", "_annotations.coco.json")
NAMES = {  # of columns and keys, the likeliest first; blanks and hyphens count as _
    "file": (
        "file", "file_name", "filename", "path", "file_path", "filepath", "file_paths", "filepaths",
        "image", "image_path", "image_name", "image_file", "image_id", "image_index", "images",
        "img", "img_path", "img_name", "id",
    ),
    "label": (
        "label", "labels", "class", "class_name", "classes", "category", "category_name",
        "label_name", "choice", "target", "species", "breed", "diagnosis", "finding_labels",
    ),
    "split": ("split", "subset", "set", "data_set", "dataset", "partition"),
    "group": ("group",),
}  # fmt: skip
# What tools write into empty cells.
NO_VALUE = frozenset({"nan", "na", "n/a", "#n/a", "none", "null", "nil", "?", "-"})


class Rules(Protocol):
    """What params.data says of labels."""

    @property
    def layout(self) -> str: ...
    @property
    def labels(self) -> str | None: ...
    @property
    def label_by(self) -> str | None: ...
    @property
    def class_map(self) -> Mapping[str, str | None]: ...


@dataclass(frozen=True)
class ByFolder:
    """The Rules of a folder about which nothing was said."""

    layout: str = "auto"
    labels: str | None = None
    label_by: str | None = None
    class_map: Mapping[str, str | None] = field(default_factory=dict)


BY_FOLDER = ByFolder()


@dataclass(frozen=True, slots=True)
class Place:
    """What is known of a photo. `label`: its class, None where there is none, and then `why`;
    `split`: the one that it was given, or ""; `group`: what it must not be parted from, or ""."""

    label: str | None
    split: str = ""
    group: str = ""
    why: str = ""


@dataclass(frozen=True)
class Labels:
    """Where the label of each photo comes from. `rows`: {path: Place} of a table `table`;
    `label_by`: a regular expression; else `layout` gives it. `by_folder`: the Layout for photos
    that the table does not list, or None. `unlabelled`: paths of images without a label."""

    layout: Layout
    table: str = ""
    rows: Mapping[str, Place] = field(default_factory=dict)
    by_folder: Layout | None = None
    label_by: str | None = None
    class_map: Mapping[str, str | None] = field(default_factory=dict)
    unlabelled: tuple[str, ...] = ()

    def place(self, path: str) -> Place:
        """The Place of the photo at `path`, under its final class."""
        found = self.given(path)
        if found.label is None or found.label not in self.class_map:
            return found
        label = self.class_map[found.label]
        return replace(
            found, label=label, why="" if label else f"data.class_map drops {found.label!r}"
        )

    def given(self, path: str) -> Place:
        """The same before data.class_map."""
        if self.table:
            row = self.rows.get(path)
            if row is None and self.by_folder:
                return Place(*self.by_folder.place(path), why="not in a class folder")
            row = row or Place(None, why=f"not in {self.table}")
            return row if row.split else replace(row, split=self.layout.split_of(path))
        if self.label_by:
            match = re.search(self.label_by, path)
            named = match.groupdict() if match else {}
            label, split = (
                label_in(self.label_by, path),
                split_named(named.get("split") or "") or self.layout.split_of(path),
            )
            return Place(
                label or None,
                split,
                named.get("group") or "",
                "" if label else "data.label_by captures nothing in it",
            )
        return Place(*self.layout.place(path), why="not in a class folder")

    def silent_folders(self, root: Path, classes: Iterable[str]) -> list[str]:
        """Folders of classes, relative to `root`, that are none of `classes`, since they hold no
        picture."""
        if self.table or self.label_by or self.layout.level == "deepest":
            return []
        found = [
            entry
            for top in self.layout.class_folders()
            for entry in os.scandir(root / top)
            if entry.is_dir()
        ]
        paths = [
            Path(entry.path).relative_to(root).as_posix() + "/"
            for entry in found
            if not (entry.name.startswith("_") or pixels.passed_over(entry.name))
        ]
        known = (
            {self.layout.place(path + "1")[0] for path in paths}
            - set(self.class_map)
            - set(classes)
        )
        return [path for path in paths if self.layout.place(path + "1")[0] in known]

    def told(self) -> list[str]:
        """What was taken for what, in lines for a person."""
        lines = self.layout.told()
        if self.table:
            lines.append(f"labels are those of {self.table}")
        if self.label_by:
            lines.append(f"labels are what {self.label_by!r} captures in the paths")
        changed = [
            f"{old} becomes {new}" if new else f"{old} is dropped"
            for old, new in self.class_map.items()
        ]
        lines += [f"classes: {', '.join(changed)}"] if changed else []
        if self.unlabelled:
            first = self.unlabelled[0]
            lines.append(
                f"{len(self.unlabelled)} images have no label and are left out, e.g. {first} "
                f"({self.given(first).why})"
            )
        return lines


def images_among(root: Path, paths: Iterable[str]) -> list[str]:
    """Those of `paths`, relative to `root`, that are called like images; of those without a suffix,
    that are images."""
    called = pixels.SUFFIXES | pixels.UNSUPPORTED_SUFFIXES
    suffixes = ((path, posixpath.splitext(path)[1].lower()) for path in paths)
    return [
        path
        for path, suffix in suffixes
        if suffix in called or (not suffix and pixels.may_be_image(root / path))
    ]


def read(root: Path, paths: Sequence[str], rules: Rules = BY_FOLDER) -> Labels:
    """The Labels of the files at `paths` (POSIX, relative to `root`, sorted).

    Raises Unclear where they can be taken in several ways, GraftError for a table that does not
    fit, or a class in data.class_map that there is not.
    """
    images = images_among(root, paths)
    if not images:
        raise GraftError(
            "it holds no image" + (f" ({', '.join(pixels.FORMATS)})" if paths else " and no files")
        )
    found = _labels(root, paths, images, rules)
    given = {path: found.given(path).label for path in images}
    classes = sorted(set(given.values()) - {None})
    _check_map(rules.class_map, classes)
    for label in classes:
        if not label.isprintable():
            raise GraftError(
                f"class {label!r} has a sign in its name that cannot be printed; give it another "
                "one"
            )
    if not classes and rules.label_by:
        raise GraftError(
            f"data.label_by: {rules.label_by!r} captures nothing in any path, e.g. in {images[0]!r}"
        )
    unlabelled = tuple(path for path, label in given.items() if label is None)
    return replace(found, class_map=dict(rules.class_map), unlabelled=unlabelled)


def doubtful_names(labels: Labels, root: Path, classes: Iterable[str]) -> list[str]:
    """What is allowed and looks like a mistake in the names of the `classes` of `root`, in lines
    for a person."""
    lines, same = [], defaultdict(list)
    for name in sorted(classes):
        same[alike(name)].append(name)
        if name != name.strip():
            lines.append(f"class {name!r} begins or ends with a blank")
        if name.casefold() in NO_VALUE:
            lines.append(
                f"class {name!r} is called as an empty cell is; if it is none, data.class_map: "
                f"{{{name}: null}} drops it"
            )
    for names in same.values():
        if len(names) > 1:
            lines.append(
                f"classes {' and '.join(map(repr, names))} differ by little; if they are one, "
                f"data.class_map: {{{names[0]}: {names[1]}}} joins them"
            )
    silent = sorted(labels.silent_folders(root, classes))
    if silent:
        more = f" and {len(silent) - 5} more" if len(silent) > 5 else ""
        lines.append(
            f"no picture came out of {', '.join(silent[:5])}{more}: no class of that name is learnt"
        )
    return lines


def alike(name: str) -> str:
    """What names of classes share that differ in capitals, blanks or signs only: t-shirt, T
    Shirt."""
    return re.sub(r"[\W_]+", " ", name.casefold()).strip() or name


def _labels(root, paths, images, rules):
    if rules.labels is not None and rules.label_by is not None:
        raise GraftError(
            "data.labels and data.label_by are both given; a photo has one label: set one of them "
            "to null"
        )
    if rules.labels is not None:
        return _from_table(root, paths, images, rules.labels, rules.layout)
    if rules.label_by is not None:
        return Labels(find_splits(images), label_by=rules.label_by)
    try:
        return Labels(find_layout(images, rules.layout))
    except Unclear as unclear:
        tables = sorted({PurePosixPath(path).name for path in paths} & set(KNOWN))
        if unclear.flat and len(tables) == 1 and rules.layout == "auto":
            return _from_table(root, paths, images, tables[0], rules.layout)
        more = [
            Reading(f"as {table} says", "labels", table)
            for table in tables or _tables_among(root, paths, images)
        ]
        raise Unclear(
            unclear.problem, (*unclear.readings, *more), flat=unclear.flat and not more
        ) from None


def _tables_among(root, paths, images):
    """Those of `paths` that are tables of labels of any of `images`; the first three."""
    index, found = _Index(images), []
    for path in (
        path
        for path in paths
        if PurePosixPath(path).suffix.lower() in (".csv", ".tsv", ".json", ".jsonl")
    ):
        with contextlib.suppress(GraftError):
            folder = path.removesuffix(PurePosixPath(path).name)
            if any(
                place.label and index.find(key, folder, path)[0]
                for key, place in _table_rows(root / path, path, lambda line: None)
            ):
                found.append(path)
        if len(found) == 3:
            break
    return found


def _check_map(class_map, classes):
    unknown = [name for name in class_map if name not in classes]
    if unknown:
        near = difflib.get_close_matches(unknown[0], classes, n=1) or classes[:5]
        raise GraftError(
            f"data.class_map: there is no class {unknown[0]!r}; there is {', '.join(near)}"
        )


def _from_table(root, paths, images, name, layout):
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise GraftError(
            f"data.labels: {name} must be inside the folder of the photos, so that DVC sees it "
            "change; copy it there"
        )
    tables = [path for path in paths if path == name] or [
        path for path in paths if PurePosixPath(path).name == name
    ]
    if not tables:
        raise GraftError(
            f"data.labels: there is no {name} in it; it needs the columns file and label"
        )
    index, rows, missing = _Index(images), {}, []
    for table in tables:
        missing += _take_rows(rows, table, _table_rows(root / table, table, console.log), index)
    if not any(place.label for place in rows.values()):
        shown = (
            f"no photo has a name that it holds, e.g. {missing[0]!r}"
            if missing
            else "it gives no photo a label"
        )
        raise GraftError(
            f"{', '.join(tables)}: {shown}; names are taken relative to the folder of the table"
        )
    if missing:
        console.warn(f"{name} lists {len(missing)} files that are not there, e.g. {missing[0]!r}")
    return Labels(
        find_splits(images), ", ".join(tables), rows, _folders_beside(images, rows, name, layout)
    )


def _take_rows(rows, table, found, index):
    """Put the photos of a table's rows `found` into `rows`, {path: Place}; returns what it calls
    photos that are not there."""
    folder, missing, keys, by_name = table.removesuffix(PurePosixPath(table).name), [], {}, []
    for key, place in found:
        path, exact = index.find(key, folder, table)
        if path is None:
            missing.append(key)
            continue
        other = rows.setdefault(path, place)
        if other.label != place.label:
            named = (
                key if keys.get(path, key) == key else f"{key}, which is {path} as {keys[path]} is,"
            )
            raise GraftError(
                f"{table}: {named} has two labels, {other.label!r} and {place.label!r}; {ONE_LABEL}"
            )
        for what in ("split", "group"):
            one, two = getattr(other, what), getattr(place, what)
            if one != two:
                raise GraftError(
                    f"{table}: {key} stands there twice, with {what} {one!r} and {two!r}; leave "
                    "one of the rows out"
                )
        keys.setdefault(path, key)
        by_name += [(key, path)] if not exact else []
    if by_name:
        key, path = by_name[0]
        console.log(
            f"{table}: {len(by_name)} photos do not lie in the folders that it names and are "
            f"found by the rest, e.g. {key} is taken for {path}"
        )
    return missing


def _folders_beside(images, rows, name, wanted):
    """The Layout for photos that came after a table with splits (`graft freeze-split` writes one),
    where it agrees with it."""
    unlisted = [path for path in images if path not in rows]
    if not unlisted or not any(place.split for place in rows.values()):
        return None
    try:
        layout = find_layout(images, wanted)
    except Unclear:
        return None
    if any(place.label not in (None, layout.place(path)[0]) for path, place in rows.items()):
        return None
    console.log(
        f"{len(unlisted)} photos that {name} does not list are labelled by their folders, e.g. "
        f"{unlisted[0]}"
    )
    return layout


class _Index:
    """Paths of photos by what a table may call them: the path from its folder, from the top, the
    name alone, without suffix."""

    def __init__(self, paths):
        self.paths = {_nfc(path): path for path in paths}
        self.names = defaultdict(list)
        for path in paths:
            plain = PurePosixPath(_nfc(path))
            for name in {plain.name, plain.stem, plain.name.casefold()}:
                self.names[name].append(path)

    def find(self, key, folder, table):
        """(path of the photo that `table`, which lies in `folder`, calls `key`, None where there is
        none; whether the folders that it names fit)."""
        parts = [part for part in _nfc(key).replace("\\", "/").split("/") if part not in ("", ".")]
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            if (path := self.paths.get(folder + tail) or self.paths.get(tail)) is not None:
                return path, start == 0 or bool(re.match("[/\\\\]|[A-Za-z]+:", key))
        name = parts[-1] if parts else ""
        # Label Studio puts eight digits in front of an upload; Windows does not tell .JPG from
        # .jpg.
        for called in (name, re.sub(r"^[0-9a-f]{8}-", "", name), name.casefold()):
            found = [path for path in self.names.get(called, ()) if path.startswith(folder)]
            if len(found) > 1:
                raise GraftError(
                    f"{table}: {key} may be {found[0]} or {found[1]}; name the path from the "
                    "folder of the table"
                )
            if found:
                inside = found[0].removeprefix(folder).casefold().rpartition("/")[0]
                return found[0], len(parts) == 1 or inside == "/".join(parts[:-1]).casefold()
        return None, True


def _nfc(text):
    return unicodedata.normalize("NFC", text)


ONE_LABEL = "graft gives a photo one label; make it one, or leave the photo out"
Rows = Iterator[tuple[str, Place]]  # what a table calls a photo, and what it says of it
Say = Callable[[str], None]


def _table_rows(path: Path, shown: str, say: Say) -> Rows:
    """The rows of a table. say: is given lines on what was taken for what.

    Raises GraftError for what cannot be read, or gives a photo several labels.
    """
    try:
        content = path.read_bytes()
        # Excel's "Unicode text" is UTF-16, and begins with the mark of it.
        text = content.decode(
            "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        )
        if path.suffix.lower() == ".jsonl":
            yield from _plain_rows(
                [json.loads(line) for line in text.split("\n") if line.strip()], shown, say
            )
        elif path.suffix.lower() == ".json":
            yield from _json_rows(json.loads(text), shown, say)
        else:
            yield from _plain_rows(_csv_records(text), shown, say)
    except OSError as error:
        raise GraftError(f"{shown}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise GraftError(f"{shown}: is not UTF-8 text; save it as CSV UTF-8") from None
    except (csv.Error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GraftError(
            f"{shown}: cannot be read as a table of labels ({type(error).__name__}: {error})"
        ) from None


def _csv_records(text):
    blank = r"(?: *[\r\n])*"
    text = re.sub(rf"\A{blank}(?:sep=.{blank})?", "", text)  # which Excel writes to itself
    first = re.split("[\r\n]", text, maxsplit=1)[0]
    delimiter = max(",;\t|", key=first.count)  # Excel writes semicolons in half the world
    return list(
        csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    )


def _plain_rows(records: list[dict], shown: str, say: Say) -> Rows:
    """Of records with a file and a label each, or a column of 0 and 1 per class (Roboflow's
    _classes.csv)."""
    if not records:
        raise GraftError(f"{shown}: holds no rows")
    columns = _columns(records, shown, say)
    classes = (
        []
        if columns["label"]
        else [name for name in records[0] if name not in (None, *columns.values())]
    )
    for record in records:
        key, split, group = (
            _cell(record.get(columns[what])) if columns[what] else ""
            for what in ("file", "split", "group")
        )
        if not key:
            continue
        if None in record:  # where csv puts what no column is left for
            raise GraftError(
                f"{shown}: {key} has more cells than there are columns; put what holds a comma "
                "into quotes"
            )
        label = (
            _cell(record.get(columns["label"]))
            if columns["label"]
            else _hot([c for c in classes if _is_on(record[c])], key, shown)
        )
        if label.startswith(("{", "[")) or "|" in label:
            raise GraftError(f"{shown}: {key} has several labels, {label}; {ONE_LABEL}")
        if split and not split_named(split):
            raise GraftError(
                f"{shown}: {key} has split {split!r}, which is none of train, val and test"
            )
        yield key, _placed(label, shown, split_named(split), group)


def _columns(records, shown, say):
    """{file, label, split, group: column or None} of records; a label of None: each further column
    is a class, 0 or 1."""
    known = {
        re.sub(r"[\s_-]+", "_", str(name).strip().casefold()): name
        for name in records[0]
        if name is not None
    }
    columns = {
        what: next((known[name] for name in names if name in known), None)
        for what, names in NAMES.items()
    }
    head = ", ".join(str(name) for name in records[0])
    if columns["file"] is None:
        raise GraftError(
            f"{shown}: has no column file (its first line is {head}); it must name the columns, "
            "as file,label does"
        )
    others = [name for name in known.values() if name not in columns.values() and str(name).strip()]
    if columns["label"] is None and not (
        len(others) > 1 and all(_is_flag(r.get(name)) for r in records for name in others)
    ):
        raise GraftError(
            f"{shown}: has no column label (its first line is {head}); call the one so that holds "
            "them"
        )
    if columns["label"] is not None and others:
        say(
            f"{shown}: the label is column {columns['label']}; not used: "
            f"{', '.join(map(str, others[:5]))}"
        )
    return columns


def _cell(value):
    if value is None:
        return ""
    return _nfc(
        json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else str(value)
    ).strip()


def _placed(label, shown, split="", group=""):
    return Place(label or None, split, group, "" if label else f"no label in {shown}")


def _is_flag(value):
    return _cell(value) in ("0", "1", "0.0", "1.0", "")


def _is_on(value):
    return _cell(value) in ("1", "1.0")


def _hot(names, key, shown):
    if len(names) > 1:
        raise GraftError(
            f"{shown}: {key} has {len(names)} labels, {names[0].strip()!r} and "
            f"{names[1].strip()!r}; {ONE_LABEL}"
        )
    return _cell(names[0]) if names else ""


def _json_rows(tree: Any, shown: str, say: Say) -> Rows:
    if isinstance(tree, dict) and {"images", "annotations", "categories"} <= set(tree):
        return _coco_rows(tree, shown)
    if isinstance(tree, list) and tree and "data" in tree[0]:
        return _label_studio_rows(tree, shown)
    if isinstance(tree, list):
        return _plain_rows(tree, shown, say)
    raise GraftError(
        f"{shown}: is neither an export of COCO nor of Label Studio, nor a list of file and label"
    )


def _coco_rows(tree: dict, shown: str) -> Rows:
    names, found = (
        {category["id"]: category["name"] for category in tree["categories"]},
        defaultdict(set),
    )
    for annotation in tree["annotations"]:
        found[annotation["image_id"]].add(names[annotation["category_id"]])
    for image in tree["images"]:
        key = image["file_name"]
        yield key, _placed(_hot(sorted(found[image["id"]]), key, shown), shown)


def _label_studio_rows(tasks: list[dict], shown: str) -> Rows:
    for task in tasks:
        texts = [value for value in task["data"].values() if isinstance(value, str)]
        key = next(
            (
                t
                for t in texts
                if PurePosixPath(urllib.parse.urlsplit(t).path).suffix.lower() in pixels.SUFFIXES
            ),
            texts[0],
        )
        parsed = urllib.parse.urlsplit(key)
        # /data/local-files/?d=folder/cat.jpg, s3://bucket/cat.jpg, /data/upload/1/12345678-cat.jpg
        key = urllib.parse.unquote(urllib.parse.parse_qs(parsed.query).get("d", [parsed.path])[0])
        labels = set()
        for annotation in task.get("annotations") or task.get("completions") or []:
            for result in [] if annotation.get("was_cancelled") else annotation["result"]:
                if result["type"] != "choices":
                    raise GraftError(
                        f"{shown}: {key} is marked with {result['type']}; graft takes choices, "
                        "one for a whole photo"
                    )
                labels |= set(result["value"]["choices"])
        yield key, _placed(_hot(sorted(labels), key, shown), shown)


def write_table(path: Path, places: Mapping[str, Place]) -> None:
    """A table that `read` reads again: file, label and, where any photo has one, split and group.
    places: {path: Place}."""
    used = [name for name in COLUMNS[2:] if any(getattr(place, name) for place in places.values())]
    rows = (
        [path, place.label, *(getattr(place, name) for name in used)]
        for path, place in sorted(places.items())
    )
    files.write_csv(path, (*COLUMNS[:2], *used), rows, durable=True)
