"""What a network knows: which of its features are of the shallowest depth, and that both uses of
them say so."""

import numpy as np

from graft.description import Description
from graft.network import acquaintance, classifier


def test_the_shallowest_depth_comes_first_where_the_head_sees_several():
    head = {"hidden_units": 0, "dropout": 0.2, "resize": "crop"}
    model = classifier.build(Description("efficientnet_lite0", 1.0, 32, ("a", "b"), **head))
    width = classifier.shallow_width(model)
    assert (
        0
        < width
        == model.get_layer("pooling_0").output.shape[-1]
        < model.get_layer("pooled").output.shape[-1]
    )
    assert model.get_layer("pooled").input[0] is model.get_layer("pooling_0").output


def test_a_class_that_was_left_out_is_judged_by_it_too():
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    features = rng.normal(size=(240, 40)) + 2 * np.eye(3)[labels].repeat(14, axis=1)[:, :40]
    features[labels == 2, :8] += rng.normal(size=(80, 8)) * 3
    splits = [("train", "train", "val", "test")[k // 3 % 4] for k in range(240)]
    found = [
        [
            float(np.median(strange))
            for _, _, strange in acquaintance.without_a_class(
                features, labels, splits, classes=3, seed=0, shallow=shallow
            )
        ]
        for shallow in (0, 8)
    ]
    assert len(found[0]) == 3 and found[0] != found[1]
