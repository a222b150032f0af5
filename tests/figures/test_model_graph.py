import pytest

from graft.figures import model_graph
from graft.figures.model_graph import Block, ModelGraphDisplay


def test_graph_of_a_model_with_a_residual_block(residual_model):
    found = model_graph.blocks(residual_model)
    assert [(b.name, b.shape, b.joins) for b in found] == [
        ("image", (16, 16, 3), ""),
        ("scaling", (16, 16, 3), ""),
        ("stem", (8, 8, 4), ""),
        ("block_1", (8, 8, 4), "add"),
        ("top", (4, 4, 8), ""),
        ("pooling", (8,), ""),
        ("dropout", (8,), ""),
        ("probabilities", (3,), ""),
    ]
    expected = {"stem": 112, "block_1": 148 + 20, "top": 296, "probabilities": 27}
    assert {b.name: b.parameters for b in found if b.parameters} == expected
    assert sum(expected.values()) == residual_model.count_params()
    assert {b.name: b.trained for b in found if b.trained} == {"block_1": 168, "probabilities": 27}
    texts = {text.get_text() for text in ModelGraphDisplay(found).plot().ax_.texts}
    assert {"8 × 8 × 4", "168  ●", "296"} <= texts
    head = ModelGraphDisplay.from_model(residual_model, title="Head").plot()
    assert head.ax_.get_title(loc="left") == "Head: 603 parameters, 195 trained  ●"


def test_graph_merges_what_would_be_too_long():
    long = [Block(f"block_{k}", 2, (8, 8, 4 + k), 10, 10 if k > 50 else 0) for k in range(60)]
    merged = model_graph._merged([*long, Block("pooling", 1, (63,), 0, 0)])
    assert [(b.name, b.layers, b.shape, b.parameters, b.trained) for b in merged] == [
        ("block_0 … block_50", 102, (8, 8, 54), 510, 0),
        ("block_51 … block_59", 18, (8, 8, 63), 90, 90),
        ("pooling", 1, (63,), 0, 0),
    ]


@pytest.mark.parametrize(
    ("name", "blocks"), [("MobileNetV2", 17), ("MobileNetV3Small", 11), ("InceptionV3", 11)]
)
def test_graph_of_a_backbone(name, blocks):
    keras = pytest.importorskip("keras")
    shape = {"input_shape": (96, 96, 3), "include_top": False, "weights": None}
    model = getattr(keras.applications, name)(**shape)
    found = model_graph.blocks(model)
    assert sum(b.parameters for b in found) == model.count_params()
    assert sum(b.name.startswith(("block_", "expanded_conv", "mixed")) for b in found) == blocks
