import importlib.util
import os
import struct
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graft.dataset import grouping, scan
from graft.dataset.scan_cache import ScanCache
from graft.pixels import ORIENTATION
from graft.system.console import GraftError

from .pictures import encoded, folder, scene, write

# Of a file that is none.
HEIC = "undecodable" if importlib.util.find_spec("pillow_heif") else "unsupported"


def scanned(root, **options):
    with ScanCache(None, root) as cache:
        return scan.scan(root, cache=cache, **options)


def exif(orientation):
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block


def huge_png(width, height):
    """A PNG of a few bytes that claims to be enormous."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def damaged_middle(content):
    return content[: len(content) // 2] + bytes(200) + content[len(content) // 2 + 200 :]


PNG, JPEG = encoded(scene(500), "PNG"), encoded(scene(501), quality=90)
BIG = encoded(scene(502, 300, 200), quality=90)
TWIN, ACROSS = encoded(scene(503), quality=90), encoded(scene(504), quality=90)
GREY16 = Image.fromarray(np.asarray(scene(510).convert("L")).astype(np.uint16) * 257)

# name -> (bytes, what must become of it): a kind of problem, "image", "non_image" or "hidden"
FILES = {
    "cat/empty.jpg": (b"", "empty"),
    "cat/empty.PNG": (b"", "empty"),
    "cat/text.jpg": (b"this is not a picture, whatever its name says", "undecodable"),
    "cat/page.jpeg": (b"<!DOCTYPE html><html>404 not found</html>", "undecodable"),
    "cat/zeros.png": (bytes(5000), "undecodable"),
    "cat/noise.webp": (np.random.default_rng(0).bytes(4000), "undecodable"),
    "cat/marker only.jpg": (b"\xff\xd8\xff", "truncated"),
    "cat/head only.jpg": (JPEG[:150], "truncated"),
    "cat/half.jpg": (BIG[: len(BIG) // 2], "truncated"),
    "cat/nearly.jpg": (BIG[:-200], "truncated"),
    "cat/half.png": (PNG[: len(PNG) // 2], "truncated"),
    "cat/half progressive.jpg": (encoded(scene(505, 200, 200), quality=90, progressive=True)[:4000],
                                 "truncated"),
    "cat/half.webp": (encoded(scene(506, 99, 99), "WEBP")[:500], "truncated"),
    "cat/half.gif": (encoded(scene(507, 99, 99), "GIF")[:2000], "truncated"),
    "cat/half.bmp": (encoded(scene(508, 99, 99), "BMP")[:9000], "truncated"),
    "cat/half.tif": (encoded(scene(509, 99, 99), "TIFF")[:9000], "truncated"),
    "cat/rotten.png": (damaged_middle(PNG), "undecodable"),
    "cat/bad head.png": (PNG[:8] + bytes(8) + PNG[16:], "undecodable"),
    "cat/six bytes.gif": (b"GIF89a", "truncated"),
    "cat/invoice.png": (b"%PDF-1.7 and so on", "undecodable"),
    "cat/twelve bytes.webp": (b"RIFF\x40\0\0\0WEBP", "truncated"),
    "cat/1x1.png": (encoded(Image.new("RGB", (1, 1)), "PNG"), "too_small"),
    "cat/thin.png": (encoded(Image.new("RGB", (500, 3)), "PNG"), "too_small"),
    "cat/bomb.png": (huge_png(60000, 60000), "too_large"),
    "cat/lies about its size.png": (huge_png(1000, 900), "truncated"),
    "cat/20 megapixels.png": (encoded(Image.new("1", (5000, 4000)), "PNG"), "too_large"),
    "cat/phone.heic": (b"\0\0\0\x18ftypheic" + bytes(300), HEIC),
    "cat/heic named.jpg": (b"\0\0\0\x18ftypheic" + bytes(299), HEIC),
    "cat/raw.CR2": (b"\0raw" * 100, "unsupported"),
    "cat/art.psd": (b"8BPS" + bytes(300), "unsupported"),
    "cat/drawing.svg": (b"<svg/>", "unsupported"),
    "cat/float.tiff": (encoded(Image.fromarray(np.ones((20, 20), np.float32)), "TIFF"),
                       "unsupported"),
    "cat/a twin.jpg": (TWIN, "image"),
    "cat/b twin.jpg": (TWIN, "duplicate_in_class"),
    "cat/deep/er/c twin.jpg": (TWIN, "duplicate_in_class"),
    "cat/either.jpg": (ACROSS, "duplicate_across_classes"),
    "dog/or.jpg": (ACROSS, "duplicate_across_classes"),
    "dog/png named.jpg": (PNG, "image"),
    "dog/no suffix": (encoded(scene(511), quality=90), "image"),
    "dog/wrong suffix.txt": (encoded(scene(512), quality=90), "image"),
    "dog/UPPER.JPG": (encoded(scene(513), quality=90), "image"),
    "dog/größe 図 🐕.jpg": (encoded(scene(514), quality=90), "image"),
    "dog/two\nlines, \"quoted\".jpg": (encoded(scene(515), quality=90), "image"),
    "dog/deep/er/nested.jpg": (encoded(scene(516), quality=90), "image"),
    "dog/cmyk.jpg": (encoded(scene(517).convert("CMYK"), quality=90), "image"),
    "dog/grey.jpg": (encoded(scene(518).convert("L"), quality=90), "image"),
    "dog/progressive.jpg": (encoded(scene(519), quality=90, progressive=True), "image"),
    "dog/rotated.jpg": (encoded(scene(520, 60, 90), quality=90, exif=exif(6)), "image"),
    "dog/rotten exif.jpg": (encoded(scene(521), quality=90, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
                            "image"),
    "dog/16 bit.png": (encoded(GREY16, "PNG"), "image"),
    "dog/palette.png": (encoded(scene(522).convert("P"), "PNG"), "image"),
    "dog/alpha.png": (encoded(scene(523).convert("RGBA"), "PNG"), "image"),
    "dog/animated.gif": (encoded(scene(524), "GIF", save_all=True, append_images=[scene(525)]),
                         "image"),
    "dog/pages.tiff": (encoded(scene(526), "TIFF", save_all=True, append_images=[scene(527)]),
                       "image"),
    "dog/photo.bmp": (encoded(scene(528), "BMP"), "image"),
    "dog/photo.webp": (encoded(scene(529), "WEBP"), "image"),
    "dog/tail.jpg": (encoded(scene(530), quality=90) + b"and then some bytes", "image"),
    "dog/flat.png": (encoded(Image.new("RGB", (50, 50), "white"), "PNG"), "one_colour"),
    "dog/notes.txt": (b"BM is not a bitmap here", "non_image"),
    "dog/empty.txt": (b"", "non_image"),
    "dog/clip.mp4": (b"\0\0\0\x18ftypmp42" + bytes(100), "non_image"),
    "labels.csv": (b"a,b\n", "non_image"),
    "stray.jpg": (encoded(scene(531), quality=90), "no_class"),
    "dog/.DS_Store": (b"x", "hidden"),
    ".git/objects/photo.jpg": (JPEG, "hidden"),
    "__MACOSX/cat/._a.jpg": (b"x", "hidden"),
    "dog/Thumbs.db": (b"x", "hidden"),
}  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile 🦙")
    for name, (content, _) in FILES.items():
        write(root / name, content)
    expected = {name: kind for name, (_, kind) in FILES.items()}
    (root / "cat" / "dangling.jpg").symlink_to("nowhere.jpg")
    (root / "dog" / "loop").symlink_to(root)
    (root / "dog" / "link.bmp").symlink_to(root / "dog" / "photo.bmp")
    expected |= {"cat/dangling.jpg": "undecodable", "dog/link.bmp": "duplicate_in_class"}
    if hasattr(os, "mkfifo"):
        os.mkfifo(root / "dog" / "pipe.jpg")
        expected["dog/pipe.jpg"] = "non_image"
    write(Path(os.fsdecode(os.fsencode(root) + b"/dog/latin\xe9.jpg")), encoded(scene(540)))
    expected["dog/latin\\udce9.jpg"] = "unsupported"
    return root, expected


@pytest.mark.skipif(
    sys.platform != "linux", reason="plants names and files that only Linux's file systems hold"
)
def test_every_planted_fault_is_found_and_nothing_is_lost(hostile):
    root, expected = hostile
    assert (
        sum(kind not in ("image", "non_image", "hidden") for kind in expected.values()) >= 40
        and len(expected) >= 60
    )
    found = scanned(root, min_side=8, max_megapixels=10)
    pictures, copies, _ = grouping.set_aside_copies(found.images)
    # Of two equal files the first by path stays: photo.bmp, of which link.bmp is a link, comes
    # second.
    expected["dog/link.bmp"], expected["dog/photo.bmp"] = "image", "duplicate_in_class"
    got = {p.path: p.problem for p in (*found.problems, *copies)} | {
        p.path: "image" for p in pictures
    }
    assert got == {
        path: kind for path, kind in expected.items() if kind not in ("non_image", "hidden")
    }
    tally = Counter(expected.values())
    assert (found.non_images, found.hidden) == (tally["non_image"], tally["hidden"])
    assert (
        found.files
        == len(expected)
        == len(pictures) + len(found.problems) + len(copies) + found.non_images + found.hidden
    )
    assert all(p.action.startswith("set aside: ") for p in (*found.problems, *copies))
    rotated = next(p for p in pictures if p.path == "dog/rotated.jpg")
    assert (rotated.width, rotated.height) == (90, 60)


def test_on_damaged_fail_lists_them(hostile):
    with pytest.raises(GraftError, match=r"cat/half\.jpg: truncated") as caught:
        scanned(hostile[0], min_side=8, max_megapixels=10, on_damaged="fail")
    assert "\n" not in str(caught.value).replace("two\nlines", "")


def test_one_worker_or_many_find_the_same(tmp_path):
    folder(tmp_path, each=40)
    assert scanned(tmp_path, workers=1) == scanned(tmp_path, workers=7)


def test_a_class_of_nothing_but_damage_is_named(tmp_path):
    write(folder(tmp_path) / "broken" / "1.jpg", b"")
    with pytest.raises(GraftError, match=r"class 'broken' .* has no usable image"):
        scanned(tmp_path)


@pytest.mark.parametrize("path", ["none", "file"])
def test_no_folder(tmp_path, path):
    write(tmp_path / "file", b"x")
    with pytest.raises(GraftError, match=r"data\.path: .*(is not a folder|is not there)"):
        scanned(tmp_path / path)


def test_small_pictures_are_known_by_their_pixels_and_smooth_ones_by_nothing(tmp_path):
    cases = {
        "photo": scene(1),
        "tiny": scene(1, 31, 31),
        "ramp": Image.linear_gradient("L").convert("RGB"),
    }
    got = {
        name: scan.examine(write(tmp_path / f"{name}.png", encoded(p, "PNG")))
        for name, p in cases.items()
    }
    assert got["photo"].pixels is None and len(got["photo"].thumbs) >= 2 * 32 * 32
    assert len(got["tiny"].pixels) == 32 and not got["tiny"].thumbs
    assert got["ramp"].pixels == b"" and not got["ramp"].thumbs


def test_a_file_larger_than_any_picture_may_be_is_not_read(tmp_path):
    path = tmp_path / "disk.bmp"
    with path.open("wb") as file:
        file.write(encoded(scene(1), "BMP"))
        file.truncate(2**31)  # sparse: takes no room on the disk
    assert scan.examine(path, max_megapixels=10).problem == "too_large"
    assert scan.examine(path, max_megapixels=10).sha256 == b""
