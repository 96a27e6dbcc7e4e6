"""Each group against the rest, for all groups at once: the same intervals as one by one, without a pass per group.

Shapes: N cases, G groups, S strata, U pairs of a patient and a group, K kinds of patients (alike in all their counts).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, stdtrit

from xvision.methods.intervals import Estimate, mover, not_estimable, patient_codes, wilson

_BLOCK = 2_000_000


class _Side(NamedTuple):
    """Of each group, or of its rest: cases, hits, patients and the sum of squared cases per patient, all (G, S)."""

    cases: np.ndarray
    hits: np.ndarray
    patients: np.ndarray
    squares: np.ndarray

    def influence(self, sizes: np.ndarray, hits: np.ndarray, groups: np.ndarray | slice) -> np.ndarray:
        """Pull of patients with so many cases and hits (..., S) on the rates of their groups (...)."""
        cases, patients = self.cases[groups], self.patients[groups]
        residuals = hits - self.hits[groups] / np.maximum(cases, 1) * sizes
        alone = patients < 2
        pulls = residuals * (1 - 1 / np.maximum(patients, 1)) / np.where(alone | (cases <= sizes), 1, cases - sizes)
        return np.asarray(np.where(alone, 0.0, pulls))


def against_rest(
    hits: np.ndarray,
    groups: np.ndarray,
    patients: np.ndarray,
    *,
    count: int,
    level: float,
    strata: np.ndarray | None = None,
) -> list[Estimate]:
    """Rate in each of ``count`` groups minus the rate in all others, averaged over strata, with its interval.

    hits: (N,) booleans. groups, patients: (N,); groups numbered from 0. strata: (N,) numbered from 0, of equal weight.
    The estimates are those of :func:`~xvision.methods.intervals.combination`.
    """
    found = _compared(hits, groups, patients, count, level, strata)
    if found is None:
        return [not_estimable("no cases in one of the groups")] * count
    kinds = len(found.sides) // 2
    weights = [1 / kinds] * kinds + [-1 / kinds] * kinds
    name = ("Newcombe" if kinds == 1 else "MOVER") + (", patient-clustered" if len(hits) > found.people else "")
    return [
        _joined(
            [(part.rates[group], part.worth[group]) for part in found.sides], weights, gram, level, found.people, name
        )
        for group, gram in enumerate(found.gram)
    ]


def rest_p_values(hits: np.ndarray, groups: np.ndarray, patients: np.ndarray, *, count: int) -> np.ndarray:
    """Two-sided p-values (G,) of no difference between each group and the rest; NaN where one side has no case.

    The pooled z test on the independent cases that each side is worth (Rao and Scott 1992); with one case per patient it
    is :func:`~xvision.methods.groups.verdicts.two_proportions`.
    """
    found = _compared(hits, groups, patients, count, 0.95, None)
    if found is None:
        return np.full(count, np.nan)
    first, rest = found.sides
    total = first.worth + rest.worth
    pooled = (first.rates * first.worth + rest.rates * rest.worth) / np.maximum(total, 1)
    with np.errstate(divide="ignore", invalid="ignore"):  # an empty side has no p-value
        error = np.sqrt(pooled * (1 - pooled) * (1 / first.worth + 1 / rest.worth))
        z = np.where(error > 0, (first.rates - rest.rates) / error, 0.0)
    return np.where((first.worth > 0) & (rest.worth > 0), 2 * ndtr(-np.abs(z)), np.nan)


class _Compared(NamedTuple):
    """Each side and stratum of every group, the inner products (G, 2S, 2S) of their pulls, and the patients in all."""

    sides: list[_Worth]
    gram: np.ndarray
    people: int


def _compared(
    hits: np.ndarray, groups: np.ndarray, patients: np.ndarray, count: int, level: float, strata: np.ndarray | None
) -> _Compared | None:
    codes, people = patient_codes(patients, len(hits))
    if not people:
        return None
    parts = np.zeros(len(hits), int) if strata is None else np.asarray(strata)
    kinds = int(parts.max(initial=0)) + 1
    pairs, unit = np.unique(codes * count + groups, return_inverse=True)
    home, who = pairs % count, pairs // count
    sizes, found = (_tallied(unit, parts, len(pairs), kinds, weights) for weights in (None, hits))
    first, rest, gram = _sides(sizes, found, home, who, count, people)
    sides = [_effective(side, gram[:, place, place], level) for side, place in _placed(first, rest, kinds)]
    return _Compared(sides, gram, people)


class _Worth(NamedTuple):
    """Rates (G,) and the independent cases that each is worth (G,); 0 where there is none."""

    rates: np.ndarray
    worth: np.ndarray


def _tallied(unit: np.ndarray, parts: np.ndarray, units: int, kinds: int, weights: np.ndarray | None) -> np.ndarray:
    return np.bincount(unit * kinds + parts, weights, units * kinds).reshape(units, kinds)


def _summed(groups: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Values (U, ...) summed by group (G, ...)."""
    flat = values.reshape(len(values), -1)
    sums = [np.bincount(groups, flat[:, column], count) for column in range(flat.shape[1])]
    return np.stack(sums, axis=1).reshape(count, *values.shape[1:])


