import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graft.system import files


def test_sha256_of_file_and_folder(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "x.txt").write_bytes(b"one")
    assert files.sha256(folder / "x.txt") == hashlib.sha256(b"one").hexdigest()
    before = files.sha256(str(folder))
    assert (
        before == hashlib.sha256(f"x.txt\0{files.sha256(folder / 'x.txt')}\n".encode()).hexdigest()
    )
    (folder / "cache.pyc").write_bytes(b"ignored")
    (folder / ".DS_Store").write_bytes(b"ignored")
    assert files.sha256(folder) == before
    (folder / "x.txt").rename(folder / "y.txt")
    assert files.sha256(folder) != before
    with pytest.raises(FileNotFoundError):
        files.sha256(folder / "x.txt")


def test_sha256_of_several_files_is_of_their_bytes_in_that_order(tmp_path):
    (tmp_path / "a").write_bytes(b"weights")
    (tmp_path / "b").write_bytes(b"{}")
    assert (
        files.sha256_of(tmp_path / "a", tmp_path / "b") == hashlib.sha256(b"weights{}").hexdigest()
    )


def test_dvc_md5_is_what_dvc_records(tmp_path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    for name in (
        "data/B.txt",
        "data/a.txt",
        "data/deep/ü b.txt",
        "data/deep.txt",
        "data/deep-er.txt",
    ):
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "large").write_bytes(os.urandom(3 * files.BLOCK // 2))
    (tmp_path / ".dvcignore").write_text("*.pyc\n")
    (tmp_path / "data" / "code.pyc").write_bytes(b"ignored")
    for command in (["init", "-q", "--no-scm"], ["add", "-q", "data", "large"]):
        subprocess.run(
            [sys.executable, "-m", "dvc", *command], check=True, cwd=tmp_path, capture_output=True
        )
    for name in ("data", "large"):
        recorded = (tmp_path / f"{name}.dvc").read_text(encoding="utf-8")
        assert f"md5: {files.dvc_md5(tmp_path / name)}\n" in recorded
    assert files.dvc_md5(tmp_path / "none") is None


def test_texts_are_utf8_with_plain_line_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "ä.txt"
    files.write_text(path, "ä\nb\n")
    assert path.read_bytes() == b"\xc3\xa4\nb\n"


def test_json(tmp_path):
    content = {"b": ["ä", None, 0.1], "a": 1}
    files.write_json(tmp_path / "new" / "x.json", content)
    text = (tmp_path / "new" / "x.json").read_text(encoding="utf-8")
    assert text == '{\n  "b": [\n    "ä",\n    null,\n    0.1\n  ],\n  "a": 1\n}\n'
    assert files.read_json(tmp_path / "new" / "x.json") == content
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "nan.json", {"a": float("nan")})
    assert not (tmp_path / "nan.json").exists()


def test_csv(tmp_path):
    path = tmp_path / "new" / "x.csv"
    files.write_csv(path, ["name", "value"], [["a,\nb", 0.1 + 0.2], ['"ä"', None]])
    assert path.read_bytes() == 'name,value\n"a,\nb",0.30000000000000004\n"""ä""",\n'.encode()
    assert files.read_csv(path) == [
        {"name": "a,\nb", "value": "0.30000000000000004"},
        {"name": '"ä"', "value": ""},
    ]


def test_a_bare_carriage_return_survives(tmp_path):
    """Readers take it for the end of a line unless it is in quotes; file names may hold one."""
    files.write_csv(tmp_path / "x.csv", ["path", "size"], [["a\rb.png", 1], ["c", 2]])
    assert files.read_csv(tmp_path / "x.csv") == [
        {"path": "a\rb.png", "size": "1"},
        {"path": "c", "size": "2"},
    ]
    assert (tmp_path / "x.csv").read_bytes().endswith(b"\nc,2\n")


def test_what_cannot_be_written_whole_is_as_it_was(tmp_path):
    path = tmp_path / "x.csv"
    files.write_csv(path, ["n"], [[1]])

    def rows():
        yield [2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_csv(path, ["n"], rows())
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv"]
    assert path.read_text() == "n\n1\n"


def test_what_is_no_file_is_written_to_as_it_is(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write_text(pipe, "words")
    assert os.read(reader, 100) == b"words"
    os.close(reader)
    assert pipe.is_fifo()


def test_what_killed_processes_left_is_swept_and_what_others_write_stays(tmp_path):
    code = """
import sys, os
from graft.system import files
with files.whole(sys.argv[1], shared=True) as part:
    part.touch()
    os._exit(9)
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "x"], cwd=Path(__file__).parents[2])
    assert len(list(tmp_path.iterdir())) == 1
    with files.whole(tmp_path / "y", shared=True) as part:
        part.write_text("mine")
        old, young = (tmp_path / f"{files.PART}elsewhere-1-{name}" for name in ("old", "young"))
        old.touch()
        young.touch()
        os.utime(old, (time.time() - 2 * files.STALE_SECONDS,) * 2)
        files.sweep(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {part.name, young.name}
