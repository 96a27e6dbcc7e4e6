"""How well scores rank or predict labels, with intervals by patient. Shapes: N cases, K classes, P patients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import expit, logit
from scipy.stats import rankdata

from xvision.errors import DataError, ModelError
from xvision.methods.intervals import (
    Estimate,
    binary,
    bootstrap,
    mover,
    not_estimable,
    patient_codes,
    quantile_of,
    wilson,
    with_width,
)

Scale = Literal["logit", "linear"]
_NO_VARIANCE = 1e-20


class Scored(NamedTuple):
    """Scores (N,), labels (N,) of 0 or 1, and patients (N,) of the same cases."""

    scores: np.ndarray
    labels: np.ndarray
    patients: np.ndarray


class _Components(NamedTuple):
    """An AUROC and each patient's pull on it (P,) through the patient's positive and through the negative cases."""

    value: float
    positive: np.ndarray
    negative: np.ndarray
    positive_patients: int
    negative_patients: int
    patients: int
    repeated: bool


def ranked(scores: np.ndarray, cases: int) -> np.ndarray:
    """Scores (N,) as floats. Raises ModelError when one is not a number, DataError when there is not one per case."""
    values = np.asarray(scores, float)
    if values.shape != (cases,):
        raise DataError(f"{cases} labels came with scores of shape {values.shape}; give one score per case")
    missing = int(np.isnan(values).sum())
    if missing:
        raise ModelError(f"{missing} of {cases} scores are not a number; find the images for which the model gives NaN")
    return values


def missing_class(labels: np.ndarray) -> str | None:
    """Why a ranking of these labels (N,) cannot be judged, if it cannot."""
    if not len(labels):
        return "no cases"
    if not labels.any():
        return "no positive cases"
    return "no negative cases" if labels.all() else None


def auroc(
    scores: np.ndarray, labels: np.ndarray, patients: np.ndarray, *, level: float = 0.95, scale: Scale = "logit"
) -> Estimate:
    """Chance that a random positive case scores above a random negative one, ties counting half.

    scores, labels, patients: (N,). It says nothing about any threshold or about calibration. The variance is that of
    DeLong (1988), computed from midranks (Sun and Xu 2014), in the form of Obuchowski (1997) when patients repeat. The
    interval is made on the logit scale, which keeps it inside [0, 1] and is closer to its level near 1;
    ``scale="linear"`` gives the plain Wald interval, cut to [0, 1]. Where no variance can be seen (perfect separation,
    equal scores, one patient in a class) the interval is Wilson's on the patients of the smaller class: the variance of
    a concordance is at most value × (1 − value) / that number (van Dantzig 1951; Birnbaum and Klose 1957).
    """
    truth = binary(labels, "labels")
    codes, count = patient_codes(patients, len(truth))
    reason = missing_class(truth)
    if reason:
        return not_estimable(reason, count)
    return _estimate(_components(ranked(scores, len(truth)), truth, codes, count), level, scale)


def _components(scores: np.ndarray, labels: np.ndarray, codes: np.ndarray, count: int) -> _Components:
    above = rankdata(scores)
    above[labels] -= rankdata(scores[labels])
    above[~labels] -= rankdata(scores[~labels])
    positives = int(labels.sum())
    negatives = len(labels) - positives
    beaten, beating = above[labels] / negatives, 1 - above[~labels] / positives
    value = float(beaten.mean())
    seen = [len(np.unique(part)) for part in (codes[labels], codes[~labels], codes)]
    return _Components(
        value,
        np.bincount(codes[labels], beaten - value, count) / positives,
        np.bincount(codes[~labels], beating - value, count) / negatives,
        seen[0],
        seen[1],
        seen[2],
        len(codes) > seen[2],
    )


def _covariance(first: _Components, second: _Components) -> float:
    """Obuchowski's clustered covariance; a patient counts through the positive cases, the negative ones, and both."""

    def unbiased(one: int, other: int) -> float:
        return float(np.sqrt(one * other / ((one - 1) * (other - 1)))) if min(one, other) > 1 else 0.0

    crossed = float(first.positive @ second.negative + first.negative @ second.positive)
    return (
        unbiased(first.positive_patients, second.positive_patients) * float(first.positive @ second.positive)
        + unbiased(first.negative_patients, second.negative_patients) * float(first.negative @ second.negative)
        + unbiased(first.patients, second.patients) * crossed
    )


def _estimate(parts: _Components, level: float, scale: Scale) -> Estimate:
    variance = _visible_variance(parts)
    value = parts.value
    if variance == 0:
        units = min(parts.positive_patients, parts.negative_patients)
        return Estimate(
            value, *wilson(value * units, units, level), parts.patients, "Wilson on the patients of the smaller class"
        )
    half = quantile_of(level) * np.sqrt(variance)
    if scale == "logit":
        half /= value * (1 - value)
        low, high = expit(logit(value) - half), expit(logit(value) + half)
    else:
        low, high = max(value - half, 0.0), min(value + half, 1.0)
    name = "Obuchowski" if parts.repeated else "DeLong"
    return Estimate(value, float(low), float(high), parts.patients, f"{name}, {scale} scale")


