"""Whether acting on a model does more good than treating everybody or nobody. Shapes: N cases, P patients, T thresholds, R resamples.

Net benefit (Vickers and Elkin 2006) = true positives / n − false positives / n × t / (1 − t), where t is the risk from which
one would treat: at t = 0.1 one true positive is worth nine false ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.special import ndtr, ndtri

from xvision.errors import ConfigError, DataError
from xvision.methods.calibration import checked
from xvision.methods.decision import TIE
from xvision.methods.groups.cases import too_few
from xvision.methods.intervals import Estimate, Sample, binary, combination, patient_codes, quantile_of
from xvision.methods.recalibration import log_odds
from xvision.methods.scores import missing_class

Answer = Literal["better than both", "worse than one", "not decided"]
_METHOD = "MOVER of Wilson, by patient"
_CELLS = 4_000_000
"""Weights held at once by the resampling."""


class Benefit(NamedTuple):
    """At one threshold: net benefit per case of the model and of treating everybody; of treating nobody it is 0.

    over_everybody: paired difference. advantage: over the better of everybody and nobody. band: of the advantage, such
    that all thresholds asked for hold together. answer: what the band says.
    """

    threshold: float
    treated: int
    model: Estimate
    everybody: Estimate
    over_everybody: Estimate
    advantage: Estimate
    band: tuple[float, float]
    answer: Answer


class Curve(NamedTuple):
    """A decision curve. level: of every single interval, chosen so that the bands hold together at the level asked for."""

    benefits: tuple[Benefit, ...]
    level: float
    cases: int
    patients: int
    positives: int
    reason: str | None = None


class _Steps(NamedTuple):
    """Cases between neighbouring thresholds, of either label, by patient: (2T + 2, P). rank: (T,) of each threshold."""

    cases: csr_array
    rank: np.ndarray


def net_benefit(probabilities: np.ndarray, outcomes: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Net benefit per case (3, T): of acting at p ≥ threshold, of treating everybody, and of treating nobody, which is 0.

    probabilities, outcomes: (N,), with at least one case.
    """
    predicted, happened = checked(probabilities, outcomes)
    places = _thresholds(thresholds)
    codes = np.arange(len(predicted))
    found = _values(_steps(predicted, happened, codes, len(codes), places), np.ones((len(codes), 1)), places)
    return np.stack([*found[:, :, 0], np.zeros(len(places))])


def decision_curve(
    probabilities: np.ndarray,
    outcomes: np.ndarray,
    patients: np.ndarray,
    thresholds: Sequence[float],
    *,
    rng: np.random.Generator,
    minimum: int = 10,
    resamples: int = 1000,
    level: float = 0.95,
) -> Curve:
    """Net benefit at each threshold with intervals by patient, and a band that holds at all thresholds together.

    probabilities, outcomes, patients: (N,). Every net benefit is a weighted sum of two proportions (cases found, and
    false alarms), so its interval joins their Wilson intervals (MOVER): a bootstrap sees no risk in the missed positives
    that a small group happens not to contain. How much wider the band must be is the patient bootstrap's answer: the
    quantile of the largest studentised deviation over thresholds (max-T), never beyond Bonferroni's. A net benefit
    depends on the prevalence: compare a model with the alternatives for the same patients, not one group with another.
    """
    predicted, happened = checked(probabilities, outcomes)
    codes, count = patient_codes(patients, len(predicted))
    places = _thresholds(thresholds)
    reason = missing_class(happened) or too_few(happened, codes, minimum)
    sizes = (len(predicted), count, int(happened.sum()))
    if reason:
        return Curve((), level, *sizes, reason)
    steps = _steps(predicted, happened, codes, count, places)
    joint = _joint_level(steps, count, places, rng, resamples, level)
    treated = _treated(predicted, places)
    benefits = tuple(
        _benefit(place, treated[:, column], happened, codes, level, joint) for column, place in enumerate(places)
    )
    return Curve(benefits, joint, *sizes)


def decided_benefit(
    decisions: np.ndarray,
    outcomes: np.ndarray,
    patients: np.ndarray,
    threshold: float,
    *,
    minimum: int = 10,
    level: float = 0.95,
) -> Curve:
    """Net benefit of acting on decisions (N,), however they were made, where one would treat from this risk on."""
    treated, happened = binary(decisions, "decisions"), binary(outcomes, "outcomes")
    if treated.shape != happened.shape:
        raise DataError(f"{len(happened)} outcomes came with {len(treated)} decisions; give one per case")
    codes, count = patient_codes(patients, len(happened))
    (place,) = _thresholds([threshold])
    sizes = (len(happened), count, int(happened.sum()))
    reason = missing_class(happened) or too_few(happened, codes, minimum)
    benefits = () if reason else (_benefit(float(place), treated, happened, codes, level, level),)
    return Curve(benefits, level, *sizes, reason)


