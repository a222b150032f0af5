import pytest

from graft.description import Description
from graft.system import environment

environment.quiet_tensorflow()


@pytest.fixture(scope="session")
def description():
    return Description("mobilenet_v2", 0.35, 32, ("a", "b c", "ä"), 0, 0.2, "none")


@pytest.fixture(scope="module")
def model(description):
    """A classifier of random weights, its backbone frozen."""
    import keras

    from graft.network import classifier

    keras.utils.set_random_seed(0)
    return classifier.build(description)
