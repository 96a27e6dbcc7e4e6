"""One figure of two groups weighted to one mix, with its interval and that of the change. Shapes: N cases, R resamples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from xvision.methods.groups.cases import Cases, Definition, Rate, definitions
from xvision.methods.groups.mixes import RATES, Pair, Replay, Target
from xvision.methods.groups.weighted import Limits, weighted_sums
from xvision.methods.intervals import (
    Estimate,
    Sample,
    difference,
    mover,
    not_estimable,
    proportion,
    quantile_of,
    wilson,
)

WITHIN_LABEL: tuple[Rate, ...] = ("sensitivity", "specificity")
"""Figures that do not follow prevalence."""
_SAME = "the same in every resample: nothing here depends on the mix"


@dataclass(frozen=True)
class Adjusted:
    """One figure at one step. gap: the group's minus the reference's. change: this gap minus that of the earlier step.

    effective: the patients that the weighted cases of group and reference are worth (Kish 1965). odds_ratio: of a right
    decision in the group against the reference, pooled over strata, for sensitivity and specificity.
    """

    group: Estimate
    reference: Estimate
    gap: Estimate
    change: Estimate
    effective: tuple[float, float]
    odds_ratio: Estimate


@dataclass(frozen=True, eq=False)
class Sides:
    """Two sides of a comparison, and the estimates of each step. first, second, aim: (N,) bool."""

    cases: Cases
    rates: Mapping[Rate, Definition]
    pair: Pair
    first: np.ndarray
    second: np.ndarray
    aim: np.ndarray
    minimum: int
    floor: float

    @classmethod
    def of(cls, cases: Cases, codes: np.ndarray, pair: Pair, target: Target, minimum: int, floor: float) -> Sides:
        first, second = np.isin(codes, pair.first), np.isin(codes, pair.second)
        aim = second if target == "reference" or not pair.ranked else first | second
        named = definitions(cases.labels, cases.decisions)
        return cls(cases, {rate: named[rate] for rate in RATES}, pair, first, second, aim, minimum, floor)

    def few(self, rate: Rate) -> str | None:
        """Why a figure cannot be compared even as found."""
        found = self.rates[rate]
        for side, place in ((self.first, ""), (self.second, " in the comparison group")):
            if self.people(side & found.among) < self.minimum:
                return f"fewer than {self.minimum} {found.patients}{place}"
        return None

    def people(self, chosen: np.ndarray) -> int:
        return len(np.unique(self.cases.patients[chosen]))

    def there(self, strata: np.ndarray | None) -> np.ndarray:
        """(N,) whether both sides have cases of this case's stratum and label."""
        if strata is None:
            return np.ones(len(self.first), bool)
        cell = strata * 2 + self.cases.labels
        size = int(cell.max(initial=0)) + 1
        both = [np.bincount(cell[side], minlength=size) > 0 for side in (self.first, self.second)]
        return np.asarray((both[0] & both[1])[cell])


