"""The tables and figures that a stage leaves in its folder; no pictures, and the same arguments
give the same bytes."""

import unicodedata
from pathlib import Path

from graft.scoring import metrics
from graft.scoring.results import TrainingResult
from graft.system import files

TRAINING_METRICS = ("n", "accuracy", "accuracy_low", "accuracy_high", "macro_f1", "loss")


def write_training(
    folder: Path, trained: TrainingResult, *, seed: int, resamples: int = 2000
) -> dict[str, float]:
    """Write what is known after a training stage. resamples, seed: of the bootstrap behind the
    intervals.

    Writes `metrics.json` (what `dvc exp show` has room for: TRAINING_METRICS, epochs, temperature),
    `report.json`, `report.txt`, `confusion_matrix.csv`, `curves.csv`, `predictions.csv`. Returns
    the report's summary, `metrics.summary`.
    """
    folder = Path(folder)
    report = metrics.classification_report(trained.predictions, resamples=resamples, seed=seed)
    summary = report["summary"]
    figures = {key: summary[key] for key in TRAINING_METRICS} | {
        "epochs": trained.epochs,
        "temperature": trained.temperature,
    }
    files.write_json(folder / "metrics.json", figures)
    write_report(folder, report)
    trained.history.write(folder / "curves.csv")
    trained.predictions.write(folder / "predictions.csv")
    return summary


def write_report(folder: Path, report: dict) -> None:
    """`report.json`, the same for people as `report.txt`, and its matrix as `confusion_matrix.csv`:
    a row per true class."""
    files.write_json(folder / "report.json", report)
    files.write_text(folder / "report.txt", report_text(report))
    classes = [row["class"] for row in report["classes"]]
    rows = ([name, *counts] for name, counts in zip(classes, report["confusion_matrix"]))
    files.write_csv(folder / "confusion_matrix.csv", ["actual", *classes], rows)


def report_text(report: dict) -> str:
    """The report as a table for people, figures to three places with their 95% intervals."""

    def figure(row, name):
        low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
        interval = "[     –      ]" if low is None else f"[{low:.3f}, {high:.3f}]"
        return f"{row[name]:.3f} {interval}"

    summary, rows = report["summary"], [["", "precision", "recall", "F1", "support"]]
    for row in report["classes"]:
        rows.append(
            [
                row["class"],
                *(figure(row, name) for name in ("precision", "recall", "f1")),
                f"{row['support']:7d}",
            ]
        )
    rows.append([""])
    averages = [name for name in summary if f"{name}_low" in summary]
    rows += [
        [name.replace("_", " ").replace("f1", "F1"), figure(summary, name)] for name in averages
    ]
    known = ("n", *(f"{name}{end}" for name in averages for end in ("", "_low", "_high")))
    others = {name: value for name, value in summary.items() if name not in known}
    rows += [
        [name.replace("_", " "), f"{others[name]:.{'1g' if 0 < others[name] < 0.001 else '3f'}}"]
        for name in others
    ]
    width = max(_width(row[0]) for row in rows)
    lines = [
        row[0] + " " * (width - _width(row[0])) + "".join(f"  {cell:<20}" for cell in row[1:])
        for row in rows
    ]
    return "".join(
        f"{line.rstrip()}\n"
        for line in [*lines, "", f"{summary['n']} images; [low, high]: 95% intervals."]
    )


def _width(text):
    """Columns that a terminal gives `text`: two for a wide East Asian character, none for a
    combining one."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
