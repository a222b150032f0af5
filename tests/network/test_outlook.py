from pathlib import Path

import pytest

from graft import params as parameters
from graft.description import Description
from graft.network import classifier
from graft.network.cut import find_cut
from graft.network.outlook import BESIDE, first_run_seconds, outlook

ROOT = Path(__file__).parents[2]


def changed(**blocks):
    """The params as they come, with other values in some blocks."""
    params = parameters.load(ROOT / "params.yaml")
    inner = {name: getattr(params, name).model_copy(update=given) for name, given in blocks.items()}
    return params.model_copy(update=inner)


@pytest.fixture(scope="module")
def network():
    description = Description("mobilenet_v2", 0.35, 224, ("a", "b"), 0, 0.2, "crop")
    model = classifier.build(description)
    return model, find_cut(model, 46), description


def test_size_time_and_what_is_faster_are_said_before_the_first_pass(network, capsys):
    announce = outlook(*network, changed(), [300, 200, 500], (1000, 100))
    assert capsys.readouterr().out == (
        "mobilenet_v2 at 224 px (image_size: auto; the photos' shorter side is 300 px in the "
        "median)\n"
    )
    announce(10.0)
    said = capsys.readouterr().out
    minutes = round(first_run_seconds(*network[:2], changed(), (1000, 100), 10.0) / 60)
    assert f"about {minutes} minutes at this speed, 10 images/s" in said
    assert said.endswith(
        "faster: -S image_size=160, -S fine_tune.layers=0 (the head alone), -S augment.views=1\n"
    )


def test_what_is_not_faster_is_not_proposed(network, capsys):
    model, cut, description = network
    params = changed(augment={"views": 1}, backbone={"name": "mobilenet_v2"})
    outlook(model, cut, description.replace(image_size=96), params, [32], (1000, 100))(50.0)
    assert capsys.readouterr().out.endswith("faster: -S fine_tune.layers=0 (the head alone)\n")


def test_the_estimate_grows_with_photos_views_and_epochs(network):
    model, cut, _ = network

    def seconds(counts=(1000, 100), rate=10.0, **blocks):
        return first_run_seconds(model, cut, changed(**blocks), counts, rate) - BESIDE

    head = {"fine_tune": {"layers": 0}}
    assert seconds(**head) == pytest.approx((4 * 1000 + 100) / 10)
    assert seconds(**head, augment={"views": 0}) == pytest.approx((1000 + 100) / 10)
    assert seconds(**head, rate=20.0) == pytest.approx((4 * 1000 + 100) / 20)
    two, four = (seconds(fine_tune={"epochs": epochs}) - seconds(**head) for epochs in (2, 4))
    assert four == pytest.approx(2 * two) and two > 0


def test_a_key_that_does_nothing_is_a_warning(network, capsys):
    outlook(*network, changed(), [300], (10, 5))
    assert capsys.readouterr().err == ""
    outlook(*network, changed(head={"lr": 1e-2, "epochs": 41}), [300], (10, 5))
    said = capsys.readouterr().err
    assert (
        "head.lr does nothing while head.hidden_units is 0" in said
        and "head.epochs does" in said
        and "patience" not in said
    )
    outlook(*network, changed(head={"lr": 1e-2, "hidden_units": 128}), [300], (10, 5))
    assert capsys.readouterr().err == ""