def _visible_variance(parts: _Components) -> float:
    """The variance, or 0 where the data do not show it."""
    if min(parts.positive_patients, parts.negative_patients) < 2 or not 0 < parts.value < 1:
        return 0.0
    variance = _covariance(parts, parts)
    return variance if variance > _NO_VARIANCE else 0.0


def auroc_difference(first: Scored, second: Scored, *, level: float = 0.95, scale: Scale = "logit") -> Estimate:
    """AUROC of the first cases minus AUROC of the second, whatever patients they share.

    The two intervals of :func:`auroc` are joined (MOVER, Zou and Donner 2008) with the correlation that shared patients
    cause (DeLong 1988; Obuchowski 1997): none for separate groups, the paired one for two models on the same cases. On
    the linear scale this is DeLong's Wald interval exactly. n counts the patients of both.
    """
    truths = [binary(part.labels, "labels") for part in (first, second)]
    reasons = [missing_class(truth) for truth in truths]
    joined = np.concatenate([np.asarray(first.patients), np.asarray(second.patients)])
    codes, count = patient_codes(joined, sum(len(truth) for truth in truths))
    if any(reasons):
        return not_estimable(f"{reasons[0] or reasons[1]} in one of the groups", count)
    parts = [
        _components(ranked(group.scores, len(truth)), truth, part, count)
        for group, truth, part in zip((first, second), truths, np.split(codes, [len(truths[0])]), strict=True)
    ]
    estimates = [_estimate(part, level, scale) for part in parts]
    scaled = [np.sqrt(_visible_variance(part)) for part in parts]
    shared = _covariance(parts[0], parts[1]) / (scaled[0] * scaled[1]) if all(scaled) else 0.0
    correlation = np.array([[1.0, shared], [shared, 1.0]]).clip(-1, 1)
    value, low, high = mover(estimates, (1.0, -1.0), correlation)
    methods = " and ".join(dict.fromkeys(estimate.method for estimate in estimates))
    return Estimate(value, low, high, count, f"MOVER of {methods}")


def auroc_difference_paired(
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    level: float = 0.95,
    scale: Scale = "logit",
) -> Estimate:
    """AUROC of the first scores (N,) minus that of the second on the same cases; see :func:`auroc_difference`."""
    return auroc_difference(Scored(first, labels, patients), Scored(second, labels, patients), level=level, scale=scale)


def multiclass_auroc(
    scores: np.ndarray, labels: np.ndarray, patients: np.ndarray, *, level: float = 0.95, scale: Scale = "logit"
) -> tuple[Estimate, ...]:
    """One AUROC per class, that class against all others.

    scores: (N, K). labels: (N,) class indices. Macro averages over classes are left to the reader, who sees which
    classes could be estimated.
    """
    columns = np.asarray(scores)
    truth = np.asarray(labels)
    return tuple(
        auroc(columns[:, index], truth == index, patients, level=level, scale=scale)
        for index in range(columns.shape[1])
    )


def auprc(
    scores: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Area under the precision-recall curve as average precision: precision averaged over the positive cases found.

    scores, labels, patients: (N,). Its floor is the prevalence, so values at different prevalences cannot be compared.
    Tied scores are found together. Patient bootstrap; Wilson on the positive patients where all resamples are equal
    (Boyd, Eng and Page 2013).
    """
    truth = binary(labels, "labels")
    codes, count = patient_codes(patients, len(truth))
    if not truth.any():
        return not_estimable(missing_class(truth) or "", count)
    statistic = _average_precision(ranked(scores, len(truth)), truth)
    estimate = bootstrap(statistic, codes, rng=rng, resamples=resamples, level=level)
    return with_width(estimate, len(np.unique(codes[truth])), level)


def _average_precision(scores: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    order = np.argsort(-scores, kind="stable")
    descending, positive = scores[order], labels[order]
    ends = np.flatnonzero(np.append(descending[1:] != descending[:-1], True))

    def statistic(weights: np.ndarray) -> np.ndarray:
        drawn = weights[:, order]
        shown = np.cumsum(drawn, axis=1)[:, ends]
        found = np.cumsum(drawn * positive, axis=1)[:, ends]
        precision = found / np.maximum(shown, 1)
        gained = np.diff(found, axis=1, prepend=0)
        return ratio((gained * precision).sum(axis=1), found[:, -1])

    return statistic


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Elementwise ratio, NaN where the denominator is 0."""
    undefined = np.full(len(numerator), np.nan)
    return np.asarray(np.divide(numerator, denominator, out=undefined, where=denominator > 0))
