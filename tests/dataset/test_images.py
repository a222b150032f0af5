import io

import numpy as np
import pytest
from PIL import Image

from stages.dataset import images

from .pictures import encoded, scene

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners():
    """16 x 24 pixels: red top left, green top right, blue bottom left, white bottom right."""
    pixels = np.zeros((24, 16, 3), np.uint8)
    pixels[:12, :8], pixels[:12, 8:], pixels[12:, :8], pixels[12:, 8:] = RED, GREEN, BLUE, WHITE
    return Image.fromarray(pixels)


def seen(picture):
    """Colours of the four quarters, from the top left, row by row, at full strength or none."""
    pixels = np.asarray(picture)
    h, w = pixels.shape[:2]
    return [tuple(int(v > 127) * 255 for v in pixels[y, x]) for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)]


@pytest.mark.parametrize("kind, options", [
    ("JPEG", {"quality": 95}), ("JPEG", {"quality": 95, "progressive": True}), ("PNG", {}), ("WEBP", {"lossless": True}),
    ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("GIF", {}),
])  # fmt: skip
def test_formats(kind, options):
    picture = images.open_rgb(encoded(corners(), kind, **options))
    assert (picture.mode, picture.size, seen(picture)) == ("RGB", (16, 24), [RED, GREEN, BLUE, WHITE])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_shows_the_picture_upright(orientation):
    inverse = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # what a camera held that way stores
    stored = corners() if inverse is None else corners().transpose(Image.Transpose(inverse))
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    content = encoded(stored, quality=95, exif=exif)
    picture, facts = images.decode(io.BytesIO(content))
    assert seen(picture) == [RED, GREEN, BLUE, WHITE]
    assert (facts["orientation"], facts["width"], facts["height"]) == (orientation, 16, 24)
    assert images.load(content, 8)[1, 1].argmax() == 0  # red where it belongs, through `load` as well


def grey(mode, dtype, value):
    return (
        Image.fromarray(np.full((20, 20), value, dtype)).convert(mode)
        if mode
        else Image.fromarray(np.full((20, 20), value, dtype))
    )


@pytest.mark.parametrize("content, expected", [
    (encoded(grey("L", np.uint8, 100), "PNG"), (100, 100, 100)),
    (encoded(grey(None, np.uint16, 65535), "PNG"), WHITE),
    (encoded(grey(None, np.uint16, 257 * 100), "PNG"), (100, 100, 100)),
    (encoded(grey(None, np.uint16, 257 * 100), "TIFF"), (100, 100, 100)),
    (encoded(Image.new("RGBA", (20, 20), (255, 0, 0, 0)), "PNG"), WHITE),
    (encoded(Image.new("RGBA", (20, 20), (255, 0, 0, 128)), "PNG"), (255, 127, 127)),
    (encoded(Image.new("LA", (20, 20), (0, 0)), "PNG"), WHITE),
    (encoded(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "TIFF"), RED),
    (encoded(Image.new("1", (20, 20), 1), "PNG"), WHITE),
    (encoded(Image.new("RGB", (20, 20), BLUE).convert("P", palette=Image.Palette.ADAPTIVE), "PNG", transparency=0), WHITE),
    (encoded(Image.new("RGB", (20, 20), BLUE).convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), BLUE),
], ids=["L", "16-bit white", "16-bit", "16-bit TIFF", "clear", "half clear", "LA", "CMYK", "1", "P clear", "P"])  # fmt: skip
def test_modes(content, expected):
    assert images.open_rgb(content).getpixel((5, 5)) == expected


def test_cmyk_jpeg():
    red, green, blue = images.open_rgb(encoded(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), quality=95)).getpixel((5, 5))
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_first_frame(kind):
    first, second = Image.new("RGB", (20, 20), RED), Image.new("RGB", (20, 20), BLUE)
    assert seen(images.open_rgb(encoded(first, kind, save_all=True, append_images=[second]))) == [RED] * 4


def whole(kind, **options):
    return encoded(scene(1, 96, 96), kind, **options)


