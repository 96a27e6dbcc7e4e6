"""How much of what a model knows it takes from the image: performance with the image beside performance without it.

Shapes: N cases, K classes, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xvision.methods.intervals import Estimate, bootstrap, not_estimable, with_width

Performance = Callable[[np.ndarray], np.ndarray]
"""Integer weights (R, N) of the cases to (R,) values, NaN where undefined."""


def weighted_auroc(scores: np.ndarray, positive: np.ndarray) -> Performance:
    """The AUROC of weighted cases, ties counting half. scores: (N,), positive: (N,) bool."""
    order = np.argsort(scores, kind="stable")
    levels = np.unique(scores[order], return_inverse=True)[1]
    starts = np.searchsorted(levels, np.arange(levels[-1] + 1))
    truth = positive[order].astype(float)

    def performance(weights: np.ndarray) -> np.ndarray:
        drawn = weights[:, order]
        above = np.add.reduceat(drawn * truth, starts, axis=1)
        below = np.add.reduceat(drawn * (1 - truth), starts, axis=1)
        beaten = np.cumsum(below, axis=1) - below / 2
        pairs = above.sum(axis=1) * below.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(pairs > 0, (above * beaten).sum(axis=1) / pairs, np.nan))

    return performance


def weighted_balanced_accuracy(decisions: np.ndarray, labels: np.ndarray) -> Performance:
    """The mean of the classes' shares decided rightly, over the classes that occur. decisions, labels: (N,)."""
    classes = np.unique(labels)

    def performance(weights: np.ndarray) -> np.ndarray:
        shares = []
        for code in classes:
            own = labels == code
            total = weights[:, own].sum(axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                shares.append(np.where(total > 0, weights[:, own] @ (decisions[own] == code) / total, np.nan))
        return np.asarray(np.mean(shares, axis=0))

    return performance


def weighted_recall(decisions: np.ndarray, labels: np.ndarray, code: int) -> Performance:
    """The share of one class that is decided rightly."""
    own = labels == code

    def performance(weights: np.ndarray) -> np.ndarray:
        total = weights[:, own].sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(total > 0, weights[:, own] @ (decisions[own] == code) / total, np.nan))

    return performance


def reliance(
    clean: Performance,
    without: Performance,
    chance: float,
    patients: np.ndarray,
    *,
    resamples: int,
    rng: np.random.Generator,
    units: int = 0,
) -> Estimate:
    """(clean − without) / (clean − chance): the share of what is better than chance that goes when the image does.

    0: the image does not matter. 1: nothing is left without it. Above 1 where the model follows the image that was put in the
    place, below 0 where it does better without. chance: performance of a decision that knows nothing. It says how much
    the answer rests on the input that was changed, not that it rests on the disease in it. Not estimable where the
    clean performance is not shown to be above chance: then there is nothing to rely on. units: independent cases that a
    performance without an error rests on, such as the patients of the smaller class; 0 for all patients.
    """
    base = bootstrap(clean, patients, resamples=resamples, rng=rng)
    base = with_width(base, units or base.n, 0.95)
    if base.value is None:
        return base
    if base.low is None or base.low <= chance:
        return not_estimable(
            f"performance with the image is not shown to be above chance ({base.value:.3f}, chance {chance:.3f}): there is"
            " nothing to rely on",
            base.n,
        )

    def statistic(weights: np.ndarray) -> np.ndarray:
        own = clean(weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(own > chance, (own - without(weights)) / (own - chance), np.nan))

    return bootstrap(statistic, patients, resamples=resamples, rng=rng)
