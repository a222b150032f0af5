"""What `split` says of photos that lie elsewhere than the last time."""

from pathlib import Path

import pytest

from graft import params as parameters
from graft.dataset import intake, moves

from .pictures import encoded, folder, scene, write

ROOT = Path(__file__).parents[2]


@pytest.fixture
def split(tmp_path):
    """Split the folder `data` with some of data.* changed; returns (the Intake, what is said of
    photos that moved)."""

    def run(seed=42, **changes):
        data = parameters.load(ROOT / "params.yaml").data.model_copy(
            update={"path": str(tmp_path / "data"), **changes}
        )
        taken = intake.take_in(data, seed=seed, cache_file=tmp_path / "scan.sqlite")
        return taken, moves.since_last(taken, data, seed=seed, cache_file=tmp_path / "scan.sqlite")

    return run


def homes(taken):
    return {row.sha256[: moves.DIGITS]: row.split for row in taken.manifest.rows}


def test_how_many_moved_and_why(tmp_path, split):
    root = folder(tmp_path / "data", each=40)
    first, lines = split()
    assert lines == [] and split()[1] == []  # the first time, and when nothing has changed
    folder(root, each=8, start=5000)  # replaces 000 to 007
    (root / "cat" / "039.jpg").unlink()
    second, (line,) = split()
    old, new = homes(first), homes(second)
    moved = [sha for sha in old.keys() & new.keys() if old[sha] != new[sha]]
    assert moved and len(new.keys() - old.keys()) == 16
    assert line.startswith(
        f"since the last split 16 photos came and 17 went; of 63 others {len(moved)} moved ("
    )
    assert line.endswith(
        f"): {len(moved)} since the borders of the shares shifted. `graft freeze-split` keeps all "
        "where they are"
    )


def test_photos_that_are_joined_with_others_and_settings_that_changed(tmp_path, split):
    root = folder(tmp_path / "data", each=20, width=200, height=200)
    old = homes(split()[0])
    # A near-duplicate of each, which a name says to be older.
    for path in sorted(root.rglob("*.jpg")):
        write(
            path.with_name(f"000-{path.name}"),
            encoded(
                scene(int(path.stem) + 1000 * (path.parent.name == "dog"), width=200, height=200),
                quality=60,
            ),
        )
    taken, (line,) = split()
    moved = sum(old[sha] != split for sha, split in homes(taken).items() if sha in old)
    assert (
        "40 photos came and 0 went" in line
        and f": {moved} since they are joined with others than before." in line
    )
    _, (line,) = split(seed=7, test_fraction=0.3)
    assert line.endswith(", since seed and data.test_fraction changed")


def test_what_is_remembered_decides_nothing(tmp_path, split):
    folder(tmp_path / "data", each=20)
    alone, _ = split()
    split(seed=3)
    again, (line,) = split()
    assert again.manifest == alone.manifest and "since seed changed" in line