@pytest.mark.parametrize("content, kind", [
    (b"", "empty"),
    (b"hello, this is no picture at all", "undecodable"),
    (b"\xff\xd8\xff" + bytes(500) + b"\xff\xd9", "undecodable"),
    *[(whole("JPEG", quality=q, progressive=p)[:-n], "truncated") for q in (60, 95) for p in (0, 1) for n in (300, 1500)],
    *[(whole("JPEG", quality=90)[:n], "truncated") for n in (30, 200, 700)],
    *[(whole(k)[: len(whole(k)) * p // 100], "truncated") for k in ("PNG", "WEBP", "GIF", "BMP") for p in (30, 60, 95)],
    (whole("TIFF")[:-2000], "truncated"),
    (b"\x89PNG\r\n\x1a\n" + bytes(64) + b"IEND\xaeB`\x82", "undecodable"),
    (encoded(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"), "unsupported"),
    (b"8BPS" + bytes(100), "unsupported"),
    (b"\0\0\0\x18ftypheic" + bytes(100), "unsupported"),
])  # fmt: skip
def test_problems(content, kind):
    for at_least in (None, 16):  # the reduced decoding of a JPEG finds the same
        with pytest.raises(images.ImageProblem) as caught:
            images.open_rgb(content, at_least=at_least)
        assert caught.value.kind == kind


def test_too_many_pixels_are_refused_before_decoding():
    content = encoded(Image.new("1", (3000, 2000)), "PNG")
    with pytest.raises(images.ImageProblem, match="3000 x 2000") as caught:
        images.open_rgb(content, max_megapixels=5)
    assert caught.value.kind == "too_large"
    assert images.open_rgb(content, max_megapixels=6).size == (3000, 2000)
    assert images.open_rgb(content, max_megapixels=None).size == (3000, 2000)


def test_every_cut_of_a_small_file_is_a_named_problem_or_a_picture():
    kinds = set()
    for content in (
        whole("JPEG", quality=20),
        whole("PNG")[:3000],
        encoded(scene(3, 16, 16), "GIF"),
        encoded(scene(3, 9, 9), "WEBP"),
    ):
        for n in range(0, len(content), 37):
            try:
                images.open_rgb(content[:n])
            except images.ImageProblem as problem:
                kinds.add(problem.kind)
    assert kinds == {"empty", "truncated", "undecodable"}


def test_bit_flips_never_raise_anything_else():
    rng = np.random.default_rng(0)
    outcomes = {"fine": 0, "problem": 0}
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        content = np.frombuffer(encoded(scene(2, 24, 24), kind), np.uint8)
        for _ in range(60):
            damaged = content.copy()
            damaged[rng.integers(0, len(content), 4)] ^= np.uint8(1) << rng.integers(0, 8, 4).astype(np.uint8)
            try:
                images.load(damaged.tobytes(), 16, max_megapixels=4)
                outcomes["fine"] += 1
            except images.ImageProblem:
                outcomes["problem"] += 1
    assert outcomes["fine"] > 50 and outcomes["problem"] > 50


@pytest.mark.parametrize("width, height", [(32, 32), (50, 20), (20, 50), (9, 7), (1000, 700)])
def test_load_squashes_the_whole_picture(width, height):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    array = images.load(encoded(Image.fromarray(pixels), "PNG"), 32)
    assert array.shape == (32, 32, 3) and array.dtype == np.uint8
    assert (array[:, :12] == 0).all() and (array[:, 20:] == 255).all()  # nothing was cut off at either side


def test_load_is_pillows_antialiased_bilinear():
    picture = scene(5, 200, 120)
    expected = np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR))
    assert (images.load(encoded(picture, "PNG"), 32) == expected).all()


def test_a_large_jpeg_is_decoded_reduced_yet_looks_the_same():
    content = encoded(scene(6, 1024, 768), quality=95)
    assert images.open_rgb(content, at_least=64).size == (128, 96)
    assert images.open_rgb(content, at_least=400).size == (1024, 768)
    exact = np.asarray(Image.open(io.BytesIO(content)).resize((32, 32), Image.Resampling.BILINEAR), np.int16)
    assert np.abs(images.load(content, 32) - exact).mean() < 2


def test_sources(tmp_path):
    content = encoded(scene(7), "PNG")
    path = tmp_path / "ä b.PNG"
    path.write_bytes(content)
    expected = images.load(content, 16)
    for source in (path, str(path), io.BytesIO(content), bytearray(content)):
        assert (images.load(source, 16) == expected).all()
    with pytest.raises(FileNotFoundError):
        images.load(tmp_path / "none.jpg", 16)


@pytest.mark.parametrize("head, kind", [
    (b"BM is how this text begins, and not a bitmap", None), (b"GIF89a", "GIF"), (b"RIFF\0\0\0\0WAVE", None), (b"", None),
    (b"%PDF-1.7", None), (b"\0\0\0\x18ftypavif", "other"), (b"\0\0\0\x18ftypmp42", None),
])  # fmt: skip
def test_sniff(head, kind):
    assert images.sniff(head + bytes(20)) == kind
