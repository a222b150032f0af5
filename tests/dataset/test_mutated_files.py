"""5,000 damaged files of every format: a named problem or a picture, in bounded time and memory,
and never anything else."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

ROOT = Path(__file__).parents[2]
FILES, PARTS = 5000, 2
SECONDS, MEGABYTES = 2.0, 600
KINDS = {"", "empty", "truncated", "undecodable", "too_large", "unsupported", "non_image"}


def seeds():
    """{name: bytes}: sound pictures in every format, and in every way of storing pixels that their
    decoders know."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (23, 37, 3), dtype=np.uint8)).resize(
        (64, 40), Image.Resampling.BICUBIC
    )
    rgba, grey, palette = rgb.convert("RGBA"), rgb.convert("L"), rgb.convert("P")
    deep = Image.fromarray((np.asarray(grey, np.uint16) * 257).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a note"
    made = {
        "jpeg": (rgb, "JPEG", {"exif": exif, "quality": 80}),
        "progressive": (rgb, "JPEG", {"progressive": True}),
        "cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "grey": (grey, "JPEG", {"optimize": True}),
        "png": (rgb, "PNG", {}),
        "alpha": (rgba, "PNG", {}),
        "palette": (palette, "PNG", {"transparency": 3}),
        "deep": (deep, "PNG", {}),
        "bits": (grey.convert("1"), "PNG", {}),
        "gif": (palette, "GIF", {"save_all": True, "append_images": [palette.rotate(90)]}),
        "bmp": (rgb, "BMP", {}),
        "tiff": (rgb, "TIFF", {}),
        "lzw": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "deflate": (deep, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff_jpeg": (rgb, "TIFF", {"compression": "jpeg"}),
        "webp": (rgb, "WEBP", {}),
        "lossless": (rgba, "WEBP", {"lossless": True}),
        "moving": (rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(90)]}),
    }
    if features.check("avif"):
        made["avif"] = (rgb, "AVIF", {})
    found = {}
    for name, (image, kind, options) in made.items():
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        found[name] = stream.getvalue()
    return found


def mutated(content, rng):
    """`content` with one to four wounds: bits flipped, numbers made extreme, parts cut off, zeroed,
    moved or repeated."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        a, b = sorted(rng.integers(0, len(data), 2).tolist()) if len(data) > 1 else (0, 0)
        match rng.integers(0, 8):
            case 0:
                for at in rng.integers(0, len(data), rng.integers(1, 20)).tolist():
                    data[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                del data[max(1, b) :]
            case 2:
                data[a:b] = bytes(b - a)
            case 3:
                data[a:a] = data[a:b]
            case 4:
                c = int(rng.integers(0, len(data)))
                data[c : c + b - a], data[a:b] = data[a:b], data[c : c + b - a]
            case 5:  # in the header, where sizes stand
                at = int(rng.integers(0, min(64, len(data))))
                data[at : at + 4] = (
                    b"\xff\xff\xff\x7f" if rng.integers(0, 2) else b"\x7f\xff\xff\xff"
                )
            case 6:
                del data[a : min(b, a + 16)]
            case 7:
                data += bytes(rng.integers(0, 256, 64, dtype=np.uint8))
        data = data or bytearray(b"\0")
    return bytes(data)


def examine(part):
    """What the test's other processes do: every PARTS-th of the files; a line for each that broke a
    rule, and how many ran."""
    import resource
    import time
    import warnings

    from graft import pixels
    from graft.dataset import scan

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    sound, place, broken = list(seeds().items()), Path(sys.argv[2]), []
    path = place / f"{part}.bin"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(part, FILES, PARTS):
        name, content = sound[number % len(sound)]
        path.write_bytes(mutated(content, np.random.default_rng(number)))
        print(number, flush=True)  # the last one is the culprit where this process ends here
        started = time.process_time()
        kind = scan.examine(path).problem
        try:
            pixels.load(path, 32)
        except (pixels.ImageProblem, OSError) as error:
            kind = kind or getattr(error, "kind", "")
        took = time.process_time() - started
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit
        if kind not in KINDS or took > SECONDS or grown > MEGABYTES:
            broken.append((number, name, kind, round(took, 2), round(grown)))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(broken))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="measures memory by getrusage")
def test_damaged_files_are_named_problems_in_bounded_time_and_memory(tmp_path):
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.dataset.test_mutated_files"]
    running = [
        subprocess.Popen(
            [*command, str(part), str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for part in range(PARTS)
    ]
    for process in running:
        out, err = process.communicate(timeout=1200)
        lines = out.splitlines()
        assert process.returncode == 0, f"file {lines[-1] if lines else '?'}: {err[-2000:]}"
        assert json.loads(lines[-1]) == []
        assert len(lines) - 1 == FILES // PARTS


if __name__ == "__main__":
    examine(int(sys.argv[1]))
