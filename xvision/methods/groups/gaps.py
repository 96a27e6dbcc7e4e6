"""Whether groups differ, and by how much: signed gaps that can contain 0, and a test. Shapes: N cases, R permutations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from xvision.errors import ConfigError, nearest
from xvision.methods.groups.cases import UNKNOWN, Cases, Rate, checked_cases, definitions, known_levels
from xvision.methods.intervals import Estimate, Sample, combination, difference, not_estimable
from xvision.methods.scores import Scored, auroc_difference, ranked

GapMetric = Rate | Literal["auroc"]


@dataclass(frozen=True)
class Gap:
    """A metric in ``group`` minus the same metric in ``reference``, signed.

    reference: another group, ``"rest"`` (all other known groups) or ``"known"`` (all known groups). cases,
    reference_cases: size of the denominators. level: of this interval, chosen so that all ``family`` ranked intervals
    hold together at the level asked for (Bonferroni). ranked: False for missing group values, which are no group of
    people.
    """

    group: str
    reference: str
    difference: Estimate
    cases: int
    reference_cases: int
    level: float
    family: int
    ranked: bool


class GroupTest(NamedTuple):
    """Largest minus smallest rate over ``groups`` groups, its mean by chance alone, and how often chance gives more."""

    gap: float | None
    expected: float | None
    p_value: float | None
    groups: int
    patients: int
    reason: str | None = None


class _Comparison(NamedTuple):
    group: str
    reference: str
    first: np.ndarray
    second: np.ndarray
    ranked: bool


def _comparisons(groups: np.ndarray, patients: np.ndarray) -> list[_Comparison]:
    """Two groups: the smaller with the larger, once. More: each with the rest. Missing values: with all known."""
    levels = known_levels(groups)
    members = {name: groups == name for name in levels}
    known = groups != UNKNOWN
    if len(levels) == 2:
        small, large = sorted(levels, key=lambda name: len(np.unique(patients[members[name]])))
        pairs = [_Comparison(small, large, members[small], members[large], True)]
    elif len(levels) > 2:
        pairs = [_Comparison(name, "rest", members[name], known & ~members[name], True) for name in levels]
    else:
        pairs = []
    if levels and not known.all():
        pairs.append(_Comparison(UNKNOWN, "known", ~known, known, False))
    return pairs


def _compared(
    pairs: list[_Comparison],
    reason: Callable[[_Comparison], str | None],
    estimate: Callable[[_Comparison, float], Estimate],
    among: np.ndarray,
    level: float,
) -> tuple[Gap, ...]:
    """Gaps with the level shared out over the ranked comparisons that have enough patients."""
    reasons = [reason(pair) for pair in pairs]
    family = sum(pair.ranked and not short for pair, short in zip(pairs, reasons, strict=True))
    adjusted = 1 - (1 - level) / max(family, 1)
    return tuple(
        Gap(
            pair.group,
            pair.reference,
            not_estimable(short) if short else estimate(pair, adjusted),
            int((among & pair.first).sum()),
            int((among & pair.second).sum()),
            adjusted,
            family,
            pair.ranked,
        )
        for pair, short in zip(pairs, reasons, strict=True)
    )


def _too_few(pair: _Comparison, among: np.ndarray, patients: np.ndarray, noun: str, minimum: int) -> str | None:
    """Why the two sides cannot be compared, if one has too few patients."""
    for side, place in ((pair.first, ""), (pair.second, " in the comparison group")):
        if len(np.unique(patients[side & among])) < minimum:
            return f"fewer than {minimum} {noun}{place}"
    return None


def group_gaps(
    labels: np.ndarray,
    decisions: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    patients: np.ndarray,
    *,
    metric: GapMetric,
    minimum: int = 10,
    level: float = 0.95,
) -> tuple[Gap, ...]:
    """How much a metric differs between groups: one gap for two groups, else each group against the rest.

    labels, decisions: (N,) of 0 or 1. scores: (N,). groups, patients: (N,). A gap is signed and its interval can
    contain 0; with no true difference, all ranked intervals contain 0 in at least ``level`` of data sets. Proportions:
    Newcombe; AUROC: DeLong's intervals joined. A side with fewer than ``minimum`` patients in the denominator gives no
    estimate. Selection rate, accuracy, ppv and npv also differ when only the prevalence does.
    """
    cases = checked_cases(labels, decisions, groups, patients)
    pairs = _comparisons(cases.groups, cases.patients)
    if metric == "auroc":
        return _auroc_gaps(cases, ranked(scores, len(cases.labels)), pairs, minimum, level)
    rates = definitions(cases.labels, cases.decisions)
    if metric not in rates:
        raise ConfigError(f"metric {metric!r} has no gap between groups. {nearest(metric, [*rates, 'auroc'])}")
    rate = rates[metric]

    def sample(side: np.ndarray) -> Sample:
        return Sample(rate.hits[side & rate.among], cases.patients[side & rate.among])

    return _compared(
        pairs,
        lambda pair: _too_few(pair, rate.among, cases.patients, rate.patients, minimum),
        lambda pair, adjusted: difference(sample(pair.first), sample(pair.second), level=adjusted),
        rate.among,
        level,
    )


def _too_few_of_either(pair: _Comparison, cases: Cases, minimum: int) -> str | None:
    return _too_few(pair, cases.labels, cases.patients, "positive patients", minimum) or _too_few(
        pair, ~cases.labels, cases.patients, "negative patients", minimum
    )


def _auroc_gaps(
    cases: Cases, scores: np.ndarray, pairs: list[_Comparison], minimum: int, level: float
) -> tuple[Gap, ...]:
    def scored(side: np.ndarray) -> Scored:
        return Scored(scores[side], cases.labels[side], cases.patients[side])

    return _compared(
        pairs,
        lambda pair: _too_few_of_either(pair, cases, minimum),
        lambda pair, adjusted: auroc_difference(scored(pair.first), scored(pair.second), level=adjusted),
        np.ones_like(cases.labels),
        level,
    )


def conditional_dependence(
    decisions: np.ndarray,
    labels: np.ndarray,
    column: np.ndarray,
    patients: np.ndarray,
    *,
    minimum: int = 10,
    level: float = 0.95,
) -> tuple[Gap, ...]:
    """How much the decision follows a column of the table once the true label is held fixed.

    decisions, labels, column, patients: (N,). For each level: the share decided positive minus that of the rest, among
    positive and among negative cases, averaged with half weight each. 0 when errors do not depend on the column,
    whatever the prevalences; a site mark that the model reads as disease gives a clear difference. A difference may
    also come from case mix: it is evidence of a shortcut, not proof. Comparisons and levels as in :func:`group_gaps`;
    interval by MOVER.
    """
    cases = checked_cases(labels, decisions, column, patients)

    def estimate(pair: _Comparison, adjusted: float) -> Estimate:
        cells = [truth & side for truth in (cases.labels, ~cases.labels) for side in (pair.first, pair.second)]
        samples = [Sample(cases.decisions[cell], cases.patients[cell]) for cell in cells]
        return combination(samples, (0.5, -0.5, 0.5, -0.5), level=adjusted)

    return _compared(
        _comparisons(cases.groups, cases.patients),
        lambda pair: _too_few_of_either(pair, cases, minimum),
        estimate,
        np.ones_like(cases.labels),
        level,
    )


def permutation_test(
    labels: np.ndarray,
    decisions: np.ndarray,
    groups: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    metric: Literal["sensitivity", "specificity"],
    minimum: int = 10,
    permutations: int = 1999,
) -> GroupTest:
    """Whether any group differs in sensitivity or specificity: group names permuted over patients with that label.

    labels, decisions, groups, patients: (N,). The statistic is the largest minus the smallest rate, which is never 0 in
    finite samples: compare ``gap`` with ``expected``. Groups with fewer than ``minimum`` patients, and ``"unknown"``,
    are left out. A patient in several groups counts as one unit in each, which makes the test conservative.
    """
    cases = checked_cases(labels, decisions, groups, patients)
    rate = definitions(cases.labels, cases.decisions)[metric]
    among = rate.among & (cases.groups != UNKNOWN)
    names, group = np.unique(cases.groups[among], return_inverse=True)
    pairs, unit = np.unique(cases.patients[among] * len(names) + group, return_inverse=True)
    home = pairs % max(len(names), 1)
    kept = np.flatnonzero(np.bincount(home, minlength=len(names)) >= minimum)
    if len(kept) < 2:
        return GroupTest(None, None, None, len(kept), 0, f"fewer than 2 groups with {minimum} {rate.patients}")
    inside = np.isin(home, kept)
    hits, sizes = np.bincount(unit, rate.hits[among])[inside], np.bincount(unit)[inside]
    home = np.searchsorted(kept, home[inside])
    gap = float(_spread(home[None], hits, sizes, len(kept))[0])
    chance = _permuted_spreads(home, hits, sizes, len(kept), permutations, rng)
    p_value = (1 + int((chance >= gap - 1e-12).sum())) / (1 + permutations)
    people = len(np.unique(pairs[inside] // len(names)))
    return GroupTest(gap, float(chance.mean()), p_value, len(kept), people)


def _permuted_spreads(
    home: np.ndarray, hits: np.ndarray, sizes: np.ndarray, count: int, permutations: int, rng: np.random.Generator
) -> np.ndarray:
    rows = max(1, 2_000_000 // len(home))
    parts = [min(rows, permutations - start) for start in range(0, permutations, rows)]
    return np.concatenate(
        [_spread(rng.permuted(np.tile(home, (size, 1)), axis=1), hits, sizes, count) for size in parts]
    )


def _spread(home: np.ndarray, hits: np.ndarray, sizes: np.ndarray, count: int) -> np.ndarray:
    """Largest minus smallest rate (R,) for group indices (R, units)."""
    rows = len(home)
    cells = (home + count * np.arange(rows)[:, None]).ravel()
    found = np.bincount(cells, np.tile(hits, rows), rows * count)
    rates = (found / np.bincount(cells, np.tile(sizes, rows), rows * count)).reshape(rows, count)
    return np.asarray(np.ptp(rates, axis=1))
