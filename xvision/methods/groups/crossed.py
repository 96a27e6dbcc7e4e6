"""Combinations of group columns, each cell compared with the rest of its columns, all intervals holding together.

Shapes: N cases, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from xvision.errors import ConfigError
from xvision.methods.groups.bands import joint_level
from xvision.methods.groups.cases import UNKNOWN, Cases, checked_cases, definitions
from xvision.methods.groups.counts import CELLS, coded, patient_cells, rate, resampled_cells
from xvision.methods.groups.gaps import Gap
from xvision.methods.groups.rest import against_rest
from xvision.methods.intervals import Estimate, not_estimable, proportion

Compared = Literal["sensitivity", "specificity"]
COMPARED: tuple[Compared, ...] = ("sensitivity", "specificity")


@dataclass(frozen=True)
class Cell:
    """Who has these levels of these columns, the rates there, and each rate less that of the rest."""

    columns: tuple[str, ...]
    levels: tuple[str, ...]
    cases: int
    patients: int
    positives: int
    negatives: int
    rates: Mapping[Compared, Estimate]
    gaps: Mapping[Compared, Gap]

    @property
    def known(self) -> bool:
        return UNKNOWN not in self.levels


class Empty(NamedTuple):
    """A combination of levels that nobody has."""

    columns: tuple[str, ...]
    levels: tuple[str, ...]


@dataclass(frozen=True)
class Crossed:
    """Cells with somebody in them, the largest first. empty: cells whose levels all occur but never together.

    left_out: occupied cells beyond the largest. level: of each interval, so that all ``family`` hold together.
    """

    cells: tuple[Cell, ...]
    empty: tuple[Empty, ...]
    empty_cells: int
    left_out: int
    level: float
    family: int


class _Place(NamedTuple):
    """An occupied cell of one combination of columns, before anything is estimated."""

    columns: tuple[str, ...]
    levels: tuple[str, ...]
    member: np.ndarray
    patients: int


def crossed(
    labels: np.ndarray,
    decisions: np.ndarray,
    columns: Mapping[str, np.ndarray],
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    depth: int = 2,
    minimum: int = 10,
    most: int = 200,
    resamples: int = 1000,
    level: float = 0.95,
) -> Crossed:
    """Sensitivity and specificity in every combination of levels of 2 to ``depth`` columns, against the rest.

    labels, decisions, patients and each column: (N,). The rest of a cell are the cases outside it whose levels of the
    same columns are known. Newcombe intervals at the level that the largest deviation over all cells and both rates
    asks for (max-T, by patient). A cell with an unknown level, or a side with fewer than ``minimum`` patients in the
    denominator, is not compared. The ``most`` cells with most patients are looked at.
    """
    if not 2 <= depth <= len(columns):
        raise ConfigError(f"depth is {depth} with {len(columns)} columns: give a number from 2 to that of the columns")
    values = {name: np.asarray(column).astype(str) for name, column in columns.items()}
    cases = checked_cases(labels, decisions, next(iter(values.values())), patients)
    places: list[_Place] = []
    empty: list[Empty] = []
    nobody = 0
    for size in range(2, depth + 1):
        for chosen in combinations(values, size):
            found, missing, count = _places(cases, {name: values[name] for name in chosen}, most)
            places += found
            empty += missing
            nobody += count
    places.sort(key=lambda place: (-place.patients, place.columns, place.levels))
    occupied, places = len(places), places[:most]
    known = {
        chosen: np.asarray(np.all([values[name] != UNKNOWN for name in chosen], axis=0))
        for chosen in dict.fromkeys(place.columns for place in places)
    }
    work = _Work(cases, places, known, minimum)
    each = work.level(rng, resamples, level)
    cells = tuple(_cell(cases, place, gaps) for place, gaps in zip(places, work.gaps(each), strict=True))
    return Crossed(cells, tuple(empty[:most]), nobody, occupied - len(places), each, work.family)


def _places(cases: Cases, columns: Mapping[str, np.ndarray], most: int) -> tuple[list[_Place], list[Empty], int]:
    coding = coded(columns)
    order = np.argsort(coding.codes, kind="stable")
    codes, starts = np.unique(coding.codes[order], return_index=True)
    members = np.split(order, starts[1:]) if len(codes) else []
    chosen = sorted(range(len(codes)), key=lambda at: -len(members[at]))
    found = [
        _Place(coding.columns, coding.named(int(codes[at])), members[at], len(np.unique(cases.patients[members[at]])))
        for at in chosen
    ]
    known = int(np.prod([sum(level != UNKNOWN for level in levels) for levels in coding.levels]))
    nobody = known - sum(UNKNOWN not in place.levels for place in found)
    occupied, missing = set(codes.tolist()), []
    for code in range(coding.count if nobody else 0):
        if code not in occupied and UNKNOWN not in (levels := coding.named(code)):
            missing.append(Empty(coding.columns, levels))
        if len(missing) == most:
            break
    return found, missing, nobody


class _Work:
    """The comparisons of the cells. known: by combination of columns, whether all its levels are known (N,)."""

    def __init__(
        self, cases: Cases, places: Sequence[_Place], known: Mapping[tuple[str, ...], np.ndarray], minimum: int
    ) -> None:
        self.cases, self.places, self.known = cases, places, known
        self.rates = definitions(cases.labels, cases.decisions)
        self.reasons: dict[Compared, list[str | None]] = {
            name: [self._too_few(place, name, minimum) for place in places] for name in COMPARED
        }
        self.family = sum(reason is None for reasons in self.reasons.values() for reason in reasons)

    def _too_few(self, place: _Place, name: Compared, minimum: int) -> str | None:
        """Why a cell is not compared, if it is not."""
        if UNKNOWN in place.levels:
            return "a level is unknown"
        rule, rest = self.rates[name], self.known[place.columns].copy()
        rest[place.member] = False
        sides = place.member[rule.among[place.member]], rest & rule.among
        for side, where in zip(sides, ("", " in the rest"), strict=True):
            if np.count_nonzero(np.bincount(self.cases.patients[side])) < minimum:
                return f"fewer than {minimum} {rule.patients}{where}"
        return None

    def level(self, rng: np.random.Generator, resamples: int, level: float) -> float:
        """The level that every interval needs, from resamples of patients that all cells and both rates share."""
        if self.family < 2:
            return level
        combos = list(self.known)
        sets = [place.member for place in self.places] + [np.flatnonzero(self.known[chosen]) for chosen in combos]
        rows = np.concatenate(sets)
        owner = np.repeat(np.arange(len(sets)), [len(one) for one in sets])
        outcome = (2 * self.cases.labels + self.cases.decisions)[rows]
        matrix = patient_cells(outcome * len(sets) + owner, CELLS * len(sets), self.cases.patients[rows])
        drawn = resampled_cells(matrix, rng=rng, resamples=resamples).reshape(CELLS, len(sets), resamples)
        total = [len(self.places) + combos.index(place.columns) for place in self.places]
        gaps = [
            rate(drawn[:, at], name) - rate(drawn[:, total[at]] - drawn[:, at], name)
            for name in COMPARED
            for at, reason in enumerate(self.reasons[name])
            if reason is None
        ]
        return joint_level(np.stack(gaps), level=level)

    def gaps(self, level: float) -> list[dict[Compared, Gap]]:
        """Of every cell, each rate less that of the rest."""
        found: list[dict[Compared, Gap]] = [{} for _ in self.places]
        for chosen, known in self.known.items():
            own = [at for at, place in enumerate(self.places) if place.columns == chosen]
            for name in COMPARED:
                compared = self._against_rest(chosen, name, level)
                among = self.rates[name].among & known
                for at in own:
                    reason, place = self.reasons[name][at], self.places[at]
                    estimate = compared[at] if reason is None else not_estimable(reason)
                    size, ranked = int(self.rates[name].among[place.member].sum()), UNKNOWN not in place.levels
                    rest = int(among.sum()) - (size if ranked else 0)
                    whom = ", ".join(f"{column} {value}" for column, value in zip(chosen, place.levels, strict=True))
                    found[at][name] = Gap(whom, "rest", estimate, size, rest, level, self.family, ranked)
        return found

    def _against_rest(self, chosen: tuple[str, ...], name: Compared, level: float) -> dict[int, Estimate]:
        kept = [
            at for at, place in enumerate(self.places) if place.columns == chosen and self.reasons[name][at] is None
        ]
        among = self.rates[name].among & self.known[chosen]
        group = np.full(len(among), len(kept))
        for number, at in enumerate(kept):
            group[self.places[at].member] = number
        hits, patients = self.rates[name].hits[among], self.cases.patients[among]
        estimates = against_rest(hits, group[among], patients, count=len(kept) + 1, level=level)
        return dict(zip(kept, estimates, strict=False))


def _cell(cases: Cases, place: _Place, gaps: Mapping[Compared, Gap]) -> Cell:
    labels, patients = cases.labels[place.member], cases.patients[place.member]
    rates: dict[Compared, Estimate] = {}
    for name in COMPARED:
        rule = definitions(labels, cases.decisions[place.member])[name]
        estimate = proportion(rule.hits[rule.among], patients[rule.among])
        rates[name] = estimate if estimate.value is not None else not_estimable(f"no {rule.cases}")
    positives = int(labels.sum())
    return Cell(
        place.columns, place.levels, len(labels), place.patients, positives, len(labels) - positives, rates, gaps
    )
