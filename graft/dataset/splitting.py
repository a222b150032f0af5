"""Assign images to train, val and test: stratified by class, groups kept whole, and stable when
photos are added.

The order in which a class is dealt out is that of a hash of seed and content. It depends on nothing
else: not on file names, not on the order of files, not on the folder's path. The first images in
this order are the test set, the next the validation set, as many as the fractions ask for, so a new
photo shifts the two borders by a little and leaves nearly every old one where it was: when 10% are
added, 1% of tf_flowers' 2,834 move. (A plain threshold would move none, but its shares would be
random.) A group has the place of its first member by name (see `age`): what joins it under a later
name does not move it.
"""

import hashlib
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from graft.dataset.grouping import PRIORITY, Grouping
from graft.dataset.manifest import SPLITS
from graft.dataset.scan import Problem, ScannedImage
from graft.system.console import GraftError, warn


@dataclass(frozen=True, slots=True)
class Item:
    """An image to be dealt. `group`: images that share a non-empty one stay together; `order`: what
    its place in the order is hashed from (its SHA-256, or what data.group_by captured); `given`:
    the split that its folder fixes, or ""."""

    path: str
    label: str
    order: str
    group: str = ""
    given: str = ""


def items(images: Iterable[ScannedImage], grouping: Grouping) -> list[Item]:
    """What `assign` deals out, from a scan's images and their Grouping."""
    groups, orders = grouping.groups, grouping.orders
    return [
        Item(i.path, i.label, orders.get(i.path, i.sha256), groups.get(i.path, ""), i.given)
        for i in images
    ]


def assign(
    items: Sequence[Item],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    where: str | Path = "the data set",
) -> dict[str, str]:
    """{path: split} for every item.

    Splits that some item has as `given` are taken as they are; the missing ones of val and test are
    carved from train. Where all groups are single images, each class has round(fraction * n) images
    (at least 1) in val and in test; with groups, the nearest that whole groups give. Raises
    GraftError for a class that cannot have a group in each of the three.
    """
    given = {item.given for item in items} - {""}
    wanted = {
        split: share
        for split, share in (("test", test_fraction), ("val", val_fraction))
        if split not in given
    }
    # Images of train whose group has members in a given val or test stay in train: carving them
    # would spread the leak.
    pinned = {item.group for item in items if item.group and item.given in ("val", "test")}
    splits = {
        i.path: i.given
        for i in items
        if i.given in ("val", "test") or (i.given and (not wanted or i.group in pinned))
    }
    # What came later, and was given nothing, joins the val or test photos that it resembles.
    homes = {
        item.group: item.given for item in items if item.group in pinned and item.given == "val"
    }
    homes |= {
        item.group: item.given for item in items if item.group in pinned and item.given == "test"
    }
    splits |= {
        item.path: homes[item.group] for item in items if not item.given and item.group in homes
    }
    splits |= _deal([item for item in items if item.path not in splits], wanted, seed)
    _check(items, splits, ("train", *wanted), where)
    return splits


def resolve_leakage(
    images: tuple[ScannedImage, ...],
    groups: Mapping[str, str],
    copies: Sequence[tuple[str, str]],
    *,
    policy: str,
) -> tuple[tuple[ScannedImage, ...], list[Problem]]:
    """(images that stay, problems) when given splits share images. Test images always stay.

    groups: {path: group} of near-duplicates (photos that data.group_by joins are not the same
    picture); copies: [(path set aside, path that stays)] of equal files in different given splits.
    `policy`: "warn" keeps near-duplicates where they are; "drop_from_train" sets aside those of
    train that have a near-duplicate in val or test, and those of val that have one in test; "fail"
    raises GraftError, with the list.
    """
    shared = [image for image in images if image.given and image.path in groups]
    best: dict[str, ScannedImage] = {}
    for image in sorted(shared, key=lambda image: PRIORITY[image.given]):
        best.setdefault(groups[image.path], image)
    stays = {image.path: best[groups[image.path]] for image in shared}
    leaks = {
        i.path: stays[i.path].path
        for i in shared
        if PRIORITY[i.given] > PRIORITY[stays[i.path].given]
    }
    if not leaks and not copies:
        return images, []
    listed = "; ".join(f"{a} ~ {b}" for a, b in [*sorted(leaks.items()), *sorted(copies)][:10])
    total = len(leaks) + len(copies)
    more = "; …" if total > 10 else ""
    found = (
        f"{total} image(s) of train or val are also in a later split ({len(copies)} byte for "
        f"byte): {listed}{more}"
    )
    if policy == "fail":
        raise GraftError(f"{found}; data.leakage is fail: remove them, or set drop_from_train")
    drop = policy == "drop_from_train"
    done = "set aside" if drop else "kept, set data.leakage=drop_from_train to leave them out"
    warn(f"{found}; equal files set aside, near-duplicates {done}; see problems.csv")
    action = "set aside: same picture as" if drop else "kept: same picture as"
    problems = [Problem(path, "leak", f"{action} {other}", other) for path, other in leaks.items()]
    return tuple(image for image in images if not (drop and image.path in leaks)), problems


