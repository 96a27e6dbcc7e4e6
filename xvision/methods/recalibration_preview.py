"""What recalibrated logits would change on cases that they were not fitted on. Shapes: N cases, K classes.

A preview: nothing here changes a model. The recalibration is taken as fitted, so its own uncertainty is not in the intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from xvision.methods.calibration import ece, ece_change
from xvision.methods.decision import Decision, decide
from xvision.methods.intervals import Estimate, proportion
from xvision.methods.paired import mean_change
from xvision.methods.proper_scores import brier, log_losses, mean_loss
from xvision.methods.recalibration import Recalibration, calibration_slope_intercept, log_odds, slope_change

FIGURES = ("ece", "brier", "nll", "calibration_slope")


class Judged(NamedTuple):
    """The probabilities (N,) whose calibration is judged, and whether they came true (N,)."""

    probabilities: np.ndarray
    outcomes: np.ndarray


class Effect(NamedTuple):
    """A figure under recalibration, and how it differs from the deployed one, paired by case."""

    after: Estimate
    change: Estimate


class Preview(NamedTuple):
    """effects: by :data:`FIGURES`. changed: share of decisions. gained, lost: how many turn to and from the positive class."""

    effects: Mapping[str, Effect]
    changed: Estimate
    gained: int
    lost: int


def judged(logits: np.ndarray, labels: np.ndarray, decision: Decision) -> Judged:
    """Of two classes the probability of the positive one; of more the confidence in the decided class."""
    chances = softmax(np.asarray(logits, float), axis=1)
    if decision.positive is not None:
        return Judged(chances[:, decision.positive], labels == decision.positive)
    return Judged(chances.max(axis=1), decide(logits, decision) == labels)


def platt_logits(probabilities: np.ndarray, line: Recalibration, positive: int) -> np.ndarray:
    """Logits (N, 2) under Platt's line, from probabilities (N,) of the positive class, whose index is given."""
    logits = np.zeros((len(probabilities), 2))
    logits[:, positive] = (line.intercept.value or 0.0) + (line.slope.value or 0.0) * log_odds(probabilities)
    return logits


def preview(
    deployed: np.ndarray,
    recalibrated: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    decision: Decision,
    *,
    rng: np.random.Generator,
    bins: int = 15,
    resamples: int = 1000,
) -> Preview:
    """deployed, recalibrated: logits (N, K) of the same cases. labels: (N,) class indices. patients: (N,).

    Changes of the ECE, the Brier score and the negative log-likelihood have paired patient bootstrap intervals, that of the
    slope the paired sandwich of :func:`slope_change`. Decisions are those at the deployed threshold, which stays where it is.
    """
    before, after = judged(deployed, labels, decision), judged(recalibrated, labels, decision)
    pair = (before.probabilities, after.probabilities, before.outcomes, patients)
    cases = (after.probabilities, before.outcomes, patients)
    squares = [(each.probabilities - before.outcomes) ** 2 for each in (before, after)]
    losses = [log_losses(each, labels) for each in (deployed, recalibrated)]
    effects = {
        "ece": Effect(
            ece(*cases, bins=bins, resamples=resamples, rng=rng),
            ece_change(*pair, bins=bins, resamples=resamples, rng=rng),
        ),
        "brier": Effect(
            brier(*cases, resamples=resamples, rng=rng),
            mean_change(squares[0], squares[1], patients, resamples=resamples, rng=rng).difference,
        ),
        "nll": Effect(
            mean_loss(losses[1], patients, resamples=resamples, rng=rng),
            mean_change(losses[0], losses[1], patients, resamples=resamples, rng=rng).difference,
        ),
        "calibration_slope": Effect(calibration_slope_intercept(*cases).slope, slope_change(*pair)),
    }
    decided, earlier = decide(recalibrated, decision), decide(deployed, decision)
    moved, towards = decided != earlier, decided == decision.positive
    changed = proportion(moved, patients)
    return Preview(effects, changed, int((moved & towards).sum()), int((moved & ~towards).sum()))
