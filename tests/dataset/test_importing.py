import copy
import datetime
import functools
import hashlib
import http.server
import io
import os
import signal
import ssl
import struct
import subprocess
import sys
import tarfile
import threading
import types
import zipfile
import zlib
from pathlib import Path

import pytest

from graft.dataset import archives, importing, scan
from graft.dataset.labels import ByFolder
from graft.dataset.scan_cache import ScanCache
from graft.params import ImportLimits
from graft.system.console import GraftError

from .pictures import encoded, folder, scene

LIMITS = ImportLimits(max_files=1000, max_gb=0.1, max_ratio=200)
PHOTOS = Path(__file__).parents[3] / "shared" / "datasets"
PICTURE = encoded(scene(0), quality=80)


def run(source, tmp_path, more=(), **options):
    return importing.import_dataset(
        source, *more, into=tmp_path / "raw", **{"limits": LIMITS, **options}
    )


def left_behind(tmp_path):
    return (
        sorted(p.name for p in (tmp_path / "raw").iterdir()) if (tmp_path / "raw").exists() else []
    )


def tree(root):
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def tarred(path, files, mode="w"):
    with tarfile.open(path, mode) as file:
        for name, content in files.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = 0 if isinstance(content, tarfile.TarInfo) else len(content)
            file.addfile(
                info, None if isinstance(content, tarfile.TarInfo) else io.BytesIO(content)
            )
    return path


