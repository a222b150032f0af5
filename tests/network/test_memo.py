import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from stages.network.memo import Memo

ROOT = Path(__file__).parents[2]


def store(memo, key, rows, used=None):
    with memo.writer(key, rows.shape, rows.dtype, {"images": len(rows)}) as append:
        for row in rows:
            append(row[None])
    if used is not None:
        os.utime(memo.folder / f"{key}.json", (used, used))


ROWS = np.arange(24, dtype=np.float16).reshape(4, 3, 2)


def test_what_is_written_is_read_back_memory_mapped(tmp_path):
    memo = Memo(tmp_path, max_gb=1)
    assert memo.open("k") is None
    store(memo, "k", ROWS)
    array = memo.open("k")
    assert isinstance(array, np.memmap)
    assert array.dtype == np.float16
    assert np.array_equal(array, ROWS)
    (entry,) = memo.entries()
    assert (entry["key"], entry["images"], entry["bytes"]) == ("k", 4, 128 + ROWS.nbytes)


@pytest.mark.parametrize("damage", ["flip", "cut", "header", "description"])
def test_a_damaged_entry_is_taken_for_absent_and_removed(tmp_path, damage, capsys):
    memo = Memo(tmp_path, max_gb=1)
    store(memo, "k", ROWS)
    file = tmp_path / ("k.json" if damage == "description" else "k.npy")
    blob = bytearray(file.read_bytes())
    if damage == "flip":
        blob[-1] ^= 1
    elif damage == "header":
        blob[:6] = b"nonsen"
    else:
        del blob[-5:]
    file.write_bytes(blob)
    assert memo.open("k") is None
    assert list(tmp_path.glob("k.*")) == []
    assert "damaged" in capsys.readouterr().err


def test_an_interrupted_entry_is_not_there(tmp_path):
    memo = Memo(tmp_path, max_gb=1)
    with pytest.raises(KeyboardInterrupt), memo.writer("k", ROWS.shape, ROWS.dtype, {}) as append:
        append(ROWS[:2])
        raise KeyboardInterrupt
    assert memo.open("k") is None
    assert list(tmp_path.iterdir()) == []


def test_the_least_recently_used_go_first_and_reading_is_using(tmp_path):
    memo = Memo(tmp_path, max_gb=3.5 * (128 + ROWS.nbytes) / 1e9)
    for age, key in enumerate("abc"):
        store(memo, key, ROWS, used=1000 + age)
    memo.open("a")
    assert memo.make_room(2 * (128 + ROWS.nbytes))
    assert [entry["key"] for entry in memo.entries()] == ["a"]
    assert not memo.make_room(10 * (128 + ROWS.nbytes))  # more than the bound allows at all
    assert [entry["key"] for entry in memo.entries()] == ["a"]


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    memo = Memo(tmp_path, max_gb=1)
    monkeypatch.setattr(memo, "_free", lambda: 10)
    assert not memo.make_room(100)


def test_clear_removes_entries_and_left_overs(tmp_path):
    memo = Memo(tmp_path, max_gb=1)
    store(memo, "k", ROWS)
    (tmp_path / "tmpx.part").write_bytes(b"x")
    assert memo.clear() == (1, 128 + ROWS.nbytes)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_that_write_the_same_entry_leave_one_that_is_whole(tmp_path):
    script = textwrap.dedent(f"""
        import numpy as np
        from stages.network.memo import Memo
        memo = Memo({str(tmp_path)!r}, max_gb=1)
        rows = np.arange(3_000_00, dtype=np.float16).reshape(-1, 3)
        for _ in range(20):
            with memo.writer("k", rows.shape, rows.dtype, {{"images": len(rows)}}) as append:
                for i in range(0, len(rows), 1000):
                    append(rows[i:i + 1000])
            held = memo.open("k")
            assert held is None or np.array_equal(held, rows)
    """)
    workers = [subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) for _ in range(2)]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    assert Memo(tmp_path, max_gb=1).open("k").shape == (100_000, 3)
