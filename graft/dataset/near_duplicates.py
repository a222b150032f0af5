"""Images that are near enough to each other that one in train and one in test would be a leak.

They are found in two steps. Fingerprints (64-bit difference hashes) that differ in a few bits make
a pair a candidate; that alone would be wrong nearly always (of 1,157 pairs of flower photos within
12 bits, 17 show the same thing). So the candidates' grey thumbnails are aligned (a copy may be
cropped, darker, of less contrast) and compared in their detail, without the smooth shading that
very different photos share.

An image is compared in its eight positions (turned by quarters, mirrored), and by up to three
thumbnails: of the whole; of what lies WITHIN, for crops; and of what borders and caption bars
leave, where it has any.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageFilter

from graft.dataset.scan_cache import THUMB, ScanCache
from graft.system.console import Progress, warn
from graft.system.prefetch import processors

REDUCED = 128  # pixels of the longer side, or up to twice as many, of what thumbnails are made of
# Grey levels (of 255): below it a thumbnail holds noise and rounding; photos have 4 to 20.
LEAST_DETAIL = 2.0
# Least correlation of detail. Of tf_flowers' pairs all 23 above 0.85 are one photo or one shot, the
# first wrong one has 0.81.
ALIKE = 0.87
# Plain correlation below which no alignment helps: of copies cropped by 3% on each side, 1% lie
# below 0.57.
PROMISING = 0.5
TURNED_PROMISING = 0.8  # the same for what is turned or mirrored: little else is expected to differ
# For those, and for crops, fingerprints may differ by no more: 1/20 of the candidates that 12 bits
# give.
OTHER_BITS = 8
# Share of candidates among all pairs from which on their verification is put to the test.
CROWDED = 0.01
HOPELESS = 0.75  # plain correlation below which a pair is given up after two steps of alignment
BATCH = 4096  # candidates that are verified together
STEPS = 6  # of alignment
LARGEST_SHIFT = 2.6  # thumbnail pixels: 8% of a side
SPAN = (np.arange(THUMB, dtype=np.float32) - (THUMB - 1) / 2) / ((THUMB - 1) / 2)
DOWN, RIGHT = np.meshgrid(SPAN, SPAN, indexing="ij")  # -1 … 1 from edge to edge of a thumbnail
LEAST_PARTS = 8  # of a fingerprint's bits, by which pairs are looked up
POSITIONS = 8  # of a rectangle that is turned by quarters and mirrored; 0 is as it is
WHOLE, WITHIN, TRIMMED = range(3)  # thumbnails of an image, in this order
INSET = 0.08  # share of the sides that WITHIN leaves out at each of the four
EVEN = 0.97  # share of a line that is of one colour where it belongs to a border
# Grey levels by which a border's pixels may differ from its colour: what JPEG leaves of an even
# one.
BAR_SPREAD = 14
LARGEST_BAR = 0.35  # share of a side that one border or caption bar may take
SMALLEST_BAR = 0.02  # less is an edge
LARGEST_LINE = 0.09  # share of a side that a line of text in a bar may take


def reduced(image: Image.Image) -> Image.Image:
    """An RGB image in grey, its longer side below twice REDUCED."""
    factor = max(image.size) // REDUCED
    return (image.reduce(factor) if factor > 1 else image).convert("L")


def thumbnails(grey: Image.Image) -> np.ndarray:
    """uint8 (k, 32, 32), of what `reduced` gave: WHOLE, WITHIN and, where there are bars, TRIMMED;
    each value the mean of its part of the image. k = 0 where the image has too little in it to be
    compared."""
    whole = grey.resize((THUMB, THUMB), Image.Resampling.BOX)
    # What is left is fine_detail's, in a tenth of its time.
    blurred = whole.filter(ImageFilter.BoxBlur(2))
    detail = (np.asarray(whole, np.int64) - np.asarray(blurred)).ravel()
    if detail @ detail / THUMB**2 - (detail.sum() / THUMB**2) ** 2 < LEAST_DETAIL**2:
        return np.zeros((0, THUMB, THUMB), np.uint8)
    x, y = grey.width * INSET, grey.height * INSET
    boxes = [(x, y, grey.width - x, grey.height - y)]
    trimmed = _within_bars(np.asarray(grey, np.int16))
    if trimmed != (0, 0, *grey.size):
        boxes.append(trimmed)
    parts = [grey.resize((THUMB, THUMB), Image.Resampling.BOX, box=box) for box in boxes]
    return np.array([np.asarray(thumb) for thumb in (whole, *parts)])


def _within_bars(grey):
    """(left, top, right, bottom) of what borders and caption bars leave of int16 (h, w)."""
    left, top, (bottom, right) = 0, 0, grey.shape
    for _ in range(2):  # a caption may be no wider than the picture, within a border
        before = (left, top, right, bottom)
        top, bottom = _between_bars(grey[:, left:right], top, bottom)
        left, right = _between_bars(grey[top:bottom].T, left, right)
        if (left, top, right, bottom) == before:
            break
    return left, top, right, bottom


def _between_bars(grey, first, last):
    rows = grey[first:last]
    return first + _bar(rows), last - _bar(rows[::-1])


def _bar(grey):
    """Number of rows at the top of int16 (h, w) that are one colour, or a line of text between such
    rows."""
    colour = np.sort(grey[0])[grey.shape[1] // 2]
    if np.count_nonzero(np.abs(grey[0] - colour) <= BAR_SPREAD) <= EVEN * grey.shape[1]:
        return 0
    depth, line, last = int(len(grey) * LARGEST_BAR), len(grey) * LARGEST_LINE, 0
    share = (np.abs(grey[:depth] - colour) <= BAR_SPREAD).mean(axis=1)
    for row in np.nonzero(share > EVEN)[0]:
        if row - last > line:
            break
        last = int(row)
    # A bar ends all along; the ground that an object lies on does not.
    return last + 1 if SMALLEST_BAR * len(grey) <= last + 1 < depth and share[last + 1] < 0.5 else 0


def turned(images: np.ndarray, position: int) -> np.ndarray:
    """(n, h, w, …) in one of the eight positions."""
    images = images.swapaxes(1, 2) if position & 4 else images
    images = images[:, ::-1] if position & 2 else images
    return images[:, :, ::-1] if position & 1 else images


def pixel_digest(image: Image.Image) -> bytes:
    """32 bytes: of an RGB image's pixels, whatever file they lie in; the same in all eight
    positions."""
    array = np.asarray(image)[None]
    positions = (turned(array, position) for position in range(POSITIONS))
    return hashlib.sha256(min(f"{x.shape}".encode() + x.tobytes() for x in positions)).digest()


def fine_detail(thumbs: np.ndarray) -> np.ndarray:
    """(n, 32, 32) -> float32 (n, 32, 32): what is left when the mean of the 5 x 5 pixels around
    each pixel is taken away."""
    x: np.ndarray = np.asarray(thumbs, dtype=np.float32)
    for axis in (1, 2):
        x = np.cumsum(
            np.pad(x, [(0, 0) if a != axis else (3, 2) for a in range(3)], mode="edge"), axis=axis
        )
        x = (np.take(x, range(5, THUMB + 5), axis) - np.take(x, range(THUMB), axis)) / 5
    return thumbs - x


def _parts(count):
    """float32 (count, 32): how much of each of 32 pixels lies in each of `count` equal parts of
    their row, in 1/count."""
    edges = np.clip(np.arange(count + 1)[:, None] * THUMB - np.arange(THUMB) * count, 0, count)
    return np.diff(edges, axis=0).astype(np.float32)


def fingerprints(thumbs: np.ndarray) -> np.ndarray:
    """uint8 (n, 32, 32) -> uint64 (n,), difference hashes: for 8 rows, whether each of 9 columns is
    brighter than its left neighbour.

    Neal Krawetz, "Kind of Like That" (2013). Unchanged by brightness and contrast, scale and
    re-encoding; not by rotation.
    """
    # Whole numbers below 2**24: columns that are equal stay so.
    small = _parts(8) @ thumbs.astype(np.float32) @ _parts(9).T
    bits = (small[:, :, 1:] > small[:, :, :-1]).reshape(len(thumbs), 64)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def find(images: Sequence, cache: ScanCache, *, max_distance: int) -> list[tuple[int, int]]:
    """Sorted pairs (i, j), i < j, of positions in `images` that show the same thing; enough of them
    to join each group.

    `images`: ScannedImages; those without thumbnails (too small, or without detail) pair with what
    has their very pixels alone. `cache`: the open ScanCache of their scan, which holds the
    thumbnails. `max_distance`: bits by which the fingerprints of a pair may differ; -1 = do not
    look.
    """
    if max_distance < 0:
        return []
    first: dict[str, int] = {}
    pairs = []
    for i, image in enumerate(images):
        if image.pixels and first.setdefault(image.pixels, i) != i:
            pairs.append((first[image.pixels], i))
    where = [i for i, image in enumerate(images) if image.pixels is None]
    if len(where) > 1:
        digests = [images[i].sha256 for i in where]
        key = hashlib.sha256(f"{max_distance} {ALIKE} {' '.join(digests)}".encode()).hexdigest()
        found = cache.pairs(key)
        if found is None:
            found = _pairs(digests, cache, max_distance)
            cache.keep_pairs(key, found)
        pairs += [(where[i], where[j]) for i, j in found]
    return sorted(pairs)


@dataclass(frozen=True)
class _Prints:
    """Fingerprints of n images. `image`, `kind`: int64 (m,), of what each of the m is
    (WHOLE or TRIMMED); `positions`: uint64 (8, m), in each position; `within`: uint64 (n,)."""

    image: np.ndarray
    kind: np.ndarray
    positions: np.ndarray
    within: np.ndarray

    @classmethod
    def of(cls, digests, cache):
        parts, counts = [], []
        for start in range(0, len(digests), BATCH):
            stacks = cache.thumbs(digests[start : start + BATCH])
            thumbs, kinds = (
                np.concatenate(stacks),
                np.concatenate([np.arange(len(stack)) for stack in stacks]),
            )
            kept = thumbs[kinds != WITHIN]
            positions = np.stack(
                [fingerprints(turned(kept, position)) for position in range(POSITIONS)]
            )
            parts.append((kinds[kinds != WITHIN], positions, fingerprints(thumbs[kinds == WITHIN])))
            counts += [len(stack) - 1 for stack in stacks]
        kinds, positions, within = (np.concatenate(part, axis=-1) for part in zip(*parts))
        return cls(np.repeat(np.arange(len(digests)), counts), kinds, positions, within)


def _pairs(digests, cache, max_distance):
    """`find` among images that all have thumbnails."""
    prints = _Prints.of(digests, cache)
    if _all_alike(digests, prints, cache, max_distance):
        warn(
            "images here are too alike to tell near-duplicates from others: only exact copies are "
            "found and set aside"
        )
        return []
    group_of, pairs = np.arange(len(digests)), []
    with Progress("near-duplicates", (POSITIONS + 1) * len(prints.image)) as progress:
        for part in _candidates(prints, max_distance, progress.advance):
            # 1,000 frames of one film have 500,000 pairs.
            part = part[group_of[part[:, 0]] != group_of[part[:, 1]]]
            for i, j, _ in part[_alike(part, digests, cache)].tolist():
                if group_of[i] != group_of[j]:
                    group_of[group_of == group_of[j]] = group_of[i]
                    pairs.append((min(i, j), max(i, j)))
    return sorted(pairs)


def _way(position, kind_a, kind_b):
    """What of two images is compared, as one number: the second in this position."""
    return (3 * kind_a + kind_b) * POSITIONS + position


def _candidates(prints: _Prints, max_distance: int, advance: Callable) -> Iterator[np.ndarray]:
    """Yield int64 (k, 3), k <= BATCH: pairs of images with the way in which their fingerprints come
    near."""
    upright, bits = prints.positions[0], min(max_distance, OTHER_BITS)
    for position in range(POSITIONS):
        limit = bits if position else max_distance
        for found in _near(upright, prints.positions[position], limit, advance=advance):
            a, b = found.T
            yield from _batches(
                prints.image[a], prints.image[b], _way(position, prints.kind[a], prints.kind[b])
            )
    for found in _near(upright, prints.within, bits, crosswise=True, advance=advance):
        a, b = found.T
        yield from _batches(prints.image[a], b, _way(0, prints.kind[a], WITHIN))


def _batches(a, b, way):
    triples = np.stack([a, b, way], axis=1)
    return (triples[start : start + BATCH] for start in range(0, len(triples), BATCH))


def _near(
    left: np.ndarray,
    right: np.ndarray,
    max_distance: int,
    *,
    crosswise: bool = False,
    advance: Callable[[int], None] = lambda prints: None,
) -> Iterator[np.ndarray]:
    """Yield int64 (k, 2): positions i in `left` and j in `right`, uint64 each, that differ in at
    most `max_distance` bits; j > i, or all where they are `crosswise`.

    All pairs are looked at, 4.5e8 of them for 30,000 images in 1.2 s on 2 processors, but where few
    share a part of their bits.
    """
    n = len(left)
    parts = _parts_of_bits(max_distance)
    if parts and sum(_collisions(left, right, part) for part in parts) < n * len(right) / (
        4 if crosswise else 8
    ):
        yield from _gathered(_near_in_a_part(left, right, parts, max_distance, crosswise))
        advance(n)
        return
    rows = min(n, max(1, 2**16 // n))  # blocks that stay in the processor's cache

    def block(start):
        stop, first = min(start + rows, n), 0 if crosswise else start
        near = np.bitwise_count(left[start:stop, None] ^ right[None, first:]) <= max_distance
        i, j = np.nonzero(near)
        found = np.stack([i + start, j + first], axis=1)
        return found if crosswise else found[j > i]

    def pieces(pool):
        for first in range(0, n, rows * 256):
            for found in pool.map(block, range(first, min(first + rows * 256, n), rows)):
                advance(rows)
                yield found

    with ThreadPoolExecutor(processors()) as pool:
        yield from _gathered(pieces(pool))


def _gathered(pieces):
    """`pieces` in arrays of more than BATCH rows, and what is left; one array at least."""
    waiting, many = [np.zeros((0, 2), np.int64)], 0
    for piece in pieces:
        waiting.append(piece)
        many += len(piece)
        if many > BATCH:
            yield np.concatenate(waiting)
            waiting, many = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _parts_of_bits(max_distance):
    """[(shift, mask)] of parts of 64 bits, one of which is the same in prints that differ in at
    most `max_distance` bits; none where the parts would be too small to tell prints apart."""
    edges = np.linspace(0, 64, max(max_distance + 2, LEAST_PARTS + 1)).astype(int).tolist()
    parts = [(np.uint64(low), np.uint64((1 << (high - low)) - 1)) for low, high in pairwise(edges)]
    return parts if max_distance <= OTHER_BITS else []


def _collisions(left, right, part):
    """Number of pairs that share a part of their bits."""
    shift, mask = part
    counts = [
        np.bincount(((prints >> shift) & mask).astype(np.int64), minlength=int(mask) + 1)
        for prints in (left, right)
    ]
    return int(counts[0] @ counts[1])


def _near_in_a_part(left, right, parts, max_distance, crosswise):
    """What `_near` yields, found among the pairs that share one of `parts`."""
    for number, (shift, mask) in enumerate(parts):
        keys = [(prints >> shift) & mask for prints in (left, right)]
        orders = [np.argsort(key, kind="stable") for key in keys]
        values = np.arange(int(mask) + 2, dtype=np.uint64)
        starts = [np.searchsorted(key[order], values).tolist() for key, order in zip(keys, orders)]
        for value in range(int(mask) + 1):
            i, j = (order[start[value] : start[value + 1]] for order, start in zip(orders, starts))
            step = max(1, 2**16 // max(1, len(j)))
            for first in range(0, len(i) if len(j) else 0, step):
                some = i[first : first + step]
                a, b = np.nonzero(
                    np.bitwise_count(left[some, None] ^ right[None, j]) <= max_distance
                )
                if not len(a):  # as a rule
                    continue
                found = np.stack([some[a], j[b]], axis=1)
                differ = left[found[:, 0]] ^ right[found[:, 1]]
                # In no earlier part.
                new = np.all([differ & (m << s) != 0 for s, m in parts[:number]], axis=0)
                yield found[new & (crosswise | (found[:, 1] > found[:, 0]))]


def _all_alike(digests, prints, cache, max_distance):
    """Whether candidates abound and yet are different images: digits on black, scans of one form,
    X-rays.

    1,797 digits enlarged to 64 pixels: 26% of all pairs are candidates, and those that pass are
    digits of one kind, not copies. Photos: 0.02%. Frames of a few films have many candidates as
    well, but there most of them are what they seem.
    """
    step = len(digests) // 1000 + 1
    sample = prints.positions[0][prints.kind == WHOLE][::step]
    found = np.concatenate(list(_near(sample, sample, max_distance)))
    if len(sample) < 50 or len(found) < CROWDED * len(sample) * (len(sample) - 1) / 2:
        return False
    found = np.pad(found[:: len(found) // 500 + 1] * step, ((0, 0), (0, 1)))  # all WHOLE, upright
    return _alike(found, digests, cache).mean() < 0.5


def _alike(pairs, digests, cache):
    """bool (k,): whether each of `pairs`, int64 (k, 3), shows the same thing; from the cache where
    it has been judged."""
    named = [(digests[i], digests[j], way) for i, j, way in pairs.tolist()]
    verdicts = cache.verdicts(named)
    alike = np.array([verdict is True for verdict in verdicts], dtype=bool)
    unjudged = [k for k, verdict in enumerate(verdicts) if verdict is None]
    for start in range(0, len(unjudged), 2048):
        part = np.array(unjudged[start : start + 2048])
        alike[part] = _similarity([named[k] for k in part], cache) >= ALIKE
        cache.keep_verdicts((*named[k], alike[k]) for k in part)
    return alike


def _similarity(named, cache):
    """float (k,): of pairs (digest, digest, way)."""
    first, second, ways = zip(*named)
    ways, position = np.array(ways), np.array(ways) % POSITIONS
    a = np.stack([stack[kind] for stack, kind in zip(cache.thumbs(first), ways // POSITIONS // 3)])
    b = np.stack(
        [
            turned(stack[None, kind], k)[0]
            for stack, kind, k in zip(cache.thumbs(second), ways // POSITIONS % 3, position)
        ]
    )
    least = np.where(position > 0, TURNED_PROMISING, PROMISING)
    promising = np.nonzero(_correlation(_smooth(a), _smooth(b)) >= least)[0]
    similarity = np.zeros(len(named))
    # small ones: they stay in the processor's cache.
    chunks = np.array_split(promising, len(promising) // 64 + 1)
    with ThreadPoolExecutor(processors()) as pool:
        for chunk, found in zip(
            chunks, pool.map(aligned_similarity, [a[c] for c in chunks], [b[c] for c in chunks])
        ):
            similarity[chunk] = found
    return similarity


def aligned_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float32 (n,) in -1..1: correlation of the detail of pairs of thumbnails, uint8 (n, 32, 32)
    each, once b is aligned to a.

    b may be shifted and stretched by up to 8% along each axis, and differ in brightness and
    contrast: six unknowns, found by STEPS Gauss-Newton steps on the difference of the smoothed
    images (Lucas & Kanade 1981). 0 for pairs that do not come near.
    """
    result = np.zeros(len(a), np.float32)
    a, b, going = _smooth(a), _smooth(b), np.arange(len(a))
    best = np.full(len(a), -1, np.float32)
    # Stretch x, shift x, stretch y, shift y.
    shift, best_shift = np.zeros((2, len(a), 4), np.float32)
    for step in range(STEPS + 1):
        warped, inside = _warp(b, shift)
        now = _correlation(a, warped, inside)
        better = now > best
        best[better], best_shift[better] = now[better], shift[better]
        # Spare the rest of the work on pairs that do not come together.
        if step == 2 and (best < HOPELESS).any():
            keep = best >= HOPELESS
            a, b, going = a[keep], b[keep], going[keep]
            best, shift, best_shift = best[keep], shift[keep], best_shift[keep]
            warped, inside = warped[keep], inside[keep]
        if len(a) == 0:
            return result
        if step < STEPS:
            change = _gauss_newton(a, warped, inside)
            shift = np.clip(shift + change, -LARGEST_SHIFT, LARGEST_SHIFT).astype(np.float32)
    warped, inside = _warp(b, best_shift)
    result[going] = _correlation(fine_detail(a), fine_detail(warped), inside)
    return result


