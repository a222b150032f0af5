"""Whether the answer stays the same where another library makes the photo small: agreement from the
photo, not from pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graft import pixels, resizers
from graft.description import ANY_SIZE
from graft.serving import parity, readers
from graft.system.console import warn
from graft.system.prefetch import prefetch, processors

if TYPE_CHECKING:
    from graft.dataset.images import ImageSet

# Of photos that are decoded whole, at most: 16 of a phone's with 12, in about 20 CPU seconds.
MEGAPIXELS = 200
MOST = 64  # photos, by six resizers each: as many answers as all formats together are asked for
PHOTOS = 16  # at a time
KEY = "from_photos"  # in checks.json, beside the formats


@dataclass(frozen=True)
class PhotoCheck:
    """n photos made small by one of RESIZERS. agreement: share with the top class that the original
    gives them as it was trained to see them. accuracy: share classified right."""

    resizer: str
    n: int
    agreement: float
    accuracy: float


def check(
    loaded: readers.Loaded,
    against: parity.Reference,
    image_set: ImageSet,
    *,
    most: int = MOST,
    any_size: Sequence[readers.Loaded] = (),
) -> list[PhotoCheck]:
    """What `loaded` says of photos of an ImageSet by each of RESIZERS. against: what was
    `parity.decided` of it.

    At most `most` photos of those, and MEGAPIXELS of them together, evenly spread. A photo of which
    a resizer makes the pixels that training had is not asked again. any_size: models that make the
    photo small themselves, and get the whole of it.
    """
    manifest, order = image_set.manifest, parity.spread(len(image_set), parity.SAMPLE)
    megapixels = sum(manifest.rows[i].width * manifest.rows[i].height for i in order) / 1e6
    chosen = parity.spread(
        len(order), max(1, min(most, int(len(order) * min(1, MEGAPIXELS / megapixels))))
    )
    expected, labels = against.probabilities[chosen].argmax(axis=1), against.labels[chosen]
    found = {name: expected.copy() for name in resizers.RESIZERS}
    made = prefetch(_made_small(image_set), order[chosen], workers=processors(), depth=PHOTOS)
    for first in range(0, len(chosen), PHOTOS):
        asked = [
            (name, row, pixels)
            for row, photo in enumerate(islice(made, PHOTOS), first)
            for name, pixels in photo
            if not np.array_equal(pixels, against.images[chosen[row]])
        ]
        if asked:
            answers = loaded(np.stack([pixels for *_, pixels in asked])).argmax(axis=1)
            for (name, row, _), answer in zip(asked, answers):
                found[name][row] = answer
    if any_size:
        found |= _asked_whole(
            any_size, prefetch(_whole(image_set), order[chosen], workers=processors(), depth=PHOTOS)
        )
    return [
        PhotoCheck(
            name, len(chosen), float((given == expected).mean()), float((given == labels).mean())
        )
        for name, given in found.items()
    ]


def check_formats(
    folder: Path, formats: Sequence[str], against: parity.Reference, image_set: ImageSet
) -> list[PhotoCheck]:
    """`check` of an export folder: of one format that is given small photos, and of all that make
    them small themselves."""
    outside = readers.load("tflite" if "tflite" in formats else "keras", folder)
    inside = [readers.load(format, folder) for format in formats if format in ANY_SIZE]
    return check(outside, against, image_set, any_size=inside)


def _asked_whole(models, photos):
    """{format: int (n,), the top class of each photo}."""
    answers = [[model.run([photo])[0].argmax() for model in models] for photo in photos]
    return {model.format: np.array(given) for model, given in zip(models, zip(*answers))}


def _whole(image_set):
    def load(position):
        return np.asarray(
            pixels.open_rgb(
                _content(image_set, position), max_megapixels=None, white=image_set.white
            )
        )

    return load


def _made_small(image_set):
    def load(position):
        return list(
            resizers.each(
                _content(image_set, position),
                image_set.size,
                image_set.resize,
                white=image_set.white,
            )
        )

    return load


def _content(image_set, position):
    return (Path(image_set.root) / image_set.paths[position]).read_bytes()


def figures(checks: Sequence[PhotoCheck]) -> dict[str, dict[str, float]]:
    """{resizer: figures}, as checks.json holds them."""
    return {
        c.resizer: {"n": c.n, "agreement": round(c.agreement, 6), "accuracy": round(c.accuracy, 6)}
        for c in checks
    }


def table(checks: Sequence[PhotoCheck]) -> str:
    """The checks as text, one line per resizer."""
    lines = [f"{'resized by':14}  {'photos':>6}  {'agreement':>9}  {'accuracy':>8}"]
    return "\n".join(
        [
            *lines,
            *(f"{c.resizer:14}  {c.n:6}  {c.agreement:9.4f}  {c.accuracy:8.4f}" for c in checks),
        ]
    )


def warn_below(checks: Sequence[PhotoCheck], min_agreement: float) -> None:
    """Warn, in one line, of the resizers by which too few photos keep their class."""
    if below := [c for c in checks if parity.is_below(c.agreement, c.n, min_agreement)]:
        worst = min(below, key=lambda c: c.agreement)
        warn(
            f"export: photos resized by {', '.join(c.resizer for c in below)} keep their class on "
            f"{worst.agreement:.4f} of {worst.n}, below {min_agreement:.4g} "
            "(export.min_agreement); resize as the model was trained, or train it with all of "
            "these: augment.resizers: mixed"
        )


def version_tags(checks: Mapping[str, Any], min_agreement: float) -> dict[str, str]:
    """What a registered version says of itself, by the content of checks.json: its formats, and a
    warning if there is one."""
    tags = {"formats": ", ".join(name for name in checks if name != KEY)}
    found = checks.get(KEY, {}).items()
    below = [
        name
        for name, figures in found
        if parity.is_below(figures["agreement"], figures["n"], min_agreement)
    ]
    return tags | (
        {"warning": "other classes for photos resized by " + ", ".join(below)} if below else {}
    )
