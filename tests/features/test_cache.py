"""The feature cache: rows belong to photos, segments are whole or absent, and nothing wrong is ever
read."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from graft.features import cache as module
from graft.features.cache import FeatureCache
from graft.system import files, paths

SHAPE = (2, 3)


def names(*numbers):
    return [f"{n:064x}" for n in numbers]


def value(n):
    return np.full(SHAPE, n, np.float16)


def fill(space, numbers):
    with space.writer() as writer:
        for n in numbers:
            writer.append(*names(n), value(n))


def read(space, numbers):
    """(rows, which are there) of the images with these numbers."""
    rows = space.find(names(*numbers))
    out = np.full((len(numbers), *SHAPE), -1, np.float16)
    return out, rows.read(np.arange(len(numbers)), out)


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "features", max_gb=1)


@pytest.fixture
def space(cache):
    return cache.space(
        "ab" * 32,
        SHAPE,
        np.dtype(np.float16),
        {"cut": "block", "size": 8, "view": 0, "runtime": "tensorflow"},
    )


def test_one_process_computes_at_a_time(cache):
    with cache.lock("space"), pytest.raises(TimeoutError):
        cache.lock("space").acquire(timeout=0)
    with cache.lock("space"), cache.lock("another"):
        pass


def test_the_features_of_a_clone_lie_in_its_cache_folder():
    assert FeatureCache(max_gb=1).folder == paths.cache() / "features"


def test_a_row_is_found_by_its_photo_whatever_else_is_asked_for(space):
    fill(space, range(5))
    out, there = read(space, [3, 7, 0])
    assert there.tolist() == [True, False, True]
    assert np.array_equal(out[[0, 2]], [value(3), value(0)])


def test_rows_are_parted_into_segments_and_ten_more_photos_cost_ten_rows(space):
    fill(space, range(module.ROWS + 10))
    assert sorted(len(module._read_index(path, space)) for path in space.folder.glob("*.seg")) == [
        10,
        module.ROWS,
    ]
    rows = space.find(names(*range(module.ROWS + 20)))
    assert rows.missing.sum() == 10
    fill(space, np.flatnonzero(rows.missing))
    out, there = read(space, range(module.ROWS + 20))
    assert there.all()
    assert np.array_equal(out[:, 0, 0], np.arange(module.ROWS + 20))


def test_two_photos_with_the_same_bytes_share_a_row(space):
    fill(space, [4])
    out, there = read(space, [4, 4])
    assert there.all()
    assert np.array_equal(out, [value(4), value(4)])


@pytest.mark.parametrize("where", ["row", "index", "end"])
def test_a_damaged_segment_is_never_read_as_if_it_were_whole(space, capsys, where):
    fill(space, range(3))
    (path,) = space.folder.glob("*.seg")
    data = bytearray(path.read_bytes())
    if where == "end":
        del data[-4:]
    else:
        data[-3 if where == "row" else 20] ^= 1
    path.write_bytes(data)
    out, there = read(space, [0, 1, 2])
    assert not there.all()
    assert all(np.array_equal(row, value(n)) for n, row in enumerate(out) if there[n])
    # There a row has lost its photo, no more.
    assert ("damaged" in capsys.readouterr().err) == (where != "index")
    fill(space, np.flatnonzero(~there))
    again, there = read(space, [0, 1, 2])
    assert there.all()
    assert np.array_equal(again, [value(n) for n in range(3)])


def test_segments_that_go_while_they_are_read_count_as_missing(cache, space):
    fill(space, range(3))
    rows = space.find(names(0, 1, 2))
    assert cache.clear()[0] == 1
    out = np.zeros((3, *SHAPE), np.float16)
    assert rows.read(np.arange(3), out).tolist() == [False] * 3


def test_segments_that_go_after_they_were_opened_are_still_read(cache, space):
    fill(space, range(3))
    rows = space.find(names(0, 1, 2))
    out = np.zeros((3, *SHAPE), np.float16)
    rows.read(np.array([0]), out[:1])
    cache.clear()
    assert rows.read(np.arange(3), out).all()
    assert np.array_equal(out, [value(0), value(1), value(2)])


def test_the_least_recently_used_segment_goes_first_and_what_a_run_reads_stays(cache, space):
    seen = set()
    for k in range(3):
        fill(space, [k])
        (newest,) = set(space.folder.glob("*.seg")) - seen
        os.utime(newest, (time.time() - 100 + k,) * 2)
        seen.add(newest)
    size = next(space.folder.glob("*.seg")).stat().st_size
    cache.max_bytes = 3 * size
    used = space.find(names(0)).files  # reading makes it the youngest
    assert cache.make_room(size)
    assert space.find(names(0, 1, 2)).missing.tolist() == [False, True, False]
    assert not cache.make_room(3 * size, keep=frozenset(used))
    assert not space.find(names(0)).missing.any()


def test_a_full_disk_is_one_warning_and_no_error(space, monkeypatch, capsys):
    def full(path, *parts):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write_whole", full)
    fill(space, range(module.ROWS + 5))
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert space.find(names(0)).missing.all()


def test_a_kill_in_the_middle_leaves_whole_segments_only(space, monkeypatch):
    def killed(path, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        fill(space, range(3))
    assert not list(space.folder.glob("*.seg"))
    assert not list(space.folder.glob(".part-*"))


def test_what_a_killed_process_left_is_swept_away_and_never_read(space):
    fill(space, [0])
    part = space.folder / ".part-x.seg"
    next(space.folder.glob("*.seg")).rename(part)
    assert space.find(names(0)).missing.all()
    os.utime(part, (time.time() - 2 * files.STALE_SECONDS,) * 2)
    fill(space, [1])
    assert not part.exists()


def test_entries_say_what_is_there(cache, space):
    fill(space, range(3))
    (entry,) = cache.entries()
    assert entry["cut"] == "block"
    assert entry["segments"] == 1
    assert entry["bytes"] == sum(p.stat().st_size for p in space.folder.glob("*.seg"))
    assert cache.clear() == (1, entry["bytes"])
    assert cache.entries() == []


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="no /proc to read the peak of memory from"
)
def test_memory_does_not_grow_with_the_number_of_photos(tmp_path):
    """100,000 rows are written and read in a process that holds little more than their index."""
    import subprocess
    import sys

    code = """
