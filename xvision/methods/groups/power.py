"""How many patients a comparison of groups needs, and what the groups at hand can show.

The size that counts is that of the denominator: for sensitivity, patients with disease. All of it is for one case per
patient; more images of the same patients are worth less than as many patients.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtri
from scipy.stats import binom

from xvision.errors import ConfigError, DataError, nearest
from xvision.methods.groups.cases import Rate, definitions
from xvision.methods.intervals import quantile_of, wilson

_NEGLIGIBLE = 1e-10
_MOST = 10_000_000


class Needed(NamedTuple):
    """Patients that one group and those it is compared with need, of whom, at which level of each of ``family`` tests."""

    cases: int
    reference_cases: int
    among: str
    family: int
    level: float
    power: float


def among(metric: Rate) -> str:
    """Who is counted in the denominator of a rate, e.g. ``positive patients``."""
    nobody = np.zeros(0, dtype=bool)
    known = definitions(nobody, nobody)
    if metric not in known:
        raise ConfigError(f"{metric!r} has no denominator. {nearest(metric, known)}")
    return known[metric].patients


def gap_power(rate: float, other: float, cases: int, other_cases: int, *, level: float = 0.95) -> float:
    """Chance that Newcombe's interval of ``rate`` minus ``other`` excludes 0 on the right side, by exact binomial sums.

    level: of this one interval. Two equal rates give the chance of a false alarm to either side.
    """
    sums = []
    for share, size in ((rate, cases), (other, other_cases)):
        _require_share(share)
        if size < 1:
            raise DataError(f"found a group of {size} patients; give at least 1")
        first, last = binom.ppf([_NEGLIGIBLE, 1 - _NEGLIGIBLE], size, share)
        hits = np.arange(max(first, 0), last + 1)
        sums.append((hits / size, *_wilson(hits, size, level), binom.pmf(hits, size, share)))
    (p, p_low, p_high, p_weight), (q, q_low, q_high, q_weight) = sums
    difference = p[:, None] - q
    above = difference > np.hypot((p - p_low)[:, None], q_high - q)
    below = -difference > np.hypot((p_high - p)[:, None], q - q_low)
    shown = above | below if rate == other else (above if rate > other else below)
    return float(p_weight @ shown @ q_weight)


def _wilson(hits: np.ndarray, size: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    limits = np.array([wilson(float(found), size, level) for found in hits])
    return limits[:, 0], limits[:, 1]


def normal_sample_size(
    rate: float, other: float, *, power: float, level: float = 0.95, family: int = 1, ratio: float = 1.0
) -> int:
    """Cases per group by the normal approximation for the pooled z test; the textbook's figure, and a first guess.

    family: tests that share the level (Bonferroni). ratio: cases of the other group for each one of this.
    """
    _require_share(rate)
    _require_share(other)
    if rate == other:
        raise DataError(f"both rates are {rate}: no number of patients shows a difference that is not there")
    if not 0 < power < 1:
        raise ConfigError(f"power {power} is not between 0 and 1; 0.8 and 0.9 are usual")
    z = quantile_of(1 - (1 - level) / family)
    pooled = (rate + ratio * other) / (1 + ratio)
    spread = z * np.sqrt(pooled * (1 - pooled) * (1 + 1 / ratio))
    needed = spread + ndtri(power) * np.sqrt(rate * (1 - rate) + other * (1 - other) / ratio)
    return int(np.ceil((needed / (rate - other)) ** 2))


def sample_size(
    metric: Rate, rate: float, other: float, *, power: float, groups: int = 2, level: float = 0.95
) -> Needed:
    """Patients per group so that :func:`~xvision.methods.groups.gaps.group_gaps` shows a difference with this power.

    rate: of the group that differs. other: of all others. power: the chance asked for. Two groups are compared once;
    more are each compared with the rest, at a level that all share. Groups are taken to be of one size. The power is
    that of Newcombe's interval, exact, and is kept at the next larger sizes, too.
    """
    if groups < 2:
        raise ConfigError(f"found {groups} groups to compare: give at least 2")
    family, ratio = (1, 1) if groups == 2 else (groups, groups - 1)
    each = 1 - (1 - level) / family
    guess = normal_sample_size(rate, other, power=power, level=level, family=family, ratio=ratio)

    def enough(size: int) -> bool:
        return gap_power(rate, other, size, ratio * size, level=each) >= power

    step = max(1, guess // 100)
    last = guess
    while not all(enough(last + ahead * step) for ahead in range(6)):
        last += step
    while last > 1 and enough(last - 1):
        last -= 1
    return Needed(
        last, ratio * last, among(metric), family, each, gap_power(rate, other, last, ratio * last, level=each)
    )


def detectable_difference(
    rate: float, cases: int, other_cases: int, *, power: float, level: float = 0.95, family: int = 1
) -> float | None:
    """The smallest amount by which a group of ``cases`` must be below the rate of the others to be shown to differ.

    None when not even a rate of 0 would be shown with this power. family: as in :func:`normal_sample_size`.
    """
    if not 0 < power < 1:
        raise ConfigError(f"power {power} is not between 0 and 1; 0.8 and 0.9 are usual")
    each = 1 - (1 - level) / family
    shown, hidden = 0.0, rate
    if not rate or gap_power(shown, rate, cases, other_cases, level=each) < power:
        return None
    while hidden - shown > 1e-4:
        middle = (shown + hidden) / 2
        if gap_power(middle, rate, cases, other_cases, level=each) >= power:
            shown = middle
        else:
            hidden = middle
    return rate - shown


def minimum_size(rate: float, half_width: float, *, level: float = 0.95) -> int:
    """Fewest cases in a denominator for which half the width of Wilson's interval at this rate is at most so much."""
    _require_share(rate)
    if not 0 < half_width < 0.5:
        raise ConfigError(f"half-width {half_width} is not between 0 and 0.5")

    def half(size: int) -> float:
        low, high = wilson(rate * size, size, level)
        return (high - low) / 2

    small, large = 0, 1
    while half(large) > half_width:
        small, large = large, 2 * large
        if large > _MOST:
            raise ConfigError(f"half-width {half_width} needs more than {_MOST} patients; ask for a wider interval")
    while large - small > 1:
        middle = (small + large) // 2
        small, large = (middle, large) if half(middle) > half_width else (small, middle)
    return large


def auroc_standard_error(value: float, positives: int, negatives: int) -> float:
    """Standard error of an AUROC for planning, from its value and the sizes alone (Hanley and McNeil 1982)."""
    _require_share(value)
    if positives < 1 or negatives < 1:
        raise DataError(f"found {positives} positive and {negatives} negative patients; an AUROC needs both")
    one, two = value / (2 - value), 2 * value**2 / (1 + value)
    spread = (positives - 1) * (one - value**2) + (negatives - 1) * (two - value**2)
    return float(np.sqrt((value * (1 - value) + spread) / (positives * negatives)))


def _require_share(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise DataError(f"the rate is {rate}; give a share from 0 to 1")
