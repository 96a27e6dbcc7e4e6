"""Scores that a model can only improve by saying what it believes, and their parts. Shapes: N cases, K classes, R resamples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from xvision.methods.calibration import Strategy, bins_of, checked
from xvision.methods.intervals import Estimate, bootstrap, not_estimable, patient_codes


class BrierParts(NamedTuple):
    """brier = reliability - resolution + uncertainty + within_bins, exactly."""

    brier: float
    reliability: float
    resolution: float
    uncertainty: float
    within_bins: float


class PartEstimates(NamedTuple):
    """The parts of a Brier score with their intervals, and the scaled Brier score: 1 − brier / uncertainty."""

    reliability: Estimate
    resolution: Estimate
    uncertainty: Estimate
    within_bins: Estimate
    scaled: Estimate


def brier(
    probabilities: np.ndarray,
    outcomes: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Mean squared distance between the predicted probability and what happened (Brier 1950); 0 is best.

    probabilities: (N,) of the positive class with outcomes (N,) of 0 or 1, range 0 to 1; or (N, K) with class indices,
    summed over classes, range 0 to 2. It mixes calibration and ranking, and its scale depends on the prevalence.
    """
    predicted, happened = np.asarray(probabilities, float), np.asarray(outcomes)
    if not len(predicted):
        return not_estimable("no cases")
    if predicted.ndim == 2:
        happened = (happened[:, None] == np.arange(predicted.shape[1])).ravel()
    flat, truth = checked(predicted.ravel(), happened)
    squared = ((flat - truth) ** 2).reshape(len(predicted), -1).sum(axis=1)
    return bootstrap(
        lambda weights: weights @ squared / weights.sum(axis=1), patients, rng=rng, resamples=resamples, level=level
    )


def brier_parts(
    probabilities: np.ndarray, outcomes: np.ndarray, *, bins: int | None = None, strategy: Strategy = "width"
) -> BrierParts | None:
    """The Brier score taken apart (Murphy 1973; Stephenson, Coelho and Jolliffe 2008); None without cases.

    probabilities, outcomes: (N,). reliability: squared distance of probability and observed rate, 0 is best.
    resolution: how far the observed rates of the bins differ from the prevalence, higher is better. uncertainty:
    prevalence × (1 − prevalence), the score of always predicting the prevalence. within_bins: what binning hides.
    Without ``bins`` every distinct probability is a bin of its own, and within_bins is 0.
    """
    predicted, happened = checked(probabilities, outcomes)
    if not len(predicted):
        return None
    member = np.unique(predicted, return_inverse=True)[1] if bins is None else bins_of(predicted, bins, strategy)
    cases = np.bincount(member)
    forecast, rate = np.bincount(member, predicted) / cases, np.bincount(member, happened) / cases
    share, prevalence = cases / len(predicted), happened.mean()
    spread, rest = predicted - forecast[member], happened - rate[member]
    return BrierParts(
        brier=float(((predicted - happened) ** 2).mean()),
        reliability=float(share @ (forecast - rate) ** 2),
        resolution=float(share @ (rate - prevalence) ** 2),
        uncertainty=float(prevalence * (1 - prevalence)),
        within_bins=float((spread**2 - 2 * spread * rest).mean()),
    )


def brier_part_estimates(
    probabilities: np.ndarray,
    outcomes: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    bins: int = 15,
    strategy: Strategy = "mass",
    resamples: int = 1000,
    level: float = 0.95,
) -> PartEstimates:
    """:func:`brier_parts` with patient bootstrap intervals, the bins staying where they are.

    probabilities, outcomes, patients: (N,). Sampling noise adds to reliability and to resolution alike (Ferro and
    Fricker 2012), so the resamples are shifted to the value, and cut off at 0. scaled: 0 for always predicting the prevalence, 1 for
    certain and right; not estimable where all outcomes are equal.
    """
    predicted, happened = checked(probabilities, outcomes)
    codes, count = patient_codes(patients, len(predicted))
    parts = brier_parts(predicted, happened, bins=bins, strategy=strategy)
    if parts is None or count < 2:
        return PartEstimates(*[not_estimable("fewer than 2 patients" if count else "no cases", count)] * 5)
    member = bins_of(predicted, bins, strategy)
    cells = np.zeros((len(predicted), 3, int(member.max()) + 1))
    cells[np.arange(len(predicted)), :, member] = np.column_stack([np.ones(len(predicted)), predicted, happened])
    sums = cells.reshape(len(predicted), -1)
    squared = (predicted - happened) ** 2

    def statistic(weights: np.ndarray) -> np.ndarray:
        """(R, 5)"""
        drawn = weights.astype(float)
        cases, forecast, hits = np.moveaxis((drawn @ sums).reshape(len(drawn), 3, -1), 1, 0)
        size = cases.sum(axis=1)
        prevalence = hits.sum(axis=1) / size
        held = np.maximum(cases, 1)
        found = ((forecast - hits) ** 2 / held).sum(axis=1) / size
        resolved = np.maximum((hits**2 / held).sum(axis=1) / size - prevalence**2, 0.0)  # below only by rounding
        unsure, score = prevalence * (1 - prevalence), drawn @ squared / size
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = np.where(unsure > 0, 1 - score / unsure, np.nan)
        return np.stack([found, resolved, unsure, score - found + resolved - unsure, scaled], axis=1)

    found = [
        bootstrap(
            partial(_part, statistic, place),
            codes,
            rng=rng,
            resamples=resamples,
            level=level,
            centred=place < 2,
        )
        for place in range(5)
    ]
    squares = [each if each.low is None else each._replace(low=max(each.low, 0.0)) for each in found[:2]]
    return PartEstimates(*squares, *found[2:])


def _part(statistic: Callable[[np.ndarray], np.ndarray], place: int, weights: np.ndarray) -> np.ndarray:
    return statistic(weights)[:, place]


def log_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Negative log-likelihood (N,) of each label (N,) under the softmax of the logits (N, K); finite for finite logits."""
    values = np.asarray(logits, float)
    return np.asarray(-log_softmax(values, axis=1)[np.arange(len(values)), np.asarray(labels, int)])


def mean_loss(
    losses: np.ndarray, patients: np.ndarray, *, rng: np.random.Generator, resamples: int = 1000, level: float = 0.95
) -> Estimate:
    """Mean of per-case losses (N,), such as :func:`log_losses`, with a patient bootstrap interval."""
    values = np.asarray(losses, float)
    return bootstrap(
        lambda weights: weights @ values / weights.sum(axis=1), patients, rng=rng, resamples=resamples, level=level
    )
