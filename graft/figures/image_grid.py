"""Images with what the model said of them: grids, mistakes, confusions, Grad-CAM."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graft.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDE = 112  # pixels of an image
BORDER = 4
GAP = 12
CAPTION = 32


@dataclass(frozen=True)
class PredictedImage:
    """One image, or several of a size side by side: `pixels` uint8 (S, S, 3) each."""

    pixels: tuple[np.ndarray, ...]
    label: str
    predicted: str
    confidence: float
    path: str = ""

    @property
    def correct(self) -> bool:
        return self.label == self.predicted

    @property
    def lines(self) -> tuple[str, str]:
        """Two lines below the image; ✓ and ✗ say without colour what the border says with it."""
        said = f"{style.short(self.predicted, 15)} {100 * self.confidence:.0f}%"
        return (
            (f"✓ {said}", "")
            if self.correct
            else (f"✗ {said}", f"is {style.short(self.label, 17)}")
        )


def tile(image: PredictedImage) -> np.ndarray:
    """uint8 (h, w, 3): one image with its border and its lines below, for a grid that somebody else
    makes; w is fixed."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    colour = style.RIGHT if image.correct else style.WRONG
    width = len(image.pixels) * SIDE + 2 * BORDER
    sheet = Image.new("RGB", (width, SIDE + 2 * BORDER + CAPTION), "white")
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((0, 0, width - 1, SIDE + 2 * BORDER - 1), fill=colour)
    for k, pixels in enumerate(image.pixels):
        sheet.paste(
            Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR),
            (BORDER + k * SIDE, BORDER),
        )
    # Has ✓, ✗ and most scripts.
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 10)
    for k, line in enumerate(image.lines):
        pen.text(
            (BORDER, SIDE + 2 * BORDER + 2 + 13 * k),
            line,
            font=font,
            fill=style.INK if k else colour,
        )
    return np.asarray(sheet)


class ImageGridDisplay(style.Display):
    """Images in rows. `rows`: [(heading or "", [PredictedImage, ...]), ...]. Blue border: right;
    red, dashed: wrong.

    Drawn on one axes in pixels, all images as one: 24 axes would take ten times as long.
    """

    def __init__(self, title: str, rows: Iterable[tuple[str, Iterable[PredictedImage]]]):
        self.title, self.rows = title, [(heading, list(images)) for heading, images in rows]
        parts = max((len(image.pixels) for _, images in self.rows for image in images), default=1)
        self.step = SIDE * parts + 2 * BORDER + GAP
        self.width = max(
            GAP + max((len(images) for _, images in self.rows), default=1) * self.step, 360
        )
        self.tops, self.height = [], 34
        for heading, _ in self.rows:
            self.height += 24 if heading else 0
            self.tops.append(self.height)
            self.height += SIDE + 2 * BORDER + CAPTION + 10

    @classmethod
    def from_images(
        cls, title: str, images: list[PredictedImage], *, columns: int = 6
    ) -> ImageGridDisplay:
        return cls(title, [("", images[k : k + columns]) for k in range(0, len(images), columns)])

    def axes(self) -> Axes:
        fig = style.figure(self.width / style.DPI, self.height / style.DPI)
        fig.set_layout_engine("none")
        return fig.add_axes((0, 0, 1, 1))

    def draw(self, ax: Axes) -> None:
        canvas = np.full((self.height, self.width, 3), 255, np.uint8)
        for (heading, images), top in zip(self.rows, self.tops):
            ax.text(GAP, top - 8, heading, fontsize=8.5, va="baseline")
            for k, image in enumerate(images):
                self._place(canvas, ax, image, top, GAP + k * self.step)
        ax.imshow(
            canvas, interpolation="nearest", extent=(0, self.width, self.height, 0), aspect="auto"
        )
        ax.text(GAP, 20, self.title, fontsize=10, fontweight="bold", va="baseline")
        if not self.rows:
            ax.text(GAP, 32, "none", fontsize=8.5, va="top", color=style.MUTED)
        ax.set(xlim=(0, self.width), ylim=(self.height, 0))
        ax.set_axis_off()

    def _place(self, canvas, ax, image, top, left):
        from PIL import Image

        colour = style.RIGHT if image.correct else style.WRONG
        parts = (
            Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            for pixels in image.pixels
        )
        inside = np.concatenate([np.asarray(part) for part in parts], axis=1)
        high, wide = inside.shape[0] + 2 * BORDER, inside.shape[1] + 2 * BORDER
        frame = canvas[top : top + high, left : left + wide]
        dashes = np.indices((high, wide)).sum(axis=0) // 6 % 2 == 0
        frame[dashes | image.correct] = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
        frame[BORDER:-BORDER, BORDER:-BORDER] = inside
        for k, line in enumerate(image.lines):
            ax.text(
                left,
                top + high + 4 + 13 * k,
                line,
                fontsize=7,
                va="top",
                color=style.INK if k else colour,
            )
