"""Whether groups differ, and by how much: signed gaps that can contain 0, and a test. Shapes: N cases, R permutations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from xvision.errors import ConfigError, nearest
from xvision.methods.groups.cases import UNKNOWN, Cases, Rate, checked_cases, definitions, known_levels
from xvision.methods.groups.rest import against_rest
from xvision.methods.intervals import Estimate, Sample, combination, not_estimable
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


def sides(groups: np.ndarray, gap: Gap) -> tuple[np.ndarray, np.ndarray]:
    """(N,) which cases a gap compares, and which it compares them with."""
    inside, known = groups == gap.group, groups != UNKNOWN
    if not gap.ranked:
        return inside, known
    return inside, known & ~inside if gap.reference == "rest" else groups == gap.reference


class GroupTest(NamedTuple):
    """Largest minus smallest rate over ``groups`` groups, its mean by chance alone, and how often chance gives more."""

    gap: float | None
    expected: float | None
    p_value: float | None
    groups: int
    patients: int
    reason: str | None = None


class _Comparison(NamedTuple):
    """A group, by its place among the known levels, with another, with the rest (-1), or missing values with all known."""

    group: str
    reference: str
    place: int
    other: int
    ranked: bool


class _Grouped(NamedTuple):
    """Cases with their groups numbered (N,): known levels in order, then missing values."""

    cases: Cases
    levels: list[str]
    codes: np.ndarray

    @classmethod
    def of(cls, cases: Cases) -> _Grouped:
        names, found = np.unique(cases.groups, return_inverse=True)
        levels = known_levels(names)
        places = {name: place for place, name in enumerate(levels)}
        return cls(cases, levels, np.array([places.get(name, len(levels)) for name in names.tolist()], int)[found])

    def sides(self, pair: _Comparison) -> tuple[np.ndarray, np.ndarray]:
        """Masks (N,) of both sides."""
        first, known = self.codes == pair.place, self.codes < len(self.levels)
        if not pair.ranked:
            return first, known
        return first, known & ~first if pair.other < 0 else self.codes == pair.other

    def comparisons(self) -> list[_Comparison]:
        """Two groups: the smaller with the larger, once. More: each with the rest. Missing values: with all known."""
        pairs, count = [], len(self.levels)
        if count == 2:
            people = [len(np.unique(self.cases.patients[self.codes == place])) for place in range(2)]
            small, large = sorted(range(2), key=lambda place: people[place])
            pairs = [_Comparison(self.levels[small], self.levels[large], small, large, True)]
        elif count > 2:
            pairs = [_Comparison(name, "rest", place, -1, True) for place, name in enumerate(self.levels)]
        if count and (self.codes == count).any():
            pairs.append(_Comparison(UNKNOWN, "known", count, -1, False))
        return pairs


class _Denominator:
    """How many patients and cases each side of a comparison has among some cases (N,)."""

    def __init__(self, grouped: _Grouped, among: np.ndarray, noun: str = "") -> None:
        self.noun, self.count = noun, len(grouped.levels)
        codes, patients = grouped.codes[among], grouped.cases.patients[among]
        units = np.unique(patients * (self.count + 1) + codes)
        home, who = units % (self.count + 1), units // (self.count + 1)
        known = home < self.count
        memberships = np.bincount(who[known])
        nowhere_else = home[known][memberships[who[known]] == 1]
        self.cases = np.bincount(codes, minlength=self.count + 1)
        self.own = np.bincount(home, minlength=self.count + 1)
        self.known = int((memberships > 0).sum())
        self.elsewhere = self.known - np.bincount(nowhere_else, minlength=self.count + 1)

    def patients(self, pair: _Comparison) -> tuple[int, int]:
        other = self.own[pair.other] if pair.other >= 0 else self.elsewhere[pair.place] if pair.ranked else self.known
        return int(self.own[pair.place]), int(other)

    def sizes(self, pair: _Comparison) -> tuple[int, int]:
        all_known = self.cases[: self.count].sum()
        own = self.cases[pair.place]
        other = self.cases[pair.other] if pair.other >= 0 else all_known - own if pair.ranked else all_known
        return int(own), int(other)

    def too_few(self, pair: _Comparison, minimum: int) -> str | None:
        """Why the two sides cannot be compared, if one has too few patients."""
        for found, place in zip(self.patients(pair), ("", " in the comparison group"), strict=True):
            if found < minimum:
                return f"fewer than {minimum} {self.noun}{place}"
        return None


def _compared(
    grouped: _Grouped,
    denominators: Sequence[_Denominator],
    counted: np.ndarray,
    estimates: Callable[[list[_Comparison], float], list[Estimate]],
    minimum: int,
    level: float,
) -> tuple[Gap, ...]:
    """Gaps with the level shared out over the ranked comparisons that have enough patients in all denominators."""
    pairs, shown = grouped.comparisons(), _Denominator(grouped, counted)
    reasons = [next(filter(None, (each.too_few(pair, minimum) for each in denominators)), None) for pair in pairs]
    family = sum(pair.ranked and not short for pair, short in zip(pairs, reasons, strict=True))
    adjusted = 1 - (1 - level) / max(family, 1)
    found = iter(estimates([pair for pair, short in zip(pairs, reasons, strict=True) if not short], adjusted))
    return tuple(
        Gap(
            pair.group,
            pair.reference,
            not_estimable(short) if short else next(found),
            *shown.sizes(pair),
            adjusted,
            family,
            pair.ranked,
        )
        for pair, short in zip(pairs, reasons, strict=True)
    )


def _share_gaps(
    grouped: _Grouped,
    hits: np.ndarray,
    strata: Sequence[np.ndarray],
    pairs: list[_Comparison],
    level: float,
) -> list[Estimate]:
    """Shares of hits (N,) compared in each stratum (N,) and averaged over them: one group's minus the other's."""
    patients, known = grouped.cases.patients, grouped.codes < len(grouped.levels)
    kept, stratum = np.any(strata, axis=0) & known, np.argmax(strata, axis=0)
    with_rest: list[Estimate] = []
    if any(pair.ranked and pair.other < 0 for pair in pairs):
        with_rest = against_rest(
            hits[kept],
            grouped.codes[kept],
            patients[kept],
            count=len(grouped.levels),
            level=level,
            strata=stratum[kept],
        )

    def estimate(pair: _Comparison) -> Estimate:
        if pair.ranked and pair.other < 0:
            return with_rest[pair.place]
        cells = [part & side for part in strata for side in grouped.sides(pair)]
        weights = [sign / len(strata) for _ in strata for sign in (1, -1)]
        return combination([Sample(hits[cell], patients[cell]) for cell in cells], weights, level=level)

    return [estimate(pair) for pair in pairs]


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
    grouped = _Grouped.of(checked_cases(labels, decisions, groups, patients))
    cases = grouped.cases
    if metric == "auroc":
        values = ranked(scores, len(cases.labels))
        return _compared(
            grouped,
            _both_labels(grouped),
            np.ones_like(cases.labels),
            lambda pairs, adjusted: _auroc_gaps(grouped, values, pairs, adjusted),
            minimum,
            level,
        )
    rates = definitions(cases.labels, cases.decisions)
    if metric not in rates:
        raise ConfigError(f"metric {metric!r} has no gap between groups. {nearest(metric, [*rates, 'auroc'])}")
    rate = rates[metric]
    return _compared(
        grouped,
        [_Denominator(grouped, rate.among, rate.patients)],
        rate.among,
        lambda pairs, adjusted: _share_gaps(grouped, rate.hits, [rate.among], pairs, adjusted),
        minimum,
        level,
    )


def _both_labels(grouped: _Grouped) -> list[_Denominator]:
    labels = grouped.cases.labels
    return [_Denominator(grouped, labels, "positive patients"), _Denominator(grouped, ~labels, "negative patients")]


def _auroc_gaps(grouped: _Grouped, scores: np.ndarray, pairs: list[_Comparison], level: float) -> list[Estimate]:
    order = np.argsort(scores, kind="stable")  # ranking what is sorted already is quick

    def scored(side: np.ndarray) -> Scored:
        member = order[side[order]]
        return Scored(scores[member], grouped.cases.labels[member], grouped.cases.patients[member])

    return [auroc_difference(*map(scored, grouped.sides(pair)), level=level) for pair in pairs]


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
    grouped = _Grouped.of(checked_cases(labels, decisions, column, patients))
    cases = grouped.cases
    return _compared(
        grouped,
        _both_labels(grouped),
        np.ones_like(cases.labels),
        lambda pairs, adjusted: _share_gaps(grouped, cases.decisions, [cases.labels, ~cases.labels], pairs, adjusted),
        minimum,
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
    gap = float(np.ptp(np.bincount(home, hits) / np.bincount(home, sizes)))
    chance = _permuted_spreads(home, hits, sizes, len(kept), permutations, rng)
    p_value = (1 + int((chance >= gap - 1e-12).sum())) / (1 + permutations)
    people = len(np.unique(pairs[inside] // len(names)))
    return GroupTest(gap, float(chance.mean()), p_value, len(kept), people)


def _permuted_spreads(
    home: np.ndarray, hits: np.ndarray, sizes: np.ndarray, count: int, permutations: int, rng: np.random.Generator
) -> np.ndarray:
    """Largest minus smallest rate (R,) when units are dealt out to the groups' places at random.

    Units with equal sizes and hits are alike, so that only how many of each kind a group gets is drawn.
    """
    kinds, kind = np.unique(np.stack([sizes, hits]), axis=1, return_inverse=True)
    left = np.bincount(kind.ravel(), minlength=kinds.shape[1])
    free = np.tile(np.bincount(home, minlength=count)[:, None], permutations)
    among, found = np.zeros((2, count, permutations))
    for (size, hit), units in zip(kinds.T, left, strict=True):
        dealt = _dealt(free, int(units), rng)
        free -= dealt
        among += size * dealt
        found += hit * dealt
    return np.asarray(np.ptp(found / among, axis=0))


def _dealt(free: np.ndarray, units: int, rng: np.random.Generator) -> np.ndarray:
    """How many of so many units fall to each group (G, R) whose free places (G, R) all have the same chance."""
    dealt, places = np.zeros_like(free), free.sum(axis=0)
    left = np.full(free.shape[1], units)
    for group, own in enumerate(free[:-1]):
        places = places - own
        dealt[group] = rng.hypergeometric(own, places, left)
        left = left - dealt[group]
    dealt[-1] = left
    return dealt
