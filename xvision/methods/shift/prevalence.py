"""How common each class is where no labels are, from decisions alone; accuracy as another prevalence would show it.

Shapes: N cases, K classes, R resamples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xvision.errors import DataError
from xvision.methods.intervals import Estimate, Sample, combination, not_estimable, patient_codes

LARGEST_CONDITION = 50.0
"""Of the confusion matrix: above it, decisions say too little of the classes to be turned back into them."""


class Decided(NamedTuple):
    """Decisions (N,) as class indices, and whose cases they are (N,)."""

    decisions: np.ndarray
    patients: np.ndarray


class LabelShift(NamedTuple):
    """prevalence, weights: of each class among the current cases, and in relation to the reference (K of each).

    condition: of the matrix of decisions given classes; None where it cannot be made.
    """

    prevalence: tuple[Estimate, ...]
    weights: tuple[Estimate, ...]
    condition: float | None


def label_shift(
    reference: Decided,
    labels: np.ndarray,
    current: Decided,
    classes: int,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> LabelShift:
    """Prevalence from the shares of decisions and the confusion of the reference (Lipton, Wang and Smola 2018).

    labels: (N,) class indices of the reference cases. The current shares of decisions are the confusion matrix
    P(decision | class) times the prevalence sought; it is solved for that, cut to [0, 1]. True only where images of a
    class look the same in both places and just the mixture of classes differs. Not estimable where a class has no
    reference case or the matrix has a condition number above 50. Intervals are percentiles over resamples of patients of
    both places, NaN where one cannot be solved; with more than half of these there is no estimate.
    """
    truth = np.asarray(labels)
    codes, patients = patient_codes(reference.patients, len(truth))
    others, fresh = patient_codes(current.patients, len(current.decisions))
    count = patients + fresh
    known = np.bincount(truth, minlength=classes) > 0
    if not len(current.decisions) or not known.all():
        return _none(
            classes, "no cases" if not len(current.decisions) else "a class has no reference case", count, None
        )
    pairs = np.eye(classes * classes)[np.asarray(reference.decisions) * classes + truth]
    chosen = np.eye(classes)[np.asarray(current.decisions)]
    prevalence, weights, conditions = _solved(pairs.sum(axis=0)[None], chosen.sum(axis=0)[None])
    condition = float(conditions[0])
    if not condition <= LARGEST_CONDITION:
        number = "infinite" if condition > 1e6 else f"{condition:.0f}"
        return _none(classes, f"decisions hardly tell the classes apart (condition number {number})", count, condition)
    if min(patients, fresh) < 2:
        return _none(classes, "fewer than 2 patients", count, condition)
    drawn = (_drawn(pairs, codes, patients, resamples, rng), _drawn(chosen, others, fresh, resamples, rng))
    spread, relative, _ = _solved(*drawn)
    return LabelShift(
        _estimates(prevalence[0], spread, count, level), _estimates(weights[0], relative, count, level), condition
    )


def _none(classes: int, reason: str, count: int, condition: float | None) -> LabelShift:
    missing = (not_estimable(reason, count),) * classes
    return LabelShift(missing, missing, condition)


def _drawn(rows: np.ndarray, codes: np.ndarray, count: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Sums of the rows (N, D) over resamples of patients: (R, D)."""
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, codes, rows)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.asarray(draws @ sums)


def _solved(pairs: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prevalence and weights (R, K), NaN where unsolvable, and condition numbers (R,) from counts (R, K K) and (R, K)."""
    classes = chosen.shape[1]
    joint = pairs.reshape(-1, classes, classes)
    sizes = joint.sum(axis=1)
    given = joint / np.maximum(sizes, 1)[:, None, :]
    conditions = np.where((sizes > 0).all(axis=1), np.linalg.cond(given), np.inf)
    solvable = conditions <= LARGEST_CONDITION
    prevalence, weights = np.full(chosen.shape, np.nan), np.full(chosen.shape, np.nan)
    shares = chosen[solvable] / chosen[solvable].sum(axis=1, keepdims=True)
    prevalence[solvable] = np.clip(np.linalg.solve(given[solvable], shares[:, :, None])[:, :, 0], 0.0, 1.0)
    weights[solvable] = prevalence[solvable] / (sizes / sizes.sum(axis=1, keepdims=True))[solvable]
    return prevalence, weights, conditions


def _estimates(values: np.ndarray, spread: np.ndarray, count: int, level: float) -> tuple[Estimate, ...]:
    usable = spread[~np.isnan(spread).any(axis=1)]
    if 2 * len(usable) < len(spread):
        reason = f"not solvable in {len(spread) - len(usable)} of {len(spread)} patient resamples"
        return (not_estimable(reason, count),) * len(values)
    lows, highs = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2], axis=0)
    part = "" if len(usable) == len(spread) else f", {len(usable)} of {len(spread)} resamples usable"
    return tuple(
        Estimate(
            float(value),
            min(float(low), float(value)),
            max(float(high), float(value)),
            count,
            f"patient bootstrap{part}",
        )
        for value, low, high in zip(values, lows, highs, strict=True)
    )


def standardised_accuracy(
    correct: np.ndarray, labels: np.ndarray, patients: np.ndarray, prevalence: np.ndarray, *, level: float = 0.95
) -> Estimate:
    """Accuracy as it would be at another prevalence: the share of right decisions of each class, averaged with it.

    correct: (N,) booleans. labels: (N,) class indices. prevalence: (K,), summing to 1; equal shares give the balanced
    accuracy. True only as far as sensitivity and specificity do not themselves depend on the mixture of cases. The
    interval joins Wilson's of the classes (MOVER, Zou and Donner 2008).
    """
    shares = np.asarray(prevalence, float)
    if shares.min() < 0 or abs(shares.sum() - 1) > 1e-6:
        raise DataError(f"the prevalence {shares} must have no negative share and sum to 1")
    truth, hits, whose = np.asarray(labels), np.asarray(correct, bool), np.asarray(patients)
    wanted = np.flatnonzero(shares)
    members = [truth == code for code in wanted]
    empty = sum(not member.any() for member in members)
    if empty:
        return not_estimable(
            "no cases of one class" if empty == 1 else f"no cases of {empty} classes", len(np.unique(whose))
        )
    return combination([Sample(hits[member], whose[member]) for member in members], tuple(shares[wanted]), level=level)
