"""The same picture twice: byte for byte, or near enough that one copy in train and one in test would be a leak.

Near-duplicates are found in two steps. Fingerprints (64-bit difference hashes) that differ in a few bits make a pair a
candidate; that alone would be wrong nearly always (of 1,157 pairs of flower photos within 12 bits, 17 show the same picture).
So the candidates' grey thumbnails are aligned (a copy may be cropped, darker, of less contrast) and compared in their detail,
without the smooth shading that very different pictures share.
"""

import hashlib
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from stages.common.parallel import processors
from stages.console import GraftError, Progress, warn
from stages.dataset.inventory import THUMB, Problem, fine_detail

# Least correlation of detail. Of tf_flowers' pairs all 23 above 0.85 are one picture or one shot, the first wrong one has 0.81.
ALIKE = 0.87
PROMISING = (
    0.5  # plain correlation below which no alignment helps: of copies cropped by 3% at each side, 1% have less than 0.57
)
CROWD = 0.05  # share of all images in one group of near-duplicates that calls for a warning
CROWDED = 0.01  # share of candidates among all pairs from which on their verification is put to the test
HOPELESS = 0.75  # plain correlation below which a pair is given up after two steps of alignment
BATCH = 4096  # candidates that are verified together
LARGEST_SHIFT = 2.6  # thumbnail pixels: 8% of a side
PRIORITY = {"test": 0, "val": 1, "train": 2, "": 3}  # which of two equal files stays: a given test set keeps its images


def set_aside_copies(pictures):
    """(pictures, problems, leaks): of files with equal bytes one stays if they are of one class, none if of several.

    leaks: [(path set aside, path that stays)] where the two lay in different given splits.
    """
    same = defaultdict(list)
    for picture in pictures:
        same[picture.sha256].append(picture)
    kept, problems, leaks = [], [], []
    for copies in same.values():
        copies.sort(key=lambda copy: (PRIORITY[copy.given], copy.path))
        if len({copy.label for copy in copies}) > 1:
            for copy in copies:
                other = next(c for c in copies if c.label != copy.label)
                action = f"set aside: same bytes as {other.path}, so the label is unknown"
                problems.append(Problem(copy.path, "duplicate_across_classes", action, other.path))
            continue
        kept.append(copies[0])
        for copy in copies[1:]:
            action = f"set aside: same bytes as {copies[0].path}"
            problems.append(Problem(copy.path, "duplicate_in_class", action, copies[0].path))
            if copy.given != copies[0].given:
                leaks.append((copy.path, copies[0].path))
    lost = sorted({picture.label for picture in pictures} - {picture.label for picture in kept})
    if lost:
        raise GraftError(f"data.path: every image of class {lost[0]!r} is also in another class; take one of the two out")
    return tuple(sorted(kept, key=lambda picture: picture.path)), problems, leaks


def near_duplicates(pictures, memo, *, max_distance):
    """Sorted pairs (i, j), i < j, of positions in `pictures` that show the same picture; enough of them to join each group.

    `max_distance`: bits by which the fingerprints of a pair may differ; -1 = do not look. Pictures without a fingerprint (too
    small, or without detail) pair with none. `memo`: the open Memo of the scan, which holds their thumbnails.
    """
    where = np.array([i for i, picture in enumerate(pictures) if picture.fingerprint is not None], dtype=np.int64)
    if max_distance < 0 or len(where) < 2:
        return []
    digests = [pictures[i].sha256 for i in where]
    key = hashlib.sha256(f"{max_distance} {ALIKE} {' '.join(digests)}".encode()).hexdigest()
    known = memo.pairs(key)
    if known is not None:
        return [(int(where[i]), int(where[j])) for i, j in known]
    pairs = _pairs(digests, np.array([pictures[i].fingerprint for i in where], dtype=np.uint64), memo, max_distance)
    memo.keep_pairs(key, pairs)
    return [(int(where[i]), int(where[j])) for i, j in pairs]


