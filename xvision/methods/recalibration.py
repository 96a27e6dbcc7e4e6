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


class Recalibration(NamedTuple):
    """slope: 1 is ideal, below 1 is overconfident. intercept: 0 is ideal, above 0 is risk predicted too low."""

    slope: Estimate
    intercept: Estimate


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
    odds = logit(np.clip(predicted, _FLOOR, 1 - _FLOOR))
    constant = np.ones((len(odds), 1))
    intercept = _logistic(constant, odds, happened, codes, count, level)[0]
    unfit = _slope_unfit(odds, happened)
    if unfit:
        return Recalibration(not_estimable(unfit, count), intercept)
    design = np.column_stack([constant, odds])
    return Recalibration(_logistic(design, np.zeros(len(odds)), happened, codes, count, level)[1], intercept)


def _slope_unfit(odds: np.ndarray, happened: np.ndarray) -> str | None:
    if odds.min() == odds.max():
        return "all probabilities are equal"
    hits, misses = odds[happened], odds[~happened]
    if misses.max() <= hits.min() or hits.max() <= misses.min():
        return "the probabilities separate the outcomes perfectly"
    return None


def _logistic(
    design: np.ndarray, offset: np.ndarray, happened: np.ndarray, codes: np.ndarray, count: int, level: float
) -> list[Estimate]:
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
    inverse = np.linalg.inv(information)
    covariance = inverse @ (pulls @ pulls.T) @ inverse * count / (count - 1)
    half = quantile_of(level) * np.sqrt(np.diag(covariance))
    return [
        Estimate(float(value), float(value - width), float(value + width), count, "logistic fit, patient-clustered")
        for value, width in zip(coefficients, half, strict=True)
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
    spread = float(np.exp(quantile_of(level) * np.sqrt(variance) / best))
    return Estimate(1 / best, 1 / best / spread, spread / best, count, "patient-clustered sandwich, log scale")
