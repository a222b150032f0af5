"""Images that must not be parted: of equal files one stays; near-duplicates and what data.group_by
captures share a group."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from graft.dataset.scan import Problem, ScannedImage
from graft.system.console import GraftError, warn

T = TypeVar("T", int, str)

CROWD = 0.05  # share of all images in one group of near-duplicates that calls for a warning
# Which of two equal files stays: a given test set keeps its images.
PRIORITY = {"test": 0, "val": 1, "train": 2, "": 3}
# The gravest first.
DUPLICATES = ("duplicate_across_classes", "leak", "near_duplicate", "duplicate_in_class")


def set_aside_copies(
    images: Sequence[ScannedImage],
) -> tuple[tuple[ScannedImage, ...], list[Problem], list[tuple[str, str]]]:
    """(images, problems, leaks): of files with equal bytes one stays if they are of one class, none
    if of several.

    leaks: [(path set aside, path that stays)] where the two lay in different given splits. Raises
    GraftError for a class of which no image is left.
    """
    same = defaultdict(list)
    for image in images:
        same[image.sha256].append(image)
    kept, problems, leaks = [], [], []
    for copies in same.values():
        copies.sort(key=lambda copy: (PRIORITY[copy.given], copy.path))
        first, *others = copies
        if len({copy.label for copy in copies}) > 1:
            for copy in copies:
                other = next(c.path for c in copies if c.label != copy.label)
                action = f"set aside: same bytes as {other}, so the label is unknown"
                problems.append(Problem(copy.path, "duplicate_across_classes", action, other))
            continue
        kept.append(first)
        for copy in others:
            problems.append(
                Problem(
                    copy.path,
                    "duplicate_in_class",
                    f"set aside: same bytes as {first.path}",
                    first.path,
                )
            )
            if copy.given != first.given:
                leaks.append((copy.path, first.path))
    lost = sorted({image.label for image in images} - {image.label for image in kept})
    if lost:
        raise GraftError(
            f"data.path: every image of class {lost[0]!r} is also in another class; take one of "
            "the two out"
        )
    return tuple(sorted(kept, key=lambda image: image.path)), problems, leaks


@dataclass(frozen=True)
class Grouping:
    """`groups`: {path: id} of images that share one; `orders`: {path: what data.group_by captured,
    or a table of labels says}; `problems`: rows that say which images are near-duplicates; `near`:
    `groups` of near-duplicates alone."""

    groups: dict[str, str]
    orders: dict[str, str]
    problems: tuple[Problem, ...]
    near: dict[str, str]


def group(
    images: Sequence[ScannedImage], pairs: Sequence[tuple[int, int]], *, group_by: str | None = None
) -> Grouping:
    """Join near-duplicates (`pairs` of positions) and the images that share what the regular
    expression `group_by` captures, or the group that a table of labels gives them.

    Raises GraftError when `group_by` captures something in no path at all.
    """
    near = linked(pairs)
    problems = tuple(row for members in near for row in _near_rows([images[i] for i in members]))
    for members in near:
        if len(members) > max(20, CROWD * len(images)):
            warn(
                f"{len(members)} images are joined as near-duplicates, {images[members[0]].path} "
                "among them; if they are not, lower data.near_duplicates (-1 = do not look)"
            )
    orders = (_captures(images, group_by) if group_by else {}) | {
        image.path: image.group for image in images if image.group
    }
    _warn_of_parted(images, orders)
    first: dict[str, int] = {}
    captured = [
        (first.setdefault(orders[image.path], i), i)
        for i, image in enumerate(images)
        if image.path in orders
    ]
    groups: dict[str, str] = {}
    for members in linked([*pairs, *captured]):
        keys = [orders[images[i].path] for i in members if images[i].path in orders]
        name = f"by-{min(keys)}" if keys else f"near-{min(images[i].sha256 for i in members)[:12]}"
        groups |= {images[i].path: name for i in members}
    alone = {
        images[i].path: f"near-{min(images[j].sha256 for j in members)[:12]}"
        for members in near
        for i in members
    }
    return Grouping(groups, orders, problems, alone)


def _warn_of_parted(images, orders):
    """Say so where what belongs together lies in several given splits: photos of one animal, not
    the same picture."""
    homes = defaultdict(set)
    for image in images:
        if image.given and image.path in orders:
            homes[orders[image.path]].add(image.given)
    parted = sorted(key for key, given in homes.items() if len(given) > 1)
    if parted:
        warn(
            f"{len(parted)} groups of data.group_by or of a table have photos in several given "
            f"splits, where they stay, e.g. {parted[0]!r} in "
            f"{' and '.join(sorted(homes[parted[0]]))}"
        )


def linked(pairs: Iterable[tuple[T, T]]) -> list[list[T]]:
    """Sorted lists of two or more of what `pairs` link, directly or by way of others, in the order
    of their first."""
    home: dict[T, list[T]] = {}
    for a, b in pairs:
        one, two = home.setdefault(a, [a]), home.setdefault(b, [b])
        if one is not two:
            large, small = (one, two) if len(one) >= len(two) else (two, one)
            large += small
            home |= dict.fromkeys(small, large)
    return sorted(
        {id(members): sorted(members) for members in home.values() if len(members) > 1}.values()
    )


def duplicates(problems: Iterable[Problem]) -> list[tuple[str, list[str]]]:
    """[(one of DUPLICATES, the paths that `problems` call so of each other)], the gravest first."""
    pairs = defaultdict(list)
    for problem in problems:
        pairs[problem.problem].append((problem.path, problem.other))
    return [(kind, paths) for kind in DUPLICATES for paths in linked(pairs[kind])]


def _near_rows(members: Sequence[ScannedImage]) -> Iterator[Problem]:
    for image in members:
        other = next(i for i in members if i is not image)
        stranger = next((i for i in members if i.label != image.label), None)
        doubt = f"; {stranger.path} has another label" if stranger else ""
        yield Problem(
            image.path, "near_duplicate", f"kept, grouped with {other.path}{doubt}", other.path
        )


def _captures(images, pattern):
    found = {
        image.path: match[1]
        for image in images
        if (match := re.search(pattern, image.path)) and match[1]
    }
    if not found:
        raise GraftError(
            f"data.group_by: {pattern!r} captures nothing in any path, e.g. in {images[0].path!r}"
        )
    if len(found) < len(images):
        odd = next(image.path for image in images if image.path not in found)
        some = f"{len(images) - len(found)} of {len(images)} paths, e.g. in {odd!r}"
        warn(f"data.group_by captures nothing in {some}; these images stand alone")
    return found
