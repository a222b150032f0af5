import base64
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from graft import pixels, resizers

SHAPES = [(300, 400), (97, 131), (28, 28), (448, 448), (224, 300), (112, 112), (150, 90)]
SIZE = 112


def photo(shape, seed=0):
    """Smooth with grain: uint8 (*shape, 3)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (shape[0] // 6 + 2, shape[1] // 6 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(
        Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC)
    ).astype(int)
    return np.clip(smooth + rng.integers(-20, 20, smooth.shape), 0, 255).astype(np.uint8)


def largest(a, b):
    return np.abs(a.astype(int) - b).max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wanted", [(SIZE, SIZE), (90, 112), (224, 224)])
def test_opencv_is_rebuilt_to_the_level(shape, wanted):
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is an extra of developers")
    image = photo(shape)
    for ours, theirs in (
        (resizers.opencv_linear, cv2.INTER_LINEAR),
        (resizers.opencv_area, cv2.INTER_AREA),
    ):
        found, expected = ours(image, wanted), cv2.resize(image, wanted[::-1], interpolation=theirs)
        assert largest(found, expected) <= 1
        assert (found != expected).mean() < 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_bilinear_is_tensorflows(shape):
    import tensorflow as tf

    image = photo(shape)
    expected = tf.image.resize(image, (SIZE, SIZE), "bilinear", antialias=False).numpy()
    assert np.abs(resizers.bilinear(image, (SIZE, SIZE)) - expected).max() < 0.51


@pytest.mark.parametrize("shape", SHAPES)
def test_nearest_is_pillows(shape):
    image = photo(shape)
    expected = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(resizers.nearest(image, (SIZE, SIZE)), expected)


def test_area_and_canvas_are_means_where_sides_are_halved_twice():
    image = photo((448, 448))
    mean = image.reshape(SIZE, 4, SIZE, 4, 3).mean((1, 3))
    assert np.abs(resizers.opencv_area(image, (SIZE, SIZE)) - mean).max() <= 0.5
    # Cut off at each halving.
    assert np.abs(resizers.canvas(image, (SIZE, SIZE)) - mean).max() <= 1.5


@pytest.mark.parametrize("name", resizers.RESIZERS)
def test_a_photo_of_the_right_size_stays_as_it_is_but_for_jpeg(name):
    image = photo((SIZE, SIZE))
    found = resizers.fit(image, SIZE, "crop", resizers.RESIZERS[name])
    assert np.array_equal(found, image) == (name != "jpeg_75")
    assert largest(found, image) < 128


@pytest.mark.parametrize("resize", pixels.RESIZE)
@pytest.mark.parametrize("shape", [(97, 131), (131, 97), (50, 50), (64, 64)])
def test_the_photo_is_laid_as_training_lays_it(resize, shape):
    """With Pillow's kernel `fit` gives what `pixels.fit` gives, but for a crop's last rounding."""

    def pillow(image, wanted):
        return np.asarray(Image.fromarray(image).resize(wanted[::-1], Image.Resampling.BILINEAR))

    image = photo(shape)
    found = resizers.fit(image, 64, resize, pillow)
    assert largest(found, pixels.fit(Image.fromarray(image), 64, resize)) <= 40 * (resize == "crop")


def test_each_resizer_gets_the_whole_photo_upright():
    image = Image.fromarray(photo((90, 60)))
    exif = Image.Exif()
    exif[pixels.ORIENTATION] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    found = dict(resizers.each(buffer.getvalue(), 32, "squash"))
    assert list(found) == list(resizers.RESIZERS)
    assert {(made.dtype.name, made.shape) for made in found.values()} == {("uint8", (32, 32, 3))}
    turned = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(found["nearest"], resizers.nearest(turned, (32, 32)))


PAGE = """%s<p id=out></p><script>addEventListener("load", () => {
  document.getElementById("out").textContent = JSON.stringify([...document.images].map(image => {
    const canvas = Object.assign(document.createElement("canvas"), {width: SIZE, height: SIZE});
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, SIZE, SIZE);
    return btoa(String.fromCharCode(...context.getImageData(0, 0, SIZE, SIZE).data));
  }));
})</script>"""


@pytest.mark.slow
def test_canvas_is_chromiums(tmp_path):
    """Means and largest differences in levels, on photos with grain: to the level where coordinates
    are not rounded apart."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    photos = [photo(shape) for shape in [*SHAPES, (640, 480), (1000, 900)]]
    tags = []
    for image in photos:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        tags.append(
            f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
        )
    (tmp_path / "page.html").write_text(PAGE.replace("SIZE", "48") % "".join(tags))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    done = subprocess.run(
        [browser, *options, (tmp_path / "page.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    (found,) = re.findall(r'<p id="out">(\[.+?\])</p>', done.stdout)
    for image, given in zip(photos, json.loads(found), strict=True):
        painted = np.frombuffer(base64.b64decode(given), np.uint8).reshape(48, 48, 4)[..., :3]
        difference = np.abs(resizers.canvas(image, (48, 48)).astype(int) - painted)
        assert difference.mean() < 1.5, image.shape
        assert np.quantile(difference, 0.99) <= 8, image.shape
        without = np.abs(resizers.bilinear(image, (48, 48)).astype(int) - painted)
        # It is no plain bilinear.
        assert min(image.shape[:2]) < 96 or difference.mean() < without.mean() / 4
