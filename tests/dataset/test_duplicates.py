from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from stages.console import GraftError
from stages.dataset import duplicates, inventory
from stages.dataset.inventory import Picture

from .pictures import encoded, folder, scene, write

PHOTOS = Path(__file__).parents[3] / "shared" / "datasets"


def near(root, max_distance=12, memo_path=None):
    """Groups of paths that are found to be near-duplicates."""
    with inventory.Memo(memo_path, root) as memo:
        pictures, _, _ = duplicates.set_aside_copies(inventory.scan(root, memo=memo).pictures)
        pairs = duplicates.near_duplicates(pictures, memo, max_distance=max_distance)
    groups = {}
    for path, group in duplicates.group(pictures, pairs).groups.items():
        groups.setdefault(group, []).append(path)
    return sorted(groups.values())


def picture(path, label, sha256="a", given="", fingerprint=None):
    return Picture(path, label, given, sha256, 10, 10, fingerprint)


@pytest.mark.parametrize("pictures, kept, problems, leaks", [
    ([("c/1", "c", "x"), ("c/2", "c", "y")], ["c/1", "c/2"], [], []),
    ([("c/2", "c", "x"), ("c/1", "c", "x"), ("d/1", "d", "y")], ["c/1", "d/1"], [("c/2", "duplicate_in_class", "c/1")], []),
    ([("c/1", "c", "x"), ("d/1", "d", "x"), ("c/2", "c", "y"), ("d/2", "d", "z")], ["c/2", "d/2"],
     [("c/1", "duplicate_across_classes", "d/1"), ("d/1", "duplicate_across_classes", "c/1")], []),
    ([("train/c/1", "c", "x", "train"), ("test/c/1", "c", "x", "test")], ["test/c/1"],
     [("train/c/1", "duplicate_in_class", "test/c/1")], [("train/c/1", "test/c/1")]),
    ([("train/c/1", "c", "x", "train"), ("val/c/9", "c", "x", "val")], ["val/c/9"],
     [("train/c/1", "duplicate_in_class", "val/c/9")], [("train/c/1", "val/c/9")]),
])  # fmt: skip
def test_copies(pictures, kept, problems, leaks):
    got = duplicates.set_aside_copies([picture(*row) for row in pictures])
    assert [p.path for p in got[0]] == kept
    assert [(p.path, p.problem, p.other) for p in got[1]] == problems and got[2] == leaks


def test_a_class_that_is_a_copy_of_another():
    with pytest.raises(GraftError, match="every image of class 'c' is also in another class"):
        duplicates.set_aside_copies([picture("c/1", "c", "x"), picture("d/1", "d", "x"), picture("d/2", "d", "y")])


