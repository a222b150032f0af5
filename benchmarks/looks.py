"""Pictures that stand out: how many of a set as it is, and how many of copies that were blurred,
darkened, …

    python -m benchmarks.looks FOLDER … [--photos N] [--seed S]

Each FOLDER is a data set. The first table has the share of its pictures that are of each kind; the
second that of N copies, altered one way each, which are judged as strangers among the others of the
set.
"""

import argparse
import io
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from graft import looks, pixels
from graft.dataset import scan
from graft.dataset.scan_cache import ScanCache


def blurred(radius):
    """radius: pixels at 224 for the longer side."""
    return lambda picture: picture.filter(
        ImageFilter.GaussianBlur(max(picture.size) * radius / 224)
    )


def veiled(colour, share):
    return lambda picture: Image.blend(picture, Image.new("RGB", picture.size, colour), share)


def lonely(picture):
    """A tenth of the size, on an even ground."""
    sheet = Image.new("RGB", picture.size, (200, 190, 180))
    sheet.paste(
        picture.resize((max(1, picture.width // 10), max(1, picture.height // 10))),
        (picture.width // 3,) * 2,
    )
    return sheet


ALTERED = {
    "blurred, radius 2": ("blurred", blurred(2)),
    "blurred, radius 3": ("blurred", blurred(3)),
    "blurred, radius 4": ("blurred", blurred(4)),
    "a quarter as bright": ("dark", lambda picture: ImageEnhance.Brightness(picture).enhance(0.25)),
    "a third as bright": ("dark", lambda picture: ImageEnhance.Brightness(picture).enhance(0.33)),
    "nine tenths white": ("bright", veiled("white", 0.9)),
    "eight times as bright": (
        "bright",
        lambda picture: ImageEnhance.Brightness(picture).enhance(8),
    ),
    "a tenth of its size on an even ground": ("nearly_empty", lonely),
    "19 of 20 parts grey": ("nearly_empty", veiled((128, 128, 128), 0.95)),
    "a third as high": (
        "odd_shape",
        lambda picture: picture.resize((picture.width, max(1, min(picture.size) // 3))),
    ),
}


def measured(root, altered, names):
    """(float32 (n, 6), sizes) of copies as JPEG of quality 90, read as split reads them."""
    rows, sizes = [], []
    for name in names:
        picture = altered(pixels.open_rgb(root / name))
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=90)
        rows.append(
            looks.small(
                scan.near_duplicates.reduced(
                    pixels.open_rgb(stream.getvalue(), at_least=2 * scan.THUMB)
                )
            )
        )
        sizes.append(picture.size)
    return looks.measure(rows), np.array(sizes)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sets, lines = {}, []
    for root in args.folders:
        with ScanCache(None, root) as cache:
            images = scan.scan(root, cache=cache).images
        rows = np.frombuffer(b"".join(image.looks for image in images), np.float32).reshape(
            len(images), -1
        )
        sizes = np.array([(image.width, image.height) for image in images])
        found = looks.standing_out(rows, sizes)
        any_of_them = len(set(np.concatenate(list(found.values())).tolist()))
        counts = [f"{len(where) / len(images):.2%}" for where in found.values()]
        lines.append(
            f"| {root.name} | {len(images)} | {' | '.join(counts)} | "
            f"{any_of_them / len(images):.2%} |"
        )
        sets[root] = images, rows, sizes
    print(
        "| set | pictures |",
        " | ".join(looks.WORDS),
        "| any |\n|---|---|" + "---|" * (len(looks.WORDS) + 1),
    )
    print(
        "\n".join(lines),
        "\n\n| copies |",
        " | ".join(root.name for root in sets),
        "|\n|---|" + "---|" * len(sets),
    )
    for name, (kind, altered) in ALTERED.items():
        cells = []
        for root, (images, rows, sizes) in sets.items():
            names = random.Random(args.seed).sample(
                [image.path for image in images], min(args.photos, len(images))
            )
            more, of_them = measured(root, altered, names)
            # A set in which one in a hundred is altered has the median of the set.
            alone = [
                looks.standing_out(np.vstack([rows, row]), np.vstack([sizes, size]))
                for row, size in zip(more, of_them)
            ]
            cells.append(f"{np.mean([len(images) in found[kind] for found in alone]):.0%}")
        print(f"| {name} ({kind.replace('_', ' ')}) | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
