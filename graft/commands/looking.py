"""What a network of the pipeline makes of photos that are in no manifest."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graft import pixels
from graft.description import Description
from graft.system.prefetch import prefetch, processors

if TYPE_CHECKING:
    from graft.network.prediction import Inside
    from graft.params import Params

BATCH = 32


@dataclass(frozen=True, eq=False)
class Seen:
    """files: those that could be read, in order; `inside`, a row for each. problems: (file, why) of
    the others."""

    description: Description
    files: list[Path]
    inside: Inside | None
    problems: list[tuple[Path, str]]

    @property
    def probabilities(self) -> np.ndarray:
        """float64 (n, C), at the model's temperature."""
        from scipy.special import softmax

        if self.inside is None:
            return np.empty((0, len(self.description.classes)))
        return softmax(self.inside.logits.astype(np.float64) / self.description.temperature, axis=1)


def look(folder: Path, files: Sequence[Path], params: Params) -> Seen:
    """By the network of a stage's `folder`. Raises GraftError where there is none."""
    from graft.network import backbones, classifier
    from graft.network.prediction import look_inside
    from graft.system.environment import quiet_tensorflow

    quiet_tensorflow()
    model, description = classifier.load(folder)
    how = {
        "resize": description.resize,
        "max_megapixels": description.max_megapixels,
        "white": description.white,
    }
    readable, problems, one_large = [], [], threading.Lock()

    def decode(file):
        try:
            with one_large if pixels.is_large(file) else contextlib.nullcontext():
                return file, pixels.load(file, description.image_size, **how), ""
        except (OSError, pixels.ImageProblem) as error:
            return file, None, str(getattr(error, "strerror", None) or error)

    def batches():
        batch = []
        for file, image, problem in prefetch(decode, files, workers=processors(), depth=2 * BATCH):
            if image is None:
                problems.append((file, problem))
                continue
            readable.append(file)
            batch.append(image)
            if len(batch) == BATCH:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)

    runtime = backbones.choose_runtime(params.features.runtime, description.backbone)
    stacks = batches()
    first = next(stacks, None)
    if first is None:
        return Seen(description, [], None, problems)
    inside = look_inside(model, itertools.chain([first], stacks), runtime=runtime)
    return Seen(description, readable, inside, problems)
