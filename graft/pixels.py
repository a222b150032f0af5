"""Decode one image file safely. Training, evaluation and serving read images through `load`, so they see the same pixels.

Needs only Pillow and NumPy, and nothing of graft: it travels with the model.
"""

from __future__ import annotations

import base64
import io
import re
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile

Source = str | Path | bytes | bytearray | memoryview | BinaryIO  # of an image

RESIZE = {  # how an image becomes size x size; bilinear with antialiasing (Pillow) in any case
    "squash": "the whole image, its proportions changed",
    "crop": "the square in the middle",
    "pad": "the whole image in its proportions, on grey",
}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"})
# Suffixes of images that graft does not read. Such a file is reported, not passed over as if it were a text file.
UNSUPPORTED_SUFFIXES = frozenset({
    ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".psd", ".ico", ".svg", ".tga", ".pcx", ".ppm", ".pgm", ".pbm", ".pnm",
    ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".exr", ".hdr", ".dcm", ".xcf", ".eps",
})  # fmt: skip
MAX_MEGAPIXELS = 178.0  # where Pillow itself would refuse an image as a decompression bomb

Image.MAX_IMAGE_PIXELS = None  # `open_rgb` checks the size itself, against the limit that the user set, before it decodes
ImageFile.LOAD_TRUNCATED_IMAGES = False  # True would fill up half an image with grey and call it whole

ORIENTATION = 0x0112  # EXIF tag


class ImageProblem(Exception):
    """An image that cannot be used. `kind`: empty, truncated, undecodable, unsupported, too_large; `detail`: for a person."""

    def __init__(self, kind: str, detail: str):
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


def sniff(head: bytes) -> str | None:
    """Format by the first 32 bytes: one of FORMATS, "other" for an image of another kind, None for no image."""
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
    if head[:2] == b"BM" and len(head) >= 18 and struct.unpack("<I", head[14:18])[0] in (12, 16, 40, 52, 56, 64, 108, 124):
        return "BMP"  # two letters alone would make an image of any text that begins with BM
    if (
        (
            head[4:8] == b"ftyp"
            and head[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
        )
        or head[:12] == b"\0\0\0\x0cjP  \r\n\x87\n"
        or head[:4] in (b"8BPS", b"\0\0\1\0", b"\xff\x4f\xff\x51")
        or head[:12] == b"\0\0\0\x0cJXL \r\n\x87\n"
    ):
        return "other"
    return None


def may_be_image(path: str | Path, *, look: bool = True) -> bool:
    """Whether the file at `path` is an image, be it damaged or of a kind that is not read: its name says so, or its content.

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


def open_rgb(source: Source, *, at_least: int | None = None, max_megapixels: float | None = MAX_MEGAPIXELS) -> Image.Image:
    """The image as an 8-bit RGB `PIL.Image`, upright.

    source: path, bytes or binary file. The first frame of an animation or of a TIFF stack; EXIF
    rotation applied; transparency laid over white; 16-bit greys scaled to 8 bits; CMYK, palette and
    grey converted.
    at_least: a JPEG that is much larger may be decoded at 1/2, 1/4 or 1/8, with both sides still >= this many pixels.
    max_megapixels: the limit, checked before decoding; None = no limit.
    Raises ImageProblem for anything that cannot be used, FileNotFoundError and its like for a path that cannot be read.
    """
    return decode(_stream(source), at_least=at_least, max_megapixels=max_megapixels)[0]


def decode(
    stream: BinaryIO, *, at_least: int | None = None, max_megapixels: float | None = MAX_MEGAPIXELS
) -> tuple[Image.Image, dict]:
    """(RGB image as of `open_rgb`, properties) of an open binary stream that can be sought.

    properties: `format`, `mode` (before conversion), `orientation` (EXIF, 1..8), `width`, `height` of the whole image, upright.
    """
    head = stream.read(32)
    if not head:
        raise ImageProblem("empty", "no bytes in the file")
    kind = sniff(head)
    if kind == "other":
        raise ImageProblem("unsupported", f"a picture, but none of {', '.join(FORMATS)}")
    if kind is None:
        raise ImageProblem("undecodable", "no picture in it")
    stream.seek(0)
    try:
        image = Image.open(stream, formats=(kind,))
        width, height = image.size
        if max_megapixels is not None and width * height > max_megapixels * 1e6:
            raise ImageProblem("too_large", f"{width} x {height} pixels")
        properties = {"format": image.format, "mode": image.mode}
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        image.load()
        properties["orientation"] = _orientation(image)
        image = _upright(_to_rgb(image), properties["orientation"])
    except ImageProblem:
        raise
    except MemoryError:
        raise ImageProblem("too_large", "more memory than there is") from None
    except Exception as error:  # whatever the damage leads a plugin of Pillow to: OSError, SyntaxError, KeyError, struct.error
        text = re.sub(r" <\S+ object at 0x\w+>", "", str(error))  # an address is another one at each run
        text = " ".join(text.split()) or type(error).__name__
        cut_off = "truncated" in text or _is_cut_off(kind, stream)
        raise ImageProblem("truncated" if cut_off else "undecodable", text) from None
    properties["width"], properties["height"] = (height, width) if properties["orientation"] >= 5 else (width, height)
    return image, properties


def load(source: Source, size: int, *, resize: str = "squash", max_megapixels: float | None = MAX_MEGAPIXELS) -> np.ndarray:
    """The image as `size` x `size`, by one of RESIZE: uint8, shape (size, size, 3), RGB, 0..255.

    A large JPEG is decoded at a reduced scale of at least twice the size: 3 times as fast for a phone's photo.
    Raises as `open_rgb`.
    """
    return fit(open_rgb(source, at_least=2 * size, max_megapixels=max_megapixels), size, resize)


def fit(image: Image.Image, size: int, resize: str) -> np.ndarray:
    """An RGB image as uint8 (size, size, 3), by one of RESIZE."""
    wide, high = image.size
    if resize == "crop" and wide != high:
        side = min(wide, high)
        left, top = (wide - side) // 2, (high - side) // 2
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    elif resize == "pad" and wide != high:
        scale = size / max(wide, high)
        inner = image.resize((max(1, round(wide * scale)), max(1, round(high * scale))), Image.Resampling.BILINEAR)
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
    """EXIF orientation 1..8; 1 where there is none or the EXIF block is damaged (the pixels may be fine all the same)."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def _upright(image, orientation):
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _to_rgb(image):
    """Any mode to RGB."""
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "I" and image.format == "PNG":  # how older Pillow reads a 16-bit PNG
        return Image.fromarray(((np.asarray(image).clip(0, 65535) + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageProblem("unsupported", "32-bit samples: nothing says which value is white")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_cut_off(kind, stream):
    """Whether a damaged file lacks its end: the marker that a whole file of its kind closes with, or the length it states."""
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
        return head[2] in (0x2A, 0) and struct.unpack("<I" if head[:1] == b"I" else ">I", head[4:8])[0] >= length
    return False


def probe(size: int, resize: str = "squash") -> np.ndarray:
    """A small fixed JPEG as `load` gives it: its pixels change with what decodes and resizes, and with nothing else."""
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
