"""One HTML page on which a person corrects labels: photos in a grid, each with the label it bears
and the likelier one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graft.reporting.model_card import environment


@dataclass(frozen=True, eq=False)
class Doubt:
    """A photo to look at. pixels: uint8 (S, S, 3). why: of the kinds of suspects.csv, or
    `uncertain`. split: where it lies."""

    path: str
    label: str
    likelier: str
    confidence: float
    why: str
    split: str
    pixels: np.ndarray


def page(doubts: Sequence[Doubt], classes: Sequence[str], *, name: str) -> str:
    """HTML that needs nothing but itself: no server, no address is asked. What is chosen there it
    saves as fixes.csv, for `graft relabel`. name: of the data set, under which the browser keeps
    what was chosen until it is saved."""
    return (
        environment()
        .get_template("review.html.j2")
        .render(doubts=doubts, classes=classes, name=name)
    )
