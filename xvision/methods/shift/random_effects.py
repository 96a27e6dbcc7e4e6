"""Estimates of several places put together: their mean, how much they differ, and what a new place may show.

Shapes: k places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit, ndtr, stdtrit
from scipy.stats import chi2

from xvision.errors import DataError
from xvision.methods.intervals import Estimate, quantile_of

_SPREADS, _ERRORS = 30, 100
"""Points at which the spread between places, and the error of their mean, are looked at for a prediction."""


class Effects(NamedTuple):
    """Values (k,) on a scale on which they may be averaged, and the variance of each (k,)."""

    values: np.ndarray
    variances: np.ndarray


class Pooled(NamedTuple):
    """The places together, on the scale of the values.

    mean with its interval (low, high); predicted: where 95 of 100 new places are expected, None for fewer than three.
    tau2: the variance between places beyond chance, with an interval; i2: its share of all variance. p_value: Cochran's
    test of no difference between places.
    """

    mean: float
    low: float
    high: float
    predicted: tuple[float, float] | None
    tau2: float
    tau2_interval: tuple[float, float]
    i2: float
    i2_interval: tuple[float, float]
    p_value: float
    places: int


def random_effects(effects: Effects, *, level: float = 0.95) -> Pooled | None:
    """Mean of places that differ (DerSimonian and Laird 1986), or None for fewer than two places.

    The interval of the mean is that of Hartung and Knapp (2001) and Sidik and Jonkman (2002), on Student's t with k − 1
    degrees of freedom, never narrower than with the variance of DerSimonian and Laird (Röver, Knapp and Friede 2015). The
    interval of tau2 is the Q-profile (Viechtbauer 2007), widened to hold the estimate. A new place is predicted over all
    spreads that the places allow, each as often as the Q-profile trusts it (Nagashima, Noma and Furukawa 2019): with one
    estimate of the spread, few places promise too much. It takes the places as a random sample of such places.
    """
    values, variances = (np.asarray(part, float) for part in effects)
    if values.shape != variances.shape or values.ndim != 1 or not (np.isfinite(values).all() and (variances > 0).all()):
        raise DataError(f"{values} with the variances {variances} cannot be averaged; give one above 0 for each value")
    places = len(values)
    if places < 2:
        return None
    fixed = 1 / variances
    q = float(_q(np.zeros(1), values, variances)[0])
    spread = fixed.sum() - (fixed**2).sum() / fixed.sum()
    tau2 = max(0.0, (q - (places - 1)) / spread)
    weights = 1 / (variances + tau2)
    mean = float(weights @ values / weights.sum())
    scale = float(weights @ (values - mean) ** 2 / (places - 1))
    error = float(np.sqrt(max(scale, 1.0) / weights.sum()))
    half = float(stdtrit(places - 1, (1 + level) / 2)) * error
    typical = (places - 1) / spread
    low, high = _profile(values, variances, tau2, level)
    return Pooled(
        mean, mean - half, mean + half, _predicted(values, variances, level) if places > 2 else None,
        tau2, (low, high), tau2 / (tau2 + typical), (low / (low + typical), high / (high + typical)),
        float(chi2.sf(q, places - 1)), places,
    )  # fmt: skip


def _q(tau2: np.ndarray, values: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Cochran's Q at each variance between places (any,)."""
    weights = 1 / (variances + tau2[:, None])
    means = weights @ values / weights.sum(axis=1)
    return np.asarray((weights * (values - means[:, None]) ** 2).sum(axis=1))


def _profile(values: np.ndarray, variances: np.ndarray, tau2: float, level: float) -> tuple[float, float]:
    """The variances between places that Cochran's Q does not contradict, and ``tau2``."""
    low, high = map(float, _trusted(values, variances, np.array([(1 - level) / 2, (1 + level) / 2])))
    return min(low, tau2), max(high, tau2)


def _trusted(values: np.ndarray, variances: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The variances between places (any,) below which the Q-profile has these shares of its trust."""
    wanted = chi2.ppf(1 - shares, len(values) - 1)
    top = np.ones(len(shares))
    while (short := _q(top, values, variances) > wanted).any():
        top[short] *= 4
    found = _bisected(lambda tau2: _q(tau2, values, variances) <= wanted, np.zeros(len(shares)), top)
    found[_q(np.zeros(1), values, variances) <= wanted] = 0.0
    return found


def _predicted(values: np.ndarray, variances: np.ndarray, level: float) -> tuple[float, float]:
    """Quantiles of a new place: over spreads by their trust, over the error of the mean, over places."""
    trust, chance = ((np.arange(points) + 0.5) / points for points in (_SPREADS, _ERRORS))
    tau2 = _trusted(values, variances, trust)
    weights = 1 / (variances + tau2[:, None])
    means = weights @ values / weights.sum(axis=1)
    scale = _q(tau2, values, variances) / (len(values) - 1)
    errors = np.sqrt(np.maximum(scale, 1.0) / weights.sum(axis=1))
    centres = means[:, None] + stdtrit(len(values) - 1, chance) * errors[:, None]
    spreads = np.sqrt(np.maximum(tau2, 1e-12))[:, None]
    reach = np.full(2, np.abs(centres).max() + 10 * spreads.max())
    tails = np.array([(1 - level) / 2, (1 + level) / 2])

    def above(value: np.ndarray) -> np.ndarray:
        return np.asarray(ndtr((value[:, None, None] - centres) / spreads).mean(axis=(1, 2)) >= tails)

    low, high = map(float, _bisected(above, -reach, reach))
    return low, high


def _bisected(above: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where ``above`` (any,) turns true between ``low`` and ``high`` (any,)."""
    for _ in range(45):
        middle = (low + high) / 2
        over = above(middle)
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    return high


def on_logit_scale(estimates: Sequence[Estimate], *, level: float = 0.95) -> Effects:
    """Proportions or AUROCs, each with an interval, as log-odds with the variance that the interval implies.

    A value of 0 or 1 has no log-odds; with m the number of cases on which a Wilson interval would reach as far, it becomes
    that of half a case more on either side (Haldane 1956; Anscombe 1956). Raises DataError for an estimate without a value.
    """
    pairs = [_log_odds(estimate, quantile_of(level)) for estimate in estimates]
    return Effects(np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs]))


def _log_odds(estimate: Estimate, z: float) -> tuple[float, float]:
    value, low, high = estimate.value, estimate.low, estimate.high
    if value is None or low is None or high is None:
        raise DataError(f"an estimate without a value ({estimate.reason}) cannot be averaged; leave it out")
    if 0 < low < high < 1:
        return float(logit(value)), float((logit(high) - logit(low)) / (2 * z)) ** 2
    inner = low if high == 1 else 1 - high
    cases = max(inner * z**2 / max(1 - inner, 1e-12), 1e-6)
    hits = min(max(value, 0.0), 1.0) * cases
    return float(np.log((hits + 0.5) / (cases - hits + 0.5))), 1 / (hits + 0.5) + 1 / (cases - hits + 0.5)


def as_proportion(log_odds: float) -> float:
    """Back from the logit scale."""
    return float(expit(log_odds))


def simultaneous_level(comparisons: int, level: float = 0.95) -> float:
    """The level of each of several intervals that hold together (Bonferroni), so that also the worst one's does."""
    return 1 - (1 - level) / max(comparisons, 1)
