"""How far apart groups are beyond what chance alone puts between them. Shapes: G groups, R resamples.

The range and the variance of observed rates are never 0, and grow as groups get smaller: they must be read against
chance (Lum, Zhang and Bower 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from xvision.errors import DataError
from xvision.methods.groups.counts import quantiles
from xvision.methods.intervals import Estimate, not_estimable, quantile_of

_FINEST = 2_000
"""Steps of a distribution function that are summed one by one."""


@dataclass(frozen=True)
class Spread:
    """Standard deviation between groups, as observed and less what chance alone gives. The variance may be negative."""

    sd: Estimate
    observed: float | None
    variance: float | None
    groups: int


def binomial_noise(hits: np.ndarray, cases: np.ndarray) -> np.ndarray:
    """Unbiased variance (G,) that chance alone gives each group's rate, for one case per patient."""
    shares = np.asarray(hits) / np.asarray(cases)
    return np.asarray(shares * (1 - shares) / np.maximum(np.asarray(cases) - 1, 1))


def resampled_noise(drawn: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Variance (G,) that chance alone gives each group's rate, from its resamples over patients (G, R).

    Resamples without a case in the denominator are left out; NaN for a group with fewer than two others.
    """
    count, defined = np.asarray(patients), ~np.isnan(drawn)
    usable, values = defined.sum(axis=1), np.where(defined, drawn, 0.0)
    mean = values.sum(axis=1) / np.maximum(usable, 1)
    squares = (np.where(defined, values - mean[:, None], 0.0) ** 2).sum(axis=1)
    noise = squares / np.maximum(usable - 1, 1) * count / np.maximum(count - 1, 1)
    return np.asarray(np.where(usable > 1, noise, np.nan))


def corrected_variance(rates: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Variance of the true rates between groups: that of the observed ones (G, ...) less the mean of their noise."""
    return np.asarray(np.var(rates, axis=0, ddof=1) - np.mean(noise, axis=0))


def between_groups(
    rates: np.ndarray, noise: np.ndarray, drawn: np.ndarray, patients: np.ndarray, *, level: float = 0.95
) -> Spread:
    """Standard deviation of a rate between groups, corrected for chance, with a bootstrap interval.

    rates: (G,). noise: (G,) of :func:`binomial_noise` or :func:`resampled_noise`. drawn: rates resampled (G, R).
    patients: (G,). Groups whose rate is undefined are left out. A resample carries chance twice, once as observed and
    once as drawn, and is corrected for both. The lower limit is 0 unless the groups surely differ.
    """
    quantile_of(level)
    kept = ~np.isnan(rates) & ~np.isnan(noise) & (np.asarray(patients) > 1)
    people = int(np.asarray(patients)[kept].sum())
    if kept.sum() < 2:
        reason = "fewer than 2 groups with 2 patients in the denominator"
        return Spread(not_estimable(reason, people), None, None, int(kept.sum()))
    chance = float(np.mean(noise[kept]))
    variance = float(corrected_variance(rates[kept], noise[kept]))
    usable = drawn[kept][:, ~np.isnan(drawn[kept]).any(axis=0)]
    if 2 * usable.shape[1] < drawn.shape[1]:
        reason = f"a group is empty in {drawn.shape[1] - usable.shape[1]} of {drawn.shape[1]} resamples"
        return Spread(not_estimable(reason, people), None, None, int(kept.sum()))
    limits = quantiles(usable.var(axis=0, ddof=1) - 2 * chance, ((1 - level) / 2, (1 + level) / 2))
    value, low, high = np.sqrt(np.maximum([variance, *limits], 0.0))
    sd = Estimate(float(value), float(min(low, value)), float(max(high, value)), people, "bootstrap, corrected twice")
    return Spread(sd, float(np.std(rates[kept], ddof=1)), variance, int(kept.sum()))


def gap_by_chance(rate: float, cases: np.ndarray) -> float:
    """Mean largest-minus-smallest rate of groups that all have the same true rate, by chance alone.

    cases: (G,) independent cases in each group's denominator; groups with none are left out. Exact, by summing the
    distributions of the largest and of the smallest rate; on an even grid of 2,000 where their steps are more.
    """
    sizes, repeats = np.unique(np.asarray(cases)[np.asarray(cases) > 0], return_counts=True)
    if not 0 <= rate <= 1:
        raise DataError(f"the rate is {rate}; give a share from 0 to 1")
    if repeats.sum() < 2:
        return 0.0
    steps = np.linspace(0, 1, _FINEST + 1)
    if sizes.sum() < _FINEST:
        steps = np.unique(np.concatenate([np.arange(size + 1) / size for size in sizes]))
    below, above = np.zeros(len(steps) - 1), np.zeros(len(steps) - 1)
    middles = (steps[1:] + steps[:-1]) / 2
    with np.errstate(divide="ignore"):  # log of 0 is a limit that no rate can pass
        for size, count in zip(sizes, repeats, strict=True):
            below += count * binom.logcdf(np.floor(middles * size), size, rate)
            above += count * binom.logsf(np.floor(middles * size), size, rate)
    return float(np.diff(steps) @ (1 - np.exp(below) - np.exp(above)))
