import numpy as np
import pytest

from graft.network import backbones, suggestion
from graft.network.suggestion import Candidate, Trial

V2 = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels"


@pytest.fixture
def at_hand(tmp_path, monkeypatch):
    """at_hand(installed backbones, files in Keras' cache, files in data/weights)."""

    def put(installed=(), cached=(), own=()):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
        monkeypatch.setattr(backbones, "is_installed", lambda name: name in installed)
        for folder, names in (("keras/models", cached), ("data/weights", own)):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            for name in names:
                (tmp_path / folder / name).touch()

    return put


def test_what_is_at_hand_is_tried_at_the_size_of_the_photos_and_at_two_thirds_of_a_native_one(
    at_hand,
):
    at_hand(
        ["efficientnet_lite0", "efficientnet_lite2"],
        [
            f"{V2}_1.0_224_no_top.h5",
            f"{V2}_0.35_160_no_top.h5",
            "mobilenet_1_0_224_tf_no_top.h5",
            "efficientnetb0_notop.h5",
        ],
        ["inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5", "other.h5"],
    )
    large = list(suggestion.candidates([500, 400]))
    assert large == [
        Candidate("efficientnet_lite0", 1.0, "packaged", 224),
        Candidate("efficientnet_lite0", 1.0, "packaged", 160),
        Candidate("efficientnet_lite2", 1.0, "packaged", 260),
        Candidate("efficientnet_lite2", 1.0, "packaged", 192),
        Candidate("mobilenet", 1.0, "imagenet", 224),
        Candidate("mobilenet_v2", 0.35, "imagenet", 160),
        Candidate("mobilenet_v2", 1.0, "imagenet", 224),
        Candidate(
            "inception_v3", 1.0, "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5", 299
        ),
        Candidate(
            "inception_v3", 1.0, "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5", 224
        ),
        Candidate("efficientnet_b0", 1.0, "imagenet", 224),
        Candidate("efficientnet_b0", 1.0, "imagenet", 160),
    ]
    small = {(c.name, c.size) for c in suggestion.candidates([28])}
    assert small == {
        ("efficientnet_lite0", 128),
        ("efficientnet_lite2", 128),
        ("inception_v3", 128),
        ("efficientnet_b0", 128),
    }


def test_a_file_that_only_params_know_is_tried_where_they_say(at_hand):
    at_hand(own=["other.h5"])
    assert list(suggestion.candidates([28])) == []
    found = list(suggestion.candidates([28], own=("mobilenet_v2", 0.35, "other.h5")))
    assert found == [Candidate("mobilenet_v2", 0.35, "other.h5", 128)]
    # Whose one width params do not say.
    (found,) = suggestion.candidates([28], own=("resnet50_v2", 0.35, "other.h5"))
    assert found == Candidate("resnet50_v2", 1.0, "other.h5", 128)


def trial(losses, operations, name="a"):
    return Trial(
        Candidate(name, 1.0, "packaged", 96), np.array(losses, float), 0.9, 100.0, operations, 10.0
    )


def test_what_is_worth_its_time_is_the_cheapest_that_is_as_good():
    rng = np.random.default_rng(0)
    base, noise = rng.exponential(0.2, 200), rng.normal(0, 0.1, 200)
    best, close, worse = (
        trial(base, 100),
        trial(base + 0.001 + noise - noise.mean(), 50),
        trial(base + 0.2 + noise, 10),
    )
    assert suggestion.worth([worse, close, best]) is close
    assert suggestion.worth([worse, best]) is best
    # The pairs decide, not the two means: these differ by less than either's error, yet on every
    # photo.
    always = trial(base + 0.005, 50)
    assert always.loss - best.loss < best.error
    assert suggestion.worth([always, best]) is best


OTHERS = sorted(
    name for name, row in backbones.BACKBONES.items() if row.file and name != "mobilenet_v2"
)


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)]
)
def test_a_file_is_called_as_keras_calls_it(name, monkeypatch):
    asked = []

    def get_file(file, *_, **__):
        asked.append(file)
        raise LookupError

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    row = backbones.row(name)
    with pytest.raises(LookupError):
        row.imagenet(1.0, row.native_size)
    assert asked == [row.file.format(alpha=1.0, size=row.native_size)]
