import keras
import pytest
from ruamel.yaml import YAML

from graft.commands import main, suggest
from graft.dataset.manifest import Manifest, ManifestRow
from graft.description import Description
from graft.network import backbones, classifier
from graft.system.console import GraftError
from tests import random_networks
from tests.dataset import pictures


@pytest.fixture
def photos(clone, monkeypatch):
    """24 photos of 28 pixels, and one network at hand: MobileNetV2 of random weights in a file that
    params.yaml names."""
    monkeypatch.setenv("KERAS_HOME", str(clone / "keras"))
    monkeypatch.setattr(backbones, "is_installed", lambda _: False)
    (clone / "data" / "weights").mkdir(parents=True)
    filled = classifier.backbone_layers(
        random_networks.build(Description("mobilenet_v2", 0.35, 32, ("a", "b"), 0, 0.0, "none"))
    )
    network = keras.applications.MobileNetV2(
        alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3)
    )
    for layer, other in zip(network.layers[1:], filled):
        layer.set_weights(other.get_weights())
    network.save_weights(clone / "data" / "weights" / "mine.weights.h5")
    yaml = YAML()
    tree = yaml.load(clone / "params.yaml")
    tree["backbone"] = {"name": "mobilenet_v2", "alpha": 0.35, "weights": "mine.weights.h5"}
    yaml.dump(tree, clone / "params.yaml")
    return pictures.folder(clone / "my photos", each=12, width=28, height=28)


@pytest.mark.slow
def test_a_row_per_network_and_the_command_to_run(photos, capsys):
    said = []
    for _ in range(2):  # the second reads the features that the first has left
        main.main(["suggest", "my photos"])
        said.append(capsys.readouterr().out.splitlines())
    first, heads, row, reason, command = said[0]
    assert first.startswith("20 photos of my photos in 4 folds")
    assert heads.split() == ["network", "size", "val", "loss", "accuracy", "images/s", "MB"]
    name, _, alpha, file, size, loss, _, error, accuracy, rate, megabytes = row.split()
    assert (name, alpha, file, size) == ("mobilenet_v2", "0.35", "mine.weights.h5", "128")
    assert 0.3 < float(loss) < 1.5 and 0 < float(error) < 0.5
    assert (float(accuracy) * 20).is_integer() and float(rate) > 0
    assert float(megabytes) == 1.7  # 410,208 values and the head's 2,562, 4 bytes each
    assert reason.startswith(
        "mobilenet_v2 alpha 0.35 mine.weights.h5 at 128 px has the smallest loss"
    )
    # The rest is what params.yaml says.
    assert command == "dvc exp run -S 'data.path=\"my photos\"'"
    assert said[1][2].split()[:-2] == row.split()[:-2]  # but for the speed


def test_what_params_do_not_say_is_in_the_command(clone):
    from graft import params as parameters
    from graft.network.suggestion import Candidate, Trial

    params = parameters.load()

    def flags(*candidate, params=params):
        return suggest._flags(
            Trial(Candidate(*candidate), None, 0.9, 1.0, 1, 1.0), params, "data/raw/fashion", [500]
        )

    assert flags("efficientnet_lite0", 1.0, "packaged", 224) == []
    lite2 = ["-S backbone.name=efficientnet_lite2", "-S image_size=192"]
    assert flags("efficientnet_lite2", 1.0, "packaged", 192) == lite2
    # A number of layers is of one network: it stays with it, and means something else in another.
    counted = params.model_copy(
        update={"fine_tune": params.fine_tune.model_copy(update={"layers": 20})}
    )
    assert flags("efficientnet_lite0", 1.0, "packaged", 224, params=counted) == []
    assert flags("efficientnet_lite2", 1.0, "packaged", 192, params=counted) == [
        *lite2,
        "-S fine_tune.layers=auto",
    ]
    assert flags("mobilenet_v2", 0.5, "imagenet", 224) == [
        "-S backbone.name=mobilenet_v2",
        "-S backbone.alpha=0.5",
        "-S backbone.weights=imagenet",
    ]


def test_weights_that_do_not_fit_are_left_out_and_no_weights_are_a_mistake(photos, clone, capsys):
    (clone / "data" / "weights" / "mine.weights.h5").write_bytes(b"no weights")
    with pytest.raises(SystemExit):
        main.main(["suggest", "my photos"])
    err = capsys.readouterr().err
    assert (
        "warning: mobilenet_v2 is left out: backbone.weights: data/weights/mine.weights.h5 does "
        "not fit" in err
    )
    assert err.splitlines()[-1].startswith("error: no weights at hand to try")


def manifest(**counts):
    rows = [
        ManifestRow(f"{label}/{i}.jpg", label, split, f"{i * 7919 % 1009:064x}", 9, 9)
        for name, n in counts.items()
        for label, split in [name.split("_")]
        for i in range(n)
    ]
    return Manifest(
        tuple(sorted(rows, key=lambda row: row.path)), tuple(sorted({row.label for row in rows}))
    )


def test_a_sample_keeps_the_shares_of_the_classes_and_leaves_test_photos_out():
    rows = manifest(a_train=300, a_val=100, a_test=50, b_train=90, b_val=10, b_test=50)
    taken = suggest.sample(rows, 100)
    assert [sum(row.label == label for row in taken.rows) for label in "ab"] == [80, 20]
    assert {row.split for row in taken.rows} == {"train", "val"}
    assert list(taken.paths) == sorted(taken.paths)
    assert taken == suggest.sample(rows, 100)
    assert len(suggest.sample(rows)) == 500


def test_folds_judge_each_photo_once_and_need_four_of_a_class():
    rows = manifest(a_train=20, b_train=8)
    judged = []
    for train, held in suggest.folds(rows):
        assert not set(train.paths) & set(held.paths)
        assert len(train) + len(held) == 28
        assert held.classes == ("a", "b") and len(set(held.labels)) == 2
        judged += held.paths
    assert sorted(judged) == list(rows.paths)
    with pytest.raises(
        GraftError, match="class 'b' has fewer than 4 photos besides those that are tested"
    ):
        list(suggest.folds(manifest(a_train=20, b_train=3)))
