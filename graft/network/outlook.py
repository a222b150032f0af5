"""What a first run will cost, said before it is paid for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from graft import keras_graph
from graft.description import Description
from graft.network import backbones
from graft.network.cut import Cut, split_at
from graft.system.console import log, warn

if TYPE_CHECKING:
    import keras

    from graft.params import Params

BESIDE = 90  # s: what does not grow with the photos, imports and export most of all
BACKWARD = 3  # a training step costs about three times the layers' own operations


def outlook(
    model: keras.Model,
    cut: Cut,
    description: Description,
    params: Params,
    sides: Sequence[int],
    counts: tuple[int, int],
) -> Callable[[float], None]:
    """Log what size the images get, and return what FeatureExtractor calls with the frozen layers'
    rate, images/s.

    cut: of fine-tuning. sides: shorter sides of the images, pixels. counts: images that train,
    images that validate.
    """
    for key in params.head.idle():
        warn(f"{key} does nothing while head.hidden_units is 0: the head is solved, not trained")
    size, median = description.image_size, float(np.median(sides))
    why = f" (image_size: auto; the photos' shorter side is {median:.0f} px in the median)"
    log(f"{description.backbone} at {size} px{why if params.image_size == 'auto' else ''}")

    def announce(rate):
        seconds = first_run_seconds(model, cut, params, counts, rate)
        log(
            f"a first run takes about {max(2, round(seconds / 60))} minutes at this speed, "
            f"{rate:.0f} images/s, and the next ones less; faster: "
            f"{', '.join(_faster(description, params))}"
        )

    return announce


def first_run_seconds(
    model: keras.Model, cut: Cut, params: Params, counts: tuple[int, int], rate: float
) -> float:
    """A rough estimate: every view through the frozen layers, then the epochs of fine-tuning, then
    all that is constant.

    rate: images/s of the layers below `cut`, as measured here (`graft check`, before any network
    runs, goes by the photos' number alone). An epoch was seen to take 0.6 to 1.1 times what it
    says, on flowers at 224 px and CIFAR-10 at 96.
    """
    trunk, top = (keras_graph.multiply_adds(part) if part else 0 for part in split_at(model, cut))
    (train, val), block = counts, params.fine_tune
    views = train * max(1, params.augment.views) + val
    steps = train * (block.epochs if block.layers else 0)
    return BESIDE + views / rate + steps * BACKWARD * top / (rate * max(trunk, 1))


def _faster(description, params):
    smaller = backbones.smaller_size(description.image_size)
    if smaller >= max(backbones.SMALLEST_AUTO, backbones.row(description.backbone).smallest_size):
        yield f"-S image_size={smaller}"
    if params.fine_tune.layers:
        yield "-S fine_tune.layers=0 (the head alone)"
    if params.augment.views > 1:
        yield "-S augment.views=1"
