"""Whether a slice errs more than the rest among comparable cases. Shapes: N cases.

The unit is the patient: a patient's cases in the slice, and those outside it, are one unit each, which is moved as a whole.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import hypergeom

from xvision.methods.intervals import Estimate, Sample, combination, not_estimable, proportion


class Strata(NamedTuple):
    """errors: (N,) bool. codes: (N,) what must be alike for two cases to be compared. units: (N,) patient and stratum."""

    errors: np.ndarray
    codes: np.ndarray
    units: np.ndarray
    surplus: np.ndarray
    """(N,) error less the share of errors in the stratum."""
    many: int


def strata(errors: np.ndarray, codes: np.ndarray, patients: np.ndarray) -> Strata:
    """codes, patients: (N,) integers from 0."""
    count = int(codes.max(initial=-1)) + 1
    sizes = np.maximum(np.bincount(codes, minlength=count), 1)
    shares = np.bincount(codes, errors, count) / sizes
    units = np.unique(patients * max(count, 1) + codes, return_inverse=True)[1]
    return Strata(errors.astype(bool), codes, units, errors - shares[codes], count)


class _Units(NamedTuple):
    """Per unit: whether it is in the slice, its stratum, its surplus of errors, and its cases and errors."""

    inside: np.ndarray
    stratum: np.ndarray
    surplus: np.ndarray
    cases: np.ndarray
    errors: np.ndarray


def _units(inside: np.ndarray, given: Strata) -> _Units:
    keys, length = 2 * given.units + inside, 2 * (int(given.units.max(initial=-1)) + 1)
    cases = np.bincount(keys, minlength=length)
    there = np.flatnonzero(cases)
    stratum = np.zeros(length, dtype=int)
    stratum[keys] = given.codes
    surplus, errors = (np.bincount(keys, values, length)[there] for values in (given.surplus, given.errors))
    return _Units(there % 2 == 1, stratum[there], surplus, cases[there], errors.astype(int))


def standing(inside: np.ndarray, given: Strata) -> float:
    """Surplus of errors inside over its standard deviation when units are dealt out within strata; −inf where none can be."""
    units = _units(inside, given)
    alone = np.bincount(units.stratum, minlength=given.many)
    chosen = np.bincount(units.stratum, units.inside, given.many)
    spread = np.bincount(units.stratum, units.surplus**2, given.many) / np.maximum(alone, 1)
    variance = float((chosen * (alone - chosen) / np.maximum(alone - 1, 1) * spread).sum())
    return float(units.surplus[units.inside].sum() / np.sqrt(variance)) if variance > 1e-12 else -np.inf


def surplus_p(inside: np.ndarray, given: Strata, *, rng: np.random.Generator, draws: int = 1999) -> float:
    """One-sided p: how often units dealt out anew within strata give the slice as many errors too many.

    Exact where no patient has several cases in one stratum, then it is Fisher's test for one stratum; else ``draws`` draws.
    """
    units = _units(inside, given)
    if not units.inside.any() or units.inside.all():
        return 1.0
    if (units.cases == 1).all():
        return _exact(units, given.many)
    observed, drawn = 0.0, np.zeros(draws)
    for code in np.unique(units.stratum[units.inside]):
        own = units.stratum == code
        kinds, places = np.unique(np.column_stack([units.cases[own], units.errors[own]]), axis=0, return_inverse=True)
        places = places.ravel()
        worth = np.bincount(places, units.surplus[own]) / np.bincount(places)
        chosen = int(units.inside[own].sum())
        if chosen < own.sum() and len(kinds) > 1:
            counts = rng.multivariate_hypergeometric(np.bincount(places), chosen, size=draws, method="marginals")
            drawn += counts @ worth
            observed += float(worth[places[units.inside[own]]].sum())
    return (1 + int((drawn >= observed - 1e-9).sum())) / (1 + draws)


def _exact(units: _Units, count: int) -> float:
    """The number of errors inside is a sum of hypergeometric numbers, one for each stratum."""
    chances = np.ones(1)
    for code in range(count):
        own = units.stratum == code
        wrong, chosen = int(units.errors[own].sum()), int(units.inside[own].sum())
        if chosen and wrong:
            chances = np.convolve(chances, hypergeom.pmf(np.arange(min(wrong, chosen) + 1), own.sum(), wrong, chosen))
    found = int(units.errors[units.inside].sum())
    return float(min(chances[found:].sum(), 1.0))


class Evidence(NamedTuple):
    """Of one half. cases, patients, errors: inside. error: its rate inside. rest: that of the rest at the same mix of labels."""

    cases: int
    patients: int
    errors: int
    error: Estimate
    rest: float | None
    difference: Estimate


def evidence(
    inside: np.ndarray, errors: np.ndarray, labels: np.ndarray, patients: np.ndarray, *, level: float = 0.95
) -> Evidence:
    """How much more the slice errs than the rest does within each label, averaged over the labels of the slice.

    Labels that only the slice has, or only the rest, are left out of the comparison.
    """
    cells: list[tuple[np.ndarray, np.ndarray]] = []
    for code in np.unique(labels[inside]):
        own = labels == code
        if (own & ~inside).any():
            cells.append((own & inside, own & ~inside))
    total = sum(int(first.sum()) for first, _ in cells)
    if total:
        shares = [float(first.sum()) / total for first, _ in cells]
        samples = [Sample(errors[cell], patients[cell]) for pair in cells for cell in pair]
        weights = [side * share for share in shares for side in (1.0, -1.0)]
        difference = combination(samples, weights, level=level)
        rest: float | None = sum(
            share * float(errors[other].mean()) for share, (_, other) in zip(shares, cells, strict=True)
        )
    else:
        difference, rest = not_estimable("no case of the same label outside the slice"), None
    return Evidence(
        int(inside.sum()),
        len(np.unique(patients[inside])),
        int(errors[inside].sum()),
        proportion(errors[inside], patients[inside]),
        rest,
        difference,
    )
