import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from graft import pixels
from tests.dataset.pictures import encoded, scene

# Of a file that is none.
HEIC = "undecodable" if importlib.util.find_spec("pillow_heif") else "unsupported"
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners():
    """16 x 24 pixels: red top left, green top right, blue bottom left, white bottom right."""
    array = np.zeros((24, 16, 3), np.uint8)
    array[:12, :8], array[:12, 8:], array[12:, :8], array[12:, 8:] = RED, GREEN, BLUE, WHITE
    return Image.fromarray(array)


def seen(image):
    """Colours of the four quarters, from the top left, row by row, at full strength or none."""
    array = np.asarray(image)
    h, w = array.shape[:2]
    return [
        tuple(int(v > 127) * 255 for v in array[y, x])
        for y in (h // 4, 3 * h // 4)
        for x in (w // 4, 3 * w // 4)
    ]


@pytest.mark.parametrize("kind, options", [
    ("JPEG", {"quality": 95}), ("JPEG", {"quality": 95, "progressive": True}), ("PNG", {}),
    ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}),
    ("GIF", {}),
])  # fmt: skip
def test_formats(kind, options):
    image = pixels.open_rgb(encoded(corners(), kind, **options))
    assert (image.mode, image.size, seen(image)) == ("RGB", (16, 24), [RED, GREEN, BLUE, WHITE])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_shows_the_image_upright(orientation):
    # What a camera held that way stores.
    inverse = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = corners() if inverse is None else corners().transpose(Image.Transpose(inverse))
    exif = Image.Exif()
    exif[pixels.ORIENTATION] = orientation
    content = encoded(stored, quality=95, exif=exif)
    image, facts = pixels.decode(io.BytesIO(content))
    assert seen(image) == [RED, GREEN, BLUE, WHITE]
    assert (facts["orientation"], facts["width"], facts["height"]) == (orientation, 16, 24)
    # Red where it belongs, through `load` as well.
    assert pixels.load(content, 8)[1, 1].argmax() == 0


def grey(mode, dtype, value):
    return (
        Image.fromarray(np.full((20, 20), value, dtype)).convert(mode)
        if mode
        else Image.fromarray(np.full((20, 20), value, dtype))
    )


@pytest.mark.parametrize("content, expected", [
    (encoded(grey("L", np.uint8, 100), "PNG"), (100, 100, 100)),
    (encoded(grey(None, np.uint16, 65535), "PNG"), WHITE),
    (encoded(grey(None, np.uint16, 257 * 200), "PNG"), (200, 200, 200)),
    (encoded(grey(None, np.uint16, 257 * 200), "TIFF"), (200, 200, 200)),
    (encoded(grey(None, np.uint16, 1600), "PNG"), (199, 199, 199)),
    (encoded(Image.new("RGBA", (20, 20), (255, 0, 0, 0)), "PNG"), WHITE),
    (encoded(Image.new("RGBA", (20, 20), (255, 0, 0, 128)), "PNG"), (255, 127, 127)),
    (encoded(Image.new("LA", (20, 20), (0, 0)), "PNG"), WHITE),
    (encoded(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "TIFF"), RED),
    (encoded(Image.new("1", (20, 20), 1), "PNG"), WHITE),
    (encoded(Image.new("RGB", (20, 20), BLUE).convert("P", palette=Image.Palette.ADAPTIVE), "PNG",
             transparency=0), WHITE),
    (encoded(Image.new("RGB", (20, 20), BLUE).convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
     BLUE),
],
   ids=["L", "16-bit white", "16-bit", "16-bit TIFF", "16-bit of 11 bits", "clear", "half clear",
        "LA", "CMYK", "1", "P clear", "P"])  # fmt: skip
def test_modes(content, expected):
    assert pixels.open_rgb(content).getpixel((5, 5)) == expected


def test_cmyk_jpeg():
    red, green, blue = pixels.open_rgb(
        encoded(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), quality=95)
    ).getpixel((5, 5))
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_first_frame(kind):
    first, second = Image.new("RGB", (20, 20), RED), Image.new("RGB", (20, 20), BLUE)
    assert (
        seen(pixels.open_rgb(encoded(first, kind, save_all=True, append_images=[second])))
        == [RED] * 4
    )