def member(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


CLASSES = {"cat/1.jpg": PICTURE, "cat/sub/2.JPG": PICTURE, "dog/ü 3.jpg": PICTURE}


@pytest.mark.parametrize("prefix", ["", "photos/", "a/b c/photos/"])
@pytest.mark.parametrize(
    "pack, name",
    [
        (zipped, "set.zip"),
        (tarred, "set.tar"),
        (functools.partial(tarred, mode="w:gz"), "set.tar.gz"),
        (functools.partial(tarred, mode="w:gz"), "set.tgz"),
        (functools.partial(tarred, mode="w:gz"), "set.bin"),
    ],
)
def test_archives(tmp_path, pack, name, prefix):
    extra = {
        prefix + "README.txt": b"x",
        "__MACOSX/cat/._1.jpg": b"x",
        ".hidden/dog/1.jpg": PICTURE,
    }
    source = pack(
        tmp_path / name, {prefix + path: content for path, content in CLASSES.items()} | extra
    )
    result = run(source, tmp_path)
    assert result.folder == tmp_path / "raw" / ("set" if name != "set.bin" else "set.bin")
    assert (
        result.counts == {("", "cat"): 2, ("", "dog"): 1}
        and result.classes == ["cat", "dog"]
        and result.images == 3
    )
    assert {
        path: content for path, content in tree(result.folder).items() if path in CLASSES
    } == CLASSES
    assert left_behind(tmp_path) == [result.folder.name]


def test_a_folder_is_copied_and_left_as_it_was(tmp_path, capsys):
    source = folder(tmp_path / "My photos (2024)" / "wrapped", each=3)
    (source / ".git").mkdir()
    (source / ".git" / "config").write_text("x")
    before = tree(tmp_path / "My photos (2024)")
    result = run(tmp_path / "My photos (2024)", tmp_path)
    assert result.folder.name == "My-photos-2024" and len(tree(result.folder)) == 6
    assert tree(tmp_path / "My photos (2024)") == before
    told = capsys.readouterr().out
    assert "6 images in 2 classes" in told and "cat: 3" in told
    assert (
        f"dvc exp run -S data.path={result.folder.as_posix()}\n" in told
        and f"dvc add {result.folder.as_posix()} " in told
    )


@pytest.mark.parametrize("tops, counts", [
    (["train", "test"], {("train", "cat"): 1, ("train", "dog"): 1, ("test", "cat"): 1,
                         ("test", "dog"): 1}),
    (["Train", "valid", "test"],
     {(s, c): 1 for s in ("train", "val", "test") for c in ("cat", "dog")}),
    (["train"], {("train", "cat"): 1, ("train", "dog"): 1}),
])  # fmt: skip
def test_splits_are_kept(tmp_path, tops, counts):
    files = {f"deep/set/{top}/{label}/1.jpg": PICTURE for top in tops for label in ("cat", "dog")}
    result = run(zipped(tmp_path / "set.zip", files), tmp_path)
    assert result.counts == counts and sorted(p.name for p in result.folder.iterdir()) == sorted(
        tops
    )


def locked_zip(path):
    zipped(path, CLASSES)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = -1
        while (at := content.find(signature, at + 1)) >= 0:
            content[at + offset] |= 1
    path.write_bytes(content)
    return path


def link_in_zip(path):
    """An entry that is a link out of the folder, and one that would be written through it."""
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo("cat/out")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        file.writestr(info, "../../..")
        file.writestr("cat/out/evil.jpg", PICTURE)
        file.writestr("dog/1.jpg", PICTURE)
    return path


ATTACKS = {
    "zip ..": (lambda p: zipped(p, CLASSES | {"../evil.jpg": PICTURE}), "leads out of the folder"),
    "zip deep ..": (
        lambda p: zipped(p, CLASSES | {"cat/../../evil.jpg": PICTURE}),
        "leads out of the folder",
    ),
    "zip absolute": (
        lambda p: zipped(p, CLASSES | {"/tmp/evil.jpg": PICTURE}),
        "leads out of the folder",
    ),
    "zip backslash": (
        lambda p: zipped(p, CLASSES | {"..\\evil.jpg": PICTURE}),
        "leads out of the folder",
    ),
    "zip drive": (
        lambda p: zipped(p, CLASSES | {"C:\\evil.jpg": PICTURE}),
        "leads out of the folder",
    ),
    "tar ..": (
        lambda p: tarred(p, CLASSES | {"cat/../../evil.jpg": PICTURE}),
        "leads out of the folder",
    ),
    "tar absolute": (
        lambda p: tarred(p, CLASSES | {"/tmp/evil.jpg": PICTURE}),
        "leads out of the folder",
    ),
    "zip bomb": (
        lambda p: zipped_small(p, {"cat/1.bmp": bytes(90_000_000)}),
        "unpacks to more than 200 times its size",
    ),
    "tar bomb": (
        lambda p: tarred(p, {"cat/1.bmp": bytes(90_000_000)}, "w:gz"),
        "unpacks to more than 200 times its size",
    ),
    "too much": (
        lambda p: zipped_small(p, {"cat/1.bmp": bytes(110_000_000)}),
        r"more than 0\.1 GB",
    ),
    "too many": (
        lambda p: zipped(p, {f"cat/{k}.jpg": b"x" for k in range(1001)}),
        "more than 1,000 files",
    ),
    "archive in archive": (
        lambda p: zipped(p, {"cat/1.zip": zipped(p.with_name("in"), CLASSES).read_bytes()}),
        "holds no image",
    ),
    "quoted": (lambda p: quoted(p), "damaged or not readable|unpacks to more|more than"),
    "crowded": (lambda p: crowded(p, 20_000), "more than 1,000 files"),
    "twice": (lambda p: tarred_twice(p), "holds '1.jpg' twice"),
    "cut zip": (
        lambda p: cut(zipped(p, CLASSES)),
        "neither a zip nor a tar archive|damaged or not readable",
    ),
    "cut tar": (lambda p: cut(tarred(p, CLASSES)), "damaged or not readable"),
    "cut tgz": (lambda p: cut(tarred(p, CLASSES, "w:gz")), "damaged or not readable"),
    "rotten zip": (lambda p: rot(zipped(p, CLASSES)), "damaged or not readable"),
    "password": (locked_zip, "locked with a password"),
    "file and folder": (
        lambda p: zipped(p, {"cat": b"x", "cat/1.jpg": PICTURE}),
        "nothing was imported",
    ),
    "no archive": (lambda p: p.write_bytes(b"hello") and p, "neither a zip nor a tar archive"),
    "empty": (lambda p: zipped(p, {}), "it holds no image"),
    "no images": (lambda p: zipped(p, {"a/1.txt": b"x"}), "it holds no image"),
    "no classes": (lambda p: zipped(p, {"1.jpg": PICTURE}), "must be one folder per class"),
    "one class": (
        lambda p: zipped(p, {"set/cat/1.jpg": PICTURE}),
        r"photos lie in one folder \(set/cat\)",
    ),
}


def zipped_small(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def quoted(path):
    """A zip of 500 names for one and the same content, of 1 MB each (D. Fifield, A better zip
    bomb)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("cat/0.bmp", bytes(1_000_000))
        for k in range(1, 500):
            again = copy.copy(file.infolist()[0])
            again.filename = f"cat/{k}.bmp"
            file.filelist.append(again)
    return path


def crowded(path, count):
    """A zip of so many entries without content, names and nothing behind them."""
    record = struct.pack(
        "<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0
    )
    names = b"".join(record + b"cat/%08d.jpg" % k for k in range(count))
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(names), 0)
    end += struct.pack("<4sLQL", b"PK\6\7", 0, len(names), 1)
    end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(names + end)
    return path


def tarred_twice(path):
    with tarfile.open(path, "w") as file:
        for _ in range(2):
            info = tarfile.TarInfo("cat/1.jpg")
            info.size = len(PICTURE)
            file.addfile(info, io.BytesIO(PICTURE))
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 5])
    return path


def rot(path):
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("make, message", ATTACKS.values(), ids=ATTACKS)
def test_attacks_and_damage_leave_nothing(tmp_path, make, message):
    source = make(tmp_path / "set.zip")
    before = set(tmp_path.parent.rglob("*evil*"))
    with pytest.raises(GraftError, match=message) as caught:
        run(source, tmp_path)
    assert left_behind(tmp_path) == [] and "\n" not in str(caught.value)
    assert set(tmp_path.parent.rglob("*evil*")) == before and not Path("/tmp/evil.jpg").exists()


@pytest.mark.slow
def test_a_million_entries_leave_nothing(tmp_path):
    with pytest.raises(GraftError, match="more than 1,000 files"):
        run(crowded(tmp_path / "set.zip", 1_000_000), tmp_path)
    assert left_behind(tmp_path) == []


def test_links_in_archives_are_never_made(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(PICTURE)
    files = CLASSES | {
        "cat/abs.jpg": member("cat/abs.jpg", tarfile.SYMTYPE, str(secret)),
        "cat/up.jpg": member("cat/up.jpg", tarfile.SYMTYPE, "../../../secret.jpg"),
        "cat/hard.jpg": member("cat/hard.jpg", tarfile.LNKTYPE, str(secret)),
        "cat/self.jpg": member("cat/self.jpg", tarfile.SYMTYPE, "self.jpg"),
        "out": member("out", tarfile.SYMTYPE, str(tmp_path)),
        "cat/dev": member("cat/dev", tarfile.CHRTYPE),
        "cat/fifo": member("cat/fifo", tarfile.FIFOTYPE),
        # A copy within the archive.
        "cat/inside.jpg": member("cat/inside.jpg", tarfile.LNKTYPE, "cat/1.jpg"),
    }
    result = run(tarred(tmp_path / "set.tar", files), tmp_path)
    assert tree(result.folder) == CLASSES | {"cat/inside.jpg": PICTURE} and result.left_out == 7
    assert not any(p.is_symlink() for p in result.folder.rglob("*"))


def test_links_in_a_zip_are_never_made(tmp_path):
    result = run(link_in_zip(tmp_path / "set.zip"), tmp_path)
    assert tree(result.folder) == {"cat/out/evil.jpg": PICTURE, "dog/1.jpg": PICTURE}
    assert not any(p.is_symlink() for p in result.folder.rglob("*")) and result.left_out == 1


def test_links_out_of_a_folder_are_not_followed(tmp_path):
    source = folder(tmp_path / "set", each=2)
    (tmp_path / "secret.jpg").write_bytes(PICTURE)
    (source / "cat" / "secret.jpg").symlink_to(tmp_path / "secret.jpg")
    (source / "dog" / "everything").symlink_to(tmp_path)
    (source / "dog" / "inside.jpg").symlink_to("000.jpg")
    result = run(source, tmp_path)
    assert result.counts == {("", "cat"): 2, ("", "dog"): 3} and result.left_out == 2


def test_an_interrupted_import_leaves_nothing(tmp_path, monkeypatch):
    write, done = archives.Budget.write, []

    def interrupted(self, source, path):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(path)
        write(self, source, path)

    monkeypatch.setattr(archives.Budget, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folder(tmp_path / "set"), tmp_path)
    assert len(done) == 2 and left_behind(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="has no signals to end a process by")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_import_that_is_told_to_end_leaves_nothing(tmp_path, number):
    """Blocks on a pipe that nobody writes into; the test is the one who ends it."""
    source = folder(tmp_path / "set", each=2)
    code = f"""
import io, pathlib, signal, sys, time
# What runs in a shell's background ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
from graft.dataset import archives, importing
from graft.params import ImportLimits

def slow(self, stream, path):
    print("begun", flush=True)
    time.sleep(60)

archives.Budget.write = slow
importing.import_dataset({str(source)!r}, into=pathlib.Path({str(tmp_path / "raw")!r}),
                         limits=ImportLimits(max_files=99, max_gb=1, max_ratio=9))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "begun\n" and left_behind(tmp_path)[0].startswith(
        importing.STAGING
    )
    process.send_signal(number)
    assert process.wait(20) != 0
    assert left_behind(tmp_path) == []


def named(raw, flag_bits=0):
    """A ZipInfo whose name is these bytes, whatever zipfile would make of them."""

    class Named(zipfile.ZipInfo):
        def _encodeFilenameFlags(self):
            return raw, flag_bits

    return Named("x")


@pytest.mark.parametrize(
    "name, encoding, found",
    [
        ("Äpfel/a.jpg", "utf-8", "Äpfel/a.jpg"),
        ("りんご/a.jpg", "utf-8", "りんご/a.jpg"),
        ("A\u0308pfel/a.jpg", "utf-8", "Äpfel/a.jpg"),
        ("Äpfel/a.jpg", "cp437", "Äpfel/a.jpg"),
    ],
)
def test_names_in_a_zip_that_does_not_say_how_they_are_written(
    tmp_path, name, encoding, found, capsys
):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        file.writestr(named(name.encode(encoding)), PICTURE)
        file.writestr("dog/1.jpg", PICTURE)
    result = run(tmp_path / "set.zip", tmp_path)
    assert result.classes == sorted([found.split("/")[0], "dog"])
    assert ("read as those of MS-DOS" in capsys.readouterr().err) == (encoding == "cp437")


@pytest.mark.parametrize(
    "about, found", [(b"r\xe9colte/a.jpg", "りんご"), (b"older/a.jpg", "rΘcolte")]
)
def test_the_unicode_path_of_a_zip(tmp_path, about, found):
    """Info-ZIP's extra field 0x7075 holds the true name, if the checksum of the plain one in it is
    right."""
    entry, true = named(b"r\xe9colte/a.jpg"), "りんご/a.jpg".encode()
    field = b"\x01" + struct.pack("<I", zlib.crc32(about)) + true
    entry.extra = (
        struct.pack("<HH", 0x5455, 1) + b"\0" + struct.pack("<HH", 0x7075, len(field)) + field
    )
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        file.writestr(entry, PICTURE)
        file.writestr("dog/1.jpg", PICTURE)
    assert run(tmp_path / "set.zip", tmp_path).classes == sorted([found, "dog"])


def test_names_in_a_tar_that_are_not_utf_8(tmp_path):
    with tarfile.open(
        tmp_path / "set.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT
    ) as file:
        for name in ("Bär/1.jpg", "dog/1.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(PICTURE)
            file.addfile(info, io.BytesIO(PICTURE))
    assert run(tmp_path / "set.tar", tmp_path).classes == ["Bär", "dog"]


def test_what_is_flat_or_unclear_is_refused_with_the_options_for_it(tmp_path):
    flat = {f"train/{label}.{k}.jpg": PICTURE for label in ("cat", "dog") for k in range(3)} | {
        "test1/1.jpg": PICTURE
    }
    with pytest.raises(
        GraftError,
        match=r"2 classes by file names, cat, dog: --label-by '.*; .*: --layout classes; "
        r".*--labels",
    ):
        run(zipped(tmp_path / "set.zip", flat), tmp_path)
    deep = {
        f"{path}/1.jpg": PICTURE
        for path in ("animals/cat", "animals/dog", "things/car", "things/tree")
    }
    with pytest.raises(GraftError, match=r"--layout classes.*--layout deepest"):
        run(zipped(tmp_path / "set.zip", deep), tmp_path)
    assert left_behind(tmp_path) == []
    result = run(zipped(tmp_path / "set.zip", deep), tmp_path, rules=ByFolder("deepest"))
    assert result.classes == ["car", "cat", "dog", "tree"] and result.table
    result = run(
        zipped(tmp_path / "set.zip", flat),
        tmp_path,
        name="flat",
        rules=ByFolder(label_by=r"/([a-z]+)\.\d"),
    )
    assert result.counts == {("train", "cat"): 3, ("train", "dog"): 3}
    assert (
        (result.folder / "labels.csv")
        .read_text()
        .startswith("file,label,split\ntrain/cat.0.jpg,cat,train\n")
    )


def scanned(result, **rules):
    with ScanCache(None, result.folder) as cache:
        return {
            i.path: (i.label, i.given, i.group)
            for i in scan.scan(result.folder, cache=cache, rules=ByFolder(**rules)).images
        }


@pytest.mark.parametrize("inside", [True, False])
def test_a_table_of_labels_goes_along(tmp_path, inside, capsys):
    files = {f"photos/{k}.jpg": encoded(scene(k), quality=80) for k in range(4)}
    table = "image;class;split;group\n" + "".join(
        f"{k}.jpg;{'cat' if k % 2 else 'dog'};train;p{k // 2}\n" for k in range(4)
    )
    if inside:
        files["my labels.csv"] = table.encode()
    else:
        (tmp_path / "my labels.csv").write_text(table)
    given = "my labels.csv" if inside else str(tmp_path / "my labels.csv")
    result = run(zipped(tmp_path / "set.zip", files), tmp_path, rules=ByFolder(labels=given))
    assert result.counts == {("train", "cat"): 2, ("train", "dog"): 2}
    assert "-S data.labels=labels.csv\n" in capsys.readouterr().out
    assert scanned(result, labels="labels.csv") == {
        f"photos/{k}.jpg": (("dog", "cat")[k % 2], "train", f"p{k // 2}") for k in range(4)
    }


def test_several_folders_become_one_set(tmp_path, capsys):
    one, two = (
        folder(tmp_path / "one", each=3),
        folder(tmp_path / "two", ("dog", "emu"), each=2, start=50),
    )
    result = run(one, tmp_path, name="both", more=[two])
    assert result.counts == {("", "cat"): 3, ("", "dog"): 5, ("", "emu"): 2}
    assert (
        f"data.path={result.folder.as_posix()} -S data.labels=labels.csv" in capsys.readouterr().out
    )
    assert len(scanned(result, labels="labels.csv")) == 10
    # Photos alone: each folder is a class.
    result = run(one / "cat", tmp_path, name="alone", more=[two / "emu"])
    assert result.counts == {("", "cat"): 3, ("", "emu"): 2}
    for sources, options, message in [
        ((one, [two / "emu"]), {"name": "x"}, "emu holds photos alone and .*one class folders"),
        ((one, [two]), {}, "several sources need a --name"),
        ((one, [one]), {"name": "x"}, "two of the sources have the same name"),
        ((one, [two]), {"name": "x", "sha256": "0" * 64}, "take neither --sha256 nor --labels"),
    ]:
        with pytest.raises(GraftError, match=message):
            run(sources[0], tmp_path, more=sources[1], **options)
    assert left_behind(tmp_path) == ["alone", "both"]


def test_class_folders_that_gave_no_picture_are_named(tmp_path, capsys):
    run(zipped(tmp_path / "set.zip", CLASSES | {"fish/notes.txt": b"x", "fowl/": b""}), tmp_path)
    assert (
        "no picture came out of fish/: no class of that name is learnt" in capsys.readouterr().err
    )


def test_what_a_kill_left_behind_looks_incomplete_and_is_swept_away(tmp_path):
    old = tmp_path / "raw" / f"{importing.STAGING}set-x"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    run(folder(tmp_path / "set", each=1), tmp_path)
    assert left_behind(tmp_path) == ["set"]
    assert old.name.startswith(".")  # which a scan passes over


@pytest.mark.parametrize(
    "options, source, message",
    [
        ({}, "none.zip", "no such file or folder"),
        ({"name": "../up"}, "set", "--name must be made of"),
        ({"name": ".hidden"}, "set", "--name must be made of"),
        ({"name": "taken"}, "set", "taken is there already"),
        ({"sha256": "12"}, "set", "64 hexadecimal digits"),
        ({"sha256": "0" * 64}, "set", "--sha256 is for archives"),
        ({}, "http://example.org/set.zip", "only https is fetched"),
        ({}, "ftp://example.org/set.zip", "only https is fetched"),
    ],
)
def test_refused(tmp_path, monkeypatch, options, source, message):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "set", each=1)
    (tmp_path / "raw" / "taken").mkdir(parents=True)
    with pytest.raises(GraftError, match=message):
        run(source, tmp_path, **options)
    assert left_behind(tmp_path) == ["taken"]


def test_a_folder_is_not_copied_into_itself(tmp_path):
    folder(tmp_path / "set", each=1)
    with pytest.raises(GraftError, match="where it would be copied to"):
        importing.import_dataset(tmp_path / "set", into=tmp_path / "set" / "raw", limits=LIMITS)


def test_sha256_of_an_archive(tmp_path):
    source = zipped(tmp_path / "set.zip", CLASSES)
    with pytest.raises(
        GraftError, match=f"SHA-256 is {hashlib.sha256(source.read_bytes()).hexdigest()}, not 0000"
    ):
        run(source, tmp_path, sha256="0" * 64)
    assert (
        run(source, tmp_path, sha256=hashlib.sha256(source.read_bytes()).hexdigest().upper()).images
        == 3
    )


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An https server on 127.0.0.1 that serves tmp_path/www, and breaks off or sends on where the
    name says so."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")]),
    )
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "www").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "www"))

        def log_message(self, *_):
            pass

        def do_GET(self):
            if "plain" in self.path:
                self.send_response(302)
                self.send_header("Location", "http://localhost/set.zip")
                self.end_headers()
            elif "broken" in self.path:
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                self.wfile.write(b"PK")
            else:
                super().do_GET()

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    monkeypatch.setenv("no_proxy", "localhost")
    yield f"https://localhost:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_https(tmp_path, server):
    source = zipped(tmp_path / "www" / "my set.zip", CLASSES)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    result = run(f"{server}/my%20set.zip?raw=1", tmp_path, sha256=digest)
    assert result.folder.name == "my-set" and tree(result.folder) == CLASSES
    for path, options, message in [
        ("my%20set.zip", {"sha256": "0" * 64}, "the file is damaged or another one"),
        ("none.zip", {}, "HTTP 404"),
        ("plain.zip", {}, "which is not https"),
        ("broken.zip", {}, "the connection broke after"),
        ("my%20set.zip", {"limits": ImportLimits(max_files=9, max_gb=1e-7, max_ratio=9)}, "max_gb"),
    ]:
        with pytest.raises(GraftError, match=message):
            run(f"{server}/{path}", tmp_path, name="other", **options)
    assert left_behind(tmp_path) == ["my-set"]


