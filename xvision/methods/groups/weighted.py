"""Weighted sums of the shares of many small cells, with intervals by patient. Shapes: N cases, C cells, P patients."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from xvision.methods.intervals import wilson


class Limits(NamedTuple):
    """A weighted sum, and how far its limits lie below and above it."""

    value: float
    below: float
    above: float


def weighted_sums(
    hits: np.ndarray, cells: np.ndarray, patients: np.ndarray, coefficients: np.ndarray, *, level: float = 0.95
) -> tuple[Limits, ...]:
    """What :func:`~xvision.methods.intervals.combination` gives, for any number of sums over the same cells at once.

    hits: (N,) booleans. cells: (N,) from 0, none empty. patients: (N,) integers. coefficients: (sums, C). The work grows
    with the cases and not with the pairs of cells.
    """
    count = coefficients.shape[1]
    _, first, unit = np.unique(cells * (patients.max(initial=0) + 1) + patients, return_index=True, return_inverse=True)
    cell, who = cells[first], patients[first]
    size, found = np.bincount(unit).astype(float), np.bincount(unit, hits)
    cases, people = np.bincount(cell, size, count), np.bincount(cell, minlength=count)
    rates = np.bincount(cell, found, count) / cases
    single = people[cell] == 1
    spread = np.where(single, 1.0, 1 - size / cases[cell])
    pull = np.where(single, 0.0, (found - rates[cell] * size) / cases[cell] * (1 - 1 / people[cell]) / spread)
    variance = np.bincount(cell, pull**2, count)
    worth = _effective(rates, cases, people, variance, np.bincount(cell, size**2, count), level)
    limits = np.array([wilson(rate * n, n, level) for rate, n in zip(rates, worth, strict=True)])
    low, high = np.minimum(limits[:, 0], rates), np.maximum(limits[:, 1], rates)
    toward = pull / np.sqrt(np.where(variance > 0, variance, 1.0))[cell]

    def length(steps: np.ndarray) -> float:
        together = np.bincount(who, steps[cell] * toward)
        return float(np.sqrt(together @ together + (steps[variance == 0] ** 2).sum()))

    sums = []
    for weight in coefficients:
        down = weight * np.where(weight > 0, rates - low, high - rates)
        up = weight * np.where(weight > 0, high - rates, rates - low)
        sums.append(Limits(float(weight @ rates), length(down), length(up)))
    return tuple(sums)


def _effective(
    rates: np.ndarray, cases: np.ndarray, people: np.ndarray, variance: np.ndarray, squares: np.ndarray, level: float
) -> np.ndarray:
    """(C,) independent cases that each cell is worth, as ``intervals.proportion`` has them."""
    balanced = cases**2 / squares
    plain = (rates > 0) & (rates < 1)
    seen = np.minimum(cases, rates * (1 - rates) / np.maximum(variance, 1e-300))
    worth = np.where(plain, seen, balanced)
    more = (cases > people) & (worth > balanced) & (people > 1)
    tail = (1 + level) / 2
    credit = (stdtrit(np.maximum(cases - 1, 1), tail) / stdtrit(np.maximum(balanced - 1, 1e-3), tail)) ** 2
    worth = np.where(more, np.maximum(balanced, worth * credit), worth)
    return np.asarray(np.where(people == 1, 1.0, worth))
