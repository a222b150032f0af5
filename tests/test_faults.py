"""Killed at every write, and with a full disk at every write: each writer by itself, at its first
step, its second, its third …

What it writes is then the old or the new state, never half; the next try is held up by nothing,
gives what an undisturbed one gives, and leaves no file beside it.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from graft.commands import import_weights, main
from graft.dataset import labels, manifest
from graft.dataset.labels import Place
from graft.dataset.layout import File
from graft.dataset.manifest import Manifest, ManifestRow
from graft.dataset.scan_cache import FileRecord, ScanCache
from graft.features import cache as features
from graft.features.cache import FeatureCache
from graft.network.checkpoint import Checkpoint
from graft.system import files, paths
from graft.tracking import spool, store
from tests import faults

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.parametrize("kill", [False, True], ids=["full disk", "killed"]),
    pytest.mark.skipif(
        sys.version_info < (3, 11),
        reason="pathlib of Python 3.10 keeps the functions that it opens with",
    ),
]


def content(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize(
    "write",
    [
        lambda path, n: files.write_text(path, f"text {n}\n" * 3000),
        lambda path, n: files.write_json(path, [n] * 3000),
        lambda path, n: files.write_csv(path, ["n"], ([n] for _ in range(3000))),
        lambda path, n: files.write_csv(path, ["n"], [[n]], durable=True),
        lambda path, n: labels.write_table(
            path, {f"{k}.jpg": Place(f"class {n}") for k in range(3000)}
        ),
    ],
    ids=["text", "JSON", "CSV", "durable", "labels"],
)
def test_outputs(kill, write, tmp_path):
    write(tmp_path / "old", 1)
    write(tmp_path / "new", 2)
    old, new = ((tmp_path / name).read_bytes() for name in ("old", "new"))
    seen = set()
    for place in faults.each(
        tmp_path,
        lambda place: write(place / "deep/x", 1),
        lambda place: write(place / "deep/x", 2),
        kill=kill,
    ):
        seen.add((place / "deep/x").read_bytes())
        assert kill or content(place).keys() == {"deep/x"}
        write(place / "deep/x", 2)
        assert content(place) == {"deep/x": new}
    assert seen == {old, new}


def test_features(kill, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features, "ROWS", 2)
    monkeypatch.setattr(features, "SPARE", 0)
    names = [f"{n:064x}" for n in range(5)]

    def space(place):
        return FeatureCache(place, max_gb=1).space("ab" * 32, (3,), np.dtype(np.float16), {})

    def write(place):
        missing = space(place).find(names).missing
        with space(place).writer() as writer:
            for n in np.flatnonzero(missing):
                writer.append(names[n], np.full(3, n, np.float16))

    for place in faults.each(tmp_path, lambda place: None, write, kill=kill, least=12):
        for _ in range(2):
            rows = space(place).find(names)
            out = np.empty((5, 3), np.float16)
            there = rows.read(np.arange(5), out)
            assert np.array_equal(there, ~rows.missing)
            assert (out[there] == np.arange(5)[there, None]).all()
            write(place)
        assert there.all()
        assert not list(place.rglob(".part-*"))
        assert sum(len(features._read_index(p, space(place))) for p in place.rglob("*.seg")) == 5
    said = capsys.readouterr().err
    assert "damaged" not in said
    assert kill or "going on without it" in said


def test_checkpoints(kill, tmp_path, capsys):
    def checkpoint(place):
        made = object.__new__(Checkpoint)
        made.path, made.full = place / "checkpoints" / "fine-tune-0.npz", False
        return made

    def save(place, epoch):
        checkpoint(place).save({"epoch": epoch}, {"now": [np.full((50, 50), epoch)]})

    def load(place):
        return checkpoint(place).load({"now": [np.zeros((50, 50), int)]})

    seen = set()
    for place in faults.each(
        tmp_path, lambda place: save(place, 1), lambda place: save(place, 2), kill=kill
    ):
        state, arrays = load(place)
        assert (arrays["now"][0] == state["epoch"]).all()
        # What a killed process left went when this one began.
        assert len(list((place / "checkpoints").iterdir())) == 1
        seen.add(state["epoch"])
        save(place, 3)
        assert load(place)[0] == {"epoch": 3}
    assert seen == {1, 2}
    said = capsys.readouterr().err
    assert "set aside" not in said
    assert kill or "checkpoint: No space left on device; going on without it" in said


def test_weights_that_are_imported(kill, tmp_path):
    import h5py

    file = tmp_path / "mine.h5"
    with h5py.File(file, "w") as tree:
        tree["kernel"] = np.ones(1000, np.float32)

    def bring(place):
        import_weights.bring(file, place)

    for place in faults.each(tmp_path, lambda place: None, bring, kill=kill, least=2):
        assert content(place).get("mine.h5", file.read_bytes()) == file.read_bytes()
        bring(place)
        assert content(place) == {"mine.h5": file.read_bytes()}


@pytest.fixture
def pets(monkeypatch):
    """pets(place): a clone in `place` with three photos, their manifest and a table of fixes; the
    working folder."""

    def make(place):
        shutil.copy(ROOT / "params.yaml", place)
        text = (
            (place / "params.yaml")
            .read_text(encoding="utf-8")
            .replace("data/raw/fashion", "data/raw/pets")
        )
        (place / "params.yaml").write_text(text, encoding="utf-8")
        (place / "dvc.yaml").touch()
        monkeypatch.chdir(place)
        names = ["cat/1.jpg", "cat/2.jpg", "dog/3.jpg"]
        for name in names:
            files.write_text(place / "data/raw/pets" / name, name)
        manifest.write(
            Manifest(
                tuple(ManifestRow(name, name[:3], "train", "", 8, 8) for name in names),
                ("cat", "dog"),
            ),
            paths.SPLIT,
        )
        files.write_csv(
            "fixes.csv",
            ["path", "label"],
            [("cat/1.jpg", "dog"), ("cat/2.jpg", "dog"), ("dog/3.jpg", "cat")],
        )

    return make


def pets_of(place):
    return {name: text.decode() for name, text in content(place / "data/raw").items()}


def test_relabel_and_its_undo(kill, pets, tmp_path):
    def apply(_=None):
        main.main(["relabel", "fixes.csv", "--apply"])

    def undo(_=None):
        main.main(["relabel", "--undo"])

    def applied(place):
        pets(place)
        apply()

    errors, moved = (
        (OSError, SystemExit),
        {"pets/dog/1.jpg", "pets/dog/2.jpg", "pets/cat/3.jpg", "pets.moves.csv"},
    )
    (tmp_path / "apply").mkdir()
    for place in faults.each(tmp_path / "apply", pets, apply, kill=kill, errors=errors, least=8):
        photos = {text for name, text in pets_of(place).items() if name.endswith(".jpg")}
        assert photos == {"cat/1.jpg", "cat/2.jpg", "dog/3.jpg"}
        apply()
        assert pets_of(place).keys() == moved
        undo()
        assert pets_of(place) == {f"pets/{name}": name for name in photos} | {
            "pets.moves.csv": "batch,from,to\n"
        }
    for place in faults.each(tmp_path, applied, undo, kill=kill, errors=errors, least=8):
        undo() if len(files.read_csv(place / "data/raw/pets.moves.csv")) else None
        assert pets_of(place) == {f"pets/{name}": name for name in photos} | {
            "pets.moves.csv": "batch,from,to\n"
        }


def test_a_split_that_is_frozen(kill, pets, tmp_path):
    errors, seen = (OSError, SystemExit), set()
    for place in faults.each(
        tmp_path, pets, lambda _: main.main(["freeze-split"]), kill=kill, errors=errors
    ):
        seen.add("pets/labels.csv" in pets_of(place))
        (place / "data/raw/pets/labels.csv").unlink(missing_ok=True)
        main.main(["freeze-split"])
        assert pets_of(place)["pets/labels.csv"].count("\n") == 4
        assert len(pets_of(place)) == 4
    assert seen == {False, True}


def test_what_is_known_of_photos(kill, tmp_path, capsys):
    def write(place):
        with ScanCache(place / "scan.sqlite", place) as cache:
            cache.keep_records(
                (
                    File(f"{n}.jpg", n, 0, 0, n),
                    FileRecord(sha256=bytes([n]) * 32, thumbs=bytes(1024)),
                )
                for n in range(3)
            )
            cache.keep_pairs("key", [(0, 1)])
            cache.keep_verdicts([("00" * 32, "01" * 32, 1, True)])
            cache.keep_split({"seed": 1})
            return [
                record
                for _, record in cache.records([File(f"{n}.jpg", n, 0, 0, n) for n in range(3)])
            ], cache.pairs("key")

    (tmp_path / "whole").mkdir()
    expected = write(tmp_path / "whole")
    for place in faults.each(tmp_path, lambda place: None, write, kill=kill, errors=(), least=10):
        with ScanCache(place / "scan.sqlite", place) as cache:
            assert [tuple(row) for row in cache._db.execute("PRAGMA integrity_check")] == [("ok",)]
            assert cache.pairs("key") in (None, [(0, 1)])
            assert cache.last_split() in (None, {"seed": 1})
        assert write(place) == expected
        assert content(place).keys() <= {"scan.sqlite", "scan.sqlite-wal", "scan.sqlite-shm"}
    assert kill or "database or disk is full; hashes are not kept" in capsys.readouterr().err


class Server:
    """In an MlflowClient's place: `gone` for who writes, and then it takes `calls`."""

    def __init__(self, *, gone):
        self.gone, self.calls = gone, []

    def __getattr__(self, name):
        def call(run_id, *given, **options):
            if self.gone:
                raise ConnectionError("gone")
            kept = [Path(x).read_bytes() if name == "log_artifact" else x for x in given]
            if (name, kept) not in self.calls:  # MLflow knows what it has already
                self.calls.append((name, kept))

        return call