def _pairs(digests, fingerprints, memo, max_distance):
    """`near_duplicates` of pictures that all have a fingerprint."""
    if _all_alike(digests, fingerprints, memo, max_distance):
        warn("pictures here are too alike to tell near-duplicates from others: only exact copies are found and set aside")
        return []
    group_of, pairs = np.arange(len(digests)), []
    with Progress("near-duplicates", len(digests)) as progress:
        for block in _candidates(fingerprints, max_distance, advance=progress.advance):
            for start in range(0, len(block), BATCH):
                part = block[start : start + BATCH]
                part = part[group_of[part[:, 0]] != group_of[part[:, 1]]]  # 1,000 frames of one film have 500,000 pairs
                for i, j in part[_alike([(digests[i], digests[j]) for i, j in part], memo)].tolist():
                    if group_of[i] != group_of[j]:
                        group_of[group_of == group_of[j]] = group_of[i]
                        pairs.append((i, j))
    return sorted(pairs)


@dataclass(frozen=True)
class Grouping:
    """`groups`: {path: id} of images that share one; `orders`: {path: what data.group_by captured}; `problems`: rows that say
    which images are near-duplicates."""

    groups: dict
    orders: dict
    problems: tuple


def group(pictures, pairs, *, group_by=None):
    """Join near-duplicates (`pairs` of positions) and the images that share what the regular expression `group_by` captures.

    Raises GraftError when `group_by` captures something in no path at all.
    """
    near = Groups(len(pictures))
    for i, j in pairs:
        near.join(i, j)
    problems = [row for members in near.members() for row in _near_rows([pictures[i] for i in members])]
    for members in near.members():
        if len(members) > max(20, CROWD * len(pictures)):
            warn(f"{len(members)} images are joined as near-duplicates, {pictures[members[0]].path} among them; "
                 "if they are not, lower data.near_duplicates (-1 = do not look)")  # fmt: skip
    orders = _captures(pictures, group_by) if group_by else {}
    first = {}
    for i, picture in enumerate(pictures):
        if picture.path in orders:
            near.join(first.setdefault(orders[picture.path], i), i)
    groups = {}
    for members in near.members():
        keys = [orders[pictures[i].path] for i in members if pictures[i].path in orders]
        name = f"by-{min(keys)}" if keys else f"near-{min(pictures[i].sha256 for i in members)[:12]}"
        groups |= {pictures[i].path: name for i in members}
    return Grouping(groups, orders, tuple(problems))


def _near_rows(members):
    for picture in members:
        other = next(p for p in members if p is not picture)
        stranger = next((p for p in members if p.label != picture.label), None)
        doubt = f"; {stranger.path} has another label" if stranger else ""
        yield Problem(picture.path, "near_duplicate", f"kept, grouped with {other.path}{doubt}", other.path)


def _captures(pictures, pattern):
    found = {picture.path: match[1] for picture in pictures if (match := re.search(pattern, picture.path)) and match[1]}
    if not found:
        raise GraftError(f"data.group_by: {pattern!r} captures nothing in any path, e.g. in {pictures[0].path!r}")
    if len(found) < len(pictures):
        odd = next(picture.path for picture in pictures if picture.path not in found)
        some = f"{len(pictures) - len(found)} of {len(pictures)} paths, e.g. in {odd!r}"
        warn(f"data.group_by captures nothing in {some}; these images stand alone")
    return found


class Groups:
    """Disjoint sets of 0..n-1 (union-find)."""

    def __init__(self, n):
        self._parent = list(range(n))

    def find(self, i):
        while self._parent[i] != i:
            self._parent[i] = i = self._parent[self._parent[i]]
        return i

    def join(self, i, j):
        """Whether the two were apart until now."""
        i, j = sorted((self.find(i), self.find(j)))
        self._parent[j] = i
        return i != j

    def members(self):
        """Sets of two or more, each sorted, in the order of their first members."""
        sets = defaultdict(list)
        for i in range(len(self._parent)):
            sets[self.find(i)].append(i)
        return [group for group in sets.values() if len(group) > 1]


