import pytest

from graft import keras_graph
from graft.system.environment import quiet_tensorflow

quiet_tensorflow()

import keras  # noqa: E402


def build(start=3):
    """An inception block whose branches differ in depth, then a bare addition of a layer to itself,
    scaled."""
    image = keras.Input((8, 8, 3), name="image")
    stem = keras.layers.Conv2D(4, 1, name="stem")(image)
    short = keras.layers.Conv2D(4, 1, name="short")(stem)
    long = keras.layers.Conv2D(4, start, padding="same", name="long_1")(stem)
    long = keras.layers.Conv2D(4, 3, padding="same", name="long_2")(long)
    joined = keras.layers.Concatenate(name="joined")([long, short])
    bare = keras.ops.add(joined, joined)
    return keras.Model(image, keras.layers.GlobalAveragePooling2D(name="pooling")(bare))


@pytest.fixture(scope="module")
def model():
    return build()


def bare(model):
    (name,) = {operation.name for operation in model.operations} - {
        layer.name for layer in model.layers
    }
    return name


def test_parents(model):
    assert keras_graph.parents(model) == {
        "image": [],
        "stem": ["image"],
        "long_1": ["stem"],
        "long_2": ["long_1"],
        "short": ["stem"],
        "joined": ["long_2", "short"],
        bare(model): ["joined"],
        "pooling": [bare(model)],
    }


def test_consumers(model):
    taking = keras_graph.consumers(model)
    assert sorted(taking.pop("stem")) == ["long_1", "short"]
    assert taking == {
        "image": ["stem"],
        "long_1": ["long_2"],
        "long_2": ["joined"],
        "short": ["joined"],
        "joined": [bare(model)],
        bare(model): ["pooling"],
        "pooling": [],
    }


def test_nothing_stands_before_what_feeds_it(model):
    for which in (
        model,
        keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), include_top=False),
    ):
        order = {name: i for i, name in enumerate(keras_graph.parents(which))}
        assert len(order) == len(which.operations)
        for name, sources in keras_graph.parents(which).items():
            assert all(order[source] < order[name] for source in sources)


def test_a_model_built_alike_has_the_same_order(model):
    def shape(which):
        feeding = keras_graph.parents(which)
        order = list(feeding)
        return [[order.index(source) for source in sources] for sources in feeding.values()]

    assert shape(build(start=5)) == shape(model)


def test_a_part_of_a_model_is_a_graph_of_its_own(model):
    top = keras.Model(model.get_layer("joined").output, model.output)
    (start, *rest) = keras_graph.parents(top).values()
    assert start == []
    assert len(rest) == 2  # the addition and the pooling, and nothing of what lies below
    assert len(keras_graph.parents(model)) == 8  # to take a part changes nothing in the whole


def test_multiply_adds_are_those_of_the_kernels():
    image = x = keras.Input((8, 8, 3))
    # 16 places x 27 x 4.
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.SeparableConv2D(5, 3, padding="same")(x)  # 16 places x (9 x 4 + 4 x 5)
    x = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x))  # 10
    assert keras_graph.multiply_adds(keras.Model(image, x)) == 16 * 27 * 4 + 16 * (36 + 20) + 10
