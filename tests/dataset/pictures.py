"""Pictures for the tests of the data wing, made here: no photo is kept in the repository."""

import io

import numpy as np
from PIL import Image


def scene(seed, width=64, height=64):
    """An RGB picture unlike any of another seed: smooth blobs and some edges, as photos have."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    picture = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).copy()
    for _ in range(6):
        x, y = rng.integers(0, width * 3 // 4), rng.integers(0, height * 3 // 4)
        picture[y : y + height // 5, x : x + width // 5] = rng.integers(0, 256, 3)
    return Image.fromarray(picture)


def encoded(picture, kind="JPEG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def folder(root, classes=("cat", "dog"), each=10, start=0, **size):
    """Class folders of `each` different JPEGs."""
    for c, label in enumerate(classes):
        for k in range(each):
            write(
                root / label / f"{k:03d}.jpg",
                encoded(scene(start + 1000 * c + k, **size), quality=92),
            )
    return root
