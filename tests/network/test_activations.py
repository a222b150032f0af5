import keras
import numpy as np
import pytest

from stages.network import activations, classifier, engines
from stages.network.augmentation import Augmentation, Views
from stages.network.memo import Memo

POOL = Augmentation("horizontal", 0.1, 0.1, 0, 0, seed=5)
STILL = Augmentation("none", 0, 0, 0, 0, seed=5)


@pytest.fixture(scope="module")
def model(spec):
    keras.utils.set_random_seed(0)
    return classifier.build(spec)


def recall(model, images, tmp_path, *, cuts=(0,), views=2, pool=POOL, engine="litert", max_gb=1.0):
    tensors = [classifier.find_cut(model, layers) for layers in cuts]
    memo = Memo(tmp_path, max_gb=max_gb)
    return activations.recall(model, tensors, images, augmentation=pool, views=views, engine=engine, memo=memo, label="train")


def test_activations_are_the_trunks_of_each_view_in_half_precision(model, pixels, tmp_path):
    images = pixels(10)
    (held,) = recall(model, images, tmp_path)
    trunk = keras.Model(model.input, classifier.find_cut(model, 0))
    views = Views(POOL, 10)
    for view in (0, 1):
        made = views.make(images.array, np.arange(10), view)
        got = held.take(np.array([7, 2]), view)
        assert got.dtype == np.float16
        assert np.allclose(got, np.asarray(trunk(made, training=False))[[7, 2]], rtol=2e-3, atol=1e-3)
    assert (held.views, held.shape) == (2, (1280,))


def test_what_is_remembered_is_neither_read_nor_computed_again(model, pixels, tmp_path, capsys, monkeypatch):
    images = pixels(10)
    first = recall(model, images, tmp_path, cuts=(0, 50))
    assert images.reads == 10  # one pass over the files for two cuts and two views
    assert "computed by litert" in capsys.readouterr().out
    monkeypatch.setattr(engines, "start", lambda *_: pytest.fail("the trunk was started"))
    again = recall(model, images, tmp_path, cuts=(50,))
    assert images.reads == 10
    assert "train: activations of 10 images x 2 views reused" in capsys.readouterr().out
    assert np.array_equal(first[1].take(np.arange(10), 1), again[0].take(np.arange(10), 1))


def test_more_views_compute_only_what_is_new(model, pixels, tmp_path):
    recall(model, pixels(6), tmp_path, views=2)
    keys = {entry["key"] for entry in Memo(tmp_path, max_gb=1).entries()}
    before = {key: (tmp_path / f"{key}.npy").stat().st_mtime_ns for key in keys}
    recall(model, pixels(6), tmp_path, views=4)
    assert len(Memo(tmp_path, max_gb=1).entries()) == 4
    assert before == {key: (tmp_path / f"{key}.npy").stat().st_mtime_ns for key in keys}


@pytest.mark.parametrize(
    ("change", "new"),
    [
        ({}, 0),
        ({"engine": "tensorflow"}, 2),
        ({"pool": Augmentation("horizontal", 0.1, 0.1, 0, 0, seed=6)}, 1),  # view 0 knows no seed
        ({"pool": Augmentation("none", 0.1, 0.1, 0, 0, seed=5)}, 1),
        ({"cuts": (50,)}, 2),
        ({"pool": STILL}, 0),  # only view 0 is left, which is there
    ],
)
def test_the_key_holds_all_that_determines_the_values_and_no_more(model, pixels, tmp_path, change, new):
    recall(model, pixels(5), tmp_path)
    recall(model, pixels(5), tmp_path, **change)
    assert len(Memo(tmp_path, max_gb=1).entries()) == 2 + new


def test_other_images_other_weights_other_order_are_other_entries(model, spec, pixels, tmp_path):
    images = pixels(5)
    recall(model, images, tmp_path, views=1)
    other = pixels(5, name="other")
    recall(model, other, tmp_path, views=1)
    images.sha256 = images.sha256[::-1]
    recall(model, images, tmp_path, views=1)
    keras.utils.set_random_seed(9)
    recall(classifier.build(spec), other, tmp_path, views=1)
    assert len(Memo(tmp_path, max_gb=1).entries()) == 4


def test_names_that_keras_counts_up_do_not_change_the_trunks_identity(spec):
    import dataclasses

    wide = dataclasses.replace(spec, backbone="inception_v3", image_size=75)
    digests = set()
    for _ in range(2):  # the second model's layers are conv2d_94 and up
        keras.utils.set_random_seed(0)
        model = classifier.build(wide)
        digests.add(activations.trunk_digest(model, classifier.find_cut(model, 50)))
    assert len(digests) == 1


@pytest.mark.parametrize("layers", [0, 50, 200])
def test_without_room_they_are_computed_at_each_request_with_the_same_bits(model, pixels, tmp_path, capsys, layers):
    images = pixels(6)
    (held,) = recall(model, images, tmp_path / "wide", cuts=(layers,))
    (streamed,) = recall(model, images, tmp_path / "narrow", cuts=(layers,), max_gb=1e-9)
    assert "do not fit into the memo" in capsys.readouterr().err
    assert (streamed.views, streamed.shape, streamed.dtype) == (held.views, held.shape, held.dtype)
    order = np.array([4, 0, 5])
    for view in (0, 1):
        assert np.array_equal(streamed.take(order, view), held.take(order, view))
    assert Memo(tmp_path / "narrow", max_gb=1).entries() == []


def test_a_cut_at_the_input_remembers_pixels(model, pixels, tmp_path):
    images = pixels(4)
    (held,) = recall(model, images, tmp_path, cuts=(200,), views=1)
    assert held.dtype == np.uint8
    assert np.array_equal(held.take(np.arange(4), 0), images.array)


def test_a_damaged_entry_is_computed_again(model, pixels, tmp_path):
    images = pixels(4)
    expected = np.array(recall(model, images, tmp_path, views=1)[0].take(np.arange(4), 0))
    (file,) = tmp_path.glob("*.npy")
    blob = bytearray(file.read_bytes())
    blob[-1] ^= 64
    file.write_bytes(blob)
    assert np.array_equal(recall(model, images, tmp_path, views=1)[0].take(np.arange(4), 0), expected)
