"""The figures of each site, scanner, view or period, and of all of them together. Shapes: N cases, K classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from xvision.methods.groups.cases import UNKNOWN, all_levels
from xvision.methods.intervals import Estimate, not_estimable, proportion
from xvision.methods.scores import auroc
from xvision.methods.shift.prevalence import standardised_accuracy
from xvision.methods.shift.random_effects import (
    Pooled,
    as_proportion,
    on_logit_scale,
    random_effects,
    simultaneous_level,
)

Key = tuple[str, int | None]
"""A figure, and the class that it is of where there are more than two."""


class Judged(NamedTuple):
    """labels, decisions, patients (N,); probabilities (N, K); positive: the positive class of two, else None."""

    labels: np.ndarray
    decisions: np.ndarray
    probabilities: np.ndarray
    patients: np.ndarray
    positive: int | None


class Level(NamedTuple):
    """One level: its counts and its figures."""

    name: str
    cases: int
    patients: int
    figures: Mapping[Key, Estimate]


class Together(NamedTuple):
    """A figure over the levels, as a proportion. reason: why there is none.

    pooled: mean of the levels. new: where 95 of 100 further levels are expected. worst: the lowest level, with an interval
    wide enough that those of all levels hold together. spread: the variance between levels on the logit scale.
    """

    pooled: Estimate
    new: Estimate
    worst: Estimate
    worst_level: str
    spread: Pooled | None


def figures(cases: Judged, prevalence: np.ndarray, *, level: float = 0.95) -> dict[Key, Estimate]:
    """Accuracy, also balanced and at ``prevalence`` (K,); of each class its share, share found and AUROC.

    For two classes: prevalence, sensitivity and AUROC of the positive one, and specificity.
    """
    correct, classes = cases.labels == cases.decisions, len(prevalence)
    equal = np.full(classes, 1 / classes)
    found: dict[Key, Estimate] = {
        ("accuracy", None): proportion(correct, cases.patients, level=level),
        ("standardised_accuracy", None): standardised_accuracy(
            correct, cases.labels, cases.patients, prevalence, level=level
        ),
        ("balanced_accuracy", None): standardised_accuracy(correct, cases.labels, cases.patients, equal, level=level),
    }
    for code in range(classes) if cases.positive is None else (cases.positive,):
        member, of = cases.labels == code, code if cases.positive is None else None
        found["prevalence", of] = proportion(member, cases.patients, level=level)
        found["sensitivity", of] = _recall(correct, member, cases.patients, "no positive cases", level)
        found["auroc", of] = auroc(cases.probabilities[:, code], member, cases.patients, level=level)
    if cases.positive is not None:
        healthy = cases.labels != cases.positive
        found["specificity", None] = _recall(correct, healthy, cases.patients, "no negative cases", level)
    return found


def _recall(correct: np.ndarray, member: np.ndarray, patients: np.ndarray, missing: str, level: float) -> Estimate:
    if not member.any():
        return not_estimable(missing, len(np.unique(patients)))
    return proportion(correct[member], patients[member], level=level)


def levels(cases: Judged, named: np.ndarray, prevalence: np.ndarray, *, fewest: int) -> tuple[Level, ...]:
    """Each level of a column (N,), sorted, "unknown" last; below ``fewest`` patients its figures have a reason instead."""
    names = all_levels(named)
    return tuple(_level(_of(cases, named == name), name, prevalence, fewest) for name in names)


def _of(cases: Judged, member: np.ndarray) -> Judged:
    labels, decisions, shares, patients = (part[member] for part in cases[:4])
    return Judged(labels, decisions, shares, patients, cases.positive)


def _level(cases: Judged, name: str, prevalence: np.ndarray, fewest: int) -> Level:
    patients = len(np.unique(cases.patients))
    found = figures(cases, prevalence)
    if patients < fewest:
        found = dict.fromkeys(found, not_estimable(f"fewer than {fewest} patients", patients))
    return Level(name, len(cases.labels), patients, found)


def together(
    cases: Judged, named: np.ndarray, rows: tuple[Level, ...], figure: Key, prevalence: np.ndarray, *, called: str
) -> Together:
    """One figure over the levels that have it, without "unknown"; called: what a level is, for the reason."""
    usable = [row for row in rows if row.name != UNKNOWN and row.figures[figure].value is not None]
    known = [row for row in rows if row.name != UNKNOWN]
    spread = random_effects(on_logit_scale([row.figures[figure] for row in usable]))
    if spread is None:
        what = (
            f"{len(usable)} of {len(known)} levels of {called} can be judged"
            if len(known) > 1
            else f"there is {'one level' if known else 'no known level'} of {called}"
        )
        settled = "would be settled by labelled cases of at least two, with enough patients each"
        none = not_estimable(f"insufficient evidence: {what}; {settled}", sum(row.patients for row in known))
        return Together(none, none, none, "", None)
    patients, count = sum(row.patients for row in usable), len(usable)
    how = f"Hartung-Knapp, logit scale, {count} levels"
    mean, low, high = (as_proportion(value) for value in (spread.mean, spread.low, spread.high))
    pooled = Estimate(mean, low, high, patients, how)
    new = not_estimable("insufficient evidence: two levels; would be settled by a third", patients)
    if spread.predicted is not None:
        ends = [as_proportion(value) for value in spread.predicted]
        new = Estimate(mean, ends[0], ends[1], patients, f"prediction interval, logit scale, {count} levels")
    worst = min(usable, key=lambda row: (row.figures[figure].value or 0.0, row.figures[figure].low or 0.0))
    level = simultaneous_level(count)
    wide = figures(_of(cases, named == worst.name), prevalence, level=level)[figure]
    note = f"{wide.method}, {100 * level:.4g} % so that all {count} hold together; level {worst.name}"
    return Together(pooled, new, wide._replace(method=note), worst.name, spread)


def periods(dates: np.ndarray, *, most: int = 12) -> np.ndarray:
    """Dates (N,) written year-month-day cut to months, quarters or years, whichever first gives at most ``most`` periods.

    What is not all dates stays as it is.
    """
    known = np.array([str(date) for date in dates])
    parts = {date: _parts(date) for date in set(known) - {UNKNOWN}}
    if not parts or any(part is None for part in parts.values()):
        return known
    cut: dict[str, str] = {}
    for months in (1, 3, 12):
        cut = {date: _period(*part, months) for date, part in parts.items() if part is not None}
        if len(set(cut.values())) <= most:
            break
    return np.array([cut.get(date, UNKNOWN) for date in known])


def _period(year: int, month: int, months: int) -> str:
    """The period of so many months: 2024-03, 2024 Q1, 2024."""
    return {1: f"{year}-{month:02d}", 3: f"{year} Q{(month + 2) // 3}"}.get(months, str(year))


def _parts(date: str) -> tuple[int, int] | None:
    """Year and month of 2024-03-31, 2024-03 or 20240331."""
    digits = date[:10].replace("-", "")
    if not (digits.isdecimal() and len(digits) in (6, 8) and 1 <= int(digits[4:6]) <= 12):
        return None
    return int(digits[:4]), int(digits[4:6])