def whole(kind, **options):
    return encoded(scene(1, 96, 96), kind, **options)


@pytest.mark.parametrize("content, kind", [
    (b"", "empty"),
    (b"hello, this is no picture at all", "undecodable"),
    (b"\xff\xd8\xff" + bytes(500) + b"\xff\xd9", "undecodable"),
    *[(whole("JPEG", quality=q, progressive=p)[:-n], "truncated") for q in (60, 95) for p in (0, 1)
      for n in (300, 1500)],
    *[(whole("JPEG", quality=90)[:n], "truncated") for n in (30, 200, 700)],
    *[(whole(k)[: len(whole(k)) * p // 100], "truncated") for k in ("PNG", "WEBP", "GIF", "BMP")
      for p in (30, 60, 95)],
    (whole("TIFF")[:-2000], "truncated"),
    (b"\x89PNG\r\n\x1a\n" + bytes(64) + b"IEND\xaeB`\x82", "undecodable"),
    (encoded(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"), "unsupported"),
    (b"8BPS" + bytes(100), "unsupported"),
    (b"\0\0\0\x18ftypheic" + bytes(100), HEIC),
])  # fmt: skip
def test_problems(content, kind):
    for at_least in (None, 16):  # the reduced decoding of a JPEG finds the same
        with pytest.raises(pixels.ImageProblem) as caught:
            pixels.open_rgb(content, at_least=at_least)
        assert caught.value.kind == kind


def test_too_many_pixels_are_refused_before_decoding():
    content = encoded(Image.new("1", (3000, 2000)), "PNG")
    with pytest.raises(pixels.ImageProblem, match="3000 x 2000") as caught:
        pixels.open_rgb(content, max_megapixels=5)
    assert caught.value.kind == "too_large"
    assert pixels.open_rgb(content, max_megapixels=6).size == (3000, 2000)
    assert pixels.open_rgb(content, max_megapixels=None).size == (3000, 2000)


def test_every_cut_of_a_small_file_is_a_named_problem_or_a_image():
    kinds = set()
    for content in (
        whole("JPEG", quality=20),
        whole("PNG")[:3000],
        encoded(scene(3, 16, 16), "GIF"),
        encoded(scene(3, 9, 9), "WEBP"),
    ):
        for n in range(0, len(content), 37):
            try:
                pixels.open_rgb(content[:n])
            except pixels.ImageProblem as problem:
                kinds.add(problem.kind)
    assert kinds == {"empty", "truncated", "undecodable"}


def test_bit_flips_never_raise_anything_else():
    rng = np.random.default_rng(0)
    outcomes = {"fine": 0, "problem": 0}
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        content = np.frombuffer(encoded(scene(2, 24, 24), kind), np.uint8)
        for _ in range(60):
            damaged = content.copy()
            damaged[rng.integers(0, len(content), 4)] ^= np.uint8(1) << rng.integers(
                0, 8, 4
            ).astype(np.uint8)
            try:
                pixels.load(damaged.tobytes(), 16, max_megapixels=4)
                outcomes["fine"] += 1
            except pixels.ImageProblem:
                outcomes["problem"] += 1
    assert outcomes["fine"] > 50 and outcomes["problem"] > 50


@pytest.mark.parametrize("width, height", [(32, 32), (50, 20), (20, 50), (9, 7), (1000, 700)])
def test_load_squashes_the_whole_image(width, height):
    given = np.zeros((height, width, 3), np.uint8)
    given[:, width // 2 :] = 255
    array = pixels.load(encoded(Image.fromarray(given), "PNG"), 32)
    assert array.shape == (32, 32, 3) and array.dtype == np.uint8
    # Nothing was cut off at either side.
    assert (array[:, :12] == 0).all() and (array[:, 20:] == 255).all()


def test_load_is_pillows_antialiased_bilinear():
    image = scene(5, 200, 120)
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    assert (pixels.load(encoded(image, "PNG"), 32) == expected).all()


def test_a_large_jpeg_is_decoded_reduced_yet_looks_the_same():
    content = encoded(scene(6, 1024, 768), quality=95)
    assert pixels.open_rgb(content, at_least=64).size == (128, 96)
    assert pixels.open_rgb(content, at_least=400).size == (1024, 768)
    exact = np.asarray(
        Image.open(io.BytesIO(content)).resize((32, 32), Image.Resampling.BILINEAR), np.int16
    )
    assert np.abs(pixels.load(content, 32) - exact).mean() < 2


def test_sources(tmp_path):
    content = encoded(scene(7), "PNG")
    path = tmp_path / "ä b.PNG"
    path.write_bytes(content)
    expected = pixels.load(content, 16)
    for source in (path, str(path), io.BytesIO(content), bytearray(content)):
        assert (pixels.load(source, 16) == expected).all()
    with pytest.raises(FileNotFoundError):
        pixels.load(tmp_path / "none.jpg", 16)


@pytest.mark.parametrize("head, kind", [
    (b"BM is how this text begins, and not a bitmap", None), (b"GIF89a", "GIF"),
    (b"RIFF\0\0\0\0WAVE", None), (b"", None), (b"%PDF-1.7", None), (b"\0\0\0\x18ftypavif", "AVIF"),
    (b"\0\0\0\x18ftypmp42", None),
])  # fmt: skip
def test_sniff(head, kind):
    assert pixels.sniff(head + bytes(20)) == kind


@pytest.mark.parametrize(
    ("name", "content", "look", "expected"),
    [
        ("photo.JPG", None, True, True),  # its name says so, whether it can be read or not
        ("photo.heic", None, True, True),
        ("photo.txt", None, True, False),
        ("photo", None, True, False),
        ("photo.txt", encoded(scene(1), "PNG"), True, True),
        ("photo", encoded(scene(1), "PNG")[:40], True, True),
        ("photo.bin", b"\0\0\0\x18ftypavif" + bytes(20), True, True),
        ("notes.txt", b"BM is how this text begins, and not a bitmap", True, False),
        ("notes", b"", True, False),
        ("photo.txt", encoded(scene(1), "PNG"), False, False),
        ("photo.webp", b"", False, True),
        ("photo", b"", False, True),
    ],
)
def test_may_be_image(tmp_path, name, content, look, expected):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert pixels.may_be_image(tmp_path / name, look=look) is expected
    assert pixels.may_be_image(str(tmp_path / name), look=look) is expected


def test_a_problem_reads_the_same_at_every_run():
    with pytest.raises(pixels.ImageProblem) as caught:
        pixels.open_rgb(b"\xff\xd8\xff" + bytes(500) + b"\xff\xd9")
    assert caught.value.detail == "cannot identify image file"  # and not where in memory it lay


def test_the_probe_is_an_image_with_something_in_it():
    assert pixels.probe(24).shape == (24, 24, 3)
    assert pixels.probe(24).std() > 20
    assert np.array_equal(pixels.probe(24), pixels.probe(24))


@pytest.mark.parametrize(
    ("resize", "expected"),
    [
        ("squash", [[255, 255, 0, 0]] * 4),
        ("crop", [[255, 255, 0, 0]] * 4),
        ("pad", [[127] * 4, [255, 255, 0, 0], [255, 255, 0, 0], [127] * 4]),
    ],
)
def test_an_image_becomes_a_square_by_the_rule(resize, expected):
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, :8] = 255  # the left half is white
    fitted = pixels.fit(Image.fromarray(image), 4, resize)
    assert fitted.shape == (4, 4, 3)
    # Antialiased where black and white meet.
    assert np.abs(fitted[..., 0].astype(int) - expected).max() <= 40


def test_cropping_takes_the_middle():
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, :4] = image[:, 12:] = 255
    assert (pixels.fit(Image.fromarray(image), 8, "crop") == 0).all()
    assert (pixels.fit(Image.fromarray(image.swapaxes(0, 1)), 8, "crop") == 0).all()
