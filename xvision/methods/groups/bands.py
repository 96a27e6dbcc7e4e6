"""Intervals of many groups that hold together: the level that each needs, from resamples that all groups share.

Groups that overlap (sex, age, and sex with age) are correlated, so that Bonferroni asks for more than is needed. The
largest standardised deviation over all groups, resample by resample, asks for just enough (max-T; Romano and Wolf
2005). Shapes: G figures, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from xvision.methods.groups.cases import Rate, definitions
from xvision.methods.groups.counts import group_draws, rate
from xvision.methods.intervals import Estimate, held_together, not_estimable, proportion, quantile_of

_NO_SPREAD = 1e-12


def joint_level(drawn: np.ndarray, *, level: float = 0.95) -> float:
    """The level at which each of G intervals must be made for all to hold together in ``level`` of data sets.

    drawn: resamples (G, R) of the figures, all from the same draws; NaN where undefined. Figures without spread, such
    as rates of groups with all hits, count as independent and normal: there are no resamples to learn more from. Never
    below ``level`` nor above Bonferroni's, which the heavy tails of small groups' resamples would pass.
    """
    alone = quantile_of(level)
    spread = _over_resamples(np.nanstd, drawn)
    varied = spread > _NO_SPREAD
    flat = int((~varied).sum())
    largest = np.zeros(drawn.shape[1])
    if varied.any():
        centre = _over_resamples(np.nanmean, drawn[varied])
        largest = np.nanmax(np.abs(drawn[varied] - centre[:, None]) / spread[varied, None], axis=0, initial=0.0)
    ordered = np.sort(largest)

    def excess(size: float) -> float:
        below = np.searchsorted(ordered, size, side="right") / len(ordered)
        return float(below * (2 * ndtr(size) - 1) ** flat - level)

    size = alone if excess(alone) >= 0 else float(brentq(excess, alone, ordered[-1] + 40.0, xtol=1e-6))
    return min(float(2 * ndtr(max(size, alone)) - 1), 1 - (1 - level) / max(len(drawn), 1))


def _over_resamples(statistic: Callable[..., np.ndarray], drawn: np.ndarray) -> np.ndarray:
    """Along the resamples; 0 for figures that are undefined in all of them."""
    defined = ~np.isnan(drawn).all(axis=1)
    values = np.zeros(len(drawn))
    values[defined] = statistic(drawn[defined], axis=1)
    return values


def rate_bands(
    labels: np.ndarray,
    decisions: np.ndarray,
    groups: np.ndarray,
    count: int,
    patients: np.ndarray,
    *,
    metric: Rate,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[Estimate, ...]:
    """A rate in each of ``count`` groups with intervals that hold together, by patient.

    labels, decisions: (N,) of 0 or 1. groups: (N,) numbered from 0. patients: (N,). A group without anybody in the
    denominator has no estimate and asks for nothing. Clopper and Pearson's intervals: at the high levels that many
    groups ask for, Wilson's cover too little near 0 and 1 (30 cases at 0.99, six groups: 0.77 instead of 0.95).
    """
    truth, decided = np.asarray(labels).astype(bool), np.asarray(decisions).astype(bool)
    definition = definitions(truth, decided)[metric]
    blocks = group_draws(truth, decided, groups, count, patients, rng=rng, resamples=resamples)
    drawn = np.concatenate([rate(block.counts, metric) for block in blocks])
    members = [definition.among & (groups == group) for group in range(count)]
    kept = [group for group, member in enumerate(members) if member.any()]
    each = joint_level(drawn[kept], level=level) if kept else level

    def estimate(member: np.ndarray) -> Estimate:
        found = proportion(definition.hits[member], np.asarray(patients)[member], level=each, exact=True)
        return held_together(found, each, len(kept))

    return tuple(estimate(member) if member.any() else not_estimable(f"no {definition.cases}") for member in members)