@dataclass(frozen=True, eq=False)
class Held:
    """One figure of one comparison at one step. there: (N,) bool. strata: (N,). before: strata and replay of the step before."""

    sides: Sides
    rate: Rate
    there: np.ndarray
    strata: np.ndarray | None
    replay: Replay
    before: tuple[np.ndarray | None, Replay]
    level: float

    @property
    def label(self) -> bool:
        """The label that sensitivity or specificity is about, which is also the right decision."""
        return self.rate == "sensitivity"

    def adjusted(self, earlier: Estimate) -> Adjusted:
        """The figure; its change where ``earlier``, the gap of the step before, is estimable."""
        sides = [side & self._among & self.there for side in (self.sides.first, self.sides.second)]
        worth = [self._effective(side, weight) for side, weight in zip(sides, self.replay.weights, strict=True)]
        effective = (worth[0], worth[1])
        reason = self.sides.few(self.rate) or self._uncovered() or self._worthless(effective) or self._undefined()
        if reason:
            nothing = not_estimable(reason)
            return Adjusted(nothing, nothing, nothing, nothing, effective, nothing)
        if self.strata is None:
            found = self._as_found(sides, effective)
        elif self.rate in WITHIN_LABEL:
            return self._by_cells(effective, earlier)
        else:
            found = self._by_resamples(sides, effective)
        return replace(found, change=self._moved(found.gap.n, earlier))

    @property
    def _among(self) -> np.ndarray:
        return self.sides.rates[self.rate].among

    def _effective(self, side: np.ndarray, weights: np.ndarray) -> float:
        """Kish's number of patients."""
        own = np.bincount(self.sides.cases.patients[side], np.nan_to_num(weights[side]))
        return float(own.sum() ** 2 / square) if (square := float(own @ own)) > 0 else 0.0

    def _uncovered(self) -> str | None:
        if self.strata is None:
            return None
        for label in (self.label,) if self.rate in WITHIN_LABEL else (False, True):
            among = self.sides.aim & (self.sides.cases.labels == label)
            share = float(self.there[among].mean()) if among.any() else 0.0
            if share < self.sides.floor:
                name = "positive" if label else "negative"
                return f"both sides have only {100 * share:.0f} % of the mix of {name} cases; {100 * self.sides.floor:.0f} % are needed"
        return None

    def _worthless(self, worth: tuple[float, float]) -> str | None:
        if min(worth) >= self.sides.minimum - 1e-9 or self.strata is None:
            return None
        return f"at this mix one side is worth {min(worth):.1f} patients, fewer than {self.sides.minimum}"

    @property
    def _values(self) -> np.ndarray:
        return self.replay.rates[:, RATES.index(self.rate)]

    def _undefined(self) -> str | None:
        lost = np.isnan(self._values).any(axis=0)
        if not lost[0] and 2 * lost[1:].sum() <= lost.size - 1:
            return None
        return f"undefined in {int(lost[1:].sum())} of {lost.size - 1} patient resamples"

    def _as_found(self, sides: list[np.ndarray], effective: tuple[float, float]) -> Adjusted:
        found, patients = self.sides.rates[self.rate], self.sides.cases.patients
        samples = [Sample(found.hits[side], patients[side]) for side in sides]
        one, other = (proportion(*sample, level=self.level) for sample in samples)
        gap = difference(*samples, level=self.level)
        return Adjusted(one, other, gap, not_estimable(""), effective, self._odds(gap.n))

    def _by_cells(self, effective: tuple[float, float], earlier: Estimate) -> Adjusted:
        """Sensitivity and specificity: limits of the strata's shares, and beside them how the mixes vary."""
        first, second = self.sides.first, self.sides.second
        kept = self._among & (first | second)
        cross = [np.zeros(len(kept), int) if each is None else each for each in (self.strata, self.before[0])]
        cells = np.unique(np.stack([first, *cross])[:, kept], axis=1, return_inverse=True)[1]
        weights = [
            np.where(first, 1.0, -1.0)[kept] * self._normed(replay, step)[kept]
            for step, replay in ((self.strata, self.replay), self.before)
        ]
        sums = [np.bincount(cells, weight) for weight in weights]
        sign = np.bincount(cells, first[kept]) > 0
        rows = [np.where(sign, sums[0], 0.0), np.where(sign, 0.0, -sums[0]), sums[0], sums[0] - sums[1]]
        hits = (self.sides.cases.decisions == self.label)[kept]
        own = self.sides.cases.patients[kept]
        limits = weighted_sums(hits, cells, own, np.stack(rows), level=self.level)
        mixes, before = (each[:, int(self.label)] for each in (self.replay.mixes, self.replay.earlier))
        gap, was = mixes[0] - mixes[1], before[0] - before[1]
        people = [self.sides.people(side & self._among & self.there) for side in (first, second, first | second)]
        name = "MOVER over strata, mixes by patient bootstrap"
        one, other = (self._widened(limits[side], mixes[side], people[side], name) for side in (0, 1))
        gapped = self._widened(limits[2], gap, people[2], name)
        change = self._widened(limits[3], gap - was, people[2], name)
        if earlier.value is None:
            change = not_estimable(earlier.reason or "")
        elif (change.high or 0.0) - (change.low or 0.0) < 1e-12:
            change = not_estimable(_SAME)
        else:
            change = _wider(change, self._moved(people[2], earlier))
        return Adjusted(_share(one), _share(other), gapped, change, effective, self._odds(people[2]))

    def _normed(self, replay: Replay, strata: np.ndarray | None) -> np.ndarray:
        """(N,) weights of that step that add up to one on either side."""
        there = self._among & self.sides.there(strata)
        first = np.where(there, replay.weights[0], 0.0)
        second = np.where(there, replay.weights[1], 0.0)
        sums = first[self.sides.first].sum(), second[self.sides.second].sum()
        return np.asarray(np.where(self.sides.first, first / sums[0], second / sums[1]))

    def _widened(self, limits: Limits, mixes: np.ndarray, people: int, name: str) -> Estimate:
        """mixes: (1 + R,) the value when only the mixes vary."""
        drawn = mixes[1:][~np.isnan(mixes[1:])]
        half = quantile_of(self.level) * float(np.std(drawn, ddof=1)) if len(drawn) > 1 else 0.0
        below, above = (float(np.hypot(side, half)) for side in (limits.below, limits.above))
        return Estimate(limits.value, limits.value - below, limits.value + above, people, name)

    def _by_resamples(self, sides: list[np.ndarray], effective: tuple[float, float]) -> Adjusted:
        values = self._values[:, ~np.isnan(self._values).any(axis=0)]
        one, other = (
            _resampled_share(values[side], effective[side], self.sides.people(sides[side]), self.level)
            for side in (0, 1)
        )
        limits = mover((one, other), (1.0, -1.0), _together(values[:, 1:]))
        people = self.sides.people(sides[0] | sides[1])
        gap = Estimate(*limits, people, "weighted Newcombe, patient bootstrap")
        return Adjusted(one, other, gap, not_estimable(""), effective, self._odds(people))

    def _moved(self, people: int, earlier: Estimate) -> Estimate:
        """The change of the gap, resample by resample."""
        if earlier.value is None:
            return not_estimable(earlier.reason or "")
        now, before = (each.rates[:, RATES.index(self.rate)] for each in (self.replay, self.before[1]))
        moved = (now[0] - now[1]) - (before[0] - before[1])
        drawn = moved[1:][~np.isnan(moved[1:])]
        if not len(drawn) or np.ptp(drawn) < 1e-12:
            return not_estimable(_SAME)
        low, high = np.quantile(drawn, [(1 - self.level) / 2, (1 + self.level) / 2])
        value = float(moved[0])
        return Estimate(value, min(float(low), value), max(float(high), value), people, "paired patient bootstrap")

    def _odds(self, people: int) -> Estimate:
        if self.rate not in WITHIN_LABEL:
            return not_estimable("given for sensitivity and specificity")
        with np.errstate(divide="ignore"):
            values = np.log(self.replay.odds[int(self.label)])
        drawn = values[1:][np.isfinite(values[1:])]
        if not np.isfinite(values[0]) or 2 * len(drawn) < len(values) - 1 or len(drawn) < 2:
            return not_estimable("too few errors or too few hits for an odds ratio", people)
        half = quantile_of(self.level) * float(np.std(drawn, ddof=1))
        value, low, high = np.exp([values[0], values[0] - half, values[0] + half]).tolist()
        return Estimate(value, low, high, people, "Mantel-Haenszel, patient bootstrap")