def test_a_certificate_that_cannot_be_trusted(tmp_path, server, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(GraftError, match=r"(?i)certificate"):
        run(f"{server}/x.zip", tmp_path)


class FakeImage: ...


class FakeClassLabel:
    def __init__(self, names):
        self.names = names


def fake_tfds(splits, *, names=("cat", "a/b"), features=None, supervised=("image", "label")):
    """What importing uses of tensorflow_datasets 4.9, over {split: [(bytes, label)]}."""
    features = (
        features
        if features is not None
        else {"image": FakeImage(), "label": FakeClassLabel(list(names))}
    )
    asked = []

    class Builder:
        info = types.SimpleNamespace(
            features=features,
            supervised_keys=supervised,
            splits={
                name: types.SimpleNamespace(num_examples=len(rows)) for name, rows in splits.items()
            },
        )

        def download_and_prepare(self):
            asked.append("prepared")

        def as_dataset(self, *, split, shuffle_files, decoders, read_config):
            assert (shuffle_files, decoders, read_config) == (
                False,
                {"image": "skip"},
                {"interleave_cycle_length": 1},
            )
            return [{"image": content, "label": label} for content, label in splits[split]]

    def builder(name, *, data_dir):
        asked.append((name, data_dir))
        if name.startswith("unknown"):
            raise LookupError("Dataset unknown not found.\nDid you mean")
        return Builder()

    return asked, types.SimpleNamespace(
        builder=builder,
        as_numpy=iter,
        features=types.SimpleNamespace(Image=FakeImage, ClassLabel=FakeClassLabel),
        decode=types.SimpleNamespace(SkipDecoding=lambda: "skip"),
        ReadConfig=lambda **options: options,
    )


PNG = encoded(scene(3), "PNG")


@pytest.mark.parametrize(
    "source, asked",
    [
        ("tfds:tf_flowers", ("tf_flowers", None)),
        ("tfds:cifar10:3.0.2", ("cifar10:3.0.2", None)),
        ("tfds:a/b:1.0.0@/my data", ("a/b:1.0.0", "/my data")),
    ],
)
def test_tfds(tmp_path, monkeypatch, source, asked):
    log, module = fake_tfds(
        {
            "train": [(PICTURE, 0), (PNG, 1)],
            "test": [(PICTURE, 1), (PICTURE, -1)],
            "extra": [(PICTURE, 0)],
        }
    )
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    result = run(source, tmp_path)
    assert log == [asked, "prepared"]
    assert tree(result.folder) == {
        "train/cat/000000.jpg": PICTURE,
        "train/a_b/000001.png": PNG,
        "test/a_b/000000.jpg": PICTURE,
    }
    assert (
        result.counts == {("train", "cat"): 1, ("train", "a_b"): 1, ("test", "a_b"): 1}
        and result.left_out == 1
    )
    assert result.folder.name == ("a-b" if "a/b" in source else source.split(":")[1])


def test_tfds_of_one_split_has_no_split_folders(tmp_path, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "tensorflow_datasets", fake_tfds({"train": [(PICTURE, 0), (PICTURE, 1)]})[1]
    )
    assert sorted(tree(run("tfds:tf_flowers", tmp_path).folder)) == [
        "a_b/000001.jpg",
        "cat/000000.jpg",
    ]


@pytest.mark.parametrize("name, module, message", [
    ("unknown", fake_tfds({})[1], "Dataset unknown not found"),
    ("coco", fake_tfds({"train": []}, features={"image": FakeImage(), "boxes": 1},
                       supervised=None)[1], "has no label"),
    ("odd", fake_tfds({"everything": []})[1], "none of its splits"),
    ("twins", fake_tfds({"train": []}, names=("a/b", "a_b"))[1], "same name on disk"),
    ("none", None, r"pip install 'graft-vision\[tfds\]'"),
])  # fmt: skip
def test_tfds_refused(tmp_path, monkeypatch, name, module, message):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    with pytest.raises(GraftError, match=message) as caught:
        run(f"tfds:{name}", tmp_path)
    assert left_behind(tmp_path) == [] and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, images, classes, splits",
    [("alpaca.tar", 327, 2, {""}), ("cifar10_12k.zip", 12000, 10, {"train", "test"})],
)
def test_the_course_data_sets(tmp_path, name, images, classes, splits):
    if not (PHOTOS / name).exists():
        pytest.skip(f"no {name} in ../shared/datasets")
    result = importing.import_dataset(
        PHOTOS / name, into=tmp_path, limits=ImportLimits(max_files=20_000, max_gb=1, max_ratio=200)
    )
    assert (result.images, len(result.classes), {split for split, _ in result.counts}) == (
        images,
        classes,
        splits,
    )
    if name == "alpaca.tar":
        with ScanCache(None, result.folder) as cache:
            assert len(scan.scan(result.folder, cache=cache).images) == images
