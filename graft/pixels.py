"""Decode one image file safely. Training, evaluation and serving read images through `load`, so
they see the same pixels.

Needs only Pillow and NumPy, and nothing of graft: it travels with the model. What it makes of a
picture depends on that picture alone, since a served model sees one at a time.
"""

from __future__ import annotations

import base64
import functools
import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageFile, TiffImagePlugin, features

Source = str | Path | bytes | bytearray | memoryview | BinaryIO  # of an image

RESIZE = {  # how an image becomes size x size; bilinear with antialiasing (Pillow) in any case
    "squash": "the whole image, its proportions changed",
    "crop": "the square in the middle",
    "pad": "the whole image in its proportions, on grey",
}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif",
    ".tiff", ".avif", ".heic", ".heif", ".hif",
})  # fmt: skip
# Suffixes of images that graft does not read. Such a file is reported, not passed over as if it
# were a text file.
UNSUPPORTED_SUFFIXES = frozenset({
    ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jxl", ".jxr", ".psd", ".ico", ".cur", ".ani",
    ".icns", ".svg", ".tga", ".icb", ".vda", ".vst", ".pcx", ".dcx", ".ppm", ".pgm", ".pbm", ".pnm",
    ".pfm", ".pam", ".xbm", ".xpm", ".wmf", ".emf", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf",
    ".orf", ".rw2", ".pcd", ".exr", ".hdr", ".dcm", ".xcf", ".eps", ".dds", ".blp", ".ftc", ".ftu",
    ".fits", ".fit", ".sgi", ".rgb", ".rgba", ".bw", ".im", ".msp", ".fli", ".flc", ".qoi", ".ras",
    ".gbr", ".pxr", ".palm", ".wal", ".spider", ".avifs", ".heics", ".heifs",
})  # fmt: skip
# What systems, network drives and editors leave in a tree of photos: neither classes nor photos,
# whatever lies in it.
LEFT_OVERS = frozenset({
    "__macosx", "icon\r", "network trash folder", "temporary items",
    "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler", "recycled",
    "system volume information", "found.000", "lost+found", "lost.dir", "__pycache__",
    "@eadir", "#recycle", "#snapshot", "@tmp", "@recycle", "@recently-snapshot", "@__thumb",
    "~snapshot", "_gsdata_", "picasaoriginals", "picasa.ini", "captureone", "nksc_param",
    "zbthumbnail.info",
})  # fmt: skip
# To decode, where the user sets no limit: a phone's 108 in any case, and half a gigabyte of memory.
MAX_MEGAPIXELS = 120.0
# Pixels; more than a phone takes by default: 36 MB as RGB, several times that while it is decoded.
LARGE = 12_000_000

# `open_rgb` checks the size itself, against the limit that the user set, before it decodes.
Image.MAX_IMAGE_PIXELS = None
# True would fill up half an image with grey and call it whole.
ImageFile.LOAD_TRUNCATED_IMAGES = False

for order in (b"II", b"MM"):  # greys that Pillow can unpack and does not look for
    for white_is_zero in (0, 1):
        TiffImagePlugin.OPEN_INFO.setdefault(
            (order, white_is_zero, (1,), 1, (12,), ()), ("I;16", "I;12")
        )
        TiffImagePlugin.OPEN_INFO.setdefault(
            (order, white_is_zero, (1,), 1, (16,), ()), ("I;16B", "I;16B")
        )

ORIENTATION = 0x0112  # EXIF tag
PHOTOMETRIC, BITS, MAX_SAMPLE = 262, 258, 281  # TIFF tags
FIRST_FRAME = "several frames, of which the first is taken"
OWN_RANGE = "16-bit samples of fewer bits, scaled by those"
SET_RANGE = "16-bit samples, scaled by the range of the set"
HIDDEN = "transparency that hides everything"
LARGEST_PROFILE = 1 << 24  # bytes
BAND = 1024  # rows that are worked on at a time
END_OF_IMAGE = b"\xff\xd9"  # of a JPEG


