"""Slices that columns of the table describe, and columns that describe a slice. Shapes: N cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.stats import fisher_exact

from xvision import text
from xvision.methods.groups.cases import UNKNOWN
from xvision.methods.intervals import benjamini_hochberg

_LEVELS = 20


class ColumnSlice(NamedTuple):
    """All cases (N,) of one level, or of two levels of two columns. standing: how much it errs beyond the rest where found."""

    name: str
    members: np.ndarray
    standing: float


def column_slices(
    columns: Mapping[str, np.ndarray], enough: Callable[[np.ndarray], bool], standing: Callable[[np.ndarray], float]
) -> list[ColumnSlice]:
    """Levels of the columns (N,), then pairs of levels that stand out more than either level alone; "unknown" is no level.

    enough: whether a slice is large enough to look at. The 20 most frequent levels of all columns are paired.
    """
    singles = {
        (column, level): ColumnSlice(text.condition({column: level}), values == level, standing(values == level))
        for column, values in columns.items()
        for level in _frequent(values)
        if enough(values == level)
    }
    largest = sorted(singles, key=lambda key: -int(singles[key].members.sum()))[:_LEVELS]
    return [*singles.values(), *_pairs(singles, [key for key in singles if key in largest], enough, standing)]


def _frequent(values: np.ndarray) -> list[str]:
    levels, counts = np.unique(values, return_counts=True)
    return [str(levels[place]) for place in np.argsort(-counts, kind="stable") if levels[place] != UNKNOWN]


def _pairs(
    singles: Mapping[tuple[str, str], ColumnSlice],
    keys: list[tuple[str, str]],
    enough: Callable[[np.ndarray], bool],
    standing: Callable[[np.ndarray], float],
) -> Iterator[ColumnSlice]:
    for one, other in combinations(keys, 2):
        if one[0] == other[0]:
            continue
        first, second = singles[one], singles[other]
        members = first.members & second.members
        if enough(members):
            found = standing(members)
            if found > max(first.standing, second.standing):
                yield ColumnSlice(f"{first.name}, {second.name}", members, found)


class Description(NamedTuple):
    """A level that is more frequent inside a slice. inside, outside: its share of patients. p_value: Fisher's, adjusted."""

    column: str
    level: str
    inside: float
    outside: float
    p_value: float


def describe(
    members: np.ndarray, columns: Mapping[str, np.ndarray], patients: np.ndarray, *, alpha: float = 0.05, most: int = 3
) -> list[Description]:
    """What columns (N,) say of the members (N,): levels that Fisher's test finds more frequent inside, most telling first.

    A patient counts once inside and once outside. P-values are adjusted over all levels (Benjamini and Hochberg). A
    case without a level of a column has "" there.
    """
    sizes = [len(np.unique(patients[side])) for side in (members, ~members)]
    levels = [
        (column, str(level)) for column, values in columns.items() for level in np.unique(values[members]) if level
    ]
    if not levels or not min(sizes):
        return []
    there, away = (
        [len(np.unique(patients[side & (columns[column] == level)])) for column, level in levels]
        for side in (members, ~members)
    )
    raw = [
        fisher_exact([[inside, sizes[0] - inside], [outside, sizes[1] - outside]], alternative="greater").pvalue
        for inside, outside in zip(there, away, strict=True)
    ]
    found = [
        Description(*levels[place], there[place] / sizes[0], away[place] / sizes[1], float(p))
        for place, p in enumerate(benjamini_hochberg(raw))
        if p <= alpha
    ]
    return sorted(found, key=lambda item: (item.p_value, item.outside - item.inside))[:most]
