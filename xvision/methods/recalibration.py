"""How predicted probabilities would have to be stretched or shifted to fit the outcomes. Shapes: N cases, K classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit, softmax

from xvision.methods.calibration import checked
from xvision.methods.intervals import Estimate, not_estimable, patient_codes, quantile_of
from xvision.methods.scores import missing_class

_FLOOR = 1e-12
"""Probabilities are kept this far from 0 and 1 before a logit."""
_FURTHEST = 5.0
"""Most that one step moves a log-odds: a longer one may end where every probability is 0 or 1 and no slope is left."""

_SAME = 1e-3
"""Log-odds this close are one: near 1 a rounding of the probability moves them so far."""
_VAGUE = 10.0
"""A temperature that may as well be this many times as large or as small is not given."""


class Recalibration(NamedTuple):
    """slope: 1 is ideal, below 1 is overconfident. intercept: 0 is ideal, above 0 is risk predicted too low."""

    slope: Estimate
    intercept: Estimate


class Fit(NamedTuple):
    """A logistic fit: coefficients (k,) and each patient's pull on them (k, P)."""

    coefficients: np.ndarray
    influence: np.ndarray


def calibration_slope_intercept(
    probabilities: np.ndarray, outcomes: np.ndarray, patients: np.ndarray, *, level: float = 0.95
) -> Recalibration:
    """Logistic recalibration (Cox 1958): logit P(hit) = a + b × logit(probability).

    probabilities, outcomes, patients: (N,). slope is b of the fit with both free; intercept is a with b fixed at 1,
    calibration in the large (Van Calster et al. 2019). Intervals are normal with the patient-clustered sandwich
    variance. Probabilities within 1e-12 of 0 or 1 are moved there. Where the outcomes can be separated perfectly the
    slope is infinite and is not given.
    """
    predicted, happened = checked(probabilities, outcomes)
    codes, count = patient_codes(patients, len(predicted))
    reason = missing_class(happened) or ("fewer than 2 patients" if count < 2 else None)
    if reason:
        return Recalibration(not_estimable(reason, count), not_estimable(reason, count))
    odds = log_odds(predicted)
    intercept = _estimates(_logistic(np.ones((len(odds), 1)), odds, happened, codes, count), level)[0]
    unfit = _slope_unfit(odds, happened)
    if unfit:
        return Recalibration(not_estimable(unfit, count), intercept)
    return Recalibration(_estimates(_line(odds, happened, codes, count), level)[1], intercept)


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """Log-odds of probabilities (N,), which are moved 1e-12 away from 0 and 1."""
    return np.asarray(logit(np.clip(probabilities, _FLOOR, 1 - _FLOOR)))


def platt(
    probabilities: np.ndarray, outcomes: np.ndarray, patients: np.ndarray, *, level: float = 0.95
) -> Recalibration:
    """The line that carries log-odds to those that fit the outcomes best (Platt 1999, without his prior counts).

    probabilities, outcomes, patients: (N,). Both coefficients are free, so the intercept is not that of
    :func:`calibration_slope_intercept`. A slope below 0 turns the ranking round.
    """
    predicted, happened = checked(probabilities, outcomes)
    codes, count = patient_codes(patients, len(predicted))
    odds = log_odds(predicted)
    reason = missing_class(happened) or ("fewer than 2 patients" if count < 2 else _slope_unfit(odds, happened))
    if reason:
        return Recalibration(not_estimable(reason, count), not_estimable(reason, count))
    intercept, slope = _estimates(_line(odds, happened, codes, count), level)
    return Recalibration(slope, intercept)


def slope_change(
    before: np.ndarray, after: np.ndarray, outcomes: np.ndarray, patients: np.ndarray, *, level: float = 0.95
) -> Estimate:
    """Calibration slope of the probabilities ``after`` minus that of ``before``, of the same cases.

    before, after, outcomes, patients: (N,). The interval has the patient-clustered sandwich variance of the difference:
    what both fits have in common cancels. The probabilities are taken as given, not what made one of the other.
    """
    first, happened = checked(before, outcomes)
    second, _ = checked(after, outcomes)
    codes, count = patient_codes(patients, len(first))
    pair = [log_odds(each) for each in (first, second)]
    reason = missing_class(happened) or ("fewer than 2 patients" if count < 2 else None)
    reason = reason or next((why for odds in pair if (why := _slope_unfit(odds, happened))), None)
    if reason:
        return not_estimable(reason, count)
    one, other = (_line(odds, happened, codes, count) for odds in pair)
    change = Fit(other.coefficients - one.coefficients, other.influence - one.influence)
    return _estimates(change, level)[1]._replace(method="paired logistic fits, patient-clustered")


