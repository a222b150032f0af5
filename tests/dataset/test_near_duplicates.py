import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from graft.dataset import grouping, near_duplicates, scan
from graft.dataset.scan_cache import ScanCache

from .pictures import encoded, folder, scene, write

PHOTOS = Path(__file__).parents[3] / "shared" / "datasets"


def near(root, max_distance=12, cache_path=None):
    """Groups of paths that are found to be near-duplicates."""
    with ScanCache(cache_path, root) as cache:
        pictures, _, _ = grouping.set_aside_copies(scan.scan(root, cache=cache).images)
        pairs = near_duplicates.find(pictures, cache, max_distance=max_distance)
    groups = {}
    for path, group in grouping.group(pictures, pairs).groups.items():
        groups.setdefault(group, []).append(path)
    return sorted(groups.values())


def test_the_fingerprint_is_that_of_the_definition():
    ramp = np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))
    half = np.vstack([ramp[:16], ramp[16:, ::-1]])
    found = near_duplicates.fingerprints(np.stack([ramp, ramp[:, ::-1], half]))
    assert found.tolist() == [2**64 - 1, 0, 0xFFFFFFFF00000000]


ALTERED = {
    "re-encoded": lambda p: encoded(p, quality=60),
    "half size": lambda p: encoded(
        p.resize((p.width // 2, p.height // 2), Image.Resampling.LANCZOS), quality=90
    ),
    "cropped": lambda p: encoded(p.crop((3, 3, p.width - 3, p.height - 3)), quality=95),
    "darker": lambda p: encoded(ImageEnhance.Brightness(p).enhance(0.7), quality=95),
    "grey": lambda p: encoded(p.convert("L"), quality=95),
    "squashed": lambda p: encoded(p.resize((200, 120)), quality=95),
    "PNG": lambda p: encoded(p, "PNG"),
    "mirrored": lambda p: encoded(p.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "quarter turn": lambda p: encoded(p.transpose(Image.Transpose.ROTATE_90)),
    "mirrored and turned": lambda p: encoded(p.transpose(Image.Transpose.TRANSVERSE)),
    "bordered": lambda p: encoded(ImageOps.expand(p, 14, "white")),
}


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED)
def test_altered_copies_are_found_and_nothing_else(tmp_path, alter):
    folder(tmp_path, each=20, width=200, height=200)
    for k in range(20):
        write(tmp_path / "dog" / f"copy of cat {k:03d}.jpg", alter(scene(k, 200, 200)))
    found = near(tmp_path)
    expected = [[f"cat/{k:03d}.jpg", f"dog/copy of cat {k:03d}.jpg"] for k in range(20)]
    assert all(group in expected for group in found)  # precision 1
    assert len(found) >= 19


def test_small_pictures_group_by_their_pixels_whatever_the_file(tmp_path):
    for k in range(5):
        digit = Image.fromarray(
            np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        )
        write(tmp_path / "a" / f"{k}.png", encoded(digit, "PNG"))
        write(tmp_path / "b" / f"{k}.bmp", encoded(digit, "BMP"))
    assert near(tmp_path) == [[f"a/{k}.png", f"b/{k}.bmp"] for k in range(5)]


def test_small_pictures_that_differ_in_a_level_are_not_paired(tmp_path):
    digits = [
        Image.fromarray(np.random.default_rng(k // 2).integers(0, 256, (8, 8, 3), dtype=np.uint8))
        for k in range(20)
    ]
    for k, digit in enumerate(digits):
        write(tmp_path / "ab"[k % 2] / f"{k}.png", encoded(digit, "JPEG", quality=90 + k % 2))
    assert near(tmp_path) == []


def test_pictures_of_one_layout_are_not_taken_for_copies(tmp_path, capsys):
    """Marks on black, as digits are: fingerprints agree, the pictures do not."""
    rng = np.random.default_rng(0)
    for k in range(80):
        pixels = np.zeros((64, 64), np.uint8)
        pixels[8:56, 28:36] = 255
        y, x = rng.integers(8, 50, 2)
        pixels[y : y + 8, x : x + 8] = 255 - pixels[y : y + 8, x : x + 8]
        write(tmp_path / "ab"[k % 2] / f"{k}.png", encoded(Image.fromarray(pixels), "PNG"))
    assert near(tmp_path) == []
    assert "too alike" in capsys.readouterr().err


def test_switched_off(tmp_path):
    for k in range(3):
        write(tmp_path / "a" / f"{k}.jpg", encoded(scene(k)))
        write(tmp_path / "b" / f"{k}.png", encoded(scene(k), "PNG"))
    assert len(near(tmp_path)) == 3 and near(tmp_path, max_distance=-1) == []


def test_candidates_are_all_pairs_within_the_distance():
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**64, 700, dtype=np.uint64)
    hashes[::7] = hashes[0] ^ (np.uint64(1) << rng.integers(0, 64, 100).astype(np.uint64))
    expected = {
        (i, j)
        for i in range(700)
        for j in range(i + 1, 700)
        if int(hashes[i] ^ hashes[j]).bit_count() <= 3
    }
    found = np.concatenate(list(near_duplicates._near(hashes, hashes, 3)))
    assert (
        len(found) == len(expected) > 1000 and {tuple(pair) for pair in found.tolist()} == expected
    )


@pytest.mark.parametrize("crosswise", [False, True])
@pytest.mark.parametrize("limit", [1, 5, 8])
def test_few_bits_are_found_by_parts_and_as_all_pairs_are(monkeypatch, limit, crosswise):
    rng = np.random.default_rng(limit)
    left = rng.integers(0, 2**63, 1500, dtype=np.uint64)
    flips = [
        sum(1 << int(bit) for bit in rng.choice(63, rng.integers(0, 11), replace=False))
        for _ in left
    ]
    right = left[rng.integers(0, len(left), len(left))] ^ np.array(flips, np.uint64)

    def found():
        rows = np.concatenate(list(near_duplicates._near(left, right, limit, crosswise=crosswise)))
        return sorted(map(tuple, rows.tolist()))

    by_parts = found()
    monkeypatch.setattr(near_duplicates, "_near_in_a_part", None)
    monkeypatch.setattr(near_duplicates, "_collisions", lambda *rest: 1 << 60)
    assert len(by_parts) > 50 and by_parts == found()


@pytest.mark.parametrize(
    "dx, dy, stretch, gain",
    [(0, 0, 1, 1), (1, -1, 1, 0.5), (0.5, 0.4, 1.06, 1), (-1, 0, 0.95, 0.8)],
)
def test_alignment_undoes_shift_stretch_and_gain(dx, dy, stretch, gain):
    rows, moved = [], []
    for seed in range(10):
        big = scene(seed, 320, 320)
        box = [
            160 + 140 * sign * stretch + 10 * d
            for sign, d in ((-1, dx), (-1, dy), (1, dx), (1, dy))
        ]
        rows.append(
            near_duplicates.thumbnails(near_duplicates.reduced(big.crop((20, 20, 300, 300))))[0]
        )
        copy = near_duplicates.reduced(big.resize((280, 280), Image.Resampling.BICUBIC, box))
        moved.append(near_duplicates.thumbnails(copy)[0] * gain)
    same = near_duplicates.aligned_similarity(np.stack(rows), np.stack(moved).astype(np.uint8))
    other = near_duplicates.aligned_similarity(
        np.stack(rows), np.roll(np.stack(moved), 1, axis=0).astype(np.uint8)
    )
    assert same.min() > near_duplicates.ALIKE and other.max() < 0.6


def test_verdicts_are_remembered(tmp_path, monkeypatch):
    for k in range(4):
        write(tmp_path / "data" / "a" / f"{k}.jpg", encoded(scene(k)))
        write(tmp_path / "data" / "b" / f"{k}.png", encoded(scene(k), "PNG"))

    def run():
        with ScanCache(tmp_path / "cache.sqlite", tmp_path / "data") as cache:
            return near_duplicates.find(
                scan.scan(tmp_path / "data", cache=cache).images, cache, max_distance=12
            )

    first = run()
    monkeypatch.setattr(
        near_duplicates, "aligned_similarity", lambda a, b: pytest.fail("was judged before")
    )
    assert len(first) == 4 and run() == first


def unpacked(name, tmp_path):
    if not (PHOTOS / name).exists():
        pytest.skip(f"no {name} in ../shared/datasets")
    with tarfile.open(PHOTOS / name) as file:
        file.extractall(tmp_path, filter="data")
    return tmp_path / name.removesuffix(".tar")


def test_alpacas(tmp_path):
    """The one pair is one animal in one pose, moments apart (looked at)."""
    assert near(unpacked("alpaca.tar", tmp_path)) == [
        ["alpaca/09915aad4cd6bf0d.jpg", "alpaca/5f843228ab49d81b.jpg"]
    ]


def test_flowers(tmp_path):
    """The 16 pairs were looked at one by one: each shows one photo, or two of one moment. A few
    more do, and are not found."""
    root, kept = unpacked("tf_flowers_224.tar", tmp_path), tmp_path / "cache.sqlite"
    with ScanCache(kept, root) as cache:
        found = scan.scan(root, cache=cache)
    _, copies, _ = grouping.set_aside_copies(found.images)
    assert (found.files, len(found.images), found.problems) == (3119, 3119, ())
    assert {(p.path, p.other) for p in copies} == {
        ("sunflowers/15066430311_fb57fa92b0_m.jpg", "sunflowers/14889392928_9742aed45b_m.jpg"),
        ("sunflowers/15072973261_73e2912ef2_n.jpg", "sunflowers/15069459615_7e0fd61914_n.jpg"),
    }
    groups = near(root, cache_path=kept)
    assert len(groups) == 16 and all(len(group) == 2 for group in groups)
    assert ["daisy/11834945233_a53b7a92ac_m.jpg", "daisy/9467543719_c4800becbb_m.jpg"] in groups
    assert [
        "dandelion/17161833794_e1d92259d2_m.jpg",
        "dandelion/18304194360_2a4a0be631_m.jpg",
    ] in groups


def test_a_film_of_many_frames_is_one_group(tmp_path, monkeypatch):
    """Frames that differ by an insect's width: a full set of pairs, of which few need to be
    judged."""
    judged, alike = [], near_duplicates._alike
    monkeypatch.setattr(
        near_duplicates,
        "_alike",
        lambda pairs, *more: (judged.append(len(pairs)), alike(pairs, *more))[1],
    )
    monkeypatch.setattr(near_duplicates, "BATCH", 64)
    for k in range(60):
        frame = scene(1, 96, 96)
        frame.paste((0, 0, 0), (k, 50, k + 2, 52))
        write(tmp_path / "ab"[k % 2] / f"{k:02d}.png", encoded(frame, "PNG"))
    (group,) = near(tmp_path)
    # Of 1,770 pairs, 443 of them to see whether candidates mean anything.
    assert len(group) == 60 and sum(judged) < 1000
