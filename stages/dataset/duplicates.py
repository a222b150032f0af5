"""The same picture twice: byte for byte, or near enough that one copy in train and one in test would be a leak."""

from collections import defaultdict
from dataclasses import dataclass

from stages.dataset.inventory import Problem

PRIORITY = {"test": 0, "val": 1, "train": 2, "": 3}  # which of two equal files stays: a given test set keeps its images


def set_aside_copies(pictures):
    """(pictures without exact copies, problems, leaks): of equal files in one class one stays; of equal files in several classes none.

    leaks: [(path set aside, path that stays)] where the two lay in different given splits.
    """
    same = defaultdict(list)
    for picture in pictures:
        same[picture.sha256].append(picture)
    kept, problems, leaks = [], [], []
    for copies in same.values():
        labels = sorted({c.label for c in copies})
        copies.sort(key=lambda c: (PRIORITY[c.given], c.path))
        if len(labels) > 1:
            for copy in copies:
                other = next(c for c in copies if c.label != copy.label)
                action = f"set aside: same bytes as {other.path}, so the label is unknown"
                problems.append(Problem(copy.path, "duplicate_across_classes", action))
            continue
        kept.append(copies[0])
        for copy in copies[1:]:
            problems.append(Problem(copy.path, "duplicate_in_class", f"set aside: same bytes as {copies[0].path}"))
            if copy.given != copies[0].given:
                leaks.append((copy.path, copies[0].path))
    return tuple(sorted(kept, key=lambda p: p.path)), problems, leaks
