"""Images that are near enough to each other that one in train and one in test would be a leak.

They are found in two steps. Fingerprints (64-bit difference hashes) that differ in a few bits make a pair a candidate; that
alone would be wrong nearly always (of 1,157 pairs of flower photos within 12 bits, 17 show the same thing). So the candidates'
grey thumbnails are aligned (a copy may be cropped, darker, of less contrast) and compared in their detail, without the smooth
shading that very different photos share.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from graft.dataset.scan_cache import THUMB, ScanCache
from graft.system.console import Progress, warn
from graft.system.prefetch import processors

LEAST_DETAIL = 2.0  # grey levels (of 255): below it a thumbnail holds noise and rounding; photos have 4 to 20
# Least correlation of detail. Of tf_flowers' pairs all 23 above 0.85 are one photo or one shot, the first wrong one has 0.81.
ALIKE = 0.87
PROMISING = 0.5  # plain correlation below which no alignment helps: of copies cropped by 3% on each side, 1% lie below 0.57
CROWDED = 0.01  # share of candidates among all pairs from which on their verification is put to the test
HOPELESS = 0.75  # plain correlation below which a pair is given up after two steps of alignment
BATCH = 4096  # candidates that are verified together
STEPS = 6  # of alignment
LARGEST_SHIFT = 2.6  # thumbnail pixels: 8% of a side
SPAN = (np.arange(THUMB, dtype=np.float32) - (THUMB - 1) / 2) / ((THUMB - 1) / 2)
DOWN, RIGHT = np.meshgrid(SPAN, SPAN, indexing="ij")  # -1 … 1 from edge to edge of a thumbnail


def thumbnail(image: Image.Image) -> np.ndarray:
    """RGB image -> uint8 (32, 32): grey, each value the mean of its part of the image."""
    small = image.resize((THUMB, THUMB), Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(small.convert("L"), dtype=np.uint8)


def fine_detail(thumbs: np.ndarray) -> np.ndarray:
    """(n, 32, 32) -> float32 (n, 32, 32): what is left when the mean of the 5 x 5 pixels around each pixel is taken away."""
    x = np.asarray(thumbs, dtype=np.float32)
    for axis in (1, 2):
        x = np.cumsum(np.pad(x, [(0, 0) if a != axis else (3, 2) for a in range(3)], mode="edge"), axis=axis)
        x = (np.take(x, range(5, THUMB + 5), axis) - np.take(x, range(THUMB), axis)) / 5
    return thumbs - x


def fingerprint(thumb: np.ndarray) -> int:
    """uint8 (32, 32) -> 64-bit difference hash: for 8 rows, whether each of 9 columns is brighter than its left neighbour.

    Neal Krawetz, "Kind of Like That" (2013). Unchanged by brightness and contrast, scale and re-encoding; not by rotation.
    """
    small = np.asarray(Image.fromarray(thumb).resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def comparable(thumb: np.ndarray, width: int, height: int) -> bool:
    """Whether an image of `width` x `height` pixels is large enough, and its thumbnail not too flat, for a fingerprint."""
    return min(width, height) >= THUMB and fine_detail(thumb[None]).std() >= LEAST_DETAIL


def find(images: Sequence, cache: ScanCache, *, max_distance: int) -> list[tuple[int, int]]:
    """Sorted pairs (i, j), i < j, of positions in `images` that show the same thing; enough of them to join each group.

    `images`: ScannedImages; those without a fingerprint (too small, or without detail) pair with none. `cache`: the open
    ScanCache of their scan, which holds their thumbnails. `max_distance`: bits by which the fingerprints of a pair may differ;
    -1 = do not look.
    """
    where = [i for i, image in enumerate(images) if image.fingerprint is not None]
    if max_distance < 0 or len(where) < 2:
        return []
    digests = [images[i].sha256 for i in where]
    key = hashlib.sha256(f"{max_distance} {ALIKE} {' '.join(digests)}".encode()).hexdigest()
    pairs = cache.pairs(key)
    if pairs is None:
        fingerprints = np.array([images[i].fingerprint for i in where], dtype=np.uint64)
        pairs = _pairs(digests, fingerprints, cache, max_distance)
        cache.keep_pairs(key, pairs)
    return [(where[i], where[j]) for i, j in pairs]


def _pairs(digests, fingerprints, cache, max_distance):
    """`find` among images that all have a fingerprint."""
    if _all_alike(digests, fingerprints, cache, max_distance):
        warn("images here are too alike to tell near-duplicates from others: only exact copies are found and set aside")
        return []
    group_of, pairs = np.arange(len(digests)), []
    with Progress("near-duplicates", len(digests)) as progress:
        found = _candidates(fingerprints, max_distance, advance=progress.advance)
        for part in (block[start : start + BATCH] for block in found for start in range(0, len(block), BATCH)):
            part = part[group_of[part[:, 0]] != group_of[part[:, 1]]]  # 1,000 frames of one film have 500,000 pairs
            for i, j in part[_alike([(digests[i], digests[j]) for i, j in part], cache)].tolist():
                if group_of[i] != group_of[j]:
                    group_of[group_of == group_of[j]] = group_of[i]
                    pairs.append((i, j))
    return sorted(pairs)


def _candidates(
    fingerprints: np.ndarray, max_distance: int, *, advance: Callable[[int], None] = lambda images: None
) -> Iterator[np.ndarray]:
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
        waiting, many = [np.zeros((0, 2), np.int64)], 0
        for first in range(0, n, rows * 256):
            for found in pool.map(block, range(first, min(first + rows * 256, n), rows)):
                waiting.append(found)
                many += len(found)
                advance(rows)
                if many > BATCH:
                    yield np.concatenate(waiting)
                    waiting, many = [], 0
        if waiting:
            yield np.concatenate(waiting)


def _all_alike(digests, fingerprints, cache, max_distance):
    """Whether candidates abound and yet are different images: digits on black, scans of one form, X-rays.

    1,797 digits enlarged to 64 pixels: 26% of all pairs are candidates, and those that pass are digits of one kind, not copies.
    Photos: 0.02%. Frames of a few films have many candidates as well, but there most of them are what they seem.
    """
    step = len(fingerprints) // 1000 + 1
    sample = fingerprints[::step]
    found = np.concatenate(list(_candidates(sample, max_distance)))
    if len(sample) < 50 or len(found) < CROWDED * len(sample) * (len(sample) - 1) / 2:
        return False
    found = found[:: len(found) // 500 + 1]
    return _alike([(digests[i * step], digests[j * step]) for i, j in found], cache).mean() < 0.5


def _alike(digests, cache):
    """bool (n,): whether each pair of images (by SHA-256) shows the same thing; from the cache where it has been judged."""
    verdicts = cache.verdicts(digests)
    alike = np.array([verdict is True for verdict in verdicts], dtype=bool)
    unjudged = [k for k, verdict in enumerate(verdicts) if verdict is None]
    for start in range(0, len(unjudged), 2048):
        part = unjudged[start : start + 2048]
        similarity = np.zeros(len(part))
        a = cache.thumbs([digests[k][0] for k in part])
        b = cache.thumbs([digests[k][1] for k in part])
        promising = np.nonzero(_correlation(_smooth(a), _smooth(b)) >= PROMISING)[0]
        chunks = np.array_split(promising, len(promising) // 64 + 1)  # small ones: they stay in the processor's cache
        with ThreadPoolExecutor(processors()) as pool:
            for chunk, found in zip(chunks, pool.map(aligned_similarity, [a[c] for c in chunks], [b[c] for c in chunks])):
                similarity[chunk] = found
        alike[part] = similarity >= ALIKE
        cache.keep_verdicts((*digests[k], alike[k]) for k in part)
    return alike


def aligned_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float32 (n,) in -1..1: correlation of the detail of pairs of thumbnails, uint8 (n, 32, 32) each, once b is aligned to a.

    b may be shifted and stretched by up to 8% along each axis, and differ in brightness and contrast: six unknowns, found by
    STEPS Gauss-Newton steps on the difference of the smoothed images (Lucas & Kanade 1981). 0 for pairs that do not come near.
    """
    result = np.zeros(len(a), np.float32)
    a, b, going = _smooth(a), _smooth(b), np.arange(len(a))
    best = np.full(len(a), -1, np.float32)
    shift, best_shift = np.zeros((2, len(a), 4), np.float32)  # stretch x, shift x, stretch y, shift y
    for step in range(STEPS + 1):
        warped, inside = _warp(b, shift)
        now = _correlation(a, warped, inside)
        better = now > best
        best[better], best_shift[better] = now[better], shift[better]
        if step == 2 and (best < HOPELESS).any():  # spare the rest of the work on pairs that do not come together
            keep = best >= HOPELESS
            a, b, going, best, shift, best_shift = (x[keep] for x in (a, b, going, best, shift, best_shift))
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
    """float64 (n, 4): change of the shift that brings `warped` nearest to `a`, if both were as smooth as their slopes say."""
    slope_y, slope_x = np.gradient(warped, axis=(1, 2))
    columns = np.stack([slope_x * RIGHT, slope_x, slope_y * DOWN, slope_y, warped, np.ones_like(warped)], axis=-1)
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
    """float32 (n, 32, 32): weights 1 2 1 along each axis, so that a shift by part of a pixel is a smooth change."""
    x = np.pad(thumbs.astype(np.float32), ((0, 0), (1, 1), (1, 1)), mode="edge")
    x = (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]) / 4
    return (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 4


def _warp(images, shift):
    """(images sampled bilinearly where `shift` moves the grid, float32 mask of the samples that lie inside)."""
    x = np.arange(THUMB, dtype=np.float32)[None, None, :] + shift[:, 0, None, None] * RIGHT + shift[:, 1, None, None]
    y = np.arange(THUMB, dtype=np.float32)[None, :, None] + shift[:, 2, None, None] * DOWN + shift[:, 3, None, None]
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
