import keras
import numpy as np
import pytest

from graft.network import classifier
from graft.network.cut import cut_at, find_cut, split_at


@pytest.mark.parametrize(
    ("name", "layers", "cut"),
    [
        ("mobilenet_v2", 0, "pooling"),
        # A relu learns nothing, so nothing below pooling is trained.
        ("mobilenet_v2", 1, "pooling"),
        ("mobilenet_v2", 20, "block_14_add"),
        ("mobilenet_v2", 34, "block_12_add"),
        ("mobilenet_v2", 50, "block_10_project_BN"),
        ("mobilenet_v2", 200, "image"),
        ("inception_v3", 0, "pooling"),
        ("inception_v3", 50, "mixed8"),
        ("inception_v3", 100, "mixed6"),
        ("densenet121", 50, "conv5_block9_concat"),
        ("efficientnet_v2_b0", 50, "block6e_add"),
    ],
)
def test_the_cut_is_the_deepest_tensor_that_all_training_depends_on_alone(
    description, name, layers, cut
):
    model = classifier.build(description.replace(backbone=name, alpha=1.0, image_size=96))
    found = find_cut(model, layers)
    assert found.name == cut
    assert found.shapes == (found.tensors[0].shape[1:],)
    classifier.unfreeze(model, layers)
    frozen, top = split_at(model, found)
    assert frozen is None or not frozen.trainable_variables
    assert len(top.trainable_variables) == len(model.trainable_variables)


@pytest.mark.parametrize("layers", [0, 50, 200])
def test_frozen_part_and_top_make_the_whole(model, pixels, layers):
    images = pixels(4).array
    frozen, top = split_at(model, find_cut(model, layers))
    middle = images if frozen is None else frozen(images, training=False)
    assert np.array_equal(top(middle, training=False), model(images, training=False))


@pytest.mark.parametrize("layers", [0, 50, 999])
@pytest.mark.parametrize("name", ["inception_v3", "mobilenet_v3_small"])
def test_names_that_keras_counts_up_change_neither_digest_nor_place(description, name, layers):
    """The second model's layers are conv2d_94 and up, its bare additions add_6 and up."""
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        models.append(
            classifier.build(description.replace(backbone=name, alpha=1.0, image_size=96))
        )
    one, two = (find_cut(model, layers) for model in models)
    assert one.digest == two.digest
    assert (one.position, one.shapes) == (two.position, two.shapes)
    found = cut_at(models[1], one.position)
    assert found.tensors[0] is two.tensors[0]
    assert (found.digest, found.name) == (two.digest, two.name)


def test_other_weights_below_the_cut_are_another_digest_and_above_it_are_not(description):
    keras.utils.set_random_seed(0)
    model = classifier.build(description)
    before = find_cut(model, 50).digest
    model.get_layer("probabilities").bias.assign([1.0, 2.0, 3.0])
    assert find_cut(model, 50).digest == before
    kernel = model.get_layer("Conv1").kernel
    kernel.assign(kernel + 1e-6)
    assert find_cut(model, 50).digest != before