ALTERED = {
    "re-encoded": lambda p: encoded(p, quality=60),
    "half size": lambda p: encoded(p.resize((p.width // 2, p.height // 2), Image.Resampling.LANCZOS), quality=90),
    "cropped": lambda p: encoded(p.crop((3, 3, p.width - 3, p.height - 3)), quality=95),
    "darker": lambda p: encoded(ImageEnhance.Brightness(p).enhance(0.7), quality=95),
    "grey": lambda p: encoded(p.convert("L"), quality=95),
    "squashed": lambda p: encoded(p.resize((200, 120)), quality=95),
    "PNG": lambda p: encoded(p, "PNG"),
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


def test_a_mirror_image_is_another_picture(tmp_path):
    for k in range(5):
        write(tmp_path / "a" / f"{k}.jpg", encoded(scene(k)))
        write(tmp_path / "b" / f"{k}.jpg", encoded(scene(k).transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    assert near(tmp_path) == []


def test_small_pictures_group_only_by_their_bytes(tmp_path):
    digits = [Image.fromarray(np.random.default_rng(k // 2).integers(0, 256, (8, 8, 3), dtype=np.uint8)) for k in range(20)]
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
    expected = {(i, j) for i in range(700) for j in range(i + 1, 700) if int(hashes[i] ^ hashes[j]).bit_count() <= 3}
    found = np.concatenate(list(duplicates._candidates(hashes, 3)))
    assert len(found) == len(expected) > 1000 and {tuple(pair) for pair in found.tolist()} == expected


@pytest.mark.parametrize("dx, dy, stretch, gain", [(0, 0, 1, 1), (1, -1, 1, 0.5), (0.5, 0.4, 1.06, 1), (-1, 0, 0.95, 0.8)])
def test_alignment_undoes_shift_stretch_and_gain(dx, dy, stretch, gain):
    rows, moved = [], []
    for seed in range(10):
        big = scene(seed, 320, 320)
        box = [160 + 140 * sign * stretch + 10 * d for sign, d in ((-1, dx), (-1, dy), (1, dx), (1, dy))]
        rows.append(inventory.thumbnail(big.crop((20, 20, 300, 300))))
        moved.append(inventory.thumbnail(big.resize((280, 280), Image.Resampling.BICUBIC, box)) * gain)
    same = duplicates.aligned_similarity(np.stack(rows), np.stack(moved).astype(np.uint8))
    other = duplicates.aligned_similarity(np.stack(rows), np.roll(np.stack(moved), 1, axis=0).astype(np.uint8))
    assert same.min() > duplicates.ALIKE and other.max() < 0.6


def test_verdicts_are_remembered(tmp_path, monkeypatch):
    for k in range(4):
        write(tmp_path / "data" / "a" / f"{k}.jpg", encoded(scene(k)))
        write(tmp_path / "data" / "b" / f"{k}.png", encoded(scene(k), "PNG"))

    def run():
        with inventory.Memo(tmp_path / "memo.sqlite", tmp_path / "data") as memo:
            return duplicates.near_duplicates(inventory.scan(tmp_path / "data", memo=memo).pictures, memo, max_distance=12)

    first = run()
    monkeypatch.setattr(duplicates, "aligned_similarity", lambda a, b: pytest.fail("was judged before"))
    assert len(first) == 4 and run() == first


def test_group_by_joins_what_the_expression_captures():
    pictures = [picture(f"c/{name}.jpg", "c", name) for name in ("p1_a", "p1_b", "p2_a", "p3_a", "x")]
    grouping = duplicates.group(pictures, [(2, 3)], group_by=r"/(p\d)_")
    assert grouping.groups == {"c/p1_a.jpg": "by-p1", "c/p1_b.jpg": "by-p1", "c/p2_a.jpg": "by-p2", "c/p3_a.jpg": "by-p2"}
    assert grouping.orders == {"c/p1_a.jpg": "p1", "c/p1_b.jpg": "p1", "c/p2_a.jpg": "p2", "c/p3_a.jpg": "p3"}
    assert [(p.path, p.problem) for p in grouping.problems] == [
        ("c/p2_a.jpg", "near_duplicate"),
        ("c/p3_a.jpg", "near_duplicate"),
    ]
    with pytest.raises(GraftError, match="captures nothing in any path"):
        duplicates.group(pictures, [], group_by="(patient)")


def test_a_near_duplicate_with_another_label_is_pointed_out():
    pictures = [picture("c/1", "c", "x"), picture("d/1", "d", "y")]
    (first, second) = duplicates.group(pictures, [(0, 1)]).problems
    assert first.action == "kept, grouped with d/1; d/1 has another label" and second.other == "c/1"


def unpacked(name, tmp_path):
    import tarfile

    if not (PHOTOS / name).exists():
        pytest.skip(f"no {name} in ../shared/datasets")
    with tarfile.open(PHOTOS / name) as file:
        file.extractall(tmp_path, filter="data")
    return tmp_path / name.removesuffix(".tar")


def test_alpacas(tmp_path):
    """The one pair is one animal in one pose, moments apart (looked at)."""
    assert near(unpacked("alpaca.tar", tmp_path)) == [["alpaca/09915aad4cd6bf0d.jpg", "alpaca/5f843228ab49d81b.jpg"]]


def test_flowers(tmp_path):
    """The 17 pairs were looked at one by one: each shows one photo, or two of one moment."""
    root, kept = unpacked("tf_flowers_224.tar", tmp_path), tmp_path / "memo.sqlite"
    with inventory.Memo(kept, root) as memo:
        found = inventory.scan(root, memo=memo)
    _, copies, _ = duplicates.set_aside_copies(found.pictures)
    assert (found.files, len(found.pictures), found.problems) == (3119, 3119, ())
    assert {(p.path, p.other) for p in copies} == {
        ("sunflowers/15066430311_fb57fa92b0_m.jpg", "sunflowers/14889392928_9742aed45b_m.jpg"),
        ("sunflowers/15072973261_73e2912ef2_n.jpg", "sunflowers/15069459615_7e0fd61914_n.jpg"),
    }
    groups = near(root, memo_path=kept)
    assert len(groups) == 17 and all(len(group) == 2 for group in groups)
    assert ["dandelion/17161833794_e1d92259d2_m.jpg", "dandelion/18304194360_2a4a0be631_m.jpg"] in groups


def test_a_film_of_many_frames_is_one_group(tmp_path, monkeypatch):
    """Frames that differ by an insect's width: a full set of pairs, of which few need to be judged."""
    judged, alike = [], duplicates._alike
    monkeypatch.setattr(duplicates, "_alike", lambda pairs, memo: (judged.append(len(pairs)), alike(pairs, memo))[1])
    monkeypatch.setattr(duplicates, "BATCH", 64)
    for k in range(60):
        frame = scene(1, 96, 96)
        frame.paste((0, 0, 0), (k, 50, k + 2, 52))
        write(tmp_path / "ab"[k % 2] / f"{k:02d}.png", encoded(frame, "PNG"))
    (group,) = near(tmp_path)
    assert len(group) == 60 and sum(judged) < 1000  # of 1,770 pairs, 443 of them to see whether candidates mean anything
