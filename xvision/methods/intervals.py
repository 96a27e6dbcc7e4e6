"""Interval estimates whose unit of evidence is the patient, and corrections for many comparisons.

Shapes: N cases, R resamples, P patients. Several images of one patient are not independent cases: every interval here
is unchanged when all rows are copied under the same patient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv, ndtri, stdtrit

from xvision.errors import ConfigError, DataError

_USUAL = 0.95 + 1e-9
_CELLS = 2_000_000
"""Weights held at once by the bootstrap; a statistic may make about ten arrays of this size."""


class Estimate(NamedTuple):
    """A number with its interval, or None with the reason why it has none. n counts independent units: patients."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str
    reason: str | None = None


class Sample(NamedTuple):
    """Yes-or-no outcomes (N,) of the cases of one group, and whose cases they are (N,)."""

    hits: np.ndarray
    patients: np.ndarray


def not_estimable(reason: str, n: int = 0) -> Estimate:
    """An estimate that cannot be given."""
    return Estimate(None, None, None, n, "", reason)


def quantile_of(level: float) -> float:
    """Two-sided normal quantile: 1.96 for 0.95. Raises ConfigError unless 0 < level < 1."""
    if not 0 < level < 1:
        raise ConfigError(f"confidence level {level} is not between 0 and 1; 0.95 is usual")
    return float(ndtri((1 + level) / 2))


def patient_codes(patients: np.ndarray, cases: int) -> tuple[np.ndarray, int]:
    """Patients as integers 0..P-1 (N,) in sorted order, and P. Raises DataError unless one is given per case."""
    named = np.asarray(patients)
    if named.shape != (cases,):
        raise DataError(f"{cases} cases came with patients of shape {named.shape}; give one patient per case")
    levels, codes = np.unique(named, return_inverse=True)
    return codes, len(levels)


def binary(values: np.ndarray, name: str) -> np.ndarray:
    """Values (N,) as booleans. Raises DataError, calling them ``name``, when one is neither 0 nor 1."""
    array = np.asarray(values)
    wrong = array[(array != 0) & (array != 1)]
    if array.ndim != 1 or wrong.size:
        found = f"the value {wrong.flat[0]}" if wrong.size else f"shape {array.shape}"
        raise DataError(f"{name} hold {found}; give one 0 or 1 per case")
    return array.astype(bool)


def wilson(successes: float, trials: float, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927; Newcombe 1998, method 3).

    Both counts may be fractions, so that an effective sample size can be used. It never leaves [0, 1], never has zero
    width and always contains successes / trials. Raises DataError unless 0 <= successes <= trials and trials > 0.
    """
    if not (trials > 0 and 0 <= successes <= trials):
        raise DataError(f"{successes} successes in {trials} trials is no proportion; give 0 <= successes <= trials")
    z = quantile_of(level)
    rate = successes / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    low = 0.0 if successes == 0 else float(min(centre - half, rate))
    high = 1.0 if successes == trials else float(max(centre + half, rate))
    return low, high


def clopper_pearson(successes: float, trials: float, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper and Pearson 1934): it covers at least as often as it says.

    Counts may be fractions, as Korn and Graubard (1998) use them with an effective sample size. Raises DataError unless
    0 <= successes <= trials and trials > 0.
    """
    if not (trials > 0 and 0 <= successes <= trials):
        raise DataError(f"{successes} successes in {trials} trials is no proportion; give 0 <= successes <= trials")
    tail, failures = (1 - level) / 2, trials - successes
    low = 0.0 if successes == 0 else float(betaincinv(successes, failures + 1, tail))
    high = 1.0 if failures == 0 else float(betaincinv(successes + 1, failures, 1 - tail))
    return low, high


class _Rate(NamedTuple):
    """A rate, the number of independent cases it is worth, and each patient's pull on it (P,)."""

    value: float
    effective: float
    influence: np.ndarray
    clustered: bool


