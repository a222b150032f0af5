"""`card.html`: all that a person wants to know about the model, on one page that needs nothing but
itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.figures import style
from graft.reporting.plots import Plots
from graft.scoring.results import Results
from graft.scoring.statistics import Comparison

if TYPE_CHECKING:
    from jinja2 import Environment

# In the page, where `with_provenance` adds what changes from run to run.
PROVENANCE = "<!-- provenance -->"
SIDE = 144  # pixels of an image; shown at most that large
QUALITY = 82
PROBLEMS_SHOWN = 40


@dataclass(frozen=True)
class About:
    """What only the pipeline knows about a model. Nothing in here may change from run to run: the
    card is a DVC output.

    description: the classifier's Description. counts: split -> class -> images. problems: rows of
    problems.csv (path, problem, action). digests: label -> value, shown as given.
    second_look: section of the page on the data, HTML, as that stage wrote it.
    """

    description: object
    counts: Mapping[str, Mapping[str, int]]
    problems: Sequence[Mapping[str, str]]
    digests: Mapping[str, str]
    second_look: str = ""


def render(
    about: About, results: Results, report: dict, against_head: Comparison, plots: Plots
) -> str:
    """The page, the same for the same arguments. report: of `results`, as are `against_head` and
    `plots`."""
    from markupsafe import Markup

    problems: dict[tuple[str, str], list[str]] = {}
    for row in about.problems:
        problems.setdefault((row["problem"], row["action"]), []).append(row["path"])
    classes = report["classes"]
    missed = (row for row in classes if row["support"] and row["recall"] < 1)
    return environment().get_template("model_card.html.j2").render(
        about=about,
        metrics=report["summary"],
        classes=classes,
        paired=against_head,
        calibrated=results.calibration.applied,
        unknown=results.unknown,
        training=_training(results.history),
        data={"images": sum(sum(split.values()) for split in about.counts.values()),
              "classes": len(classes)},
        plots=plots,
        svg={name: Markup(element) for name, element in plots.svg.items()},
        problems=[(*kind, paths[:PROBLEMS_SHOWN], len(paths)) for kind, paths in problems.items()],
        weakest=sorted(missed, key=lambda row: row["recall"])[:3],
        palette=style.VARIABLES,
        marker=Markup(PROVENANCE),
        second_look=Markup(about.second_look),
    )  # fmt: skip


def with_provenance(page: str, *, params: Mapping[str, str], provenance: Mapping[str, str]) -> str:
    """A rendered page with what is not part of the DVC output: all parameters, and label -> value
    of what changes from run to run (git commit, MLflow run), a value that starts with http as a
    link.
    """
    before, after = page.rsplit(PROVENANCE, 1)
    facts: Any = environment().get_template("facts.html.j2").module
    return "".join((before, facts.run(provenance, params), after))


def environment() -> Environment:
    """jinja2's, for the templates beside this file: `percent` and `data_uri` (a JPEG of pixels) are
    filters."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=style.percent, data_uri=_data_uri)
    return environment


def _training(history):
    phases = {"head": history.head, "fine-tuning": history.fine_tuning}
    epochs = {f"epochs, {name}": len(rows) for name, rows in phases.items()}
    # Not the first epoch's rate: a warm-up begins at 0.
    rates = {
        name: [row["lr"] for row in rows if row["lr"] is not None] for name, rows in phases.items()
    }
    return epochs | {
        f"peak lr, {name}": f"{max(values):.2g}" for name, values in rates.items() if values
    }


def _data_uri(pixels):
    """JPEG of an image, uint8 (S, S, 3), as a data: address."""
    from PIL import Image

    image = Image.fromarray(pixels)
    if max(image.size) != SIDE:
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
