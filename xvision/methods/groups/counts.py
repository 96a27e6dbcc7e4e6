"""Confusion counts of groups, and their bootstrap without a loop over resamples.

Drawing cases and counting them is drawing counts: the counts of independent cases are multinomial, those of patients
with several images are patient weights times a sparse matrix. A thousand resamples cost milliseconds, and any metric
that is a ratio of counts follows. For one group's rate alone, Wilson's interval
(:func:`~xvision.methods.intervals.proportion`) is better: a bootstrap of 10 hits in 10 has no width.

Shapes: N cases, P patients, G groups, R resamples. Cells come first: true negatives, false positives, false negatives,
true positives, which is 2 × label + decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from xvision.errors import ConfigError, DataError, nearest
from xvision.methods.groups.cases import Rate
from xvision.methods.intervals import binary, patient_codes, quantile_of

Scheme = Literal["rows", "within group", "within group and label"]
"""What stays as it is in every resample: the number of cases; each group's; each group's positives and negatives."""

CELLS = 4
_BLOCK = 1_000_000
"""Numbers in one array of a block: 8 MB each, and a block is four of them."""
_MOST_CELLS = 10_000_000
_TN, _FP, _FN, _TP = range(CELLS)

SHARES: Mapping[Rate, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "sensitivity": ((_TP,), (_TP, _FN)),
    "specificity": ((_TN,), (_TN, _FP)),
    "fpr": ((_FP,), (_TN, _FP)),
    "fnr": ((_FN,), (_TP, _FN)),
    "ppv": ((_TP,), (_TP, _FP)),
    "npv": ((_TN,), (_TN, _FN)),
    "selection_rate": ((_TP, _FP), (_TN, _FP, _FN, _TP)),
    "accuracy": ((_TP, _TN), (_TN, _FP, _FN, _TP)),
}
"""Rate → the cells counted, and the cells that they are a share of."""


@dataclass(frozen=True, eq=False)
class Coding:
    """Groups as numbers: ``codes`` (N,) count through all combinations of the levels of the columns, the last fastest."""

    columns: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    codes: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(levels) for levels in self.levels)

    @property
    def count(self) -> int:
        """Of all combinations, also of those that nobody has."""
        return int(np.prod(self.shape, dtype=float))

    def named(self, code: int) -> tuple[str, ...]:
        """The level of every column."""
        places = np.unravel_index(code, self.shape)
        return tuple(levels[int(place)] for levels, place in zip(self.levels, places, strict=True))


class Block(NamedTuple):
    """Resampled counts (4, g, R) of the groups from ``start`` on."""

    start: int
    counts: np.ndarray


class Resampled(NamedTuple):
    """A rate by group (G,): its value, percentile limits, and the share of resamples in which it is defined.

    NaN where the denominator is empty, for the limits where it is in every resample.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    usable: np.ndarray


def coded(columns: Mapping[str, np.ndarray]) -> Coding:
    """Columns (N,) of level names as one number per case; several columns give their intersections.

    Raises DataError without columns, when their lengths differ, or when there are too many combinations to count.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(f"found group columns of lengths {lengths}; give at least one, each with one level per case")
    found = [np.unique(np.asarray(values).astype(str), return_inverse=True) for values in columns.values()]
    levels = tuple(tuple(names.tolist()) for names, _ in found)
    shape = tuple(max(len(names), 1) for names in levels)
    if np.prod(shape, dtype=float) > _MOST_CELLS:
        raise DataError(
            f"the columns {', '.join(columns)} have {' × '.join(map(str, shape))} combinations;"
            " leave a column out or join its levels"
        )
    return Coding(tuple(columns), levels, np.ravel_multi_index(tuple(codes for _, codes in found), shape))


def tabulated(labels: np.ndarray, decisions: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Confusion counts (4, count) of labels and decisions (N,) of 0 or 1 in groups (N,) numbered from 0."""
    return np.bincount(_cells(labels, decisions, groups, count), minlength=CELLS * count).reshape(CELLS, count)


def rate(counts: np.ndarray, metric: Rate) -> np.ndarray:
    """The rate of confusion counts (4, ...); NaN where nothing is in its denominator."""
    if metric not in SHARES:
        raise ConfigError(f"{metric!r} is no ratio of confusion counts. {nearest(metric, SHARES)}")
    hits, among = (sum(counts[cell] for cell in cells) for cells in SHARES[metric])
    undefined = np.full(np.shape(among), np.nan)
    return np.asarray(np.divide(hits, among, out=undefined, where=np.asarray(among) > 0))


