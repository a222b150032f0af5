"""The demo data set: scikit-learn's 1,797 handwritten digits as pictures, one folder per class. Nothing to download."""

import shutil

import numpy as np
from PIL import Image

from stages import console, paths

FOLDER = paths.DATA / "raw" / "digits"


def digits(folder=FOLDER):
    """Write `folder`/<0..9>/<NNNN>.png: 8 x 8 pixels, grey, 0..255 (the original's 0..16, scaled); NNNN: index there."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    shutil.rmtree(folder, ignore_errors=True)
    for name in sorted(set(data.target.tolist())):
        (folder / str(name)).mkdir(parents=True)
    for index, (picture, target) in enumerate(zip(pixels, data.target)):
        Image.fromarray(picture).save(folder / str(target) / f"{index:04d}.png", optimize=True)
    return len(pixels)


@console.entry
def main():
    console.log(f"{FOLDER}: {digits()} images of handwritten digits, 10 classes")


if __name__ == "__main__":
    main()
