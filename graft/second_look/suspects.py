"""Photos whose label is probably wrong: what a head that did not learn from them says against
it."""

from dataclasses import dataclass

import numpy as np

from graft.scoring.statistics import group_ids
from graft.second_look.evidence import Evidence

CONTRADICTED, TWIN = "contradicted", "near-duplicate"
COLUMNS = (
    "kind",
    "path",
    "split",
    "label",
    "likelier",
    "label_probability",
    "likelier_probability",
    "other",
)
ROUNDING = 1e-9  # of a mean
LABELLED = " has another label"  # how problems.csv ends where a near-duplicate's label differs


@dataclass(frozen=True)
class Suspect:
    """One photo. kind: CONTRADICTED, by the out-of-fold probabilities; or TWIN, by `other`, a
    near-duplicate of another label. likelier: the most probable class; for a TWIN that of `other`.
    The probabilities are those of these two classes."""

    kind: str
    index: int
    path: str
    split: str
    label: str
    likelier: str
    label_probability: float
    likelier_probability: float
    other: str = ""

    @property
    def row(self) -> tuple:
        return tuple(getattr(self, name) for name in COLUMNS)


def find(evidence: Evidence) -> list[Suspect]:
    """Twins first, then the contradicted, those of the least probable label first.

    A photo is contradicted where its most probable class is another than its label, and at least as
    probable as that class is on average for the photos that bear it: the rule of confident learning
    (Northcutt et al. 2021), which allows for classes of which the head is never sure. The order by
    the probability of the label alone is their "self-confidence". A photo whose class has no other
    group, so that no head of its fold has seen the class, cannot be contradicted.
    """
    return [*_twins(evidence), *(_contradicted(evidence) if evidence.folds else ())]


def _twins(evidence):
    p, found = evidence.predictions, []
    at = {path: i for i, path in enumerate(p.paths)}
    for row in evidence.problems:
        if (
            row["problem"] != "near_duplicate"
            or not row["action"].endswith(LABELLED)
            or row["path"] not in at
        ):
            continue
        i = at[row["path"]]
        mates = (
            j
            for j in np.flatnonzero(np.array(p.groups) == p.groups[i])
            if p.labels[j] != p.labels[i]
        )
        other = next((j for j in mates if row["action"].endswith(f"{p.paths[j]}{LABELLED}")), None)
        if other is not None:
            found.append(_suspect(TWIN, evidence, i, p.labels[other], p.paths[other]))
    return found


def _contradicted(evidence):
    p = evidence.predictions
    own = p.probabilities[np.arange(len(p)), p.labels]
    count = np.bincount(p.labels, minlength=len(p.classes))
    usual = np.bincount(p.labels, own, len(p.classes)) / np.maximum(count, 1)
    against = (p.predicted != p.labels) & (p.confidence >= usual[p.predicted] - ROUNDING)
    pairs = np.unique(np.stack([p.labels, group_ids(p.groups, len(p))]), axis=1)
    groups = np.bincount(pairs[0], minlength=len(p.classes))
    chosen = np.flatnonzero(against & (groups[p.labels] > 1))
    order = chosen[np.argsort(own[chosen], kind="stable")]
    return [_suspect(CONTRADICTED, evidence, i, p.predicted[i]) for i in order]


def _suspect(kind, evidence, i, likelier, other=""):
    p = evidence.predictions
    label, name = p.names((p.labels[i], likelier))
    of_label, of_other = (float(p.probabilities[i, k]) for k in (p.labels[i], likelier))
    return Suspect(
        kind, int(i), p.paths[i], evidence.splits[i], label, name, of_label, of_other, other
    )