def test_what_a_server_could_not_take(kill, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "is_away", lambda uri: True)
    file, uri = tmp_path / "a.txt", "http://127.0.0.1:9"
    file.write_text("artifact")

    def keep(place):
        monkeypatch.setenv("DVC_ROOT", str(place))
        client = spool.SpoolingClient(Server(gone=True), uri)
        try:
            client.set_tag("run", "key", "value")
            client.log_artifact("run", file)
            client.set_tag("run", "more", "value")
        finally:
            client.release()

    def kept(place):
        keep(place)
        monkeypatch.setenv("DVC_ROOT", str(place))

    calls = [
        ("set_tag", ["key", "value"]),
        ("log_artifact", [b"artifact"]),
        ("set_tag", ["more", "value"]),
    ]
    (tmp_path / "keep").mkdir()
    for _ in faults.each(
        tmp_path / "keep",
        lambda place: monkeypatch.setenv("DVC_ROOT", str(place)),
        keep,
        kill=kill,
        least=9,
    ):
        server = Server(gone=False)
        spool.send(server, uri)
        assert server.calls == calls[: len(server.calls)]
        assert not list(spool.folder().glob("*"))
    assert server.calls == calls
    for _ in faults.each(
        tmp_path, kept, lambda place: spool.send(Server(gone=False), uri), kill=kill, least=0
    ):
        server = Server(gone=False)
        spool.send(server, uri)
        assert server.calls in ([], calls)
        assert not list(spool.folder().glob("*"))
    assert kill is False or "does not take" not in capsys.readouterr().err