def _gauss_newton(a, warped, inside):
    """float64 (n, 4): change of the shift that brings `warped` nearest to `a`, if both were as
    smooth as their slopes say."""
    slope_y, slope_x = np.gradient(warped, axis=(1, 2))
    columns = np.stack(
        [slope_x * RIGHT, slope_x, slope_y * DOWN, slope_y, warped, np.ones_like(warped)], axis=-1
    )
    columns = (columns * inside[..., None]).reshape(len(a), -1, 6)
    normal = np.transpose(columns, (0, 2, 1))
    matrix = (normal @ columns).astype(np.float64)
    damping = 1e-3 * np.trace(matrix[:, :4, :4], axis1=1, axis2=2) + 1e-3
    matrix[:, range(4), range(4)] += damping[:, None]
    matrix[:, range(4, 6), range(4, 6)] += 1e-3
    target = (normal @ (a * inside).reshape(len(a), -1, 1)).astype(np.float64)
    solution = np.linalg.solve(matrix, target)[..., 0]
    gain = np.where(np.abs(solution[:, 4]) < 0.2, 1, solution[:, 4])
    return solution[:, :4] / gain[:, None]


def _smooth(thumbs):
    """float32 (n, 32, 32): weights 1 2 1 along each axis, so that a shift by part of a pixel is a
    smooth change."""
    x = np.pad(thumbs.astype(np.float32), ((0, 0), (1, 1), (1, 1)), mode="edge")
    x = (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]) / 4
    return (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 4


def _warp(images, shift):
    """(images sampled bilinearly where `shift` moves the grid, float32 mask of the samples that lie
    inside)."""
    x = (
        np.arange(THUMB, dtype=np.float32)[None, None, :]
        + shift[:, 0, None, None] * RIGHT
        + shift[:, 1, None, None]
    )
    y = (
        np.arange(THUMB, dtype=np.float32)[None, :, None]
        + shift[:, 2, None, None] * DOWN
        + shift[:, 3, None, None]
    )
    inside = ((x >= 0) & (x <= THUMB - 1) & (y >= 0) & (y <= THUMB - 1)).astype(np.float32)
    left, top = (np.clip(np.floor(v).astype(np.int32), 0, THUMB - 2) for v in (x, y))
    fx, fy = np.clip(x - left, 0, 1), np.clip(y - top, 0, 1)
    flat, corner = (
        images.reshape(-1),
        np.arange(len(images), dtype=np.int32)[:, None, None] * THUMB**2 + top * THUMB + left,
    )
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
    return np.divide(
        (a * b).sum(axis=(1, 2)), scale, out=np.zeros(len(a), np.float32), where=scale > 1e-3
    )
