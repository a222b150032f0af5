"""The epochs of head and fine-tuning, in memory and as `curves.csv`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from graft.system import files

FIGURES = ("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")


@dataclass(frozen=True)
class History:
    """rows: one dict per epoch, of both phases: `epoch` (from 0, counts on over the unfreezing) and
    FIGURES; more keys are not written; `lr` is None for a head that was solved, whose rows are
    iterations. unfrozen_at: the first epoch of fine-tuning, None where there is none.
    """

    rows: tuple[dict, ...] = ()
    unfrozen_at: int | None = None

    @property
    def head(self) -> tuple[dict, ...]:
        return self.rows[: self.unfrozen_at]

    @property
    def fine_tuning(self) -> tuple[dict, ...]:
        return () if self.unfrozen_at is None else self.rows[self.unfrozen_at :]

    @property
    def phases(self) -> dict[str, tuple[dict, ...]]:
        """The rows of "head" and "fine-tuning", of those that have any."""
        return {
            name: rows
            for name, rows in (("head", self.head), ("fine-tuning", self.fine_tuning))
            if rows
        }

    def continued(self, rows: Iterable[dict]) -> "History":
        """This history with the rows of a phase that followed, whose epochs count from 0; as it is
        where there are none."""
        first = len(self.rows)
        later = tuple({**row, "epoch": row["epoch"] + first} for row in rows)
        return History(self.rows + later, first if first and later else self.unfrozen_at)

    def write(self, path: str | Path) -> None:
        """epoch, phase (head | fine-tune), FIGURES; no times, which would differ on a rerun."""
        phases = ["head"] * len(self.head) + ["fine-tune"] * len(self.fine_tuning)
        rows = (
            [
                row["epoch"],
                phase,
                *(None if row[key] is None else float(row[key]) for key in FIGURES),
            ]
            for row, phase in zip(self.rows, phases)
        )
        files.write_csv(path, ["epoch", "phase", *FIGURES], rows)

    @classmethod
    def read(cls, path: str | Path) -> "History":
        """What `write` wrote."""
        table = files.read_csv(path)
        rows = (
            {
                "epoch": int(row["epoch"]),
                **{key: float(row[key]) if row[key] else None for key in FIGURES},
            }
            for row in table
        )
        return cls(
            tuple(rows),
            next((int(row["epoch"]) for row in table if row["phase"] == "fine-tune"), None),
        )