def resampled(
    table: np.ndarray, *, rng: np.random.Generator, resamples: int = 1000, scheme: Scheme = "within group"
) -> Iterator[Block]:
    """Bootstrap counts of confusion counts (4, G) of independent cases, in blocks of groups.

    "within group" lets no group vanish and suits comparisons of groups; "rows" is what drawing rows of the table does.
    """
    counts, groups = np.asarray(table), table.shape[1]
    sizes = counts.sum(axis=0)
    if scheme not in ("rows", "within group", "within group and label"):
        raise ConfigError(f"scheme {scheme!r} is none of 'rows', 'within group', 'within group and label'")
    drawn = None
    if scheme == "rows" and sizes.sum():
        drawn = rng.multinomial(sizes.sum(), sizes / sizes.sum(), size=resamples).astype(np.int32).T
    for start in range(0, groups, max(1, _BLOCK // resamples)):
        part = slice(start, min(groups, start + max(1, _BLOCK // resamples)))
        shape = (part.stop - start, resamples)
        totals = np.broadcast_to(sizes[part, None], shape) if drawn is None else drawn[part]
        yield Block(start, _drawn(counts[:, part, None], totals, scheme, rng))


def _drawn(counts: np.ndarray, totals: np.ndarray, scheme: Scheme, rng: np.random.Generator) -> np.ndarray:
    """Counts (4, g, R) from those observed (4, g, 1): labels first, then decisions given the label."""
    positives = counts[_FN] + counts[_TP]
    if scheme == "within group and label":
        ill = np.broadcast_to(positives, totals.shape)
    else:
        ill = rng.binomial(totals, _share(positives, counts.sum(axis=0)))
    found = rng.binomial(ill, _share(counts[_TP], positives))
    raised = rng.binomial(totals - ill, _share(counts[_FP], counts[_TN] + counts[_FP]))
    return np.stack([totals - ill - raised, raised, ill - found, found])


def _share(hits: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Hits among; 0 where there is nothing to draw from."""
    return np.asarray(hits / np.maximum(among, 1))


def patient_cells(cells: np.ndarray, count: int, patients: np.ndarray) -> csr_array:
    """How many cases each patient has in each cell (P, count), sparse. cells: (N,) numbers. patients: (N,)."""
    codes, people = patient_codes(patients, len(cells))
    return csr_array((np.ones(len(cells), np.int32), (codes, cells)), shape=(people, count))


def weighted(cells: csr_array, weights: np.ndarray) -> np.ndarray:
    """Counts (count, R) of each cell where patients have weights (R, P): drawn here or elsewhere, all that is asked."""
    return np.asarray(cells.T @ np.ascontiguousarray(np.asarray(weights, np.int32).T))


def resampled_cells(
    cells: csr_array,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    weights: Literal["multinomial", "poisson"] = "multinomial",
) -> np.ndarray:
    """Bootstrap counts (count, R) over whole patients. cells: (P, count) of :func:`patient_cells`.

    One set of weights serves all cells, so that columns, findings or models side by side in ``cells`` are compared on
    the same resamples. "poisson" draws each patient alone: close to "multinomial" for many patients.
    """
    people, count = cells.shape
    found = np.empty((count, resamples), np.int32)
    rows = max(1, 4 * _BLOCK // max(people, count, 1))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        if weights == "poisson":
            drawn = rng.poisson(1.0, size=(size, people))
        else:
            places = rng.integers(people, size=(size, people)) + people * np.arange(size)[:, None]
            drawn = np.bincount(places.ravel(), minlength=size * people).reshape(size, people)
        found[:, start : start + size] = weighted(cells, drawn)
    return found


def group_draws(
    labels: np.ndarray,
    decisions: np.ndarray,
    groups: np.ndarray,
    count: int,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> Iterator[Block]:
    """Bootstrap counts of ``count`` groups by patient: multinomial where each patient has one case, else by weights.

    labels, decisions: (N,) of 0 or 1. groups: (N,) numbers. patients: (N,). Independent cases are drawn within groups,
    patients over all groups.
    """
    cells = _cells(labels, decisions, groups, count)
    codes, people = patient_codes(patients, len(cells))
    if people == len(cells):
        table = np.bincount(cells, minlength=CELLS * count).reshape(CELLS, count)
        yield from resampled(table, rng=rng, resamples=resamples)
        return
    drawn = resampled_cells(patient_cells(cells, CELLS * count, codes), rng=rng, resamples=resamples)
    yield Block(0, drawn.reshape(CELLS, count, resamples))


def rate_intervals(
    table: np.ndarray, blocks: Iterable[Block], metrics: Sequence[Rate], *, level: float = 0.95
) -> dict[Rate, Resampled]:
    """Percentile intervals of each rate in each group, from counts (4, G) and their resamples."""
    tails = (1 - level) / 2, (1 + level) / 2
    quantile_of(level)
    found = {metric: np.full((3, table.shape[1]), np.nan) for metric in metrics}
    for start, counts in blocks:
        part = slice(start, start + counts.shape[1])
        for metric in metrics:
            values = rate(counts, metric)
            found[metric][:2, part] = quantiles(values, tails)
            found[metric][2, part] = 1 - np.isnan(values).mean(axis=-1)
    return {metric: Resampled(rate(table, metric), *limits) for metric, limits in found.items()}


def quantiles(values: np.ndarray, probabilities: Sequence[float]) -> np.ndarray:
    """Quantiles (Q, ...) of what is defined along the last axis (..., R), NaN where nothing is; as ``np.nanquantile``."""
    ordered = np.sort(values, axis=-1)
    usable = (~np.isnan(ordered)).sum(axis=-1)
    found = []
    for probability in probabilities:
        place = probability * np.maximum(usable - 1, 0)
        below = np.floor(place).astype(int)
        above = np.minimum(below + 1, np.maximum(usable - 1, 0))
        low, high = (np.take_along_axis(ordered, at[..., None], -1)[..., 0] for at in (below, above))
        share, step = place - below, high - low
        found.append(np.where(share < 0.5, low + step * share, high - step * (1 - share)))
    return np.stack(found)


def _cells(labels: np.ndarray, decisions: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    truth, decided, named = binary(labels, "labels"), binary(decisions, "decisions"), np.asarray(groups)
    if not truth.shape == decided.shape == named.shape:
        raise DataError(
            f"{len(truth)} labels came with {len(decided)} decisions, {len(named)} groups; give one per case"
        )
    if len(named) and not 0 <= named.min() <= named.max() < count:
        raise DataError(f"found groups numbered {named.min()} to {named.max()}; number them from 0 to {count - 1}")
    return np.asarray((2 * truth + decided) * count + named, np.int64)