def _sides(
    sizes: np.ndarray, found: np.ndarray, home: np.ndarray, who: np.ndarray, count: int, people: int
) -> tuple[_Side, _Side, np.ndarray]:
    """Both sides of every group, and the inner products (G, 2S, 2S) of the pulls on their rates."""
    totals, total_hits = (_summed(who, part, people) for part in (sizes, found))
    alike, kind = np.unique(np.hstack([totals, total_hits]), axis=0, return_inverse=True)
    kind = kind.ravel()
    outside = np.bincount(kind, minlength=len(alike)) - np.bincount(
        home * len(alike) + kind[who], minlength=count * len(alike)
    ).reshape(count, len(alike))
    kinds = sizes.shape[1]
    kind_sizes, kind_hits = alike[:, :kinds], alike[:, kinds:]
    left, left_hits = totals[who] - sizes, total_hits[who] - found
    first = _Side(*(_summed(home, part, count) for part in (sizes, found, (sizes > 0) * 1.0, sizes**2)))
    rest = _Side(
        sizes.sum(axis=0) - first.cases,
        found.sum(axis=0) - first.hits,
        _summed(home, (left > 0) * 1.0, count) + outside @ (kind_sizes > 0),
        _summed(home, left**2, count) + outside @ kind_sizes**2,
    )
    own, other = first.influence(sizes, found, home), rest.influence(left, left_hits, home)
    both = np.hstack([own, other])
    gram = _summed(home, both[:, :, None] * both[:, None, :], count)
    rows = max(1, _BLOCK // max(len(alike) * kinds, 1))
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        wide = _Side(*(values[:, None] for values in rest))
        pulls = wide.influence(kind_sizes[None], kind_hits[None], part)
        gram[part, kinds:, kinds:] += np.einsum("gk,gks,gkt->gst", outside[part], pulls, pulls)
    return first, rest, gram


def _placed(first: _Side, rest: _Side, kinds: int) -> list[tuple[_Side, int]]:
    """One side and stratum after the other, with its place among the inner products."""
    return [
        (_Side(*(values[:, stratum] for values in side)), offset + stratum)
        for side, offset in ((first, 0), (rest, kinds))
        for stratum in range(kinds)
    ]


def _effective(side: _Side, variance: np.ndarray, level: float) -> _Worth:
    """As :func:`~xvision.methods.intervals.proportion` counts independent cases."""
    rates = side.hits / np.maximum(side.cases, 1)
    balanced = side.cases**2 / np.maximum(side.squares, 1)
    seen = (rates > 0) & (rates < 1)
    worth = np.where(seen, np.minimum(side.cases, rates * (1 - rates) / np.maximum(variance, 1e-300)), balanced)
    credited = (side.cases > side.patients) & (worth > balanced) & (balanced > 1)
    if credited.any():
        plain, cut = (stdtrit(size[credited] - 1, (1 + level) / 2) for size in (side.cases, balanced))
        worth[credited] = np.maximum(balanced[credited], worth[credited] * (plain / cut) ** 2)
    return _Worth(rates, np.where(side.patients == 1, 1.0, np.where(side.cases > 0, worth, 0.0)))


def _joined(
    sides: Sequence[tuple[float, float]],
    weights: Sequence[float],
    gram: np.ndarray,
    level: float,
    people: int,
    name: str,
) -> Estimate:
    if not all(worth for _, worth in sides):
        return not_estimable("no cases in one of the groups")
    parts = [Estimate(rate, *wilson(min(rate * worth, worth), worth, level), people, "") for rate, worth in sides]
    norms = np.sqrt(np.diag(gram))
    norms[norms == 0] = np.inf
    correlation = gram / norms[:, None] / norms
    np.fill_diagonal(correlation, 1.0)
    value, low, high = mover(parts, weights, np.clip(correlation, -1.0, 1.0))
    return Estimate(value, low, high, people, name)
