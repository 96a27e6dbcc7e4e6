"""From which confidence on a model's answers may stand in for labels, with a promise about their precision.

Shapes: N cases. The promise speaks of patients like those of the labelled cases it was made on, and of their labels as
given.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from xvision.errors import ConfigError, DataError
from xvision.methods.intervals import Estimate, not_estimable, proportion, quantile_of

STEPS = 10
"""Floors tried, at most."""


@dataclass(frozen=True)
class Floor:
    """The confidence from which on answers in a group are taken, or None with the reason.

    precision: of the labelled cases at or above the floor; its lower limit is one-sided and at least what was asked
    for. cases, patients: labelled ones in the whole group.
    """

    value: float | None
    precision: Estimate
    cases: int
    patients: int
    reason: str | None = None


def fewest_cases(precision: float, error_rate: float = 0.05, errors: int = 0) -> int:
    """Independent cases with so many ``errors`` that show a precision of at least ``precision``: 59 for 0.95."""
    _check(precision, error_rate)
    low, high = errors, errors + 1
    while not _shows(high, errors, precision, error_rate):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _shows(middle, errors, precision, error_rate) else (middle, high)
    return high


def _shows(count: int, errors: int, precision: float, error_rate: float) -> bool:
    return lower_limit(count - errors, count, error_rate) >= precision


def lower_limit(successes: float, trials: float, error_rate: float = 0.05) -> float:
    """One-sided lower limit of a proportion (Clopper and Pearson 1934); the counts may be fractions."""
    if successes <= 0:
        return 0.0
    return float(betaincinv(successes, trials - successes + 1, error_rate))


def precision_limit(right: np.ndarray, patients: np.ndarray, *, error_rate: float = 0.05) -> Estimate:
    """Share of right answers (N,) with its one-sided exact lower limit on the independent cases they are worth.

    The number of these is that of the patient-clustered Wilson interval, as Korn and Graubard (1998) put it into the
    exact limits. The upper limit is 1.
    """
    level = 1 - 2 * error_rate
    wilson = proportion(right, patients, level=level)
    if wilson.value is None or wilson.low is None:
        return wilson
    effective = _effective(wilson.value, wilson.low, quantile_of(level))
    low = lower_limit(wilson.value * effective, effective, error_rate)
    clustered = ", patient-clustered" if "clustered" in wilson.method else ""
    method = f"Clopper-Pearson{clustered}, one-sided {100 * (1 - error_rate):.4g} %"
    return Estimate(wilson.value, min(low, wilson.value), 1.0, wilson.n, method)


def _effective(rate: float, low: float, quantile: float) -> float:
    """Trials whose Wilson interval for ``rate`` begins at ``low``; from the score equation (rate − low)² = z² low (1 − low) / n."""
    return 1.0 if low <= 0 else quantile**2 * low * (1 - low) / (rate - low) ** 2


def confidence_floor(
    confidence: np.ndarray, right: np.ndarray, patients: np.ndarray, *, precision: float, error_rate: float = 0.05
) -> Floor:
    """The lowest floor at which the precision is shown to be at least ``precision`` in one group of cases.

    confidence, right, patients: (N,) of labelled cases that the model was not trained on. Floors are tried from the
    strictest that could pass with one error downwards, in steps fixed by the confidences alone, until one fails: then
    the chance that the precision at the floor is below what was asked for is at most ``error_rate``, though many floors
    were tried (fixed-sequence testing; Angelopoulos et al. 2021). A group with too few cases gets none. Raises
    ConfigError for a precision that is no probability, DataError for arrays that do not fit.
    """
    _check(precision, error_rate)
    scores, hits, owners = np.asarray(confidence, float), np.asarray(right, bool), np.asarray(patients)
    if not scores.shape == hits.shape == owners.shape or scores.ndim != 1:
        raise DataError(
            f"{len(scores)} confidences came with {len(hits)} answers and {len(owners)} patients: one per case"
        )
    if not np.isfinite(scores).all():
        raise DataError("confidences must be finite numbers: find the images that give none")
    order = np.argsort(-scores, kind="stable")
    passed: tuple[float, Estimate] | None = None
    first: Estimate | None = None
    for floor in _tried(scores[order], owners[order], precision, error_rate):
        taken = scores >= floor
        shown = precision_limit(hits[taken], owners[taken], error_rate=error_rate)
        first = first or shown
        if shown.low is None or shown.low < precision:
            break
        passed = floor, shown
    cases, people = len(scores), len(np.unique(owners))
    if passed is not None:
        return Floor(passed[0], passed[1], cases, people)
    return _none(first, cases, people, precision, error_rate)


def _none(first: Estimate | None, cases: int, people: int, precision: float, error_rate: float) -> Floor:
    if first is None:
        needed = fewest_cases(precision, error_rate)
        reason = f"{people} patients with {cases} labelled cases; fewer than {needed} cannot show a precision of {precision:g}"
        return Floor(None, not_estimable(reason, people), cases, people, reason)
    reason = (
        f"a share of {first.value:.3f} of the most confident labelled cases is right, which does not show {precision:g}"
    )
    return Floor(None, first, cases, people, reason)


def _tried(scores: np.ndarray, patients: np.ndarray, precision: float, error_rate: float) -> list[float]:
    """Floors from strict to loose for descending scores (n,): chosen by patients and confidences, never by the answers."""
    worth = _worth(patients)
    ends = np.flatnonzero(np.diff(scores, append=-np.inf))  # a floor takes all cases that are tied at it
    for errors in (1, 0):
        enough = ends[worth[ends] >= fewest_cases(precision, error_rate, errors)]
        if len(enough):
            places = np.unique(np.rint(np.linspace(enough[0], len(scores) - 1, STEPS)).astype(int))
            return sorted({float(scores[place]) for place in places}, reverse=True)
    return []


def _worth(patients: np.ndarray) -> np.ndarray:
    """Independent cases (n,) that the first 1, 2, … cases are worth at least (Kish 1965): the patients, when all have equally many."""
    seen: Counter[str] = Counter()
    earlier = np.empty(len(patients))
    for place, patient in enumerate(patients):
        earlier[place] = seen[patient]
        seen[patient] += 1
    squares = np.cumsum(2 * earlier + 1)  # of each patient's number of cases, as it grows by one
    return np.asarray(np.arange(1, len(patients) + 1) ** 2 / squares)


def _check(precision: float, error_rate: float) -> None:
    if not 0 < precision < 1:
        raise ConfigError(f"the precision asked of pseudo-labels is {precision}: give a share above 0 and below 1.")
    if not 0 < error_rate < 0.5:
        raise ConfigError(f"the error rate {error_rate} must be above 0 and below 0.5; 0.05 is usual.")