@dataclass(frozen=True, eq=False, slots=True)
class _Group:
    paths: tuple
    labels: tuple  # (label, images) of each of its classes
    order: bytes


def _groups(items, seed):
    """In the order in which they are dealt out; an image that is in no group is one by itself."""
    members = defaultdict(list)
    for item in items:
        members[(item.group, "") if item.group else ("", item.path)].append(item)
    groups = [
        _Group(
            tuple(sorted(i.path for i in group)),
            tuple(Counter(i.label for i in group).items()),
            _order(min(group, key=lambda item: age(item.path)), seed),
        )
        for group in members.values()
    ]
    return sorted(groups, key=lambda group: (group.order, group.paths))


def _deal(items, wanted, seed):
    groups = _groups(items, seed)
    sizes = Counter(item.label for item in items)
    target = {
        split: {label: max(1, round(share * n)) for label, n in sizes.items()}
        for split, share in wanted.items()
    }
    held = {split: Counter() for split in (*wanted, "train")}
    place = {}

    def put(group, split):
        if group in place:
            held[place[group]].subtract(dict(group.labels))
        place[group] = split
        held[split].update(dict(group.labels))

    def spare(group):  # its split keeps an image of each class without it
        return all(held[place[group]][label] > n for label, n in group.labels)

    for group in groups:  # first fit, never beyond a target
        fits = (
            split
            for split in wanted
            if all(held[split][label] + n <= target[split][label] for label, n in group.labels)
        )
        put(group, next(fits, "train"))

    # Groups too large to fit: take one where that comes nearer to the target than leaving it out.
    for split in wanted:
        for group in groups:
            if place[group] == "train" and spare(group):
                missing = {
                    label: target[split][label] - held[split][label] for label, _ in group.labels
                }
                if sum(abs(missing[label] - n) for label, n in group.labels) < sum(
                    map(abs, missing.values())
                ):
                    put(group, split)

    # No class may lack a split: it gets the smallest group that another can do without.
    for split in (*wanted, "train"):
        for label in sorted(sizes):
            donors = (
                [g for g in groups if label in dict(g.labels) and spare(g)]
                if held[split][label] == 0
                else ()
            )
            if donors:
                put(
                    min(donors, key=lambda group: (sum(dict(group.labels).values()), group.order)),
                    split,
                )
    return {path: split for group, split in place.items() for path in group.paths}


def age(path: str) -> tuple:
    """A sort key by which the oldest of a group comes first, as far as names tell: 9.jpg, 10.jpg;
    x.jpg, x (1).jpg."""
    stem = posixpath.splitext(path)[0]
    return [int(part) if k % 2 else part for k, part in enumerate(re.split("([0-9]+)", stem))], path


def _order(item, seed):
    return hashlib.sha256(f"{seed}:{item.order}".encode()).digest()


def _check(items, splits, needed, where):
    counts = defaultdict(Counter)
    for item in items:
        counts[item.label][splits[item.path]] += 1
    # A given val or test may lack a class: that was its maker's choice.
    short = [label for label in counts if any(counts[label][split] == 0 for split in needed)]
    if short:
        label = min(short, key=lambda name: (sum(counts[name].values()), name))
        lacking = " and ".join(
            split for split in SPLITS if split in needed and counts[label][split] == 0
        )
        more = f" (and {len(short) - 1} more)" if len(short) > 1 else ""
        n, groups = (
            sum(counts[label].values()),
            {item.group or item.path for item in items if item.label == label},
        )
        if len(groups) < n:
            joined = (
                f" in {len(groups)} group{'s' * (len(groups) != 1)} (near-duplicates, "
                "data.group_by, a table's group)"
            )
            remedy = (
                f"needs {len(needed)} groups or more, which are never parted: add photos of "
                "others, or let fewer be joined"
            )
        else:
            joined, remedy = "", f"needs {len(needed)} or more: add photos, or take the class out"
        usable = f"{n} usable image{'s' * (n != 1)}{joined}"
        raise GraftError(
            f"{where}: class {label!r}{more} has {usable}, and none is left for {lacking}; each "
            f"class {remedy}"
        )