def _candidates(fingerprints, max_distance, *, advance=lambda images: None):
    """Yield int64 (k, 2): pairs of positions whose fingerprints differ in at most `max_distance` bits.

    All pairs are looked at: 4.5e8 of them for 30,000 images, in 1.2 s on 2 processors.
    """
    n = len(fingerprints)
    rows = min(n, max(1, 2**16 // n))  # blocks that stay in the processor's cache

    def block(start):
        stop = min(start + rows, n)
        near = np.bitwise_count(fingerprints[start:stop, None] ^ fingerprints[None, start:]) <= max_distance
        i, j = np.nonzero(near)
        return np.stack([i + start, j + start], axis=1)[j > i]

    with ThreadPoolExecutor(processors()) as pool:
        waiting, many = [], 0
        for first in range(0, n, rows * 256):
            for found in pool.map(block, range(first, min(first + rows * 256, n), rows)):
                waiting.append(found)
                many += len(found)
                advance(rows)
                if many > BATCH:
                    yield np.concatenate(waiting)
                    waiting, many = [], 0
        if many:
            yield np.concatenate(waiting)


def _all_alike(digests, fingerprints, memo, max_distance):
    """Whether candidates abound and yet are different pictures: digits on black, scans of one form, X-rays.

    1,797 digits enlarged to 64 pixels: 26% of all pairs are candidates, and those that pass are digits of one kind, not copies.
    Photos: 0.02%. Frames of a few films have many candidates as well, but there most of them are what they seem.
    """
    step = len(fingerprints) // 1000 + 1
    sample = fingerprints[::step]
    found = np.concatenate([*_candidates(sample, max_distance), np.zeros((0, 2), np.int64)])
    if len(sample) < 50 or len(found) < CROWDED * len(sample) * (len(sample) - 1) / 2:
        return False
    found = found[:: len(found) // 500 + 1]
    return _alike([(digests[i * step], digests[j * step]) for i, j in found], memo).mean() < 0.5


def _alike(digests, memo):
    """bool (n,): whether each pair of images (by SHA-256) shows the same picture; from the memo where it has been judged."""
    verdicts = memo.verdicts(digests)
    open_ = [k for k, verdict in enumerate(verdicts) if verdict is None]
    for start in range(0, len(open_), 2048):
        part = open_[start : start + 2048]
        similarity = np.zeros(len(part))
        a = memo.thumbs([digests[k][0] for k in part])
        b = memo.thumbs([digests[k][1] for k in part])
        promising = np.nonzero(_correlation(_smooth(a), _smooth(b)) >= PROMISING)[0]
        chunks = np.array_split(promising, len(promising) // 64 + 1)  # small ones: they stay in the processor's cache
        with ThreadPoolExecutor(processors()) as pool:
            for chunk, found in zip(chunks, pool.map(aligned_similarity, [a[c] for c in chunks], [b[c] for c in chunks])):
                similarity[chunk] = found
        judged = [bool(s >= ALIKE) for s in similarity]
        for k, verdict in zip(part, judged):
            verdicts[k] = verdict
        memo.keep_verdicts([(*digests[k], verdict) for k, verdict in zip(part, judged)])
    return np.array(verdicts, dtype=bool)


def aligned_similarity(a, b, *, steps=6):
    """float32 (n,) in -1..1: correlation of the detail of pairs of thumbnails, uint8 (n, 32, 32) each, once b is aligned to a.

    b may be shifted and stretched by up to 8% along each axis, and differ in brightness and contrast: six unknowns, found by
    Gauss-Newton steps on the difference of the smoothed pictures (Lucas & Kanade 1981). 0 for pairs that do not come near.
    """
    result = np.zeros(len(a), np.float32)
    a, b, going = _smooth(a), _smooth(b), np.arange(len(a))
    n, best = len(a), np.full(len(a), -1, np.float32)
    shift, best_shift = np.zeros((n, 4), np.float32), np.zeros((n, 4), np.float32)  # stretch x, shift x, stretch y, shift y
    span = (np.arange(THUMB, dtype=np.float32) - (THUMB - 1) / 2) / ((THUMB - 1) / 2)
    down, right = np.meshgrid(span, span, indexing="ij")
    for step in range(steps + 1):
        warped, inside = _warp(b, shift, down, right)
        now = _correlation(a, warped, inside)
        better = now > best
        best[better], best_shift[better] = now[better], shift[better]
        if step == 2 and (best < HOPELESS).any():  # spare the rest of the work on pairs that do not come together
            keep = best >= HOPELESS
            a, b, going, best, shift, best_shift = (x[keep] for x in (a, b, going, best, shift, best_shift))
            warped, inside, n = warped[keep], inside[keep], int(keep.sum())
        if n == 0:
            return result
        if step < steps:
            slope_y, slope_x = np.gradient(warped, axis=(1, 2))
            columns = np.stack([slope_x * right, slope_x, slope_y * down, slope_y, warped, np.ones_like(warped)], axis=-1)
            columns = (columns * inside[..., None]).reshape(n, -1, 6)
            normal = np.transpose(columns, (0, 2, 1))
            matrix = (normal @ columns).astype(np.float64)
            damping = 1e-3 * np.trace(matrix[:, :4, :4], axis1=1, axis2=2) + 1e-3
            matrix[:, range(4), range(4)] += damping[:, None]
            matrix[:, range(4, 6), range(4, 6)] += 1e-3
            target = (normal @ (a * inside).reshape(n, -1, 1)).astype(np.float64)
            solution = np.linalg.solve(matrix, target)[..., 0]
            gain = np.where(np.abs(solution[:, 4]) < 0.2, 1, solution[:, 4])
            shift = np.clip(shift + solution[:, :4] / gain[:, None], -LARGEST_SHIFT, LARGEST_SHIFT).astype(np.float32)
    warped, inside = _warp(b, best_shift, down, right)
    result[going] = _correlation(fine_detail(a), fine_detail(warped), inside)
    return result


def _smooth(thumbs):
    """float32 (n, 32, 32): weights 1 2 1 along each axis, so that a shift by part of a pixel is a smooth change."""
    x = np.pad(thumbs.astype(np.float32), ((0, 0), (1, 1), (1, 1)), mode="edge")
    x = (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]) / 4
    return (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 4


def _warp(images, shift, down, right):
    """(images sampled bilinearly where `shift` moves the grid, float32 mask of the samples that lie inside)."""
    x = np.arange(THUMB, dtype=np.float32)[None, None, :] + shift[:, 0, None, None] * right + shift[:, 1, None, None]
    y = np.arange(THUMB, dtype=np.float32)[None, :, None] + shift[:, 2, None, None] * down + shift[:, 3, None, None]
    inside = ((x >= 0) & (x <= THUMB - 1) & (y >= 0) & (y <= THUMB - 1)).astype(np.float32)
    left, top = (np.clip(np.floor(v).astype(np.int32), 0, THUMB - 2) for v in (x, y))
    fx, fy = np.clip(x - left, 0, 1), np.clip(y - top, 0, 1)
    flat, corner = images.reshape(-1), np.arange(len(images), dtype=np.int32)[:, None, None] * THUMB**2 + top * THUMB + left
    above = flat[corner] * (1 - fx) + flat[corner + 1] * fx
    below = flat[corner + THUMB] * (1 - fx) + flat[corner + THUMB + 1] * fx
    return above * (1 - fy) + below * fy, inside


def _correlation(a, b, weight=None):
    """float32 (n,): Pearson's, over the pixels of each pair, 0 where one of them is flat."""
    weight = np.ones_like(a) if weight is None else weight
    total = np.maximum(weight.sum(axis=(1, 2), keepdims=True), 1)
    a = (a - (a * weight).sum(axis=(1, 2), keepdims=True) / total) * weight
    b = (b - (b * weight).sum(axis=(1, 2), keepdims=True) / total) * weight
    scale = np.sqrt((a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2)))
    return np.divide((a * b).sum(axis=(1, 2)), scale, out=np.zeros(len(a), np.float32), where=scale > 1e-3)
