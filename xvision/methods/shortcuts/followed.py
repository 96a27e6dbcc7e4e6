"""Whether decisions and scores go along with a column of the table once the label is held fixed. Shapes: N cases, P patients."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xvision.methods.groups.cases import UNKNOWN
from xvision.methods.intervals import (
    Estimate,
    Sample,
    binary,
    combination,
    not_estimable,
    patient_codes,
    proportion,
    quantile_of,
)


class Cell(NamedTuple):
    """Cases of one label and one level; accuracy: with an interval that holds over all cells together."""

    positive: bool
    level: str
    accuracy: Estimate


def conditional_shift(
    scores: np.ndarray,
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    patients: np.ndarray,
    *,
    minimum: int = 10,
    level: float = 0.95,
) -> Estimate:
    """Mean score of the first group less that of the second among cases of the same label, in standard deviations.

    scores, labels, patients: (N,). first, second: (N,) bool, disjoint. The difference is taken among positive and among negative
    cases, each divided by the standard deviation of the scores of both groups of that label, and averaged with half weight. 0: at a
    given label, the score does not tell the groups apart. Interval: normal, from each patient's pull on the figure.
    """
    truth = binary(labels, "labels")
    codes, count = patient_codes(patients, len(truth))
    values = np.asarray(scores, float)
    pull, total = np.zeros(count), 0.0
    for of_label in (truth, ~truth):
        sides = [of_label & side for side in (first, second)]
        fewest = min(len(np.unique(codes[side])) for side in sides)
        if fewest < minimum:
            name = "positive" if of_label is truth else "negative"
            return not_estimable(f"fewer than {minimum} {name} patients on one side", count)
        both = sides[0] | sides[1]
        spread = float(values[both].std())
        if spread == 0:
            return not_estimable("all scores of a label are equal", count)
        own = np.zeros(len(values))
        means = [float(values[side].mean()) for side in sides]
        shift = (means[0] - means[1]) / spread
        for side, mean, sign in zip(sides, means, (1.0, -1.0), strict=True):
            own[side] += sign * (values[side] - mean) / (spread * side.sum())
        centred = (values[both] - values[both].mean()) / spread
        own[both] -= shift * (centred**2 - 1) / (2 * both.sum())
        total += shift / 2
        pull += np.bincount(codes, own, count) / 2
    used = len(np.unique(codes[first | second]))
    half = quantile_of(level) * float(np.sqrt(pull @ pull * used / (used - 1)))
    return Estimate(total, total - half, total + half, used, "normal, by patient")


def goes_with_positive(levels: np.ndarray, labels: np.ndarray) -> tuple[str, ...]:
    """The known levels whose cases are positive more often than all known ones together, sorted.

    levels, labels: (N,) of the data that a model may have learned the association from.
    """
    truth, known = binary(labels, "labels"), levels != UNKNOWN
    if not known.any():
        return ()
    overall = truth[known].mean()
    names, place = np.unique(levels[known], return_inverse=True)
    rates = np.bincount(place, truth[known]) / np.bincount(place)
    return tuple(str(name) for name in names[rates > overall])


def aligned_difference(
    decisions: np.ndarray,
    labels: np.ndarray,
    with_positive: np.ndarray,
    known: np.ndarray,
    patients: np.ndarray,
    *,
    minimum: int = 10,
    level: float = 0.95,
) -> Estimate:
    """Accuracy where the level says what the label says, less accuracy where it says the opposite; each label counts half.

    decisions, labels, patients: (N,). with_positive: (N,) bool, the case's level goes with the positive label. known: (N,) bool,
    cases whose level is known. 0 for a model that does not follow the column, 1 for one that follows nothing else. Holding the
    label fixed keeps a model that is better on one label from looking as if it followed the column. Interval: Newcombe's, joined
    over the two labels (MOVER).
    """
    truth, decided = binary(labels, "labels"), binary(decisions, "decisions")
    right = truth == decided
    cells = [truth & with_positive, truth & ~with_positive, ~truth & ~with_positive, ~truth & with_positive]
    samples = [Sample(right[cell & known], patients[cell & known]) for cell in cells]
    fewest = min(len(np.unique(sample.patients)) for sample in samples)
    if fewest < minimum:
        return not_estimable(
            f"fewer than {minimum} patients in an aligned or conflicting cell", len(np.unique(patients))
        )
    return combination(samples, (0.5, -0.5, 0.5, -0.5), level=level)


def cells(
    decisions: np.ndarray,
    labels: np.ndarray,
    levels: np.ndarray,
    patients: np.ndarray,
    *,
    minimum: int = 10,
    level: float = 0.95,
) -> tuple[Cell, ...]:
    """Accuracy by label and known level, lowest first; cells with fewer than ``minimum`` patients are left out.

    Bonferroni over the cells, so that the lowest may be picked.
    """
    truth, decided = binary(labels, "labels"), binary(decisions, "decisions")
    kept = []
    for name in np.unique(levels[levels != UNKNOWN]):
        for positive in (True, False):
            chosen = (levels == name) & (truth == positive)
            if len(np.unique(patients[chosen])) >= minimum:
                kept.append((positive, str(name), chosen))
    adjusted = 1 - (1 - level) / max(len(kept), 1)
    found = [
        Cell(positive, name, proportion((truth == decided)[chosen], patients[chosen], level=adjusted))
        for positive, name, chosen in kept
    ]
    return tuple(sorted(found, key=lambda cell: cell.accuracy.value or 0.0))
