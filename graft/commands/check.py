"""Look at a folder of photos before training: layout, classes, damage, copies, names, time; and say
what to run next."""

import argparse
import difflib
import os
import re
import shlex
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from graft import params as parameters
from graft.commands.import_ import add_label_arguments, given_rules
from graft.dataset import manifest
from graft.dataset.archives import SUFFIX
from graft.dataset.intake import doubtful_counts, take_in
from graft.dataset.layout import Unclear, printable
from graft.network import backbones
from graft.second_look.choice import across
from graft.system import git, paths
from graft.system.console import GraftError, log, warn
from graft.system.override import override
from graft.system.prefetch import processors

ALIKE, ALIKE_SHOWN = 0.75, 40  # least similarity of features: what it finds is in docs/photos.md
SHOWN = 5  # of each kind of problem
UNSEEN = (".git", ".hg", ".dvc")  # DVC does not look into them
RULES = ("layout", "labels", "label_by")
# On two cores: some 100 s of starts, imports and exports, 13 ms an image at 96 px, by the pixels.
# The demo's 2,000 took 114 s.
START_SECONDS, IMAGE_SECONDS, AT_PIXELS, ON_PROCESSORS = 100, 0.013, 96, 2
# Of the feature cache at 224 px, and of models and exports.
VIEW_BYTES, OUTPUT_BYTES = 45_000, 300_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="folder of photos")
    add_label_arguments(parser)
    parser.add_argument(
        "--deep",
        action="store_true",
        help="after a run: photos across the split that look alike to it",
    )


def check(args: argparse.Namespace) -> None:
    """`graft check PATH [--labels FILE | --label-by REGEX] [--layout KIND] [--deep]`.

    Raises GraftError for what the pipeline, or DVC before it, would stop at.
    """
    params = parameters.load()
    root = find_folder(args.path)
    refuse_hazards(root)
    data = _data(params.data, root, given_rules(args))
    try:
        taken = take_in(data, seed=params.seed, cache_file=paths.cache() / "scan.sqlite")
    except Unclear as unclear:
        raise GraftError(unclear.as_options(f"graft check {shlex.quote(args.path)}")) from None
    _show_classes(taken)
    _show_problems(taken.problems)
    for line in (
        *doubtful_counts(taken.manifest),
        *awkward_names(file.path for file in taken.found.walked),
    ):
        warn(line)
    if args.deep:
        _show_alike(root, taken.manifest)
    _show_estimate(params, taken.manifest)
    told = [override(f"data.{key}", value) for key, value in _changes(params.data, data).items()]
    if not root.is_absolute() and not _is_versioned(root):
        log(
            "for --temp and --queue, whose working folder is a copy: dvc add "
            f"{shlex.quote(root.as_posix())} first"
        )
    log(f"run this next: dvc exp run {' '.join(f'-S {each}' for each in told)}")


def find_folder(given: str) -> Path:
    """The folder that a person means by `given`: relative where it lies in the project, as its
    commands name it, else absolute.

    Raises GraftError where there is none, or where DVC could not take its name.
    """
    path = Path(given)
    if not path.exists() and (long := Path(os.path.expandvars(path.expanduser()))).exists():
        warn(f"DVC takes {given} as it stands; the command below has it written out")
        path = long
    if not path.exists():
        near = (
            difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
            if path.parent.is_dir()
            else []
        )
        hint = f"did you mean {path.parent / near[0]}?" if near else "name a folder of photos"
        raise GraftError(f"{given}: no such folder; {hint}")
    if not path.is_dir():
        hint = (
            f"unpack it: graft import {shlex.quote(given)}"
            if SUFFIX.search(given)
            else "name the folder that it lies in"
        )
        raise GraftError(f"{given}: not a folder; {hint}")
    path, here = Path(os.path.abspath(path)), paths.root().resolve()  # noqa: PTH100 (resolve would follow a link to the photos)
    path = path.relative_to(here) if path.is_relative_to(here) and Path.cwd() == here else path
    text = path.as_posix()
    if "${" in text or not text.isprintable() or text.encode("utf-8", "replace").decode() != text:
        raise GraftError(
            f"{text!r}: DVC cannot take a path with ${{, a control character or a letter that is "
            "not UTF-8; rename it"
        )
    return path


