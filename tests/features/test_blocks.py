"""A block of images becomes segments: the same files whoever computes them, how often, and in
whatever order."""

import hashlib
import os
import pickle
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from graft import runtimes
from graft.dataset.images import ImageSet
from graft.dataset.manifest import Manifest, ManifestRow
from graft.features import blocks
from graft.features.blocks import Work, compute, cut_into_blocks
from graft.features.cache import FeatureCache
from graft.features.extractor import FeatureExtractor
from graft.features.views import Augmentation
from graft.system import environment
from graft.system.console import GraftError

POOL = Augmentation("horizontal", 0.1, 0, 0, 0, seed=5)
SIZE = 16


def summed(images):
    return [images.reshape(len(images), -1).sum(axis=1, dtype=np.float32)[:, None] / 1000]


@pytest.fixture
def work(tmp_path):
    """One cut, two views."""
    cache = FeatureCache(tmp_path / "cache", max_gb=1)
    spaces = tuple(
        cache.space(f"{v:064}", (1,), np.dtype(np.float16), {"view": v}) for v in range(2)
    )
    return Work(runtimes.Program("litert", b"", ("sum",)), ("sum",), (spaces,), POOL, SIZE, "none")


def files(work):
    return {
        path.relative_to(work.spaces[0][0].cache.folder): path.read_bytes()
        for path in map(Path, segments(work))
    }


def segments(work):
    return sorted(work.spaces[0][0].cache.folder.glob("*/*.seg"))


def test_only_images_that_lack_a_row_are_in_a_block_and_no_block_is_larger_than_a_segment(
    pixels, monkeypatch
):
    monkeypatch.setattr(blocks, "ROWS", 4)
    missing = np.zeros((1, 2, 10), bool)
    missing[0, 1, [0, 2, 3, 5, 6, 9]] = True
    made = list(cut_into_blocks(pixels(10, size=SIZE), missing))
    assert [block.images.paths for block in made] == [
        [f"set/{i}.png" for i in some] for some in ((0, 2, 3, 5), (6, 9))
    ]
    assert [block.missing.sum(axis=2).tolist() for block in made] == [[[0, 4]], [[0, 2]]]
    assert list(cut_into_blocks(pixels(10, size=SIZE), missing, full={(0, 1)})) == []


def test_a_block_gives_its_keys_and_the_same_files_however_often_and_in_whatever_order(
    work, pixels, monkeypatch
):
    monkeypatch.setattr(blocks, "ROWS", 4)
    images = pixels(10, size=SIZE)
    todo = list(cut_into_blocks(images, np.ones((1, 2, 10), bool)))
    done = [compute(work, summed, block) for block in todo]
    assert sum((each.names for each in done), ()) == images.sha256
    assert sorted(path for each in done for path in each.segments) == segments(work)
    first = files(work)
    assert len(first) == 6  # blocks x views
    again = replace(work, keep=set())
    for block in reversed(todo):
        compute(again, summed, block)
    assert files(work) == first


def test_where_there_is_no_room_the_block_says_why(work, pixels, capsys):
    work.spaces[0][0].cache.max_bytes = 1
    (block,) = cut_into_blocks(pixels(3, size=SIZE), np.ones((1, 2, 3), bool))
    done = compute(work, summed, block)
    assert done.full == dict.fromkeys(
        [(0, 0), (0, 1)], "no room within cache.max_gb, or on the disk"
    )
    assert (done.segments, segments(work)) == ((), [])
    assert capsys.readouterr().err.count("going on without it") == 2


@pytest.mark.parametrize("what", ["runtime", "instructions", "decoder", "views"])
def test_a_worker_is_told_apart_by_all_that_rows_depend_on(work, monkeypatch, what):
    before = work.identity()
    assert before == pickle.loads(pickle.dumps(work)).identity()
    assert not any("tensorflow" in part for part in before)
    if what == "runtime":
        monkeypatch.setattr(runtimes, "version", lambda package: "0.0")
    elif what == "instructions":
        monkeypatch.setattr(runtimes, "instruction_set", lambda: "riscv64")
    elif what == "decoder":
        monkeypatch.setattr(
            "graft.pixels.probe", lambda size, resize: np.zeros((size, size, 3), np.uint8)
        )
    else:
        work = replace(work, augmentation=replace(POOL, seed=6))
    assert work.identity() != before


def test_a_segment_that_another_machine_wrote_elsewhere_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "SEEN_SECONDS", 0)
    (tmp_path / "there.seg").touch()
    blocks.wait_for([tmp_path / "there.seg"])
    with pytest.raises(GraftError, match="must lie in a folder that all machines share"):
        blocks.wait_for([tmp_path / "elsewhere.seg"])


@dataclass(frozen=True)
class Mortal(Work):
    """Whoever first comes to the image `fatal` is killed when its rows are written, before anyone
    is told."""

    fatal: str = ""

    def start(self):
        do = super().start()

        def block(given):
            done = do(given)
            mark = self.spaces[0][0].cache.folder / "killed"
            if self.fatal in given.images.paths and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return block


@pytest.fixture
def photos(tmp_path):
    rows = []
    for i in range(40):
        path = tmp_path / "photos" / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(
            np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        ).save(path)
        rows.append(
            ManifestRow(
                path.name, "a", "train", hashlib.sha256(path.read_bytes()).hexdigest(), 24, 20
            )
        )
    return ImageSet(Manifest(tuple(rows), ("a",)), "photos", SIZE, resize="crop")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["litert", "tensorflow"])
def test_two_workers_one_of_them_killed_leave_the_files_that_one_process_leaves(
    ray, photos, tmp_path, monkeypatch, capsys, runtime
):
    from ray import cloudpickle

    # Workers have graft, and not the tests.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(blocks, "ROWS", 4)
    environment.quiet_tensorflow()
    import keras

    image = keras.Input((SIZE, SIZE, 3), dtype="uint8", name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu", name="block")(
        keras.layers.Rescaling(1 / 127.5, -1.0)(image)
    )
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="pooling")(x))
    cuts = [
        SimpleNamespace(tensors=(tensor,), digest=name, name=name)
        for name, tensor in (("image", model.input), ("block", x), ("pooling", model.output))
    ]
    made = {}
    for executor in ("local", "ray"):
        if executor == "ray":
            monkeypatch.setattr(
                "graft.features.extractor.Work", lambda *given: Mortal(*given, fatal="22.png")
            )
        extractor = FeatureExtractor(
            POOL, runtime, FeatureCache(tmp_path / executor, max_gb=1), None, executor
        )
        held = extractor.extract(model, cuts, photos, views=2)
        made[executor] = {
            path.relative_to(tmp_path / executor): path.read_bytes()
            for path in (tmp_path / executor).rglob("*.seg")
        }
        rows = [features.take(np.arange(40), view) for features in held for view in (0, 1)]
        made[executor]["rows"] = [array.tobytes() for array in rows]
    assert len(made["ray"]) == 6 * 10 + 1  # views of cuts, blocks
    assert made["ray"] == made["local"]
    assert (tmp_path / "ray" / "killed").exists()
    assert "takes no block" not in capsys.readouterr().err
