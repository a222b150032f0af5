"""Photos with what the model said of them: grids, mistakes, confusions, Grad-CAM."""

from dataclasses import dataclass

import numpy as np

from stages.reporting.plots import style

TILE = 112  # pixels
BORDER = 4
GAP = 12
CAPTION = 32


@dataclass(frozen=True)
class Tile:
    """One photo, or several of a size side by side: `images` uint8 (S, S, 3) each. `right`: was the prediction right."""

    images: tuple
    label: str
    predicted: str
    confidence: float
    path: str = ""

    @property
    def right(self):
        return self.label == self.predicted

    @property
    def lines(self):
        """Two lines below the photo; ✓ and ✗ say without colour what the border says with it."""
        said = f"{style.short(self.predicted, 15)} {100 * self.confidence:.0f}%"
        return (f"✓ {said}", "") if self.right else (f"✗ {said}", f"is {style.short(self.label, 17)}")


class PhotosDisplay:
    """Tiles in rows. `rows`: [(heading or "", [Tile, ...]), ...]. Blue border: right; vermilion, dashed: wrong."""

    def __init__(self, title, rows):
        self.title, self.rows = title, [(heading, list(tiles)) for heading, tiles in rows]

    @classmethod
    def from_tiles(cls, title, tiles, *, columns=6):
        return cls(title, [("", tiles[k : k + columns]) for k in range(0, len(tiles), columns)])

    def plot(self, *, ax=None):
        """Draws on one axes in pixels, all photos as one picture: 24 axes would take ten times as long."""
        parts = max((len(tile.images) for _, tiles in self.rows for tile in tiles), default=1)
        columns = max((len(tiles) for _, tiles in self.rows), default=1)
        step = TILE * parts + 2 * BORDER + GAP
        width = max(GAP + columns * step, 360)
        tops, height = [], 34
        for heading, _ in self.rows:
            height += 24 if heading else 0
            tops.append(height)
            height += TILE + 2 * BORDER + CAPTION + 10
        canvas = np.full((height, width, 3), 255, np.uint8)
        with style.applied():
            if ax is None:
                fig = style.figure(width / style.DPI, height / style.DPI)
                fig.set_layout_engine("none")
                ax = fig.add_axes((0, 0, 1, 1))
            for (heading, tiles), top in zip(self.rows, tops):
                if heading:
                    ax.text(GAP, top - 8, heading, fontsize=8.5, va="baseline")
                for k, tile in enumerate(tiles):
                    self._place(canvas, ax, tile, top, GAP + k * step)
            ax.imshow(canvas, interpolation="nearest", extent=(0, width, height, 0), aspect="auto")
            ax.text(GAP, 20, self.title, fontsize=10, fontweight="bold", va="baseline")
            if not self.rows:
                ax.text(GAP, 32, "none", fontsize=8.5, va="top", color=style.MUTED)
            ax.set(xlim=(0, width), ylim=(height, 0))
            ax.set_axis_off()
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _place(self, canvas, ax, tile, top, left):
        colour = style.RIGHT if tile.right else style.WRONG
        photo = np.concatenate([resized(image, TILE) for image in tile.images], axis=1)
        high, wide = photo.shape[0] + 2 * BORDER, photo.shape[1] + 2 * BORDER
        frame = canvas[top : top + high, left : left + wide]
        rgb = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)], np.uint8)
        along, down = np.indices((high, wide)).sum(axis=0) // 6 % 2 == 0, np.ones((high, wide), bool)
        frame[down if tile.right else along] = rgb
        frame[BORDER:-BORDER, BORDER:-BORDER] = photo
        for k, line in enumerate(tile.lines):
            if line:
                ax.text(left, top + high + 4 + 13 * k, line, fontsize=7, va="top", color=colour if k == 0 else style.INK)


def resized(image, size):
    """uint8 (size, size, 3), bilinear."""
    from PIL import Image

    image = np.asarray(image, np.uint8)
    return image if image.shape[:2] == (size, size) else np.asarray(Image.fromarray(image).resize((size, size), Image.BILINEAR))
