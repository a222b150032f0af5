"""Everything that `evaluate` leaves in its folder: tables, figures, model card; the same arguments
give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from graft.reporting import model_card, plots
from graft.reporting.report import write_report
from graft.scoring.results import Results
from graft.second_look import unknown
from graft.system import files

if TYPE_CHECKING:
    import keras

    from graft.dataset.images import ImageSet

METRICS = (
    "n",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "macro_f1",
    "loss",
    "ece",
    "head_accuracy",
)


@dataclass(frozen=True)
class Evaluation:
    """The content of `metrics.json`, of `report.json` (its summary holds every figure), and of
    `card.html`; the images that the figures show, as `plots.Plots` has them.
    """

    metrics: dict[str, float]
    report: dict
    page: str = field(repr=False)
    images: Mapping[str, list] = field(repr=False)


def write_evaluation(
    folder: Path,
    results: Results,
    *,
    models: tuple[keras.Model, keras.Model],
    images: ImageSet,
    about: model_card.About,
    resamples: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Write everything about the test images, from `results`.

    models: (head, fine-tuned), keras.Model, drawn as graphs, and the second seen through by
    Grad-CAM. images: the test images; `images.read(indices)` gives batches uint8 (b, S, S, 3).
    about: what the card says of model and data. resamples, seed: of the bootstrap behind the
    intervals; the seed also chooses the images that are shown.

    Writes `metrics.json` (METRICS), `predictions.csv`, `unknown.csv` (where `results` has it),
    `report.json`, `report.txt`, `confusion_matrix.csv`, `card.html`
    and, in `plots/`, `confusion_matrix`, `confusion_matrix_normalised`, `curves`, `grad_cam`,
    `head_against_fine_tuned`, `model_graph`, `model_graph_head`, `per_class`, `precision_recall`,
    `prediction_grid`, `reliability`, `roc`, `top_confusions`, `worst_mistakes` (PNG); `per_class`,
    `precision_recall`, `reliability`, `roc`, `top_confusions`, `worst_mistakes` (CSV).
    """
    folder = Path(folder)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    report, against_head = results.report(resamples=resamples, seed=seed)
    figures = {key: report["summary"][key] for key in METRICS}
    files.write_json(folder / "metrics.json", figures)
    write_report(folder, report)
    results.predictions.write(folder / "predictions.csv", head=results.head, known=results.known)
    if results.unknown:
        files.write_csv(folder / "unknown.csv", unknown.COLUMNS, unknown.table(results.unknown))
    drawn = plots.draw_evaluation(
        folder / "plots", results, report, models=models, images=images, seed=seed
    )
    page = model_card.render(about, results, report, against_head, drawn)
    files.write_text(folder / "card.html", page)
    return Evaluation(figures, report, page, drawn.images)