def refuse_hazards(root: Path) -> None:
    """Raise GraftError for what DVC stops at, waits for without an end, or does not look into,
    before graft is asked."""
    ours = not root.is_absolute()  # DVC looks for stages and outputs in all folders of the project
    found = [
        (Path(path).relative_to(printable(str(root))).as_posix(), what)
        for path, what in _hazards(str(root), ours)
    ]
    if len(found) > 1:
        for path, what in found[: 4 * SHOWN]:
            log(f"  {path} {what}")
    if found:
        path, what = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise GraftError(f"{root}: DVC cannot take it in: {path}{more} {what}")


def _hazards(folder, ours):
    """(path as it can be printed, what is wrong and what to do) of each such file or folder below
    `folder`."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield (
            printable(folder),
            f"cannot be read ({error.strerror}); give yourself the right to, or take it out",
        )
        return
    for entry in entries:
        if entry.name in UNSEEN:
            continue
        what = _hazard(entry) or (ours and _of_dvc(entry))
        if what:
            yield printable(entry.path), what
        elif entry.is_dir(follow_symlinks=False):
            yield from _hazards(entry.path, ours)


def _hazard(entry):
    """What is wrong with a file or folder, or ""."""
    if printable(entry.name) != entry.name:
        return (
            "its name is not UTF-8; rename it (convmv -f latin1 -t utf8 -r --notest FOLDER does "
            "so for all)"
        )
    if entry.name == ".dvcignore":
        return "belongs to the root of a DVC project; take it out"
    if entry.is_symlink():
        try:
            mode = os.stat(entry.path).st_mode  # noqa: PTH116
        except OSError as error:
            return (
                f"is a link to nothing ({error.strerror}); take it out, or bring back what it "
                "points to"
            )
        if stat.S_ISDIR(mode):
            return (
                "is a link to a folder: what changes behind it is never noticed; copy the folder "
                "to its place (cp -rL)"
            )
    else:
        mode = entry.stat(follow_symlinks=False).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        return "is a pipe, socket or device, which DVC would wait for without an end; take it out"
    if not os.access(entry.path, os.R_OK):
        return "may not be read by you; give yourself the right to (chmod u+r)"
    return ""


def _of_dvc(entry):
    """What is wrong with a file that DVC would take for its own, or ""."""
    if not entry.is_file() or not (
        entry.name in ("dvc.yaml", "dvc.lock") or entry.name.endswith(".dvc")
    ):
        return ""
    if entry.name.endswith(".dvc") and re.search(
        rb"^outs:", Path(entry.path).read_bytes(), re.MULTILINE
    ):
        return ""  # of `dvc add`, for a class folder, say
    return "is read by DVC as a part of this project's pipeline; rename it, or take it out"


# What Windows refuses: devices by their old names, whatever the suffix, and signs; a dot or blank
# at the end it drops.
OF_WINDOWS = re.compile(
    r"(?:(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?|.*[<>:\"|?*\\\x00-\x1f].*|.*[. ])",
    re.IGNORECASE | re.DOTALL,
)


def awkward_names(paths: Iterable[str]) -> list[str]:
    """What is allowed here and goes wrong in a shell or on another system, in lines for a person.
    paths: of the photos."""
    paths = sorted(paths)
    places = (
        sorted(
            {parent.as_posix() for path in paths for parent in PurePosixPath(path).parents} - {"."}
        )
        + paths
    )
    refused = [path for path in places if OF_WINDOWS.fullmatch(path.rpartition("/")[2])]
    lines: list[str] = []
    twins: list[tuple[str, str]] = []
    seen: dict[str, str] = {}
    for path in places:
        same = seen.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
        twins += [(same, path)] if same != path else []
    if refused:
        lines.append(
            f"{len(refused)} names that Windows cannot hold, e.g. {refused[0]!r}: git and DVC "
            "cannot check them out there, and shell scripts stumble over some; rename them if "
            "that matters"
        )
    if twins:
        one, two = twins[0]
        lines.append(
            f"{len(twins)} names differ from another in capitals or in how accents are written "
            f"only, e.g. {two!r} and {one!r}: Windows and macOS hold one of the two"
        )
    return lines


def _data(given, root, rules):
    """params.data for the folder: what options say, else params.yaml if it is about this folder,
    else nothing."""
    if rules.labels or rules.label_by or rules.layout != "auto":
        wanted = {key: getattr(rules, key) for key in RULES}
        table = Path(rules.labels or "")
        if table.is_file() and table.resolve().is_relative_to(
            root.resolve()
        ):  # named from here; data.labels is from the folder
            wanted["labels"] = table.resolve().relative_to(root.resolve()).as_posix()
    elif Path(given.path) == root:
        wanted = {}
    else:
        wanted = {"layout": "auto", "labels": None, "label_by": None}
    return given.model_copy(update={**wanted, "path": root.as_posix()})


def _changes(before, after):
    """{key: value} of params.data that the command must set, the path in any case."""
    return {"path": after.path} | {
        key: value for key in RULES if (value := getattr(after, key)) != getattr(before, key)
    }


def _show_classes(taken):
    counts = taken.manifest.counts()
    log(
        f"{len(taken.manifest)} usable images in {len(taken.manifest.classes)} classes; dealt out "
        "as"
    )
    for label in taken.manifest.classes[:50]:
        shares = ", ".join(f"{split} {counts[split][label]}" for split in counts)
        log(f"  {label}: {sum(counts[split][label] for split in counts)} ({shares})")
    if len(taken.manifest.classes) > 50:
        log(f"  … and {len(taken.manifest.classes) - 50} more classes")


def _show_problems(problems):
    kinds = Counter(problem.problem for problem in problems)
    for kind, n in sorted(kinds.items()):
        log(f"{n} x {kind}:")
        for problem in [p for p in problems if p.problem == kind][:SHOWN]:
            log(f"  {problem.path}: {problem.action}")
        if n > SHOWN:
            log(
                f"  … and {n - SHOWN} more; `dvc repro split` lists all in "
                f"{paths.SPLIT / 'problems.csv'}"
            )


def _show_alike(root, rows):
    """Pairs of photos across the split that look alike to the network, most alike first."""
    file = paths.SECOND_LOOK / "features.npy"
    known = manifest.read() if file.exists() else None
    if known is None or known.rows != rows.rows:
        raise GraftError(
            f"--deep: {file} is not of the photos of {root} as they are now; run "
            "`dvc repro second-look` first"
        )
    pairs = across(np.load(file), [row.split for row in rows.rows], least=ALIKE)
    log(
        f"{len(pairs)} pairs of photos in different splits look alike to the network (similarity "
        f"{ALIKE} or more)"
    )
    for similarity, *pair in pairs[:ALIKE_SHOWN]:
        one, other = (rows.rows[i] for i in pair)
        log(f"  {similarity:.3f}  {one.split} {one.path} ~ {other.split} {other.path}")
    if pairs:
        log(
            "look at them; what must not be parted is named by data.group_by, or by a column "
            "group in labels.csv"
        )


def _show_estimate(params, rows):
    size = backbones.resolve_size(params.backbone.name, params.image_size, rows.shorter_sides)
    # Of what was measured: 4 views, 5 epochs.
    passes = (max(1, params.augment.views) + params.fine_tune.epochs) / 9
    area, cores = (size / AT_PIXELS) ** 2, processors()
    seconds = START_SECONDS + len(rows) * IMAGE_SECONDS * area * passes * ON_PROCESSORS / cores
    size_gb = (
        OUTPUT_BYTES + len(rows) * max(1, params.augment.views) * VIEW_BYTES * (size / 224) ** 2
    ) / 1e9
    minutes = max(2, round(seconds / 60))
    log(
        f"about {minutes} minutes on {cores} processors without a GPU, at {size} px, and "
        f"{size_gb:.1f} GB of disk"
    )


def _is_versioned(root):
    return (
        bool(git.output("ls-files", "--", str(root))) or root.with_name(f"{root.name}.dvc").exists()
    )
