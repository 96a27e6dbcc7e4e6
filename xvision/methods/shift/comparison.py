"""Several numbers of each case compared between two sets, with one control for all of them. Shapes: N and M cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from xvision.methods.intervals import Estimate, holm
from xvision.methods.shift.two_sample import Sets, ks_test, standardised_difference, superiority


class Compared(NamedTuple):
    """One number: its difference in standard deviations, its AUROC, distance of distributions, and p before any control."""

    name: str
    difference: Estimate
    auroc: Estimate
    distance: float
    p_value: float | None


def compared(
    reference: Mapping[str, np.ndarray],
    current: Mapping[str, np.ndarray],
    reference_patients: np.ndarray,
    current_patients: np.ndarray,
) -> tuple[Compared, ...]:
    """Each named number (N,) against its namesake (M,)."""
    rows = []
    for name, values in reference.items():
        sets = Sets(values, current[name], reference_patients, current_patients)
        distance, p_value = ks_test(sets)
        rows.append(Compared(name, standardised_difference(sets), superiority(sets), distance, p_value))
    return tuple(rows)


def bonferroni(p_values: Sequence[float]) -> np.ndarray:
    """p-values times their number, at most 1: controls the chance of any false alarm."""
    adjusted: np.ndarray = np.minimum(np.asarray(p_values, float) * len(p_values), 1.0)
    return adjusted


def over_places(places: Mapping[str, tuple[Sequence[float | None], bool]]) -> dict[str, tuple[float | None, ...]]:
    """p-values of several families, each controlled within and then over the families that have one.

    places: name → the p-values and whether they are controlled by Bonferroni's correction, else by Holm's. Together the
    families raise a false alarm no more often than a single test.
    """
    asked = [name for name, (values, _) in places.items() if any(value is not None for value in values)]
    found: dict[str, tuple[float | None, ...]] = {}
    for name, (values, plain) in places.items():
        known = [value for value in values if value is not None]
        adjusted = iter(np.minimum((bonferroni(known) if plain else holm(known)) * len(asked), 1.0).tolist())
        found[name] = tuple(None if value is None else next(adjusted) for value in values)
    return found