def _rate(hits: np.ndarray, codes: np.ndarray, count: int, level: float) -> _Rate:
    """Ratio estimate with a patient-clustered variance; ``count`` is the length of the influence."""
    cases = len(hits)
    sizes = np.bincount(codes, minlength=count)
    residuals = np.bincount(codes, hits, count) - hits.mean() * sizes
    rate, patients = float(hits.mean()), int(np.count_nonzero(sizes))
    if patients == 1:
        return _Rate(rate, 1.0, np.zeros(count), cases > 1)
    # A patient with many images pulls the rate towards itself; undo that as the jackknife does, scaled so that nothing
    # changes when all patients have equally many.
    influence = residuals / cases * (1 - 1 / patients) / (1 - sizes / cases)
    variance = float(influence @ influence)
    balanced = cases**2 / float(sizes @ sizes)
    effective = balanced if rate in (0.0, 1.0) else min(cases, rate * (1 - rate) / max(variance, 1e-300))
    if cases > patients and effective > balanced:
        quantiles = stdtrit(np.array([cases - 1, balanced - 1]), (1 + level) / 2)
        effective = max(balanced, effective * (quantiles[0] / quantiles[1]) ** 2)
    return _Rate(rate, float(effective), influence, cases > patients)


def proportion(hits: np.ndarray, patients: np.ndarray, *, level: float = 0.95, exact: bool = False) -> Estimate:
    """Share of cases that are hits, with a Wilson interval on the number of independent cases they are worth.

    hits: (N,) booleans. patients: (N,). exact: Clopper and Pearson's interval instead, which never covers less than its
    level and is wider for that. With one case per patient this is the plain interval. Otherwise the
    sample size is divided by the design effect, the patient-clustered variance of the ratio estimate over the binomial
    one (Rao and Scott 1992), never below 1. Credit for more than one independent case per patient is cut by the degrees
    of freedom (Korn and Graubard 1998). Where no variance can be seen (all or none hit), the effective size is Kish's:
    the number of patients, fewer when their numbers of cases differ.
    """
    outcomes = binary(hits, "hits")
    codes, count = patient_codes(patients, len(outcomes))
    if not count:
        return not_estimable("no cases")
    rate = _rate(outcomes, codes, count, level)
    interval, name = (clopper_pearson, "Clopper-Pearson") if exact else (wilson, "Wilson")
    low, high = interval(rate.value * rate.effective, rate.effective, level)
    method = f"{name}, patient-clustered" if rate.clustered else name
    return Estimate(rate.value, min(low, rate.value), max(high, rate.value), count, method)


def mover(
    estimates: Sequence[Estimate], coefficients: Sequence[float], correlation: np.ndarray
) -> tuple[float, float, float]:
    """Value and limits of a weighted sum of estimates from their own intervals (Zou and Donner 2008).

    correlation: (k, k) between the estimates. For two independent Wilson intervals and weights (1, -1) this is
    Newcombe's hybrid score interval; for two Wald intervals it is the Wald interval of the difference.
    """
    values, lows, highs = (
        np.array([getattr(estimate, side) for estimate in estimates], float) for side in ("value", "low", "high")
    )
    weights = np.asarray(coefficients, float)
    centre = float(weights @ values)
    downwards = weights * np.where(weights > 0, values - lows, highs - values)
    upwards = weights * np.where(weights > 0, highs - values, values - lows)
    below, above = (float(np.sqrt(max(side @ correlation @ side, 0.0))) for side in (downwards, upwards))
    return centre, centre - below, centre + above


def combination(samples: Sequence[Sample], coefficients: Sequence[float], *, level: float = 0.95) -> Estimate:
    """A weighted sum of proportions, such as a difference or a difference averaged over strata.

    The interval joins the Wilson intervals of :func:`proportion` (MOVER, Zou and Donner 2008). Patients who appear in
    several samples make these correlated; the correlation is estimated from each patient's pull on each proportion, so
    the same formula covers separate, paired and partly overlapping samples. n counts the patients of all samples.
    """
    outcomes = [binary(sample.hits, "hits") for sample in samples]
    if not all(len(hits) for hits in outcomes):
        return not_estimable("no cases in one of the groups")
    ends = np.cumsum([len(hits) for hits in outcomes])
    codes, count = patient_codes(np.concatenate([np.asarray(sample.patients) for sample in samples]), int(ends[-1]))
    rates = [_rate(hits, part, count, level) for hits, part in zip(outcomes, np.split(codes, ends[:-1]), strict=True)]
    parts = [
        Estimate(rate.value, *wilson(rate.value * rate.effective, rate.effective, level), count, "") for rate in rates
    ]
    value, low, high = mover(parts, coefficients, _correlation(np.stack([rate.influence for rate in rates])))
    clustered = len(codes) > count
    name = "Newcombe" if len(samples) == 2 else "MOVER"
    return Estimate(value, low, high, count, f"{name}, patient-clustered" if clustered else name)