def _thresholds(thresholds: Sequence[float]) -> np.ndarray:
    places = np.asarray(thresholds, float)
    if places.ndim != 1 or not len(places) or not ((places > 0) & (places < 1)).all():
        raise ConfigError(f"net benefit needs thresholds above 0 and below 1, in a row; found {list(thresholds)}")
    return places


def _treated(predicted: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(N, T) whether a case is treated; at the deployed threshold this is the deployed decision."""
    return np.asarray(log_odds(predicted)[:, None] >= (log_odds(places) - TIE)[None])


def _steps(predicted: np.ndarray, happened: np.ndarray, codes: np.ndarray, count: int, places: np.ndarray) -> _Steps:
    ordered = np.sort(places)
    step = np.searchsorted(log_odds(ordered) - TIE, log_odds(predicted), side="right")
    shape = (2 * (len(places) + 1), count)
    cases = csr_array((np.ones(len(codes)), (2 * step + ~happened, codes)), shape=shape)
    return _Steps(cases, np.searchsorted(ordered, places))


def _values(steps: _Steps, weights: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(2, T, R) net benefit of the model and of everybody, for weights of patients (P, R)."""
    cost = (places / (1 - places))[:, None]
    counted = (steps.cases @ weights).reshape(len(places) + 1, 2, -1)
    above = np.cumsum(counted[::-1], axis=0)[::-1]
    everybody, treated = above[0], above[1:][steps.rank]
    values = [treated[:, 0] - cost * treated[:, 1], everybody[0] - cost * everybody[1]]
    return np.asarray(np.stack(values) / everybody.sum(axis=0))


def _joint_level(
    steps: _Steps, count: int, places: np.ndarray, rng: np.random.Generator, resamples: int, level: float
) -> float:
    """The level at which single intervals of both differences at all thresholds hold together."""
    quantile = quantile_of(level)
    rows = max(1, _CELLS // count)
    parts = []
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).T
        model, everybody = _values(steps, weights.astype(float), places)
        parts.append(np.concatenate([model, model - everybody]))
    drawn_values = np.concatenate(parts, axis=1)
    model, everybody = _values(steps, np.ones((count, 1)), places)
    spread = drawn_values.std(axis=1)
    seen = spread > 1e-12
    if not seen.any():
        return level
    pulls = np.abs(drawn_values - np.concatenate([model, model - everybody]))[seen] / spread[seen, None]
    largest = float(np.quantile(pulls.max(axis=0), level))
    bonferroni = -float(ndtri((1 - level) / (4 * len(places))))
    wide = min(max(largest, quantile), bonferroni)
    return 1 - 2 * float(ndtr(-wide))


def _benefit(
    place: float, treated: np.ndarray, happened: np.ndarray, codes: np.ndarray, level: float, joint: float
) -> Benefit:
    cost = float(place / (1 - place))

    def weighed(good: np.ndarray, bad: np.ndarray, sign: float, at: float) -> Estimate:
        return combination((Sample(good, codes), Sample(bad, codes)), (sign, -sign * cost), level=at)._replace(
            method=_METHOD
        )

    model, band = (weighed(treated & happened, treated & ~happened, 1.0, at) for at in (level, joint))
    over, over_band = (weighed(~treated & happened, ~treated & ~happened, -1.0, at) for at in (level, joint))
    everybody = weighed(happened, ~happened, 1.0, level)
    advantage, together = _lower_of(model, over), _lower_of(band, over_band)
    limits = (together.low or 0.0, together.high or 0.0)
    answer: Answer = "better than both" if limits[0] > 0 else "worse than one" if limits[1] < 0 else "not decided"
    return Benefit(float(place), int(treated.sum()), model, everybody, over, advantage, limits, answer)


def _lower_of(first: Estimate, second: Estimate) -> Estimate:
    """The smaller of two: where both intervals hold, so does that of their minimum."""
    value, low, high = (
        min(getattr(first, side) or 0.0, getattr(second, side) or 0.0) for side in ("value", "low", "high")
    )
    return Estimate(value, low, high, first.n, first.method)


def better_range(curve: Curve) -> tuple[tuple[float, float], ...]:
    """Where the model is better than both alternatives; see :func:`runs`."""
    return runs(curve, lambda each: each.answer == "better than both")


def runs(curve: Curve, holds: Callable[[Benefit], bool]) -> tuple[tuple[float, float], ...]:
    """Runs of neighbouring thresholds, in rising order, at all of which something holds."""
    ordered = sorted(curve.benefits, key=lambda each: each.threshold)
    stretches = [list(part) for held, part in groupby(ordered, key=holds) if held]
    return tuple((part[0].threshold, part[-1].threshold) for part in stretches)
