"""The images that a manifest lists, decoded in parallel and in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from graft import pixels, resizers
from graft.dataset.manifest import Manifest
from graft.system.console import GraftError
from graft.system.prefetch import prefetch, processors

if TYPE_CHECKING:
    from graft.description import Description


def load_images(
    root: str | Path,
    paths: Iterable[str],
    size: int,
    *,
    resize: str = "squash",
    sha256: Iterable[str] | None = None,
    white: int = 0,
    by: Iterable[str | None] | None = None,
    workers: int | None = None,
) -> Iterator[np.ndarray]:
    """Iterate over the images at `root`/path, in the order of `paths`: uint8 (size, size, 3), as
    `pixels.load`, or by the resizer that `by` names for each.

    Threads (Pillow decodes outside the interpreter lock) stay 8 images per worker ahead of the
    reader, no further: memory does not grow with the number of images. sha256: what the files' must
    be. white: as of `pixels.open_rgb`.
    Raises GraftError, naming the file, for one
    that has gone or changed: its features would be kept under the name of another content.
    """
    root, workers = Path(root), workers or processors()

    def load(item):
        path, expected, resizer = item
        try:
            content = (root / path).read_bytes()
            if expected is not None and hashlib.sha256(content).hexdigest() != expected:
                raise pixels.ImageProblem("changed", "its content is not what the manifest says")
            # split has applied data.max_megapixels already
            return resizers.load(content, size, resize, resizer, white=white)
        except (OSError, pixels.ImageProblem) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise GraftError(
                f"{root / path}: {why}; the folder has changed since the split, run `dvc repro`"
            ) from None

    items = zip(
        paths, repeat(None) if sha256 is None else sha256, repeat(None) if by is None else by
    )
    yield from prefetch(load, items, workers=workers, depth=8 * workers)


def iter_batches(
    root: str | Path,
    paths: Iterable[str],
    size: int,
    *,
    batch_size: int,
    resize: str = "squash",
    sha256: Sequence[str] | None = None,
    white: int = 0,
    by: Sequence[str | None] | None = None,
) -> Iterator[np.ndarray]:
    """`load_images` in stacks: uint8 (b, size, size, 3) with b = batch_size, the last one what is
    left."""
    images = load_images(root, paths, size, resize=resize, sha256=sha256, white=white, by=by)
    while stack := list(islice(images, batch_size)):
        yield np.stack(stack)


def load_fitted(root: str | Path, path: str, size: int) -> np.ndarray:
    """uint8 (size, size, 3) for people to look at: the image in its proportions, on white; a small
    one enlarged in whole pixels; grey where it cannot be read any more."""
    try:
        image = pixels.open_rgb(Path(root) / path, at_least=size, max_megapixels=None)
    except (OSError, pixels.ImageProblem):
        return np.full((size, size, 3), 230, np.uint8)
    scale = size / max(image.size)
    fitted = [max(1, round(side * scale)) for side in image.size]
    image = image.resize(
        fitted, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BILINEAR
    )
    sheet = Image.new("RGB", (size, size), "white")
    sheet.paste(image, ((size - fitted[0]) // 2, (size - fitted[1]) // 2))
    return np.asarray(sheet)


@dataclass(frozen=True)
class ImageSet:
    """The images of a manifest at one size, to be read again and again, in any order.

    `root`: the data set's folder. `size`: side S in pixels. `sha256`, `resize` and `white` (of
    `pixels.open_rgb`) are what else determines their pixels.
    """

    manifest: Manifest
    root: str | Path
    size: int
    batch_size: int = 64
    resize: str = "squash"
    white: int = 0

    def __len__(self) -> int:
        return len(self.manifest)

    @property
    def paths(self) -> tuple[str, ...]:
        return self.manifest.paths

    @property
    def labels(self) -> np.ndarray:
        """int64, shape (n,): index of each image's class in `classes`."""
        return self.manifest.labels

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    @property
    def groups(self) -> tuple[str, ...]:
        return self.manifest.groups

    @property
    def sha256(self) -> tuple[str, ...]:
        """What features are kept under: of each file, and of what is white in it where the set says
        so."""
        return tuple(
            hashlib.sha256(f"{row.sha256} {row.white}".encode()).hexdigest()
            if row.white
            else row.sha256
            for row in self.manifest.rows
        )

    def read(
        self, indices: Iterable[int], by: Sequence[str | None] | None = None
    ) -> Iterator[np.ndarray]:
        """Iterate over batches uint8 (b, S, S, 3) of the images at `indices` (positions in the
        manifest), in that order; `by`: the resizer of each, one of `resizers.RESIZERS`, or None for
        Pillow's.

        Raises GraftError for a file that is not what the manifest says.
        """
        chosen = [self.manifest.rows[i] for i in indices]
        names, digests = (row.path for row in chosen), [row.sha256 for row in chosen]
        return iter_batches(self.root, names, self.size, batch_size=self.batch_size, by=by,
                            resize=self.resize, sha256=digests, white=self.white)  # fmt: skip

    def select(self, indices: Iterable[int]) -> ImageSet:
        """The images at `indices` (positions in the manifest) alone, in that order."""
        return replace(
            self,
            manifest=replace(self.manifest, rows=tuple(self.manifest.rows[i] for i in indices)),
        )


def sample(images: ImageSet, most: int, *, seed: int) -> np.ndarray:
    """uint8 (m, S, S, 3): up to `most` of the images, drawn by `seed`."""
    chosen = np.random.default_rng(seed).choice(len(images), min(most, len(images)), replace=False)
    return np.concatenate(list(images.read(np.sort(chosen))))


def image_sets(
    manifest: Manifest, root: str | Path, description: Description, *splits: str
) -> tuple[ImageSet, ...]:
    """One ImageSet for each of `splits`, e.g. "train", "val", as the model of this Description sees
    them; without any, one of the whole manifest."""
    size, resize = description.image_size, description.resize
    parts = [manifest.split(name) for name in splits] or [manifest]
    return tuple(ImageSet(part, root, size, resize=resize, white=manifest.white) for part in parts)