def _slope_unfit(odds: np.ndarray, happened: np.ndarray) -> str | None:
    if np.ptp(odds) <= _SAME:
        return "all probabilities are equal"
    hits, misses = odds[happened], odds[~happened]
    if misses.max() <= hits.min() + _SAME or hits.max() <= misses.min() + _SAME:
        return "the probabilities separate the outcomes perfectly"
    return None


def _line(odds: np.ndarray, happened: np.ndarray, codes: np.ndarray, count: int) -> Fit:
    """Intercept and slope on the log-odds, both free."""
    design = np.column_stack([np.ones(len(odds)), odds])
    return _logistic(design, np.zeros(len(odds)), happened, codes, count)


def _logistic(design: np.ndarray, offset: np.ndarray, happened: np.ndarray, codes: np.ndarray, count: int) -> Fit:
    """Maximum likelihood by damped Newton steps; the caller has excluded separation, so the maximum exists."""

    def loss(coefficients: np.ndarray) -> float:
        return float(
            (np.logaddexp(0, offset + design @ coefficients) - happened * (offset + design @ coefficients)).sum()
        )

    coefficients = np.zeros(design.shape[1])
    for _ in range(100):
        fitted = expit(offset + design @ coefficients)
        gradient = design.T @ (happened - fitted)
        information = design.T @ (design * (fitted * (1 - fitted))[:, None])
        step = np.linalg.solve(information, gradient)
        step *= _FURTHEST / max(_FURTHEST, np.abs(design @ step).max())
        while loss(coefficients + step) > loss(coefficients) and np.abs(step).max() > 1e-12:
            step /= 2
        coefficients = coefficients + step
        if np.abs(step).max() < 1e-10:
            break
    pulls = np.stack([np.bincount(codes, column * (happened - fitted), count) for column in design.T])
    return Fit(coefficients, np.linalg.inv(information) @ pulls)


def _estimates(fit: Fit, level: float) -> list[Estimate]:
    """Coefficients with normal intervals of the patient-clustered sandwich variance."""
    count = fit.influence.shape[1]
    half = quantile_of(level) * np.sqrt((fit.influence**2).sum(axis=1) * count / (count - 1))
    return [
        Estimate(float(value), float(value - width), float(value + width), count, "logistic fit, patient-clustered")
        for value, width in zip(fit.coefficients, half, strict=True)
    ]


def temperature(logits: np.ndarray, labels: np.ndarray, patients: np.ndarray, *, level: float = 0.95) -> Estimate:
    """The number by which to divide the logits so that their softmax fits the labels best (Guo et al. 2017).

    logits: (N, K). labels: (N,) class indices. patients: (N,). 1 is calibrated, above 1 is overconfident. It never
    changes the most probable class, nor a ranking. A preview: a temperature chosen on audited data flatters that data.
    The interval is normal for log T with the patient-clustered sandwich variance.
    """
    values, truth = np.asarray(logits, float), np.asarray(labels)
    codes, count = patient_codes(patients, len(values))
    if count < 2:
        return not_estimable("fewer than 2 patients" if count else "no cases", count)
    own = values - values[np.arange(len(values)), truth][:, None]

    def pull(sharpness: float) -> np.ndarray:
        return np.asarray((softmax(sharpness * own, axis=1) * own).sum(axis=1))

    if own.mean(axis=1).sum() >= 0:
        return not_estimable("the logits do not favour the labels", count)
    if own.max() <= 0:
        return not_estimable("every case is classified correctly, which any sharper temperature fits better", count)
    low = high = 1 / np.abs(own).mean()
    while pull(low).sum() >= 0:
        low /= 4
    while pull(high).sum() <= 0:
        high *= 4
    best = float(brentq(lambda sharpness: pull(sharpness).sum(), low, high, xtol=1e-14, rtol=1e-12))
    chances = softmax(best * own, axis=1)
    curvature = float(((chances * own**2).sum(axis=1) - (chances * own).sum(axis=1) ** 2).sum())
    variance = float((np.bincount(codes, pull(best), count) ** 2).sum()) * count / (count - 1) / curvature**2
    half = quantile_of(level) * np.sqrt(variance) / best
    if half > np.log(_VAGUE):
        return not_estimable(
            f"the labels hardly follow the logits: its interval spans a factor above {_VAGUE**2:g}", count
        )
    spread = float(np.exp(half))
    return Estimate(1 / best, 1 / best / spread, spread / best, count, "patient-clustered sandwich, log scale")