def _wider(found: Estimate, other: Estimate) -> Estimate:
    """The estimate with the outer limits of both: small strata without an error look certain to resamples alone."""
    if found.low is None or found.high is None or other.low is None or other.high is None:
        return found
    return found._replace(low=min(found.low, other.low), high=max(found.high, other.high))


def _share(found: Estimate) -> Estimate:
    """Limits of a share, which cannot leave [0, 1]."""
    return found._replace(low=max(found.low or 0.0, 0.0), high=min(found.high or 0.0, 1.0))


def _resampled_share(values: np.ndarray, worth: float, people: int, level: float) -> Estimate:
    """A weighted share, first of ``values`` (1 + R,), on the independent patients that its resamples show."""
    value, variance = min(max(float(values[0]), 0.0), 1.0), float(np.var(values[1:], ddof=1))
    seen = value * (1 - value) / variance if variance > 0 else worth
    effective = min(worth, seen) if seen > 0 else worth
    low, high = wilson(value * effective, effective, level)
    return Estimate(value, min(low, value), max(high, value), people, "weighted Wilson, patient bootstrap")


def _together(values: np.ndarray) -> np.ndarray:
    """Correlation (2, 2) of both sides over resamples; none where one does not vary."""
    if (np.ptp(values, axis=1) < 1e-12).any():
        return np.eye(2)
    return np.asarray(np.corrcoef(values))
