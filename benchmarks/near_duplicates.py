"""Altered copies of photos: how many of each kind are found, and what is found among the photos
themselves.

    python -m benchmarks.near_duplicates ARCHIVE [--photos N]

ARCHIVE is a .tar of one data set, class folders inside. For each kind of copy, N of its photos lie
in one class and their copies in another; a copy is found where it is joined with its original.
"others" are groups that join anything else. The last row counts the groups among all photos of the
archive, without any copy.
"""

import argparse
import io
import random
import shutil
import tarfile
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from graft.dataset import grouping, near_duplicates, scan
from graft.dataset.scan_cache import ScanCache

MAX_DISTANCE = 12  # the default of data.near_duplicates


def cropped(image, share):
    """`share` of the sides cut off at each of the four sides."""
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


def captioned(image, place):
    """A white bar with a line of text, an eighth of the height, at the top or at the bottom."""
    high = image.height // 8
    bar = Image.new("RGB", (image.width, high), "white")
    ImageDraw.Draw(bar).text(
        (high // 3, high // 4), "a caption of some words", "black", font_size=high // 2
    )
    sheet = Image.new("RGB", (image.width, image.height + high))
    sheet.paste(image, (0, high if place == "top" else 0))
    sheet.paste(bar, (0, 0 if place == "top" else image.height))
    return sheet


def bordered(image, colour):
    return ImageOps.expand(image, border=round(0.08 * min(image.size)), fill=colour)


KINDS = {
    "mirror image": ImageOps.mirror,
    "turned by 90°": lambda p: p.transpose(Image.Transpose.ROTATE_90),
    "turned by 180°": lambda p: p.transpose(Image.Transpose.ROTATE_180),
    "upside down, mirrored": ImageOps.flip,
    "white border, 8% of the shorter side": lambda p: bordered(p, "white"),
    "black border": lambda p: bordered(p, "black"),
    "caption bar below": lambda p: captioned(p, "bottom"),
    "caption bar above": lambda p: captioned(p, "top"),
    "mirror image, 80% of the size, darker": lambda p: ImageEnhance.Brightness(
        ImageOps.mirror(p).resize((p.width * 4 // 5, p.height * 4 // 5))
    ).enhance(0.7),
    "half size": lambda p: p.resize((p.width // 2, p.height // 2), Image.Resampling.LANCZOS),
    "grey": lambda p: p.convert("L"),
    "darker (x 0.7)": lambda p: ImageEnhance.Brightness(p).enhance(0.7),
    "JPEG quality 40": lambda p: p,
    "turned by 10°": lambda p: p.rotate(10, Image.Resampling.BICUBIC),
    "cropped by 3% at each side": lambda p: cropped(p, 0.03),
    "cropped by 8% at each side": lambda p: cropped(p, 0.08),
    "cropped by 15% at each side": lambda p: cropped(p, 0.15),
}


def groups_of(root):
    """[paths of each group of near-duplicates] in the folder, equal files set aside."""
    with ScanCache(None, root) as cache:
        images, _, _ = grouping.set_aside_copies(scan.scan(root, cache=cache).images)
        pairs = near_duplicates.find(images, cache, max_distance=MAX_DISTANCE)
    return [[images[i].path for i in members] for members in grouping.linked(pairs)]


def jpeg(image, quality=90):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def measure(kind, photos, root):
    """(copies found, groups that join anything else)."""
    for side in ("a", "b"):
        shutil.rmtree(root / side, ignore_errors=True)
        (root / side).mkdir(parents=True)
    for number, path in enumerate(photos):
        with Image.open(path) as image:
            copy = KINDS[kind](image.convert("RGB"))
        (root / "a" / f"{number:04d}.jpg").write_bytes(path.read_bytes())
        (root / "b" / f"{number:04d}.jpg").write_bytes(jpeg(copy, 40 if "JPEG" in kind else 90))
    found = others = 0
    for members in groups_of(root):
        names = {path[2:] for path in members}
        found += len(members) - len(names)
        others += len(names) > 1
    return found, others


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--photos", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tarfile.open(args.archive) as archive:
        archive.extractall(folder, filter="data")
        (root,) = Path(folder).iterdir()
        everything = sorted(path for path in root.rglob("*.jpg"))
        photos = random.Random(0).sample(everything, min(args.photos, len(everything)))
        print("| copy | found | others |\n|---|---:|---:|")
        for kind in KINDS:
            found, others = measure(kind, photos, Path(folder) / "copies")
            print(f"| {kind} | {found} of {len(photos)} | {others} |", flush=True)
        started = time.monotonic()
        groups = groups_of(root)
        print(
            f"| none: {len(everything)} photos, {time.monotonic() - started:.1f} s | | "
            f"{len(groups)} |"
        )
        for members in groups:
            print(" ".join(members))


if __name__ == "__main__":
    main()
