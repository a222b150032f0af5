import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from stages import digits


def test_digits(tmp_path):
    folder = tmp_path / "digits"
    assert digits.digits(folder) == 1797
    files = sorted(folder.rglob("*.png"))
    assert len(files) == 1797 and sorted(p.name for p in folder.iterdir()) == [str(d) for d in range(10)]
    data = load_digits()
    for index in (0, 1, 700, 1796):
        picture = Image.open(folder / str(data.target[index]) / f"{index:04d}.png")
        assert (picture.mode, picture.size) == ("L", (8, 8))
        assert (np.asarray(picture) == np.round(data.images[index] * 255 / 16)).all()


def test_again_the_same_bytes_and_nothing_else(tmp_path):
    folder = tmp_path / "digits"
    digits.digits(folder)
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.png")}
    (folder / "0" / "stale.png").write_bytes(b"x")
    digits.digits(folder)
    assert {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.png")} == before