def _correlation(influence: np.ndarray) -> np.ndarray:
    """Cosines (k, k) between influences (k, P); an estimate without visible variance is taken as uncorrelated."""
    norms = np.linalg.norm(influence, axis=1)
    norms[norms == 0] = np.inf
    cosines = (influence / norms[:, None]) @ (influence / norms[:, None]).T
    np.fill_diagonal(cosines, 1.0)
    return np.asarray(np.clip(cosines, -1.0, 1.0))


def difference(first: Sample, second: Sample, *, level: float = 0.95) -> Estimate:
    """First proportion minus second, with Newcombe's hybrid score interval (1998, method 10).

    Signed, so it can contain 0. Works on the effective sample sizes of :func:`proportion`, and stays valid when
    patients are in both groups (see :func:`combination`).
    """
    return combination((first, second), (1.0, -1.0), level=level)


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
    centred: bool = False,
) -> Estimate:
    """Percentile interval over resamples of whole patients (Efron 1979; Davison and Hinkley 1997, 3.8).

    statistic: takes integer weights (R, N), how often each case was drawn, and returns (R,) values; NaN where it is
    undefined. patients: (N,). The value is the statistic of the cases as they are. centred: shift the resamples so that
    their mean is the value, for statistics that resampling pushes to one side, such as a calibration error. The
    interval is widened to the value where all resamples lie on one side of it. Not for proportions: when everything is
    right all resamples are equal; use :func:`proportion`. The method names the usable resamples when some were
    undefined; when more than half were, there is no estimate.
    """
    codes, count = patient_codes(patients, len(patients))
    if count < 2:
        return not_estimable("fewer than 2 patients" if count else "no cases", count)
    tail = 1 - (1 + level) / 2
    quantile_of(level)
    value = float(statistic(np.ones((1, len(codes)), np.int64))[0])
    if np.isnan(value):
        return not_estimable("undefined on these cases", count)
    values = _resampled(statistic, codes, count, resamples, rng)
    usable = values[~np.isnan(values)]
    if 2 * len(usable) < resamples:
        return not_estimable(f"undefined in {resamples - len(usable)} of {resamples} patient resamples", count)
    low, high = np.quantile(usable, [tail, 1 - tail]) + (value - usable.mean() if centred else 0.0)
    part = "" if len(usable) == resamples else f", {len(usable)} of {resamples} resamples usable"
    return Estimate(value, min(float(low), value), max(float(high), value), count, f"patient bootstrap{part}")


def _resampled(
    statistic: Callable[[np.ndarray], np.ndarray],
    codes: np.ndarray,
    count: int,
    resamples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    values = np.empty(resamples)
    rows = max(1, _CELLS // len(codes))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        values[start : start + size] = statistic(weights[:, codes])
    return values


def with_width(estimate: Estimate, units: int, level: float) -> Estimate:
    """An interval of zero width, from resamples that are all equal, becomes Wilson's on that many independent units."""
    if estimate.value is None or estimate.low != estimate.high:
        return estimate
    low, high = wilson(estimate.value * units, units, level)
    return estimate._replace(low=low, high=high, method=f"Wilson on {units} patients")


def held_together(estimate: Estimate, level: float, what: int | str) -> Estimate:
    """The estimate, saying so where its interval is wider than usual so that ``what`` hold at 95 % together."""
    if estimate.value is None or level <= _USUAL:
        return estimate
    return estimate._replace(method=f"{estimate.method}, {100 * level:.4g} % each so that {what} hold together")


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p-values controlling the chance of any false alarm (Holm 1979), in the order given."""
    values, order = _sorted(p)
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return _unsorted(steps, order)


def benjamini_hochberg(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p-values controlling the share of false alarms (Benjamini and Hochberg 1995), in the order given."""
    values, order = _sorted(p)
    scaled = values[order] * len(values) / np.arange(1, len(values) + 1)
    return _unsorted(np.minimum.accumulate(scaled[::-1])[::-1], order)


def _sorted(p: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(p, float)
    if values.ndim != 1 or not np.all((values >= 0) & (values <= 1)):
        raise DataError(f"p-values {values} are not all between 0 and 1; leave out comparisons that were not estimable")
    return values, np.argsort(values, kind="stable")


def _unsorted(adjusted: np.ndarray, order: np.ndarray) -> np.ndarray:
    restored = np.empty_like(adjusted)
    restored[order] = np.minimum(adjusted, 1.0)
    return restored
