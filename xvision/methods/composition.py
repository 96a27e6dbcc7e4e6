"""Who is in the data, and which columns go together. Shapes: N cases, P patients, R resamples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import chi2_contingency

from xvision.methods.intervals import Estimate, bootstrap, not_estimable, patient_codes

MOST_LEVELS = 30
REST = "all other levels"
_EXPECTED = 5.0
"""Expected count below which the chi-squared law is not trusted (Cochran 1954)."""


class Association(NamedTuple):
    """strength: Cramér's V, 0 for none and 1 for complete. p: of no association; None where it cannot be tested."""

    strength: Estimate
    p: float | None
    how: str


def pooled(levels: np.ndarray, most: int = MOST_LEVELS) -> np.ndarray:
    """Levels (N,) with all but the ``most`` − 1 largest under one name where there are more; ties by name."""
    names, codes, sizes = np.unique(levels.astype(str), return_inverse=True, return_counts=True)
    if len(names) <= most:
        return names[codes]
    kept = np.zeros(len(names), bool)
    kept[np.argsort(-sizes, kind="stable")[: most - 1]] = True
    return np.where(kept[codes], names[codes], REST)


def usual(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The most frequent value (P,) of each patient, ties to the first in sorting order. values: (N,); codes: (N,) from 0."""
    names, each = np.unique(values, return_inverse=True)
    counts = np.zeros((int(codes.max(initial=-1)) + 1, len(names)), int)
    np.add.at(counts, (codes, each), 1)
    return np.asarray(names[counts.argmax(axis=1)])


def association(
    first: np.ndarray,
    second: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    permutations: int = 1999,
    resamples: int = 1000,
) -> Association:
    """Whether two columns (N,) go together, patient by patient: each patient counts once, with the most frequent values.

    Cramér's V, corrected for the size that chance gives it (Bergsma 2013), with a patient bootstrap interval. p is that of
    the chi-squared test, or of permuted patients where a cell is expected to hold fewer than 5.
    """
    codes, count = patient_codes(patients, len(first))
    sides = [np.unique(usual(pooled(each), codes), return_inverse=True) for each in (first, second)] if count else []
    if not count or min(len(names) for names, _ in sides) < 2:
        reason = "one of the two has a single level" if count else "no cases"
        return Association(not_estimable(reason, count), None, "")
    shape = (len(sides[0][0]), len(sides[1][0]))
    one, other = (side[1] for side in sides)
    cells = np.zeros((count, shape[0] * shape[1]))
    cells[np.arange(count), one * shape[1] + other] = 1.0

    def statistic(weights: np.ndarray) -> np.ndarray:
        return _strengths((weights.astype(float) @ cells).reshape(-1, *shape))

    strength = bootstrap(statistic, np.arange(count), rng=rng, resamples=resamples, centred=True)
    if strength.value is not None and strength.low is not None and strength.high is not None:
        strength = strength._replace(low=max(strength.low, 0.0), high=min(strength.high, 1.0))
    table = cells.sum(axis=0).reshape(shape)
    expected = table.sum(axis=1)[:, None] * table.sum(axis=0) / count
    if expected.min() >= _EXPECTED:
        return Association(strength, float(chi2_contingency(table, correction=False).pvalue), "chi-squared test")
    found, extreme = _chi_squared(table[None])[0], 1
    for _ in range(permutations):
        mixed = np.bincount(one * shape[1] + rng.permutation(other), minlength=table.size).reshape(1, *shape)
        extreme += int(_chi_squared(mixed)[0] >= found - 1e-9)
    return Association(strength, extreme / (permutations + 1), f"{permutations} permutations of patients")


def _chi_squared(tables: np.ndarray) -> np.ndarray:
    """(R,) of tables (R, L, K); rows and columns without cases count nothing."""
    total = tables.sum(axis=(1, 2))
    expected = tables.sum(axis=2)[:, :, None] * tables.sum(axis=1)[:, None, :] / total[:, None, None]
    return np.asarray(((tables - expected) ** 2 / np.where(expected > 0, expected, 1.0)).sum(axis=(1, 2)))


def _strengths(tables: np.ndarray) -> np.ndarray:
    """(R,) of tables (R, L, K), NaN where one side has a single level or there are no two patients."""
    total = tables.sum(axis=(1, 2))
    rows, columns = ((tables.sum(axis=axis) > 0).sum(axis=1) for axis in (2, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.maximum(_chi_squared(tables) / total - (rows - 1) * (columns - 1) / (total - 1), 0.0)
        smaller = np.minimum(*(side - (side - 1) ** 2 / (total - 1) for side in (rows, columns)))
        found = np.sqrt(excess / (smaller - 1))
    return np.where((rows > 1) & (columns > 1) & (smaller > 1), np.minimum(found, 1.0), np.nan)
