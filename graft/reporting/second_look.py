"""What `second-look` leaves: features, out-of-fold probabilities, suspects, a map, and the card's
section on the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graft.figures import image_grid, style
from graft.figures.second_look import MapDisplay, SuspectImage, spread
from graft.reporting.model_card import environment
from graft.scoring.metrics import log_loss, proportions
from graft.scoring.statistics import group_ids
from graft.second_look import layout, segments, suspects, unknown
from graft.second_look.evidence import Evidence
from graft.system import files

if TYPE_CHECKING:
    from graft.dataset.images import ImageSet
    from graft.tracking.runs import StageRun

SHOWN, SHOWN_TEST, SHOWN_TWINS = 24, 12, 12  # photos in the pictures
WEAK, EXAMPLES = 6, 8  # segments in the card, and wrong photos of each
# Suspects that MLflow shows one by one, and the first part of their keys.
LOGGED, KEY = 16, "suspect labels"


@dataclass(frozen=True)
class SecondLook:
    """`metrics`: of metrics.json. `section`: HTML for the card. `images`: {heading:
    [SuspectImage]}."""

    metrics: dict[str, float]
    section: str = field(repr=False)
    images: dict[str, list[SuspectImage]] = field(repr=False)

    @property
    def line(self) -> str:
        """For the terminal."""
        m = self.metrics
        if "accuracy" not in m:
            return "second-look: evaluate.folds is 0: no photo was judged out of fold"
        return (
            f"second-look: cross-validated accuracy of the head {m['accuracy']:.4f} "
            f"({m['accuracy_low']:.4f} to {m['accuracy_high']:.4f}, n = {m['photos']}), "
            f"{m['suspects']} suspect labels (suspects.csv)"
        )


def write(
    folder: Path,
    evidence: Evidence,
    near: Sequence[unknown.Verdict] = (),
    *,
    images: ImageSet,
    seed: int,
) -> SecondLook:
    """Write everything about `evidence` into `folder`, the same bytes for the same arguments.

    near: of classes that were left out in turn. images: an ImageSet of the same photos. seed:
    chooses what the map shows. Writes `features.npy` (float16, rows as in the manifest), `oof.csv`,
    `suspects.csv`, `unknown.csv`, `segments.csv`, `metrics.json`, `section.html` and, in `plots/`,
    `map.png`, `suspects.png`.
    """
    folder = Path(folder)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    with files.whole(folder / "features.npy") as part:
        np.save(part, evidence.features)
    evidence.predictions.write(folder / "oof.csv")
    found = suspects.find(evidence)
    files.write_csv(folder / "suspects.csv", suspects.COLUMNS, (suspect.row for suspect in found))
    metrics = figures(evidence, found)
    parts = segments.of_evidence(evidence, images, seed=seed)
    files.write_csv(folder / "segments.csv", segments.COLUMNS, segments.table(parts))
    metrics["weak_segments"] = sum(part.weak for part in parts)
    files.write_json(folder / "metrics.json", metrics)
    shown, display = _pictures(evidence, found, images, seed)
    weak = _weak(evidence, [part for part in parts if part.weak][:WEAK], images)
    in_rows = [
        (heading, some[k : k + 6])
        for heading, some in shown.items()
        for k in range(0, len(some), 6)
    ]
    grid = image_grid.ImageGridDisplay("Suspect labels", _headed_once(in_rows))
    style.png(grid.plot().figure_, folder / "plots/suspects.png")
    drawn = display.plot().figure_
    style.png(drawn, folder / "plots/map.png")
    files.write_csv(folder / "unknown.csv", unknown.COLUMNS, unknown.table(near))
    more = {"drawn": style.svg(drawn), "near": near, "weak": weak, "tested": len(parts)}
    section = _section(evidence, found, metrics, shown, more)
    files.write_text(folder / "section.html", section)
    return SecondLook(metrics, section, shown)


def log_images(run: StageRun, found: SecondLook) -> None:
    """The first suspects one by one, under keys that are the same for every run: "suspect
    labels/01"."""
    for number, image in enumerate(
        [i for some in found.images.values() for i in some][:LOGGED], start=1
    ):
        run.log_image(image_grid.tile(image), f"{KEY}/{number:02}")


