import os

import pytest

from graft.dataset import scan, scan_cache
from graft.dataset.scan_cache import ScanCache
from graft.system.console import GraftError

from .pictures import encoded, folder, scene, write


@pytest.fixture
def counted(monkeypatch):
    """Paths of the files that were read."""
    read, examined = [], scan._examined
    monkeypatch.setattr(
        scan, "_examined", lambda path, most: (read.append(path.name), examined(path, most))[1]
    )
    return read


def aged(root):
    for path in root.rglob("*.jpg"):
        os.utime(path, ns=(1_600_000_000 * 10**9,) * 2)


def test_the_cache_spares_what_has_not_changed(tmp_path, counted):
    root, db = folder(tmp_path / "data", each=3), tmp_path / "cache" / "cache.sqlite"
    write(root / "cat" / "bad.jpg", b"bad")
    aged(root)

    def run():
        counted.clear()
        with ScanCache(db, root) as cache:
            return scan.scan(root, cache=cache), sorted(counted)

    first, read = run()
    assert len(read) == 7
    again, read = run()
    assert (again, read) == (first, [])
    write(root / "cat" / "001.jpg", encoded(scene(77)))
    (root / "dog" / "002.jpg").unlink()
    changed, read = run()
    assert read == ["001.jpg"]
    assert {p.path for p in first.images} - {p.path for p in changed.images} == {"dog/002.jpg"}
    _, read = run()
    # It was written just now: within one tick of its clock it may change once more.
    assert read == ["001.jpg"]
    write(root / "cat" / "001.jpg", encoded(scene(78)))
    results = []
    for path in (db, None):
        with ScanCache(path, root) as cache:
            results.append(scan.scan(root, cache=cache))
    assert results[0] == results[1]


def test_limits_are_applied_to_what_is_remembered(tmp_path, counted):
    root, db = folder(tmp_path / "data", each=2), tmp_path / "cache.sqlite"
    write(root / "cat" / "wide.jpg", encoded(scene(9, 200, 100)))
    aged(root)
    outcomes = []
    for limits in ({}, {"min_side": 65}, {"max_megapixels": 0.01}, {}):
        with ScanCache(db, root) as cache:
            try:
                outcomes.append(
                    [p.problem for p in scan.scan(root, cache=cache, **limits).problems]
                )
            except GraftError as error:
                outcomes.append(str(error).split(": ")[0])
    assert outcomes == [[], "data.path", ["too_large"], []] and len(counted) == 5


def test_a_damaged_cache_is_begun_afresh(tmp_path):
    root, db = (
        folder(tmp_path / "data", each=2),
        write(tmp_path / "cache.sqlite", b"not a database" * 500),
    )
    with ScanCache(db, root) as cache:
        assert len(scan.scan(root, cache=cache).images) == 4


def test_a_folder_where_no_cache_can_be_kept(tmp_path, capsys):
    root = folder(tmp_path / "data", each=2)
    write(tmp_path / "file", b"")
    with ScanCache(tmp_path / "file" / "cache.sqlite", root) as cache:
        assert len(scan.scan(root, cache=cache).images) == 4
    assert "hashes are not kept" in capsys.readouterr().err


def test_a_cache_of_another_version_is_begun_afresh(tmp_path, monkeypatch, counted):
    root, db = folder(tmp_path / "data", each=2), tmp_path / "cache.sqlite"
    aged(root)
    for version in ("one", "one", "two"):
        monkeypatch.setattr(scan_cache, "VERSION", version)
        with ScanCache(db, root) as cache:
            scan.scan(root, cache=cache)
    assert len(counted) == 8
