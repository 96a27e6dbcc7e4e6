"""What accuracy to expect where there are no labels, from the probabilities alone.

Every estimate here takes for granted that a probability means the same in both places: all of them fail, without a sign,
under prevalence shift and where the same image has come to mean another class (Flühmann et al. 2025).
Shapes: N cases, K classes, R resamples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax, xlogy
from sklearn.linear_model import LogisticRegression

from xvision.errors import DataError
from xvision.methods.intervals import Estimate, not_estimable, patient_codes, with_width
from xvision.methods.scores import ratio

FAILS = (
    "Accuracy estimated without labels fails, without a sign, under prevalence shift and where the same image has come to mean"
    " another class (Flühmann et al. 2025, arXiv 2507.22776): it may raise a question, and never answers one."
)
_CELLS = 2_000_000
_TRUTH = "truth"
_FURTHEST = 30.0
"""Log-odds beyond this are moved here before a fit."""
_HARDLY_HELD = 100.0
"""Inverse weight of the penalty that keeps a fit finite where the classes are separated."""


class Answered(NamedTuple):
    """probabilities (N, K), decisions (N,) class indices, labels (N,) or None, patients (N,)."""

    probabilities: np.ndarray
    decisions: np.ndarray
    labels: np.ndarray | None
    patients: np.ndarray


class Expected(NamedTuple):
    """One figure: its estimate by a method, and how far that is above the truth where labels tell."""

    figure: str
    method: str
    estimate: Estimate
    error: Estimate | None


class _Place(NamedTuple):
    """Cases of one place. codes: (N,) patients. confidence: (N,) by name. hits: (N,), NaN without labels. ill: (N,) or None."""

    codes: np.ndarray
    patients: int
    confidence: dict[str, np.ndarray]
    decided: np.ndarray
    hits: np.ndarray
    ill: np.ndarray | None
    labelled: bool


Places = tuple[_Place, _Place]
Weights = tuple[np.ndarray, np.ndarray]
Figures = dict[tuple[str, str], np.ndarray]


def expected_accuracy(
    reference: Answered,
    current: Answered,
    *,
    positive: int | None,
    rng: np.random.Generator,
    resamples: int = 500,
    level: float = 0.95,
) -> tuple[Expected, ...]:
    """Accuracy of the current decisions by each method; for two classes, sensitivity and specificity, too.

    ATC: the share of current cases above the confidence that as many reference cases exceed as are right (Garg et al.
    2022), on the probability of the decided class and on negative entropy; cases tied at the threshold count in part, so
    that the reference gets its own accuracy exactly. DoC: the accuracy of the reference less the loss of mean confidence
    (Guillory et al. 2021). CM-ATC, CM-DoC: the same within each decided class, which gives the confusion matrix (Flühmann
    et al. 2025). CBPE: the confusion matrix that the probabilities themselves expect; they should be calibrated first
    (:func:`recalibrated`). positive: the positive class of two. Intervals are percentiles over resamples of the patients
    of both places. Raises DataError for a reference without labels.
    """
    if reference.labels is None:
        raise DataError("the reference cases have no labels, so there is no accuracy to start from")
    places = _place(reference, positive), _place(current, positive)
    sizes = [len(place.codes) for place in places]
    if not min(sizes):
        raise DataError(f"found {sizes[0]} reference and {sizes[1]} current cases; both must have some")
    count = sum(place.patients for place in places)
    values = _figures(places, (np.ones((1, sizes[0])), np.ones((1, sizes[1]))))
    spread: dict[tuple[str, str], list[np.ndarray]] = {key: [] for key in values}
    rows = max(1, _CELLS // max(sizes))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = _figures(places, (_resampled(places[0], size, rng), _resampled(places[1], size, rng)))
        for key, found in drawn.items():
            spread[key].append(found)
    few = min(place.patients for place in places) < 2
    drawn_values = {key: np.concatenate(parts) for key, parts in spread.items()}
    return tuple(_expected(key, values, drawn_values, count, few, level) for key in values if key[1] != _TRUTH)


def _place(answered: Answered, positive: int | None) -> _Place:
    probabilities, decisions = np.asarray(answered.probabilities, float), np.asarray(answered.decisions)
    codes, patients = patient_codes(answered.patients, len(decisions))
    confidence = {
        "decided": probabilities[np.arange(len(decisions)), decisions],
        "entropy": xlogy(probabilities, probabilities).sum(axis=1),
    }
    labels = np.full(len(decisions), -1) if answered.labels is None else np.asarray(answered.labels)
    labelled = answered.labels is not None
    hits = (labels == decisions).astype(float) if labelled else np.full(len(decisions), np.nan)
    decided = decisions if positive is None else (decisions == positive).astype(int)
    ill = None if positive is None else labels == positive
    return _Place(codes, patients, confidence, decided, hits, ill, labelled)


def _resampled(place: _Place, size: int, rng: np.random.Generator) -> np.ndarray:
    """How often each case is drawn (R, N)."""
    shares = np.full(place.patients, 1 / place.patients)
    return np.asarray(rng.multinomial(place.patients, shares, size=size)[:, place.codes], float)


def _figures(places: Places, weights: Weights) -> Figures:
    """(figure, method) → (R,) values; NaN where undefined. The truth is among the methods where current labels are known."""
    reference, current = places
    everyone = np.ones(len(reference.codes), bool), np.ones(len(current.codes), bool)
    found = {("accuracy", "DoC"): _doc(places, weights, everyone)}
    for name, confidence in (("ATC", "decided"), ("ATC, entropy", "entropy")):
        found["accuracy", name] = _atc(places, weights, everyone, confidence)
    for method in ("CM-ATC", "CM-DoC", "CBPE"):
        found |= _from_confusion(method, places, weights)
    if current.labelled:
        found["accuracy", _TRUTH] = _mean(weights[1], current.hits)
        if current.ill is not None:
            found["sensitivity", _TRUTH] = _mean(weights[1] * current.ill, current.hits)
            found["specificity", _TRUTH] = _mean(weights[1] * ~current.ill, current.hits)
    return found


def _from_confusion(method: str, places: Places, weights: Weights) -> Figures:
    """Figures of the confusion matrix that a method expects within each decided class."""
    reference, current = places
    right, size = {}, {}
    for code in np.unique(current.decided):
        among = reference.decided == code, current.decided == code
        size[int(code)] = weights[1][:, among[1]].sum(axis=1)
        if method == "CBPE":
            share = _mean(weights[1] * among[1], current.confidence["decided"])
        elif method == "CM-DoC":
            share = _doc(places, weights, among)
        else:
            share = _atc(places, weights, among, "decided")
        right[int(code)] = np.where(size[int(code)] > 0, size[int(code)] * share, 0.0)
    found = {("accuracy", method): ratio(sum(right.values(), np.zeros(1)), sum(size.values(), np.zeros(1)))}
    if current.ill is not None:
        none = np.zeros(len(weights[1]))
        for code, name in ((1, "sensitivity"), (0, "specificity")):
            other = 1 - code
            hits, misses = right.get(code, none), size.get(other, none) - right.get(other, none)
            found[name, method] = ratio(hits, hits + misses)
    return found


def _mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    return ratio(weights @ values, weights.sum(axis=1))


def _doc(places: Places, weights: Weights, among: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    first, second = weights[0] * among[0], weights[1] * among[1]
    lost = _mean(first, places[0].confidence["decided"]) - _mean(second, places[1].confidence["decided"])
    return np.asarray(np.clip(_mean(first, places[0].hits) - lost, 0.0, 1.0))


def _atc(places: Places, weights: Weights, among: tuple[np.ndarray, np.ndarray], confidence: str) -> np.ndarray:
    """The share of current cases above the threshold; of those at it, the same share as of the reference."""
    scores, others = (place.confidence[confidence][chosen] for place, chosen in zip(places, among, strict=True))
    drawn, later = (each[:, chosen] for each, chosen in zip(weights, among, strict=True))
    if not len(scores) or not len(others):
        return np.full(len(drawn), np.nan)
    wanted = drawn @ places[0].hits[among[0]]
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    above = np.cumsum(drawn[:, order], axis=1)
    place = np.argmax(above >= wanted[:, None] - 1e-9, axis=1)
    threshold = falling[place]
    first, last = (np.searchsorted(-falling, -threshold, side=side) for side in ("left", "right"))
    rows = np.arange(len(drawn))
    over = np.where(first > 0, above[rows, first - 1], 0.0)
    part = np.clip(ratio(wanted - over, above[rows, last - 1] - over), 0.0, 1.0)
    ranked = np.argsort(-others, kind="stable")
    reached = np.concatenate([np.zeros((len(later), 1)), np.cumsum(later[:, ranked], axis=1)], axis=1)
    start, end = (np.searchsorted(-others[ranked], -threshold, side=side) for side in ("left", "right"))
    share = ratio(reached[rows, start] + part * (reached[rows, end] - reached[rows, start]), reached[:, -1])
    return np.where(wanted > 0, share, np.where(above[:, -1] > 0, 0.0, np.nan))


def _expected(key: tuple[str, str], values: Figures, spread: Figures, count: int, few: bool, level: float) -> Expected:
    figure, method = key
    truth = (figure, _TRUTH)
    estimate = with_width(_estimate(values[key], spread[key], count, few, level), count, level)
    error = None
    if truth in values:
        error = _estimate(values[key] - values[truth], spread[key] - spread[truth], count, few, level)
        if error.value is not None and error.low == error.high:
            error = not_estimable("the same in every patient resample", count)
    return Expected(figure, method, estimate, error)


def _estimate(value: np.ndarray, spread: np.ndarray, count: int, few: bool, level: float) -> Estimate:
    if few:
        return not_estimable("fewer than 2 patients", count)
    usable = spread[~np.isnan(spread)]
    if np.isnan(value[0]) or 2 * len(usable) < len(spread):
        return not_estimable("a decision or a class that it needs does not occur in one of the places", count)
    low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2])
    part = "" if len(usable) == len(spread) else f", {len(usable)} of {len(spread)} resamples usable"
    found = float(value[0])
    return Estimate(found, min(float(low), found), max(float(high), found), count, f"patient bootstrap{part}")


def recalibrated(logits: np.ndarray, labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Probabilities (N, K) of ``others`` after a calibration fitted on ``logits`` and ``labels``.

    Logistic in the log-odds for two classes (Platt 1999; Cox 1958), one temperature for more (Guo et al. 2017). The fit is
    never on the cases that are judged.
    """
    truth = np.asarray(labels)
    if logits.shape[1] == 2 and 0 < truth.sum() < len(truth):
        odds = [np.clip(each[:, 1] - each[:, 0], -_FURTHEST, _FURTHEST)[:, None] for each in (logits, others)]
        fitted: np.ndarray = LogisticRegression(C=_HARDLY_HELD).fit(odds[0], truth).predict_proba(odds[1])
        return fitted

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scaled[np.arange(len(truth)), truth].mean())

    best = minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").x
    return np.asarray(softmax(others / np.exp(best), axis=1))
