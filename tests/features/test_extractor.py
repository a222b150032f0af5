"""The extractor: features are what the frozen layers give, computed once per image, the same bits
in any company."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from graft import resizers, runtimes
from graft.dataset.images import ImageSet
from graft.dataset.manifest import Manifest, ManifestRow
from graft.features.cache import FeatureCache
from graft.features.extractor import FeatureExtractor
from graft.features.views import Augmentation
from graft.system import environment, files
from graft.system.console import GraftError

POOL = Augmentation("horizontal", 0.1, 0.1, 0, 0, seed=5)
STILL = Augmentation("none", 0, 0, 0, 0, seed=5)


@pytest.fixture(scope="module")
def model():
    environment.quiet_tensorflow()
    import keras

    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(image)
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu", name="block")(x)
    return keras.Model(image, keras.layers.GlobalAveragePooling2D(name="pooling")(x))


def digest(name):
    return f"all up to {name}"


def cut(model, name):
    """As `network.cut.find_cut` gives it."""
    tensor = model.input if name == "image" else model.get_layer(name).output
    return SimpleNamespace(tensors=(tensor,), digest=digest(name), name=name)


@pytest.fixture
def extract(model, tmp_path):
    def extract(images, *cuts, pool=POOL, runtime="litert", max_gb=1.0, folder="cache", views=2):
        extractor = FeatureExtractor(pool, runtime, FeatureCache(tmp_path / folder, max_gb=max_gb))
        return extractor.extract(
            model, [cut(model, name) for name in cuts or ["pooling"]], images, views=views
        )

    extract.entries = lambda folder="cache": FeatureCache(tmp_path / folder, max_gb=1).entries()
    extract.segments = lambda: set((tmp_path / "cache").glob("*/*.seg"))
    return extract


@pytest.fixture
def images(pixels):
    return pixels(10, size=16)


@pytest.fixture
def no_runtime(monkeypatch):
    """Call it, and from then on no frozen layer may be computed."""
    return lambda: monkeypatch.setattr(
        runtimes, "prepare", lambda *_: pytest.fail("the frozen layers were started")
    )


def test_features_are_what_the_frozen_layers_give_of_each_view_in_half_precision(
    model, extract, images
):
    (held,) = extract(images)
    assert (held.views, held.shape, len(held), held.images) == (2, (4,), 10, images)
    for view in (0, 1):
        made = np.stack(
            [POOL.view(image, name, view) for image, name in zip(images.array, images.sha256)]
        )
        got = held.take(np.array([7, 2]), view)
        assert got.dtype == np.float16
        assert np.allclose(
            got, np.asarray(model(made, training=False))[[7, 2]], rtol=2e-3, atol=1e-3
        )


def test_mixed_resizers_make_every_view_but_the_first(model, extract, tmp_path):
    rng, rows = np.random.default_rng(0), []
    for i in range(12):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
        rows.append(ManifestRow(path.name, "cat", "train", files.sha256(path), 50, 40))
    images = ImageSet(Manifest(tuple(rows), ("cat",)), tmp_path, 16, resize="crop")
    pool = replace(POOL, resizers="mixed")
    (held,) = extract(images, pool=pool)
    made = []
    for row in rows:
        by = pool.resizer(row.sha256, 1)
        made.append(pool.view(resizers.load(tmp_path / row.path, 16, "crop", by), row.sha256, 1))
    expected = np.asarray(model(np.stack(made), training=False))
    assert np.allclose(held.take(np.arange(12), 1), expected, rtol=2e-3, atol=1e-3)
    (own,) = extract(images)
    assert np.array_equal(own.take(np.arange(12), 0), held.take(np.arange(12), 0))
    differ = (own.take(np.arange(12), 1) != held.take(np.arange(12), 1)).any(axis=1)
    drawn = [pool.resizer(row.sha256, 1) is not None for row in rows]
    assert differ.tolist() == drawn and any(drawn) and not all(drawn)


def test_each_image_may_be_asked_for_in_a_view_of_its_own(extract, images):
    (held,) = extract(images)
    mixed = held.take([3, 3, 8], np.array([0, 1, 1]))
    assert np.array_equal(
        mixed, np.stack([held.take([3], 0)[0], held.take([3], 1)[0], held.take([8], 1)[0]])
    )


def test_what_is_cached_is_neither_read_nor_computed_again(extract, images, capsys, no_runtime):
    first = extract(images, "pooling", "block")
    assert images.reads == 10  # one pass over the files for two cuts and two views
    assert "by litert" in capsys.readouterr().out
    no_runtime()
    (again,) = extract(images, "block")
    assert images.reads == 10
    assert "train: cached features of 10 images x 2 views" in capsys.readouterr().out
    assert np.array_equal(first[1].take(np.arange(10), 1), again.take(np.arange(10), 1))


def test_more_views_compute_only_what_is_new(extract, images):
    extract(images, views=2)
    before = {path: path.stat().st_size for path in extract.segments()}
    extract(images, views=4)
    assert len(extract.entries()) == 4
    assert before.items() < {path: path.stat().st_size for path in extract.segments()}.items()


def test_an_image_more_costs_one_image(extract, pixels):
    extract(pixels(10, size=16))
    more = pixels(11, size=16)
    (held,) = extract(more)
    assert more.reads == 1
    (fresh,) = extract(more, folder="fresh")
    assert all(
        np.array_equal(held.take(np.arange(11), view), fresh.take(np.arange(11), view))
        for view in (0, 1)
    )


@pytest.mark.parametrize("chosen", [[4], [9, 0, 4, 7, 2, 1, 8, 3, 6, 5]])
def test_a_row_is_the_same_alone_in_another_order_and_in_a_crowd(extract, images, pixels, chosen):
    (crowd,) = extract(images)
    some = pixels(len(chosen), size=16)
    some.array, some.sha256 = images.array[chosen], tuple(images.sha256[i] for i in chosen)
    (held,) = extract(some, folder="some")
    for view in (0, 1):
        assert np.array_equal(held.take(np.arange(len(chosen)), view), crowd.take(chosen, view))


def test_two_cuts_at_one_place_are_computed_once(extract, images):
    one, two = extract(images, "pooling", "pooling")
    assert one is two
    assert len(extract.segments()) == 2  # views


@pytest.mark.parametrize("lost", [0, 1])
def test_rows_that_are_lost_in_one_view_alone_are_computed_for_that_view(
    extract, images, lost, pixels
):
    few = pixels(7, size=16)
    extract(few)
    (expected,) = extract(images, folder="whole")
    for entry in extract.entries():
        if entry["view"] == lost:
            for path in [p for p in extract.segments() if p.parent.name == entry["key"]]:
                path.unlink()
    (held,) = extract(images)
    for view in (0, 1):
        assert np.array_equal(held.take(np.arange(10), view), expected.take(np.arange(10), view))


@pytest.mark.parametrize(
    ("change", "new"),
    [
        ({}, 0),
        ({"runtime": "tensorflow"}, 2),
        ({"pool": replace(POOL, seed=6)}, 1),  # view 0 knows no seed
        ({"pool": replace(POOL, flip="none")}, 1),
        ({"pool": STILL}, 0),  # only view 0 is left, which is there
    ],
)
def test_the_key_holds_all_that_determines_the_values_and_no_more(extract, images, change, new):
    extract(images)
    extract(images, **change)
    assert len(extract.entries()) == 2 + new


@pytest.mark.parametrize("what", ["size", "resize", "network", "decoder"])
def test_the_key_holds_the_images_size_and_rule_and_the_network_and_the_decoder(
    extract, pixels, monkeypatch, what
):
    images = pixels(3, size=16)
    extract(images, views=1)
    if what in ("size", "resize"):
        setattr(images, what, 17)
    elif what == "network":
        monkeypatch.setattr("test_extractor.digest", lambda name: "other")
    else:
        monkeypatch.setattr(
            "graft.pixels.probe", lambda size, resize: np.zeros((size, size, 3), np.uint8)
        )
    extract(images, views=1)
    assert len(extract.entries()) == 2


def test_the_key_of_a_drawn_view_holds_what_drawing_gives(extract, images, monkeypatch):
    """Another way to draw voids the drawn view alone, though no param has changed."""
    extract(images)
    drawn = type(POOL).view
    monkeypatch.setattr(type(POOL), "view", lambda *given: drawn(*given)[::-1])
    extract(images)
    assert len(extract.entries()) == 3


@pytest.mark.parametrize("name", ["pooling", "block", "image"])
def test_without_room_they_are_computed_at_each_request_with_the_same_bits(
    extract, images, capsys, name
):
    (held,) = extract(images, name, folder="wide")
    (streamed,) = extract(images, name, folder="narrow", max_gb=1e-9)
    assert "exceed cache.max_gb" in capsys.readouterr().err
    assert (streamed.views, streamed.shape, streamed.dtype) == (held.views, held.shape, held.dtype)
    order = np.array([4, 0, 5])
    for view in (0, 1):
        assert np.array_equal(streamed.take(order, view), held.take(order, view))
    assert extract.entries("narrow") == []


def test_a_large_cut_that_finds_no_room_leaves_the_small_one_its_own(extract, images, capsys):
    room = 10 * 2 * 4 * 2  # images, views, values, bytes
    extract(images, "block", "pooling", max_gb=10 * room / 1e9)
    assert "features at block exceed cache.max_gb" in capsys.readouterr().err
    assert {entry["cut"] for entry in extract.entries()} == {"pooling"}


def test_a_cut_at_the_input_keeps_pixels(extract, images):
    (held,) = extract(images, "image", views=1)
    assert held.dtype == np.uint8
    assert np.array_equal(held.take(np.arange(10)), images.array)


def test_a_damaged_segment_is_computed_again(extract, images, capsys):
    expected = extract(images, views=1)[0].take(np.arange(10))
    (file,) = extract.segments()
    blob = bytearray(file.read_bytes())
    blob[-1] ^= 64
    file.write_bytes(blob)
    assert np.array_equal(extract(images, views=1)[0].take(np.arange(10)), expected)
    assert "damaged" in capsys.readouterr().err


def test_a_cleared_cache_costs_time_and_nothing_else(extract, images, tmp_path):
    (held,) = extract(images)
    FeatureCache(tmp_path / "cache", max_gb=1).clear()
    (expected,) = extract(images, folder="other")
    assert np.array_equal(held.take(np.arange(10), 1), expected.take(np.arange(10), 1))


@pytest.mark.parametrize(("value", "words"), [(np.nan, "not finite for set/0.png"), (1e6, None)])
def test_values_that_half_precision_cannot_hold_are_named(
    extract, images, monkeypatch, capsys, value, words
):
    def start():
        return lambda batch: [np.full((len(batch), 4), value, np.float32)]

    monkeypatch.setattr(runtimes, "prepare", lambda *_: SimpleNamespace(start=start))
    if words:
        with pytest.raises(GraftError, match=words):
            extract(images, views=1)
    else:
        assert (extract(images, views=1)[0].take([0]) == np.finfo(np.float16).max).all()
        assert (
            "exceed half precision (65504) in 10 views, first of set/0.png"
            in capsys.readouterr().err
        )


def test_the_rate_is_told_before_many_views_are_computed_and_never_of_what_is_cached(
    model, images, tmp_path, monkeypatch
):
    told = []
    extractor = FeatureExtractor(
        POOL, "litert", FeatureCache(tmp_path / "cache", max_gb=1), told.append
    )
    extractor.extract(model, [cut(model, "pooling")], images)
    assert told == []  # ten views are done before one could read it
    monkeypatch.setattr("graft.features.extractor.MANY", 20)
    for _ in range(2):
        extractor.extract(model, [cut(model, "block")], images, views=2)
    assert len(told) == 1 and told[0] > 0