class ImageProblem(Exception):
    """An image that cannot be used. `kind`: empty, truncated, undecodable, unsupported, too_large;
    `detail`: for a person."""

    def __init__(self, kind: str, detail: str):
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


def sniff(head: bytes) -> str | None:
    """Format by the first 32 bytes: one of FORMATS, "other" for an image of another kind, None for
    no image."""
    if head[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if (
        head[:2] == b"BM"
        and len(head) >= 18
        and struct.unpack("<I", head[14:18])[0] in (12, 16, 40, 52, 56, 64, 108, 124)
    ):
        return "BMP"  # two letters alone would make an image of any text that begins with BM
    if head[4:8] == b"ftyp" and head[8:12] in (
        b"avif",
        b"avis",
        b"heic",
        b"heix",
        b"hevc",
        b"heim",
        b"heis",
        b"mif1",
        b"msf1",
    ):
        # mif1 alone is either; what it is compatible with follows.
        return "AVIF" if b"avi" in head[8:] else "HEIF"
    if (
        head[:12] == b"\0\0\0\x0cjP  \r\n\x87\n"
        or head[:4] in (b"8BPS", b"\0\0\1\0", b"\xff\x4f\xff\x51")
        or head[:12] == b"\0\0\0\x0cJXL \r\n\x87\n"
    ):
        return "other"
    return None


def passed_over(name: str) -> bool:
    """Whether a file or folder of this name is hidden, a copy that an editor kept, or one of
    LEFT_OVERS: no photo, and nothing in it is one."""
    return name.startswith(".") or name.endswith(("~", ".lrdata")) or name.casefold() in LEFT_OVERS


def may_be_image(path: str | Path, *, look: bool = True) -> bool:
    """Whether the file at `path` is an image, be it damaged or of a kind that is not read: its name
    says so, or its content.

    look: False judges by the name alone; then a name without a suffix may be an image's.
    False too for a file that cannot be read and is not called an image.
    """
    path = Path(path)
    if path.suffix.lower() in SUFFIXES | UNSUPPORTED_SUFFIXES:
        return True
    if not look:
        return not path.suffix
    try:
        with path.open("rb") as file:
            return sniff(file.read(32)) is not None
    except OSError:
        return False


def open_rgb(
    source: Source,
    *,
    at_least: int | None = None,
    max_megapixels: float | None = MAX_MEGAPIXELS,
    white: int = 0,
) -> Image.Image:
    """The image as an 8-bit RGB `PIL.Image`, upright.

    source: path, bytes or binary file. The first frame of an animation or of a TIFF stack; EXIF
    rotation applied; transparency laid over white, or over black where nothing shows on white;
    samples of more than 8 bits scaled by the bits that the file states, else by those that its
    largest sample takes; a colour profile converted to sRGB; CMYK, palette and grey converted.
    at_least: a JPEG that is much larger may be decoded at 1/2, 1/4 or 1/8, with both sides still >=
    this many pixels. max_megapixels: the limit, checked before decoding, on what is decoded: after
    that reduction of a JPEG, unless it comes in several scans, and twice the pixels where they take
    twice the memory (transparency, CMYK, 16 bits a colour, WebP); None = no limit.
    white: the 16-bit sample that is white where a file states none and has none beyond; 0 = by its
    own largest sample. Raises ImageProblem for anything that cannot be used, FileNotFoundError and
    its like for a path that cannot be read.
    """
    return decode(_stream(source), at_least=at_least, max_megapixels=max_megapixels, white=white)[0]


def decode(
    stream: BinaryIO,
    *,
    at_least: int | None = None,
    max_megapixels: float | None = MAX_MEGAPIXELS,
    white: int = 0,
) -> tuple[Image.Image, dict[str, Any]]:
    """(RGB image as of `open_rgb`, properties) of an open binary stream that can be sought.

    properties: `format`, `mode` (before conversion), `orientation` (EXIF, 1..8), `width`, `height`
    of the whole image, upright, `megapixels` that were decoded, `notes` (FIRST_FRAME, or a text
    that begins with OWN_RANGE), `most`: the largest of 16-bit samples of which nothing says what is
    white, 0 for all others.
    """
    head = stream.read(32)
    if not head:
        raise ImageProblem("empty", "no bytes in the file")
    kind = sniff(head)
    if kind is None:
        raise ImageProblem("undecodable", "no picture in it")
    _check_readable(kind)
    stream.seek(0)
    try:
        image, properties = _decode(kind, stream, at_least, max_megapixels, white)
    except ImageProblem:
        raise
    except MemoryError:
        raise ImageProblem("too_large", "more memory than there is") from None
    except Exception as error:
        # Whatever the damage leads a plugin of Pillow to: OSError, SyntaxError, KeyError,
        # struct.error.
        # An address is another one at each run.
        text = re.sub(r" <\S+ object at 0x\w+>", "", str(error))
        text = " ".join(text.split()) or type(error).__name__
        cut_off = "truncated" in text or _is_cut_off(kind, stream)
        raise ImageProblem("truncated" if cut_off else "undecodable", text) from None
    return _upright(image, properties["orientation"]), properties


def _check_readable(kind):
    if kind == "HEIF":
        try:
            import pillow_heif
        except ImportError:
            raise ImageProblem(
                "unsupported", "HEIC is read with pillow-heif: pip install 'graft-vision[heic]'"
            ) from None
        pillow_heif.register_heif_opener()
    if kind == "other" or (kind == "AVIF" and not features.check("avif")):
        raise ImageProblem("unsupported", f"a picture, but none of {', '.join(FORMATS)}")


def _decode(kind, stream, at_least, max_megapixels, white):
    """(RGB image as it is stored, properties)."""
    try:
        image, properties = _loaded(kind, stream, at_least, max_megapixels)
    except ValueError as error:
        if kind != "PNG" or "MAX_TEXT" not in str(error):
            raise
        stream, profile = _without_text(stream)
        image, properties = _loaded(kind, stream, at_least, max_megapixels)
        image.info["icc_profile"] = profile
    if kind == "JPEG" and _lost_its_end(
        image, stream, at_least, (properties["width"], properties["height"])
    ):
        raise ImageProblem("truncated", "its data ends early, though its end is marked")
    properties["orientation"] = _orientation(image)
    if properties["orientation"] >= 5:
        properties["width"], properties["height"] = properties["height"], properties["width"]
    return _to_rgb(image, stream, properties, white), properties


def _loaded(kind, stream, at_least, max_megapixels):
    """(Pillow's image, its pixels decoded, its properties); `deep` of them is as of
    `_deep_bytes`."""
    image = Image.open(stream, formats=(kind,))
    width, height = image.size
    if at_least is not None:
        image.draft(None, (at_least, at_least))
    deep = _deep_bytes(image)
    double = (
        image.mode in ("RGBA", "LA", "PA", "CMYK", "RGBa", "La")
        or "transparency" in image.info
        or deep
        or kind == "WEBP"
    )
    megapixels = image.width * image.height * (2 if double else 1) / 1e6
    if kind == "JPEG" and _is_held_whole(image, stream):
        megapixels = max(megapixels, width * height / 1e6)
    if max_megapixels is not None and megapixels > max_megapixels:
        raise ImageProblem(
            "too_large", f"{width} x {height} pixels, {megapixels:.0f} megapixels to decode"
        )
    notes = [FIRST_FRAME] if kind not in ("JPEG", "HEIF") and _is_animated(image) else []
    known = {
        "format": image.format,
        "mode": image.mode,
        "width": width,
        "height": height,
        "megapixels": megapixels,
    }
    properties = {**known, "notes": notes, "deep": deep, "most": 0}
    image.load()
    return image, properties


def load(
    source: Source,
    size: int,
    *,
    resize: str = "squash",
    max_megapixels: float | None = MAX_MEGAPIXELS,
    white: int = 0,
) -> np.ndarray:
    """The image as `size` x `size`, by one of RESIZE: uint8, shape (size, size, 3), RGB, 0..255.

    A large JPEG is decoded at a reduced scale of at least twice the size: 3 times as fast for a
    phone's photo. Raises as `open_rgb`.
    """
    return fit(
        open_rgb(source, at_least=2 * size, max_megapixels=max_megapixels, white=white),
        size,
        resize,
    )


def is_large(source: bytes | str | Path) -> bool:
    """Whether an image, bytes or a path, has more than LARGE pixels by its header: a few of these
    at once fill the memory.

    False for what is no image; decoding will say so.
    """
    try:
        with Image.open(
            io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source
        ) as image:
            return bool(image.width * image.height > LARGE)
    except Exception:  # whatever Pillow's readers raise on damaged files
        return False


def fit(image: Image.Image, size: int, resize: str) -> np.ndarray:
    """An RGB image as uint8 (size, size, 3), by one of RESIZE."""
    wide, high = image.size
    if resize == "crop" and wide != high:
        side = min(wide, high)
        left, top = (wide - side) // 2, (high - side) // 2
        image = image.resize(
            (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
        )
    elif resize == "pad" and wide != high:
        scale = size / max(wide, high)
        inner = image.resize(
            (max(1, round(wide * scale)), max(1, round(high * scale))), Image.Resampling.BILINEAR
        )
        image = Image.new("RGB", (size, size), (127, 127, 127))
        image.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
    elif image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)


def _stream(source):
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if hasattr(source, "read"):
        return source if source.seekable() else io.BytesIO(source.read())
    return io.BytesIO(Path(source).read_bytes())


def _orientation(image):
    """EXIF orientation 1..8; 1 where there is none or the EXIF block is damaged (the pixels may be
    fine all the same)."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image, orientation):
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _is_animated(image):
    try:
        return bool(image.is_animated)
    except Exception:  # the second frame may be damaged; it is the first that is asked for
        return False


def _to_rgb(image, stream, properties, white):
    """Any mode to RGB. Takes `deep` (see `_deep_bytes`) out of `properties`, adds `most`, and to
    `notes` what a person should know."""
    deep, notes = properties.pop("deep"), properties["notes"]
    profile, told = image.info.get("icc_profile"), _told_white(image, stream)
    if image.mode.startswith("I;16"):
        image = _narrowed(
            np.asarray(image), told, properties, white, inverted=_tag(image, PHOTOMETRIC) == 0
        )
    elif image.mode in ("I", "F"):
        raise ImageProblem("unsupported", "32-bit samples: nothing says which value is white")
    elif deep and max(high for _, high in image.getextrema()[:3]) < 64:
        # Of the upper bytes: 14 bits are used at most.
        alpha = image.getchannel("A") if image.mode == "RGBA" else None
        image = _narrowed(_both_bytes(image, deep, stream), told, properties, white)
        if alpha:
            image.putalpha(alpha)
    elif image.mode in ("L", "RGB") and told and 0 < np.max(image.getextrema()) <= told < 255:
        image = image.point(
            [min(255, (value * 255 + told // 2) // told) for value in range(256)]
            * len(image.getbands())
        )
    if image.mode in ("LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    elif image.mode == "P":
        image = image.convert("RGB")
    if profile or image.mode == "LAB":
        image = _to_srgb(image, profile)
    if image.mode == "RGBA":
        return _opaque(image, notes)
    return image if image.mode == "RGB" else image.convert("RGB")


def _tag(image, number):
    """Value of a TIFF tag, None for another format or none."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) and value else value


def _told_white(image, stream):
    """The sample that is white as the file says, by PNG's sBIT, TIFF's largest sample or bits of
    one; None if it does not."""
    if image.format == "PNG":
        stream.seek(0)
        # Stands before the pixels.
        head, found, data = stream.read(1 << 16).partition(b"IDAT")[0].partition(b"sBIT")
        return (
            (1 << data[0]) - 1
            if found and head[-4:] in (b"\0\0\0\1", b"\0\0\0\3", b"\0\0\0\4")
            else None
        )
    bits = _tag(image, BITS) or 16
    return _tag(image, MAX_SAMPLE) or ((1 << bits) - 1 if bits < 16 else None)


def _narrowed(values, told, properties, white, *, inverted=False):
    """Samples of 16 bits, (h, w) or (h, w, 3), as an 8-bit image. told: as of `_told_white`; white:
    as of `open_rgb`."""
    most = int(values.max(initial=0))
    if told and most <= told < 65535:
        white = told
    else:  # nothing told, or what every such file may say
        properties["most"] = most
        if not white or most > white:
            bits = max(1, most.bit_length())
            white = (1 << bits) - 1
            properties["notes"] += (
                [f"{OWN_RANGE} (0 to {most}, read as {bits} bits)"] if bits < 16 else []
            )
    scale = np.minimum((np.arange(1 << 16) * 255 + white // 2) // white, 255).astype(np.uint8)
    return Image.fromarray((255 - scale if inverted else scale)[values])


def _deep_bytes(image):
    """The raw mode that gives the lower bytes of 16-bit colours, of an image not yet loaded; None
    for others. Pillow keeps the upper ones alone."""
    args = (
        image.tile[0].args
        if image.mode in ("RGB", "RGBA") and image.format in ("PNG", "TIFF") and image.tile
        else ""
    )
    raw = args if isinstance(args, str) else next(iter(args or ()), "")
    # Read in the other order, lower bytes are the upper.
    other = {"B": "L", "L": "B", "N": "B" if np.little_endian else "L"}
    return raw[:-1] + other[raw[-1]] if re.fullmatch("RGBA?;16[BLN]", raw) else None


def _both_bytes(image, deep, stream):
    """uint16 (h, w, 3) of an image whose upper bytes are loaded: it is decoded again for the lower
    ones."""
    stream.seek(0)
    again = Image.open(stream, formats=(image.format,))
    again.tile = [
        t._replace(args=deep if isinstance(t.args, str) else (deep, *t.args[1:]))
        for t in again.tile
    ]
    again.load()
    both = np.empty((image.height, image.width, 3), np.uint16)
    # By bands, which spare half a gigabyte of a large picture.
    for top in range(0, image.height, BAND):
        box = (0, top, image.width, min(top + BAND, image.height))
        upper, lower = (np.asarray(part.crop(box))[..., :3] for part in (image, again))
        both[top : top + BAND] = upper
        both[top : top + BAND] <<= 8
        both[top : top + BAND] |= lower
    return both


def _is_held_whole(image, stream):
    """Whether a JPEG comes in several scans: its decoder then holds all of it, 3 to 6 bytes a
    pixel, at whatever scale."""
    if image.info.get("progressive"):
        return True
    position = stream.tell()
    stream.seek(0)
    head = stream.read(1 << 16)
    stream.seek(position)
    start, layers = _first_scan(head), getattr(image, "layers", 1)
    # The components of the first scan, which are all where it is the only one.
    return bool(start) and head[start + 4] < layers


def _first_scan(content):
    """Position of the marker of a JPEG's first scan, 0 where `content` ends before."""
    position = 2
    while content[position : position + 1] == b"\xff" and position + 5 <= len(content):
        if content[position + 1] == 0xDA:
            return position
        position += (
            2 + int.from_bytes(content[position + 2 : position + 4], "big")
            if content[position + 1] != 0xFF
            else 1
        )
    return 0


def _to_srgb(image, profile):
    """An image by its colour profile; as it is where that is sRGB, damaged, or of another kind of
    image."""
    transform = _transform(profile, image.mode)
    return ImageCms.applyTransform(image, transform) if transform else image


@functools.lru_cache(maxsize=16)
def _transform(profile, mode):
    """What turns colours of `profile` (bytes; None for those of LAB) into sRGB, None where there is
    nothing to turn."""
    wanted = "RGBA" if mode == "RGBA" else "RGB"
    try:
        source = (
            ImageCms.createProfile("LAB")
            if mode == "LAB"
            else ImageCms.ImageCmsProfile(io.BytesIO(profile))
        )
        # No cache: one transform serves all threads.
        made = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, wanted, flags=ImageCms.Flags.NOCACHE
        )
        if mode == "RGB":
            steps = np.stack(np.meshgrid(*[np.arange(0, 256, 51, np.uint8)] * 3), axis=-1).reshape(
                36, 6, 3
            )
            after = np.asarray(ImageCms.applyTransform(Image.fromarray(steps), made), np.int16)
            return made if np.abs(after - steps).max() > 3 else None
        return made
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _opaque(image, notes):
    """RGBA as RGB: on white, on black where white leaves next to nothing to be seen and black does
    not."""
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return image.convert("RGB")
    if alpha.getextrema() == (0, 0):
        notes.append(HIDDEN)
    small = image.reduce(max(1, min(image.size) // 64))
    spread = {}
    for ground in ("white", "black"):
        sheet = Image.new("RGB", small.size, ground)
        sheet.paste(small, mask=small.getchannel("A"))
        spread[ground] = np.asarray(sheet.convert("L")).std()
    sheet = Image.new(
        "RGB", image.size, "black" if spread["white"] * 8 < spread["black"] else "white"
    )
    sheet.paste(image, mask=alpha)
    return sheet


def _without_text(stream):
    """(a PNG without its texts, of which there may be more than Pillow reads; its profile, or
    b"")."""
    stream.seek(0)
    content = stream.read()
    kept, profile, position = [content[:8]], b"", 8
    while position + 12 <= len(content):
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        name = content[position + 4 : position + 8]
        if name == b"iCCP":
            packed = content[position + 8 : end - 4].partition(b"\0")[2][1:]
            profile = zlib.decompressobj().decompress(packed, LARGEST_PROFILE)
        elif name not in (b"tEXt", b"zTXt", b"iTXt"):
            kept.append(content[position:end])
        position = end
    return io.BytesIO(b"".join(kept)), profile


def _lost_its_end(image, stream, at_least, size):
    """Whether the data of a JPEG ends before the image does, though its end is marked: decoders
    fill up in silence.

    Where no data is left, libjpeg leaves mid-grey; what a disk or a download put in its place,
    zeros mostly, is a run of one byte. A sound file may show or hold either, and is known by
    decoding it without its last bytes: what lies above a grey end stays, and a run that stood for
    something is missed. image: as decoded; size: of the whole, in pixels.
    """
    strip = image.crop((0, image.height - max(1, image.height // 16), *image.size))
    grey = all(126 < low <= high < 130 for low, high in np.reshape(strip.getextrema(), (-1, 2)))
    stream.seek(0)
    content = stream.read()
    if not grey and not _ends_in_run(content[: content.rfind(END_OF_IMAGE)]):
        return False
    end, scans = _end_of_scans(content)
    data = content[:end].rstrip(b"\xff")
    run = _ends_in_run(data)
    if not data or not (grey or run):
        return False
    if grey and image.info.get("progressive"):
        return scans == 1  # later scans would have filled it
    # For the strip stand two bits a block or more, so this much at least.
    rest = (
        data[:-16]
        if not grey
        else data.rstrip(data[-1:])
        if run
        else data[: -max(2, size[0] * size[1] // 4096)]
    )
    again = Image.open(io.BytesIO(rest.rstrip(b"\xff") + END_OF_IMAGE), formats=("JPEG",))
    if at_least is not None:
        again.draft(None, (at_least, at_least))
    try:
        before, after = (np.asarray(each, np.int16) for each in (image, again))
    except OSError:  # all its data was one run, as an even picture's may be
        return False
    # The block that was cut through is left out.
    above = image.height * 7 // 8 - 16 * image.height // size[1]
    differs = np.abs(after - before)[: max(0, above) if grey else None].max(initial=0) > 1
    if grey:
        return bool(differs)
    return not differs or _is_textured(content)


def _is_textured(content):
    """Whether the last block of a JPEG that ends in a run of one byte shows more than one colour:
    an even picture may be stored as such a run; filling that decodes to something repeats what
    nobody painted."""
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as whole:
        block = whole.crop((max(0, whole.width - 16), max(0, whole.height - 16), *whole.size))
    return any(high - low > 8 for low, high in np.reshape(block.getextrema(), (-1, 2)))


def _ends_in_run(data):
    return len(set(data.rstrip(b"\xff")[-32:])) == 1


def _end_of_scans(content):
    """(position of the marker that ends the data of a JPEG, 0 if there is none; number of its
    scans)."""
    position, scans = 2, 0
    while content[position : position + 1] == b"\xff":
        marker = content[position + 1 : position + 2]
        if marker == b"\xd9":
            return position, scans
        position += (
            2 + int.from_bytes(content[position + 2 : position + 4], "big")
            if marker != b"\xff"
            else 1
        )
        if marker == b"\xda":
            scans += 1
            found = re.compile(b"\xff[^\x00\xff\xd0-\xd7]").search(content, position)
            position = found.start() if found else len(content)
    return 0, scans


def _is_cut_off(kind, stream):
    """Whether a damaged file lacks its end: the marker that a whole file of its kind closes with,
    or the length it states."""
    stream.seek(0, io.SEEK_END)
    length = stream.tell()
    stream.seek(max(0, length - 1024))
    tail = stream.read()
    if kind == "JPEG":
        return b"\xff\xd9" not in tail
    if kind == "PNG":
        return b"IEND" not in tail
    if kind == "GIF":
        return not tail.rstrip(b"\0").endswith(b";")
    stream.seek(0)
    head = stream.read(8)
    if kind == "WEBP":
        return struct.unpack("<I", head[4:8])[0] + 8 > length
    if kind == "BMP":
        return struct.unpack("<I", head[2:6])[0] > 0 and struct.unpack("<I", head[2:6])[0] > length
    if kind == "TIFF":
        return (
            head[2] in (0x2A, 0)
            and struct.unpack("<I" if head[:1] == b"I" else ">I", head[4:8])[0] >= length
        )
    return False


def probe(size: int, resize: str = "squash") -> np.ndarray:
    """A small fixed JPEG as `load` gives it: its pixels change with what decodes and resizes, and
    with nothing else."""
    return load(base64.b64decode(PROBE), size, resize=resize)


PROBE = (
    b"/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABQODxIPDRQSEBIXFRQYHjIhHhwcHj0sLiQySUBMS0dARkVQWnNiUFVtVkVGZIhlbXd7gYKBTmCNl4"
    b"x9lnN+gXz/2wBDARUXFx4aHjshITt8U0ZTfHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHz/wAARCAAw"
    b"AEADASIAAhEBAxEB/8QAGgAAAgMBAQAAAAAAAAAAAAAABAUCAwYAAf/EACIQAAICAgICAgMAAAAAAAAAAAECAAMEERIhEzEiQQVRYf/EABgBAQ"
    b"ADAQAAAAAAAAAAAAAAAAQCAwUB/8QAIxEAAQQCAgICAwAAAAAAAAAAAQACAwQREhMhMVEFFCIyQf/aAAwDAQACEQMRAD8A0ItH7lGV86zqLlyi"
    b"D2YXRkpYQpMNDVNdSswiQdFI78VzZvUtqrKDuaRsWtk5airKRU3qXCzqdfaPCeA4KjTaFI3CrchWq1uIrripOjK6Ml2sAJ6kZvjySJQnl+n5BF"
    b"8D5t/W41oyEVACYNwU07+4oyLbFchSZyY/dAb6R7Nvl6K6zI0vRlONmst42epSyORB7K3XsCa1zUYwotYY/Bytxj/kqzQAWG9RfmWhySDMvjZF"
    b"/lC7Oo/rqsejZEAK7ZHA5R7OSQgbTybUnj47cwdTwVMLuxHGOK1Qb1NKaVsMeqTFsQva0bx6g9mLyPqHC6v1sSYZDMGIcTi72qZW8vR6SMmv+S"
    b"izxka6i9r217la3MW1uas1JzBklJhfxA57TLFqQXA6mlpenwAdTLVMQu5fVlPy1uEr1nTEuz4XGETElM8hF5EiBWXsvQMv5lq9mA2n5SwsNg6+"
    b"lIWRD/FwyH5e4UmUde4ER1IFyJx1bVVyOFr9el//2Q=="
)
