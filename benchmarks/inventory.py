"""Speed, memory, recall and stability of the scan and the split.

    python -m benchmarks.inventory speed FOLDER
    python -m benchmarks.inventory make FOLDER N --to OUT
    python -m benchmarks.inventory recall FOLDER
    python -m benchmarks.inventory stability FOLDER

speed: images/s of a first and a second pass; peak memory.
make: N images, random parts of FOLDER's, 96 px, 10 classes.
recall: altered copies of 100 photos, how many of them are found.
stability: 10% more photos, how many of the old ones then change their split.

The scan's cache goes to a temporary folder; nothing but OUT is written elsewhere.
"""

import argparse
import io
import random
import resource
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageEnhance

from graft.dataset import grouping, near_duplicates, scan, splitting
from graft.dataset.scan_cache import ScanCache

MAX_DISTANCE = 12


def passes(root, cache_path):
    with ScanCache(cache_path, root) as cache:
        started = time.monotonic()
        found = scan.scan(root, cache=cache)
        scanned = time.monotonic()
        images, _, _ = grouping.set_aside_copies(found.images)
        pairs = near_duplicates.find(images, cache, max_distance=MAX_DISTANCE)
        compared = time.monotonic()
        splitting.assign(
            splitting.items(images, grouping.group(images, pairs)),
            val_fraction=0.15,
            test_fraction=0.15,
            seed=42,
        )
        dealt = time.monotonic()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found.files, scanned - started, compared - scanned, dealt - compared, len(pairs), peak


def speed(args):
    with tempfile.TemporaryDirectory() as folder:
        for which in ("first", "second"):
            files, first, near, deal, pairs, peak = passes(
                args.folder, Path(folder) / "scan.sqlite"
            )
            print(
                f"{which}: {files} files, scan {first:.1f} s ({files / first:.0f}/s), "
                f"near-duplicates {near:.1f} s ({pairs}), split {deal:.1f} s, peak memory "
                f"{peak:.0f} MiB",
                flush=True,
            )


def make(args):
    sources = sorted(p for p in args.folder.rglob("*") if p.suffix == ".jpg")
    rng = random.Random(0)
    for label in range(10):
        (args.to / f"class {label}").mkdir(parents=True, exist_ok=True)
    for number in range(args.n):
        if number % 30 == 0:
            image = Image.open(sources[number // 30 % len(sources)]).convert("RGB")
        side = rng.uniform(0.25, 0.7)
        left, top = rng.uniform(0, 1 - side), rng.uniform(0, 1 - side)
        w, h = image.size
        box = (left * w, top * h, (left + side) * w, (top + side) * h)
        part = image.resize((96, 96), Image.Resampling.BILINEAR, box)
        part.save(args.to / f"class {number % 10}" / f"{number:06d}.jpg", quality=85)


def jpeg(image, quality=95):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def cropped(image, left, top, right, bottom):
    w, h = image.size
    return image.crop(
        (round(w * left), round(h * top), w - round(w * right), h - round(h * bottom))
    )


ALTERATIONS = {
    "re-encoded, JPEG quality 60": lambda p: jpeg(p, 60),
    "resized to 50%": lambda p: jpeg(
        p.resize((p.width // 2, p.height // 2), Image.Resampling.LANCZOS)
    ),
    "cropped by 3% (1.5% at each side)": lambda p: jpeg(cropped(p, 0.015, 0.015, 0.015, 0.015)),
    "cropped by 3% at left and top": lambda p: jpeg(cropped(p, 0.03, 0.03, 0, 0)),
    "cropped by 3% at each side": lambda p: jpeg(cropped(p, 0.03, 0.03, 0.03, 0.03)),
    "brightness x 0.7": lambda p: jpeg(ImageEnhance.Brightness(p).enhance(0.7)),
    "brightness x 1.2": lambda p: jpeg(ImageEnhance.Brightness(p).enhance(1.2)),
    "brightness x 1.5": lambda p: jpeg(ImageEnhance.Brightness(p).enhance(1.5)),
}


def recall(args):
    sources = sorted(p for p in args.folder.rglob("*") if p.suffix == ".jpg")
    picks = random.Random(0).sample(sources, 100)
    for name, alter in ALTERATIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "data"
            for side in ("a", "b"):
                (root / side).mkdir(parents=True)
            for number, path in enumerate(picks):
                image = Image.open(path).convert("RGB")
                (root / "a" / f"{number:03d}.jpg").write_bytes(path.read_bytes())
                (root / "b" / f"{number:03d}.jpg").write_bytes(alter(image))
            with ScanCache(None, root) as cache:
                images = scan.scan(root, cache=cache).images
                pairs = near_duplicates.find(images, cache, max_distance=MAX_DISTANCE)
            group = grouping.group(images, pairs).groups
            found = sum(
                group.get(f"a/{k:03d}.jpg", 0) == group.get(f"b/{k:03d}.jpg", 1)
                for k in range(len(picks))
            )
            others = len({group[path] for path in group}) - found
            print(
                f"{name}: {found} of {len(picks)} found, {max(0, others)} other groups", flush=True
            )


def stability(args):
    with ScanCache(None, args.folder) as cache:
        images, _, _ = grouping.set_aside_copies(scan.scan(args.folder, cache=cache).images)
        pairs = near_duplicates.find(images, cache, max_distance=MAX_DISTANCE)
    items = splitting.items(images, grouping.group(images, pairs))
    moved, old = [], round(len(items) / 1.1)
    for trial in range(20):
        some = random.Random(trial).sample(items, old)
        before, after = (
            splitting.assign(x, val_fraction=0.15, test_fraction=0.15, seed=trial)
            for x in (some, items)
        )
        moved.append(sum(before[item.path] != after[item.path] for item in some) / old)
    print(
        f"{old} images + 10%: {100 * sum(moved) / len(moved):.2f}% of the old change split "
        f"(mean of 20 trials, {100 * min(moved):.2f} to {100 * max(moved):.2f}%)"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["speed", "make", "recall", "stability"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("n", type=int, nargs="?", default=100_000)
    parser.add_argument("--to", type=Path)
    args = parser.parse_args()
    {"speed": speed, "make": make, "recall": recall, "stability": stability}[args.what](args)


if __name__ == "__main__":
    main()
