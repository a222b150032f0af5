"""What a picture shows, whatever its file is like: values, transparency, lost ends, texts, links,
changes while it is read."""

import io
import os
import struct
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from graft import params as parameters
from graft import pixels
from graft.dataset import images, intake, manifest, scan
from graft.dataset.scan_cache import ScanCache
from graft.description import Description
from graft.system.console import GraftError

from .pictures import encoded, folder, scene, write
from .test_cases import ROOT, SCRIPT, cases  # noqa: F401 (a fixture)

shared = pytest.mark.skipif(not SCRIPT.exists(), reason="no ../shared/cases beside the project")


def scanned(root):
    with ScanCache(None, root) as cache:
        return scan.scan(root, cache=cache)


def grey(seed, size=64):
    return np.asarray(scene(seed, size, size).convert("L")).astype(np.uint32)


def tiff(values, bits, *, white_is_zero=False):
    """An uncompressed one-strip grey TIFF; values uint32 (h, w), below 2**bits."""
    height, width = values.shape
    flat = values.ravel().tolist()
    data = values.astype("<u2").tobytes()
    if bits == 12:
        data = b"".join(
            bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in zip(flat[::2], flat[1::2])
        )
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0 if white_is_zero else 1),
            (273, 8), (277, 1), (278, height), (279, len(data))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = struct.pack("<I", 8 + len(data))
    return b"II*\0" + start + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_bits_that_a_file_states_are_honoured():
    values = grey(1)
    expected = np.asarray(values, float)
    for content in (
        tiff(values * 4095 // 255, 12),
        encoded(Image.fromarray((values * 257).astype("uint16")), "PNG"),
        tiff(values * 257, 16),
    ):
        found = np.asarray(pixels.open_rgb(content).convert("L"), float)
        assert np.abs(found - expected).mean() < 2
    inverted = np.asarray(
        pixels.open_rgb(tiff(values * 4095 // 255, 12, white_is_zero=True)).convert("L"), float
    )
    assert np.abs(255 - inverted - expected).mean() < 2


def test_samples_of_fewer_bits_than_the_file_has_room_for_are_not_black(tmp_path, capsys):
    for k in range(12):
        values = (grey(k) // 2).astype("uint16")
        write(tmp_path / "ab"[k % 2] / f"{k}.png", encoded(Image.fromarray(values), "PNG"))
    assert np.asarray(pixels.open_rgb(tmp_path / "a" / "0.png")).max() > 200
    assert len(scanned(tmp_path).images) == 12
    assert (
        f"12 picture(s) with {pixels.SET_RANGE}: a/0.png (0 to 124, read as 7 bits), …"
        in capsys.readouterr().out
    )


def test_samples_of_fewer_bits_are_scaled_by_the_range_of_the_set(tmp_path, capsys):
    """A picture of 16 bits whose file states no white: as dark as it is among the others, in
    training as in serving."""
    for k in range(24):
        # 12 bits, the second half as bright: 11 bits.
        values = (grey(k) * 16 // (1 + (k == 1))).astype("uint16")
        write(tmp_path / "ab"[k % 2] / f"{k:02d}.png", encoded(Image.fromarray(values), "PNG"))
    write(
        tmp_path / "b" / "outlier.png",
        encoded(Image.fromarray((grey(50) * 257).astype("uint16")), "PNG"),
    )
    data = parameters.load(ROOT / "params.yaml").data.model_copy(update={"path": str(tmp_path)})
    rows = intake.take_in(data, seed=1, cache_file=None).manifest
    assert f"24 picture(s) with {pixels.SET_RANGE}: a/00.png (0 to 40" in capsys.readouterr().out
    assert rows.white == 4095 and {row.path: row.white for row in rows.rows}["b/outlier.png"] == 0

    manifest.write(rows, tmp_path / "split")
    assert manifest.read(tmp_path / "split") == rows
    sets = images.image_sets(
        rows,
        tmp_path,
        Description("none", 1.0, 64, rows.classes, 0, 0.0, "squash"),
        "train",
        "val",
        "test",
    )
    seen = {
        path: image
        for each in sets
        for path, image in zip(each.paths, next(iter(each.read(range(len(each))))))
    }
    assert (
        100 < seen["b/01.png"].max() < 130
        and seen["a/00.png"].max() > 200
        and seen["b/outlier.png"].max() > 200
    )
    alone = pixels.load(tmp_path / "b" / "01.png", 64)
    assert (
        alone.max() > 200
        and (pixels.load(tmp_path / "b" / "01.png", 64, white=rows.white) == seen["b/01.png"]).all()
    )
    plain = {row.path: row.sha256 for row in rows.rows}
    assert all(
        (each.sha256[i] == plain[path]) == (path == "b/outlier.png")
        for each in sets
        for i, path in enumerate(each.paths)
    )


def test_pictures_far_darker_than_their_set_are_warned_of(tmp_path, capsys):
    for k in range(12):
        write(
            tmp_path / "ab"[k % 2] / f"{k}.png",
            encoded(Image.fromarray((grey(k) * (16 if k else 1)).astype("uint16")), "PNG"),
        )
    assert {image.white for image in scanned(tmp_path).images} == {4095}
    assert (
        "1 pictures of 16 bits use an eighth of the range of the set, 0 to 4095"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("colour", [255, 0])
def test_what_is_drawn_in_the_colour_of_the_ground_shows(colour):
    values = np.zeros((64, 64, 4), np.uint8)
    values[..., :3] = colour
    values[16:48, 16:48, 3] = 255
    assert np.ptp(np.asarray(pixels.open_rgb(encoded(Image.fromarray(values), "PNG")))) == 255


def test_what_stands_out_is_kept_and_listed_and_comes_out_of_the_cache(tmp_path):
    root = folder(tmp_path / "data", each=12)
    write(
        root / "cat" / "night.png", encoded(Image.eval(scene(99), lambda value: value // 4), "PNG")
    )
    write(root / "dog" / "even.png", encoded(Image.new("RGB", (64, 64), "black"), "PNG"))
    data = parameters.load(ROOT / "params.yaml").data.model_copy(update={"path": str(root)})
    first, again = (
        intake.take_in(data, seed=1, cache_file=tmp_path / "cache.sqlite") for _ in range(2)
    )
    assert first.problems == again.problems
    rows = {p.path: (p.problem, p.action.split(":")[0]) for p in first.problems}
    assert rows == {"cat/night.png": ("dark", "kept"), "dog/even.png": ("one_colour", "set aside")}
    assert "cat/night.png" in first.manifest.paths


def test_one_colour_is_set_aside_and_a_class_of_it_is_warned_of(tmp_path, capsys):
    folder(tmp_path, each=8)
    write(tmp_path / "cat" / "even.png", encoded(Image.new("RGB", (64, 64), "navy"), "PNG"))
    clear = scene(50).convert("RGBA")
    clear.putalpha(0)
    write(tmp_path / "cat" / "hidden.png", encoded(clear, "PNG"))
    for k in range(4):
        write(
            tmp_path / "fog" / f"{k}.png", encoded(Image.new("RGB", (64, 64), (9 * k,) * 3), "PNG")
        )
    found = scanned(tmp_path)
    rows = {p.path: (p.problem, p.action) for p in found.problems}
    assert rows["cat/even.png"] == ("one_colour", "set aside: one colour only")
    assert rows["cat/hidden.png"] == ("one_colour", f"set aside: one colour only: {pixels.HIDDEN}")
    assert all(rows[f"fog/{k}.png"] == ("one_colour", "kept: one colour only") for k in range(4))
    assert sum(image.label == "fog" for image in found.images) == 4
    assert "4 of 4 pictures of class 'fog' show one colour only" in capsys.readouterr().err


@pytest.mark.parametrize("filled", [b"", bytes(4000)], ids=["cut", "zeros"])
def test_a_jpeg_whose_data_end_early_is_truncated_though_its_end_is_marked(filled):
    for seed in range(12):
        whole = encoded(scene(seed, 96, 96), quality=92, optimize=seed % 2 == 0)
        assert pixels.open_rgb(whole).size == (96, 96)
        with pytest.raises(pixels.ImageProblem, match="truncated"):
            pixels.open_rgb(whole[: len(whole) // 2] + filled + b"\xff\xd9")


def test_a_jpeg_that_shows_grey_at_its_end_is_whole():
    picture = scene(3, 96, 96)
    picture.paste((128, 128, 128), (0, 48, 96, 96))
    for options in ({}, {"progressive": True}, {"optimize": True}):
        assert pixels.open_rgb(encoded(picture, quality=92, **options)).size == (96, 96)
    for colour in ("white", "black", "navy"):  # stored as next to nothing, run after run
        even = scene(3, 640, 640)
        even.paste(colour, (0, 40, 640, 640))
        for options in ({}, {"progressive": True}, {"optimize": True}):
            assert pixels.open_rgb(encoded(even, quality=92, **options)).size == (640, 640)


def test_megabytes_of_text_do_not_hide_a_picture():
    info = PngImagePlugin.PngInfo()
    info.add_text("scene", "abc " * 500_000, zip=True)
    picture = scene(4)
    assert (
        np.asarray(pixels.open_rgb(encoded(picture, "PNG", pnginfo=info))) == np.asarray(picture)
    ).all()


def test_a_colour_profile_is_converted_and_srgb_left_alone():
    picture = scene(5)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = np.asarray(pixels.open_rgb(encoded(picture, "PNG")))
    assert (np.asarray(pixels.open_rgb(encoded(picture, "PNG", icc_profile=srgb))) == plain).all()
    lab = Image.merge("LAB", picture.split())
    assert np.ptp(np.asarray(pixels.open_rgb(encoded(lab, "TIFF"))).astype(int) - plain) > 50


def test_memory_counts_before_decoding():
    """Transparency takes twice the memory; a JPEG that is read at a part of its size takes a
    part."""
    clear = Image.new("RGBA", (2000, 1000))
    with pytest.raises(pixels.ImageProblem, match="4 megapixels to decode"):
        pixels.open_rgb(encoded(clear, "PNG"), max_megapixels=3)
    large = encoded(Image.effect_noise((4000, 3000), 60).convert("RGB"), quality=60)
    assert min(pixels.open_rgb(large, at_least=200, max_megapixels=3).size) >= 200
    with pytest.raises(pixels.ImageProblem, match="too_large"):
        pixels.open_rgb(large, max_megapixels=3)


@pytest.mark.parametrize(
    "make, megapixels",
    [
        # Its decoder holds all of it, at whatever scale.
        (lambda: encoded(scene(1, 800, 600), progressive=True), 0.48),
        (lambda: in_several_scans(scene(1, 800, 600)), 0.48),
        (lambda: encoded(scene(1, 800, 600)), 0.0075),
        (lambda: encoded(scene(1, 800, 600), "WEBP"), 0.96),
        (lambda: deep_png(np.zeros((60, 80, 3), ">u2")), 0.0096),
        (lambda: encoded(scene(1, 800, 600), "PNG"), 0.48),
    ],
    ids=["progressive", "several scans", "one scan", "WebP", "16 bits", "PNG"],
)
def test_what_is_held_in_memory_is_what_counts(make, megapixels):
    content = make()
    assert pixels.decode(io.BytesIO(content), at_least=64)[1]["megapixels"] == megapixels
    with pytest.raises(pixels.ImageProblem, match="too_large"):
        pixels.open_rgb(content, at_least=64, max_megapixels=megapixels * 0.99)


def in_several_scans(picture):
    """A baseline JPEG whose three components lie in a scan each, made of three grey ones."""
    parts = [encoded(channel, quality=90) for channel in picture.convert("YCbCr").split()]
    scans = []
    for number, part in enumerate(parts, 1):
        start, end = part.index(b"\xff\xda"), part.rindex(b"\xff\xd9")
        scans.append(b"\xff\xda\0\x08\x01" + bytes([number]) + part[start + 6 : end])
    head = parts[0][: parts[0].index(b"\xff\xda")]
    frame = head.index(b"\xff\xc0")
    length = int.from_bytes(head[frame + 2 : frame + 4], "big")
    three = (
        head[frame + 4 : frame + 9]
        + b"\x03"
        + b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    )
    frame_of_three = b"\xff\xc0" + (len(three) + 2).to_bytes(2, "big") + three
    return (
        head[:frame] + frame_of_three + head[frame + 2 + length :] + b"".join(scans) + b"\xff\xd9"
    )


def deep_png(values):
    """A PNG of 16 bits a colour. values: >u2 (h, w, 3)."""
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    body = (
        struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d))
        for name, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def test_what_systems_leave_behind_is_no_class(tmp_path):
    folder(tmp_path, each=4)
    for name in (
        "@eaDir",
        "__MACOSX",
        "$RECYCLE.BIN",
        "lost+found",
        ".picasaoriginals",
        "#recycle",
    ):
        write(tmp_path / name / "x.jpg", encoded(scene(9)))
        write(tmp_path / "cat" / name / "y.jpg", encoded(scene(9)))
    found = scanned(tmp_path)
    assert {image.label for image in found.images} == {"cat", "dog"} and (
        len(found.images),
        found.hidden,
    ) == (8, 12)


def test_a_link_to_a_folder_is_refused(tmp_path):
    folder(tmp_path / "data", each=4)
    folder(tmp_path / "else", classes=("cow",), each=4)
    (tmp_path / "data" / "cow").symlink_to(tmp_path / "else" / "cow")
    with pytest.raises(
        GraftError, match="cow is a link to a folder, and what changes behind it DVC does not see"
    ):
        scanned(tmp_path / "data")


def test_two_files_that_swap_their_names_do_not_keep_each_others_hash(tmp_path):
    root, kept = folder(tmp_path / "data", each=4), tmp_path / "cache.sqlite"
    one, two, spare = root / "cat" / "000.jpg", root / "cat" / "001.jpg", tmp_path / "spare"
    longest = max(one.stat().st_size, two.stat().st_size)
    for path in (one, two):  # of one size and one time
        path.write_bytes(path.read_bytes().ljust(longest, b"\0"))
        os.utime(path, (time.time() - 100,) * 2)

    def digests():
        with ScanCache(kept, root) as cache:
            return {image.path: image.sha256 for image in scan.scan(root, cache=cache).images}

    before = digests()
    one.rename(spare), two.rename(one), spare.rename(two)
    after = digests()
    assert (after["cat/000.jpg"], after["cat/001.jpg"]) == (
        before["cat/001.jpg"],
        before["cat/000.jpg"],
    )


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda root: write(root / "cat" / "new.jpg", b"x"), "cat/new.jpg came"),
        (lambda root: (root / "cat" / "000.jpg").unlink(), "cat/000.jpg went"),
        (lambda root: write(root / "cat" / "000.jpg", b"other"), "cat/000.jpg changed"),
    ],
    ids=["came", "went", "changed"],
)
def test_a_folder_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, change, said):
    root, group = folder(tmp_path, each=10), intake.grouping.group
    monkeypatch.setattr(
        intake.grouping, "group", lambda *given, **more: (change(root), group(*given, **more))[1]
    )
    data = parameters.load(ROOT / "params.yaml").data.model_copy(update={"path": str(root)})
    with pytest.raises(GraftError, match=f"changed while it was being read: {said}"):
        intake.take_in(data, seed=0, cache_file=None)


@pytest.mark.skipif(sys.platform == "win32", reason="pillow-heif is tried where CI runs")
def test_heic():
    heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    heif.register_heif_opener()
    picture, buffer = scene(6), io.BytesIO()
    picture.save(buffer, "HEIF", quality=90)
    assert (
        np.abs(
            np.asarray(pixels.open_rgb(buffer.getvalue()), int) - np.asarray(picture, int)
        ).mean()
        < 12
    )


@shared
@pytest.mark.parametrize("case", ["grey_dim", "grey_12bit"])
def test_grey_cases(cases, case):  # noqa: F811
    for path in (cases / case).rglob("*.*"):
        found = np.asarray(pixels.open_rgb(path).convert("L"), float)
        assert len(np.unique(found)) > 60 and found.max() > 120
    assert len(scanned(cases / case).images) == 24


@shared
def test_copies_lie_on_one_side(cases):  # noqa: F811
    data = parameters.load(ROOT / "params.yaml").data.model_copy(
        update={"path": str(cases / "copies")}
    )
    rows = intake.take_in(data, seed=0, cache_file=None).manifest.rows
    homes = {}
    for row in rows:
        homes.setdefault((row.label, row.path.split("/")[1][:2]), set()).add(row.split)
    assert len(homes) == 24 and all(len(splits) == 1 for splits in homes.values())


@shared
def test_the_other_cases_of_photos(cases):  # noqa: F811
    assert not scanned(cases / "white_on_clear").problems
    lost = scanned(cases / "lost_tail").problems
    assert sorted(p.path for p in lost) == sorted(
        f"{c}/{i}.jpg" for c in ("cat", "dog") for i in (0, 3, 6, 9)
    )
    assert {p.problem for p in lost} == {"truncated"}
    assert len(scanned(cases / "long_text").images) == 20
    with pytest.raises(GraftError, match="valid is a link to a folder"):
        scanned(cases / "linked")