def figures(evidence: Evidence, found: Sequence[suspects.Suspect]) -> dict[str, float]:
    """What metrics.json holds: `photos`; the head's cross-validated `accuracy` over all of them
    with `_low` and `_high` (95%, groups as units) and `loss`, in nats; `suspects`, `suspects_test`,
    `twins`. Without folds, no accuracy and no loss."""
    p = evidence.predictions
    metrics: dict[str, float] = {"photos": len(evidence)}
    if evidence.folds:
        inside, group = np.ones((len(p), 1), bool), group_ids(p.groups, len(p))
        low, high = (float(end[0]) for end in proportions(inside, p.correct[:, None], group))
        metrics |= {
            "accuracy": float(p.correct.mean()),
            "accuracy_low": low,
            "accuracy_high": high,
            "loss": log_loss(p),
        }
    contradicted = [s for s in found if s.kind == suspects.CONTRADICTED]
    metrics["suspects"] = len(contradicted)
    metrics["suspects_test"] = sum(s.split == "test" for s in contradicted)
    metrics["twins"] = sum(s.kind == suspects.TWIN for s in found)
    return metrics


def _pictures(evidence, found, images, seed):
    """({heading: [SuspectImage]}, the MapDisplay)."""
    plain = [s for s in found if s.kind == suspects.CONTRADICTED]
    parts = {
        "Near-duplicates under different labels": [s for s in found if s.kind == suspects.TWIN][
            :SHOWN_TWINS
        ],
        "Photos to train and validate with": [s for s in plain if s.split != "test"][:SHOWN],
        "Test photos": [s for s in plain if s.split == "test"][:SHOWN_TEST],
    }
    places = layout.lay_out(evidence.features, np.unique([s.index for s in found]), seed=seed)
    thumbs = spread(places.points)
    wanted = np.unique(
        [s.index for some in parts.values() for s in some]
        + [int(places.indices[i]) for i in thumbs]
    )
    pixels = dict(zip(wanted.tolist(), np.concatenate(list(images.read(wanted)))))
    shown = {
        heading: [
            SuspectImage((pixels[s.index],), s.label, s.likelier, s.likelier_probability, s.path)
            for s in some
        ]
        for heading, some in parts.items()
        if some
    }
    p, at = evidence.predictions, places.indices
    wrong = ~p.correct[at] if evidence.folds else np.zeros(len(at), bool)
    of_suspects = np.isin(at, [s.index for s in found])
    display = MapDisplay(
        places.points,
        p.labels[at],
        p.classes,
        wrong=wrong,
        suspect=of_suspects,
        method=places.method,
        total=len(evidence),
        thumbs={i: pixels[int(at[i])] for i in thumbs},
    )
    return shown, display


def _headed_once(rows):
    """`rows` with each heading at the first of its rows alone."""
    seen: set[str] = set()
    return [
        ("" if heading in seen or seen.add(heading) else heading, images)
        for heading, images in rows
    ]


def _weak(evidence, parts, images):
    """[(Segment, [PredictedImage of some of its wrong ones])]."""
    p = evidence.predictions
    chosen = [[i for i in part.indices if not p.correct[i]][:EXAMPLES] for part in parts]
    wanted = np.unique([i for some in chosen for i in some]).astype(int)
    pixels = (
        dict(zip(wanted.tolist(), np.concatenate(list(images.read(wanted))))) if len(wanted) else {}
    )

    def shown(i):
        path, *said = p.row(i)
        return image_grid.PredictedImage((pixels[int(i)],), *said, path)

    return [(part, [shown(i) for i in some]) for part, some in zip(parts, chosen)]


def _section(evidence, found, metrics, shown, more):
    from markupsafe import Markup

    template = environment().get_template("second_look.html.j2")
    return template.render(
        metrics=metrics,
        folds=evidence.folds,
        shown=shown,
        **more | {"drawn": Markup(more["drawn"])},
        total=sum(s.kind == suspects.CONTRADICTED for s in found),
    )