import sys
from pathlib import Path
import numpy as np
from graft.features.cache import FeatureCache
space = FeatureCache(sys.argv[1], max_gb=5).space("00", (1280,), np.dtype(np.float16), {})
n = 100_000

def peak():  # of this program alone; getrusage begins with the peak of the process that started it
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

with space.writer() as writer:
    for i in range(n):
        writer.append(f"{i:064x}", np.full(1280, i % 1000, np.float16))
before = peak()
rows = space.find([f"{i:064x}" for i in range(n)])
out = np.empty((32, 1280), np.float16)
for start in range(0, n, 3200):
    positions = np.arange(start, start + 32)
    assert rows.read(positions, out).all()
    assert (out[:, 0] == positions % 1000).all()
print(before, peak())
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = map(float, done.stdout.split())
    assert before < 150
    assert after < 250  # MiB; the rows are 256


def test_a_row_is_tested_when_it_is_first_read_and_not_again(space, monkeypatch):
    fill(space, range(3))
    tested, checksum = [], module._checksum
    monkeypatch.setattr(
        module, "_checksum", lambda name, row: tested.append(name) or checksum(name, row)
    )
    rows, out = space.find(names(0, 1, 2)), np.empty((3, *SHAPE), np.float16)
    for positions in ([0, 1], [0, 1, 2], [0, 1, 2]):
        assert rows.read(np.array(positions), out[: len(positions)]).all()
    assert sorted(tested) == [name.encode() for name in names(0, 1, 2)]


def test_room_is_made_beside_a_process_that_does_the_same(cache, space, monkeypatch):
    fill(space, [0])
    held = list(module._segments(cache.folder))
    monkeypatch.setattr(module, "_segments", lambda folder: held)
    held[0][0].unlink()  # by the other one, between the look and the removal
    cache.max_bytes = held[0][1].st_size
    assert cache.make_room(held[0][1].st_size)


def test_opening_reads_no_row(space, monkeypatch):
    fill(space, range(3))
    monkeypatch.setattr(module, "_checksum", lambda *_: pytest.fail("a row was read"))
    assert not space.find(names(0, 1, 2)).missing.any()


def test_two_processes_near_the_bound_lose_nothing_and_read_nothing_wrong(tmp_path):
    import subprocess
    import sys

    code = """
import sys
import numpy as np
from graft.features.cache import FeatureCache
space = FeatureCache(sys.argv[1], max_gb=100_000 / 1e9).space("00", (64,), np.dtype(np.float16), {})
for _ in range(20):
    with space.writer() as writer:
        for i in range(600):  # 77 kB: one and a half times this would not fit
            writer.append(f"{i:064x}", np.full(64, i, np.float16))
    rows, out = space.find([f"{i:064x}" for i in range(600)]), np.full((600, 64), -1, np.float16)
    there = rows.read(np.arange(600), out)
    assert (out[there] == np.arange(600)[there, None]).all()
"""
    workers = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ended = [(worker.communicate()[1], worker.returncode) for worker in workers]
    assert [code for _, code in ended] == [0, 0], ended
    assert not list(tmp_path.glob("*/.part-*"))
