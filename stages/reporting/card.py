"""`card.html`: all that a person wants to know about the model, on one page that needs nothing but itself."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stages.reporting.plots import style

HERE = Path(__file__).parent
PHOTO = 144  # pixels; shown at most that large
QUALITY = 82
PROBLEMS_SHOWN = 40


@dataclass(frozen=True)
class Facts:
    """What only the pipeline knows about a model; every part may be left out, and the page then does without it.

    name, purpose: headline and a sentence below it. model, training, params, digests: label -> value, shown as given in
    the order given. data: likewise (path, digest …). counts: split -> class -> images. problems: rows of problems.csv
    (path, problem, action). load: lines of Python that load and use the model. Nothing in here may change from run to
    run: the card is a DVC output.
    """

    name: str = "Image classifier"
    purpose: str = ""
    model: Mapping[str, object] = field(default_factory=dict)
    data: Mapping[str, object] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    problems: Sequence[Mapping[str, str]] = ()
    training: Mapping[str, object] = field(default_factory=dict)
    params: Mapping[str, object] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    load: str = ""


LOAD = """import keras, numpy as np
model = keras.models.load_model("data/export/model.keras")
probabilities = model.predict(pixels)  # uint8 RGB (n, {size}, {size}, 3)"""


def facts_of(spec, *, counts, problems, curves, unfrozen_at, digests):
    """Facts of a classifier: `spec` is its description (`model.json`); the rest as in Facts and `report.write_evaluation`."""
    head_epochs = len(curves) if unfrozen_at is None else unfrozen_at
    return Facts(
        name=f"{spec.backbone} for {len(spec.classes)} classes",
        purpose=(
            f"Says which of {len(spec.classes)} classes a photo shows: a new head grafted onto a pretrained {spec.backbone}."
        ),
        model={
            "backbone": spec.backbone,
            "width (alpha)": spec.alpha,
            "input": f"{spec.image_size} x {spec.image_size} RGB, uint8",
            "resizing": spec.resize,
            "dense layer": spec.hidden_units or "none",
            "dropout": spec.dropout,
            "unfrozen layers": spec.trainable_layers,
            "temperature": round(spec.temperature, 4),
        },
        data={"images": sum(sum(split.values()) for split in counts.values()), "classes": len(spec.classes)},
        counts=counts,
        problems=problems,
        training={
            "epochs, head": head_epochs,
            "epochs, fine-tuning": len(curves) - head_epochs,
            "peak lr, head": f"{curves[0]['lr']:.2g}",
            **({"peak lr, fine-tuning": f"{curves[unfrozen_at]['lr']:.2g}"} if unfrozen_at is not None else {}),
        },
        digests=digests,
        load=LOAD.format(size=spec.image_size),
    )


@dataclass(frozen=True)
class Card:
    """Facts, figures and pictures: all that `render_card` needs. `against_head`: a statistics.Comparison or None."""

    facts: Facts
    metrics: dict
    report: dict
    gallery: object
    calibrated: bool
    against_head: object = None


def render_card(card, provenance=None):
    """The page as a string, the same for the same `card`.

    `provenance`: label -> value of what changes from run to run (git commit, MLflow run), a value that starts with http
    as a link; leave it out in a DVC output.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=style.percent, points=_points, picture=_data_uri, shown=_shown, p_value=_p_value)
    problems = {}
    for row in card.facts.problems:
        problems.setdefault((row["problem"], row["action"]), []).append(row["path"])
    return environment.get_template("card.html.j2").render(
        card=card,
        facts=card.facts,
        metrics=card.metrics,
        classes=card.report["classes"],
        svg={name: Markup(element) for name, element in card.gallery.svg.items()},
        gallery=card.gallery,
        problems=[(*kind, paths[:PROBLEMS_SHOWN], len(paths)) for kind, paths in problems.items()],
        weakest=_weakest(card.report["classes"]),
        palette=style.VARIABLES,
        provenance=provenance or {},
    )


def _weakest(rows):
    """Up to three classes with images whose recall is least, if they miss any."""
    return sorted((row for row in rows if row["support"] and row["recall"] < 1), key=lambda row: row["recall"])[:3]


def _data_uri(image):
    """JPEG of a photo, uint8 (S, S, 3), as a data: address."""
    from PIL import Image

    picture = Image.fromarray(image)
    if max(picture.size) != PHOTO:
        picture = picture.resize((PHOTO, PHOTO), Image.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _shown(value):
    """A fact as text: numbers without needless digits, thousands apart."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_shown(v)}" for k, v in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value)) or "–"
    return "–" if value is None else str(value)


def _points(difference):
    return f"{100 * difference:+.1f}".replace("-", "−")


def _p_value(p):
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
