"""Whether a probability means the same in every group. Shapes: N cases, P patients.

All groups share the bins of the whole range from 0 to 1. Plug-in calibration errors grow as groups shrink, so each is
given beside what a calibrated model would show on the same cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtrit

from xvision.errors import DataError
from xvision.methods.calibration import (
    Bin,
    Chance,
    checked,
    ece,
    ece_null,
    reliability,
    root_of_squared,
    squared_calibration_error,
)
from xvision.methods.groups.cases import UNKNOWN, all_levels, too_few
from xvision.methods.groups.gaps import Gap, sides
from xvision.methods.intervals import Estimate, holm, not_estimable, patient_codes, quantile_of
from xvision.methods.proper_scores import brier
from xvision.methods.recalibration import calibration_slope_intercept


@dataclass(frozen=True)
class GroupCalibration:
    """One group, or the reason why nothing is said of it.

    in_the_large: observed rate minus mean probability, above 0 where risk is predicted too low. intercept, slope: of
    Cox's recalibration. error: debiased, root mean square. chance: the ECE of a calibrated model; its p-value is
    adjusted over the groups in ``adjusted_p``.
    """

    group: str
    cases: int
    patients: int
    events: int
    in_the_large: Estimate
    intercept: Estimate
    slope: Estimate
    brier: Estimate
    ece: Estimate
    error: Estimate
    chance: Chance | None
    adjusted_p: float | None
    bins: tuple[Bin, ...]
    reason: str | None = None


def calibration_in_the_large(
    probabilities: np.ndarray, outcomes: np.ndarray, patients: np.ndarray, *, level: float = 0.95
) -> Estimate:
    """Observed rate minus mean probability, of cases (N,), with a patient-clustered Student interval."""
    predicted, happened = checked(probabilities, outcomes)
    return _mean_gap(happened - predicted, np.ones(len(predicted), bool), None, patients, level)


def in_the_large_gap(
    probabilities: np.ndarray,
    outcomes: np.ndarray,
    patients: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    *,
    level: float = 0.95,
) -> Estimate:
    """:func:`calibration_in_the_large` of the cases in ``first`` (N,) minus that of those in ``second`` (N,), signed.

    Patients on both sides are allowed for. Degrees of freedom are those of the smaller side.
    """
    predicted, happened = checked(probabilities, outcomes)
    return _mean_gap(happened - predicted, first, second, patients, level)


def _mean_gap(
    residuals: np.ndarray, first: np.ndarray, second: np.ndarray | None, patients: np.ndarray, level: float
) -> Estimate:
    codes, count = patient_codes(patients, len(residuals))
    quantile_of(level)
    value, pulls, fewest = 0.0, np.zeros(count), count
    for side, sign in ((first, 1.0), (second, -1.0)):
        if side is None:
            continue
        people = len(np.unique(codes[side]))
        if people < 2:
            return not_estimable("fewer than 2 patients" if people else "no cases", people)
        mean = float(residuals[side].mean())
        own = np.bincount(codes[side], residuals[side] - mean, count) / side.sum()
        value, pulls, fewest = (
            value + sign * mean,
            pulls + sign * own * np.sqrt(people / (people - 1)),
            min(fewest, people),
        )
    half = float(stdtrit(fewest - 1, (1 + level) / 2)) * float(np.sqrt(pulls @ pulls))
    people = len(np.unique(codes[first if second is None else first | second]))
    return Estimate(value, value - half, value + half, people, "Student, patient-clustered")


def in_the_large_gaps(
    probabilities: np.ndarray,
    outcomes: np.ndarray,
    groups: np.ndarray,
    patients: np.ndarray,
    gaps: Sequence[Gap],
) -> tuple[Gap, ...]:
    """The comparisons that ``gaps`` makes, made of calibration in the large: same pairs, families, levels, reasons."""
    predicted, happened = checked(probabilities, outcomes)
    named = _named(groups, len(predicted))

    def compared(gap: Gap) -> Estimate:
        if gap.difference.reason:
            return gap.difference
        return in_the_large_gap(predicted, happened, patients, *sides(named, gap), level=gap.level)

    return tuple(replace(gap, difference=compared(gap)) for gap in gaps)


def _named(groups: np.ndarray, cases: int) -> np.ndarray:
    named = np.asarray(groups).astype(str)
    if named.shape != (cases,):
        raise DataError(f"{cases} outcomes came with groups of shape {named.shape}; give one group per case")
    return named


def calibration_by_group(
    probabilities: np.ndarray,
    outcomes: np.ndarray,
    groups: np.ndarray,
    patients: np.ndarray,
    *,
    rng: Callable[[str], np.random.Generator],
    bins: int = 10,
    minimum: int = 10,
    resamples: int = 500,
    draws: int = 1000,
    level: float = 0.95,
) -> tuple[GroupCalibration, ...]:
    """Every group's calibration by name, ``"unknown"`` last and outside the correction for several groups (Holm).

    probabilities, outcomes, groups, patients: (N,). rng: randomness for a group's name, so that no group changes
    another's figures. A group with fewer than ``minimum`` patients with or without the outcome is refused with the
    reason. Groups of unequal size are compared by ``error`` and ``adjusted_p``, never by ``ece``.
    """
    predicted, happened = checked(probabilities, outcomes)
    named = _named(groups, len(predicted))
    codes, _ = patient_codes(patients, len(predicted))
    names = all_levels(named)

    def row(name: str) -> GroupCalibration:
        member = named == name
        cases = (predicted[member], happened[member], codes[member])
        few = too_few(*cases[1:], minimum)
        return _refused(name, *cases, few) if few else _judged(name, *cases, rng(name), bins, resamples, draws, level)

    rows = [row(name) for name in names]
    tested = {place: each.chance.p_value for place, each in enumerate(rows) if each.chance and each.group != UNKNOWN}
    adjusted = holm(list(tested.values()))
    for place, p_value in zip(tested, adjusted, strict=True):
        rows[place] = replace(rows[place], adjusted_p=float(p_value))
    return tuple(rows)


def _refused(
    name: str, predicted: np.ndarray, happened: np.ndarray, codes: np.ndarray, reason: str
) -> GroupCalibration:
    people = len(np.unique(codes))
    missing = not_estimable(reason, people)
    return GroupCalibration(name, len(predicted), people, int(happened.sum()), *(missing,) * 6, None, None, (), reason)


def _judged(
    name: str,
    predicted: np.ndarray,
    happened: np.ndarray,
    codes: np.ndarray,
    rng: np.random.Generator,
    bins: int,
    resamples: int,
    draws: int,
    level: float,
) -> GroupCalibration:
    cases = (predicted, happened, codes)
    fits = calibration_slope_intercept(*cases, level=level)
    squared = squared_calibration_error(*cases, rng=rng, bins=bins, resamples=resamples, level=level)
    return GroupCalibration(
        name,
        len(predicted),
        len(np.unique(codes)),
        int(happened.sum()),
        calibration_in_the_large(*cases, level=level),
        fits.intercept,
        fits.slope,
        brier(*cases, rng=rng, resamples=resamples, level=level),
        ece(*cases, rng=rng, bins=bins, resamples=resamples, level=level),
        root_of_squared(squared),
        ece_null(*cases, rng=rng, bins=bins, draws=draws),
        None,
        reliability(*cases, bins=bins, level=level),
    )
