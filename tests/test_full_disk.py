"""A full disk under each of the things that a run writes: one clear line, nothing half, and the
same bytes later."""

import contextlib
import shutil
import subprocess

import pytest

from graft.system import console, files
from tests import small_clone


@contextlib.contextmanager
def small_disk(folder, size):
    """A disk of `size` at `folder`; yields what makes it large."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"a small disk cannot be made here: {done.stderr.strip()}")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=1g", folder], check=True)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return small_clone.make(tmp_path_factory.mktemp("full"), {"export": {"formats": ["keras"]}})


@pytest.fixture(scope="module")
def undisturbed(fresh):
    """The dvc.lock of a run with room for everything."""
    return repro(copy(fresh, "undisturbed")).path("dvc.lock").read_text()


def copy(fresh, name):
    folder = fresh.folder.parent / name
    shutil.copytree(fresh.folder, folder)
    return small_clone.Clone(folder, fresh.folder.parent)


def repro(clone, **options):
    clone.status = clone.dvc("repro", **options).returncode
    return clone


def test_weights_are_not_begun_where_they_do_not_fit(tmp_path):
    """HDF5 ends the process with a segmentation fault where the disk fills up under it."""
    with small_disk(tmp_path / "small", "2m") as enlarge:
        with pytest.raises(OSError, match="No space left on device") as error:
            files.need_room(tmp_path / "small" / "deep", 3 << 20)
        assert error.value.filename == str(tmp_path / "small" / "deep")
        assert not list((tmp_path / "small").rglob("*.*"))
        enlarge()
        files.need_room(tmp_path / "small" / "deep", 3 << 20)


# What is small, its size, and whether a run gets through all the same.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "size", "through"),
    [
        (".cache", "200k", True),
        ("mlruns", "1m", False),
        ("data/split", "4k", False),
        ("data/train-head", "100k", False),
    ],
)
def test_a_full_disk_is_one_line_and_with_room_the_same_bytes_come_out(
    fresh, undisturbed, where, size, through
):
    clone = copy(fresh, f"{where.replace('/', ' ')} is full")
    with small_disk(clone.path(where), size) as enlarge:
        repro(clone, check=False)
        assert (clone.status == 0) == through, clone.out
        assert "Traceback" not in clone.out
        errors = [line for line in clone.out.splitlines() if line.startswith("error: ")]
        if through:
            assert "going on without it" in clone.out
        else:
            assert len(errors) == 1 and any(words in errors[0] for words in console.FULL), errors
        assert not list(clone.path("data").rglob(".part-*"))
        enlarge()
        repro(clone)
        assert clone.path("dvc.lock").read_text() == undisturbed
    shutil.rmtree(clone.folder)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(28, "No space left on device", "data/x.csv"),
            "error: data/x.csv: No space left on device; make room, then",
        ),
        (OSError(122, "Disk quota exceeded"), "error: Disk quota exceeded; make room, then"),
        (
            OSError("Can't write data (errno = 28, error message = 'No space left on device')"),
            "error: No space left on device;",
        ),
        (
            RuntimeError("(sqlite3.OperationalError) database or disk is full\n[SQL: …]"),
            "error: database or disk is full; make",
        ),
    ],
)
def test_a_full_disk_is_one_line_whoever_says_it(error, line, capsys):
    def fails():
        try:
            raise error
        except Exception as cause:
            raise ValueError("could not be written") from cause

    with pytest.raises(SystemExit) as ended:
        console.entry(fails)()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") == 1


def test_another_error_stays_what_it_is():
    def fails():
        raise OSError(13, "Permission denied")

    with pytest.raises(PermissionError):
        console.entry(fails)()
