"""Whether embeddings tell a column of the table. Shapes: N cases, D dimensions, L levels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xvision.methods.groups.cases import UNKNOWN
from xvision.methods.intervals import Estimate
from xvision.methods.label_issues import out_of_fold
from xvision.methods.shortcuts.metadata import stratified_auroc

MOST_LEVELS = 8


class Probed(NamedTuple):
    """kept: (N,) bool, cases of the ``levels`` that were probed, largest first. folds: (N,) -1 for others.

    overall, within_label: by level, how well the embeddings tell it from the other levels: an AUROC over all cases, and over pairs
    of the same label. reason: why nothing was probed.
    """

    kept: np.ndarray
    levels: tuple[str, ...]
    folds: np.ndarray
    overall: dict[str, Estimate]
    within_label: dict[str, Estimate]
    reason: str = ""


def probe(
    embeddings: np.ndarray,
    column: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    minimum: int,
    seed: int,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> Probed:
    """Logistic regression (L2) of the level on the embeddings of other patients; pairs of the same fold are compared.

    embeddings: (N, D). column, labels, patients: (N,). Levels with fewer than ``minimum`` patients and missing ones are left out, and
    so are all but the eight largest. Within a label, what only tells the label tells no level. What is encoded need not be used.
    """
    names = known_levels_of(column, patients, minimum=minimum)
    sizes = min((len(np.unique(patients[column == name])) for name in names), default=0)
    kept, folds = np.isin(column, names), np.full(len(column), -1)
    if len(names) < 2:
        return Probed(kept, names, folds, {}, {}, f"fewer than two levels with {minimum} patients")
    order = {name: place for place, name in enumerate(names)}
    codes = np.array([order[str(name)] for name in column[kept]])
    found = out_of_fold(embeddings[kept], codes, patients[kept], classes=names, folds=min(5, sizes), seed=seed)
    folds[kept] = found.folds
    truth, who = labels[kept], patients[kept]
    _, strata = np.unique(np.stack([found.folds, truth]), axis=1, return_inverse=True)
    overall: dict[str, Estimate] = {}
    within: dict[str, Estimate] = {}
    for place, name in enumerate(names[1:] if len(names) == 2 else names, start=len(names) == 2):
        told = found.probabilities[:, place]
        for into, groups in ((overall, found.folds), (within, strata.ravel())):
            into[name] = stratified_auroc(told, codes == place, groups, who, rng=rng, resamples=resamples)
    return Probed(kept, names, folds, overall, within)


def known_levels_of(column: np.ndarray, patients: np.ndarray, *, minimum: int) -> tuple[str, ...]:
    """The largest of the known levels, at most eight, that have at least ``minimum`` patients; largest first."""
    counted = {str(name): len(np.unique(patients[column == name])) for name in np.unique(column) if name != UNKNOWN}
    large = sorted((name for name in counted if counted[name] >= minimum), key=lambda name: (-counted[name], name))
    return tuple(large[:MOST_LEVELS])
