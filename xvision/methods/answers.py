"""What classifiers answered, for any number of classes: how good one is, and how much two differ on the same cases.

Shapes: N cases, K questions asked of each case (one for two classes, one per class or finding for more), R resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from xvision.errors import DataError
from xvision.methods.decision import probabilities
from xvision.methods.intervals import (
    Estimate,
    Sample,
    bootstrap,
    not_estimable,
    patient_codes,
    proportion,
    with_width,
)
from xvision.methods.paired import rate_change, tango
from xvision.methods.scores import auroc, auroc_difference_paired, ratio

Measure = Literal["auroc", "accuracy"]
Statistic = Callable[[np.ndarray], np.ndarray]
RESAMPLES = 1000
_FEWEST = 10
"""Patients below which resampling them says little about other patients."""
_ONE_KIND = "no class has cases both in it and outside it"


class Answers(NamedTuple):
    """What a model answered and what is true.

    scores: (N, K), larger means yes. truth: (N, K) bool. hits: (N,) bool, whether the most probable class is the label;
    (N, K) with several labels per case, whether each finding was rightly called at probability 0.5.
    """

    scores: np.ndarray
    truth: np.ndarray
    hits: np.ndarray

    def among(self, chosen: np.ndarray) -> Answers:
        """The same for some of the cases; chosen: (N,) bool."""
        return Answers(self.scores[chosen], self.truth[chosen], self.hits[chosen])

    def decisions(self, patients: np.ndarray) -> Sample:
        """All decisions in a row and whose they are."""
        asked = self.hits.shape[1] if self.hits.ndim == 2 else 1
        return Sample(self.hits.ravel(), np.repeat(np.asarray(patients), asked))


def answers(logits: np.ndarray, labels: np.ndarray) -> Answers:
    """The answers in logits (N, K). labels: (N,) class indices, or (N, K) of 0 and 1 when a case may have several.

    Two classes ask one question, the second class; more ask one question per class against all others. Raises
    ModelError for logits that are not finite and DataError when labels do not fit them.
    """
    chances, truth = probabilities(logits), np.asarray(labels)
    values = np.asarray(logits, float)
    if truth.ndim == 2 and truth.shape == values.shape:
        found = truth > 0.5
        return Answers(values, found, (values > 0) == found)
    classes = values.shape[1]
    if truth.shape != (len(values),) or (len(truth) and not 0 <= truth.min() <= truth.max() < classes):
        raise DataError(
            f"logits of shape {values.shape} came with labels of shape {truth.shape}; give one class index per case"
        )
    hits = values.argmax(axis=1) == truth
    if classes == 2:
        return Answers(values[:, 1:] - values[:, :1], (truth == 1)[:, None], hits)
    return Answers(chances, truth[:, None] == np.arange(classes), hits)


def macro_auroc(found: Answers, patients: np.ndarray, *, rng: np.random.Generator, level: float = 0.95) -> Estimate:
    """AUROC of two classes (DeLong), or the mean of the K one-against-the-rest AUROCs (patient bootstrap).

    Questions whose answer is the same for all cases have no AUROC and are left out; the method says of how many the
    mean is.
    """
    if found.truth.shape[1] == 1:
        return auroc(found.scores[:, 0], found.truth[:, 0], patients, level=level)
    asked = _answerable(found.truth)
    if not len(asked):
        return not_estimable(_ONE_KIND, patient_codes(patients, len(patients))[1])
    estimate = bootstrap(_macro(found, asked), patients, rng=rng, resamples=RESAMPLES, level=level)
    smallest = min(_patients_of_smaller_side(found.truth[:, column], patients) for column in asked)
    estimate = with_width(estimate, smallest, level)
    return estimate._replace(method=f"{estimate.method}, mean of {len(asked)} of {found.truth.shape[1]} classes")


def accuracy(found: Answers, patients: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Share of right decisions (Wilson); with several labels per case, of all decisions about a finding."""
    return proportion(*found.decisions(patients), level=level)


def balanced_accuracy(
    found: Answers, patients: np.ndarray, *, rng: np.random.Generator, level: float = 0.95
) -> Estimate:
    """Mean recall of the classes that occur (patient bootstrap); of yes and no of each finding when there are several."""
    yes = found.truth.T
    if found.hits.ndim == 2 or len(yes) == 1:
        right = found.hits.T if found.hits.ndim == 2 else found.hits[None]
        cells = [(side, hits) for truth, hits in zip(yes, right, strict=True) for side in (truth, ~truth)]
    else:
        cells = [(truth, found.hits) for truth in yes]
    present = [(side, hits) for side, hits in cells if side.any()]
    if not present:
        return not_estimable("no cases")
    members = np.stack([side for side, _ in present], axis=1).astype(float)
    correct = np.stack([side & hits for side, hits in present], axis=1).astype(float)
    estimate = bootstrap(
        partial(_mean_recall, correct=correct, members=members), patients, rng=rng, resamples=RESAMPLES, level=level
    )
    smallest = min(len(np.unique(patients[side])) for side, _ in present)
    return with_width(estimate, smallest, level)


def paired_difference(
    first: Answers,
    second: Answers,
    patients: np.ndarray,
    *,
    measure: Measure,
    rng: np.random.Generator,
    level: float = 0.95,
) -> Estimate:
    """The measure of the first model minus that of the second on the same cases, over resamples of whole patients.

    Raises DataError when the two were not asked the same questions. With fewer than ten patients, or where all resamples
    agree (both models perfect, or the same), the interval is Tango's (accuracy) or made of DeLong's two (AUROC), which have
    a width even where nothing differs.
    """
    if first.truth.shape != second.truth.shape or (first.truth != second.truth).any():
        raise DataError("two models were not asked the same questions of the same cases; compare them on one data set")
    asked, people = _answerable(first.truth), patient_codes(patients, len(patients))[1]
    if measure == "auroc" and not len(asked):
        return not_estimable(_ONE_KIND, people)
    one, other = (_statistic(found, asked, measure) for found in (first, second))
    if people >= _FEWEST:
        estimate = bootstrap(
            lambda weights: one(weights) - other(weights), patients, rng=rng, resamples=RESAMPLES, level=level
        )
        if estimate.value is None or estimate.low != estimate.high:
            return estimate
    return _closed_form(first, second, patients, measure, asked, level)


def _closed_form(
    first: Answers, second: Answers, patients: np.ndarray, measure: Measure, asked: np.ndarray, level: float
) -> Estimate:
    """The difference without resampling; with several questions, limits are averaged as if they moved together."""
    if measure == "accuracy":
        hits = [found.decisions(patients) for found in (second, first)]
        return rate_change(hits[0].hits, hits[1].hits, hits[0].patients, level=level).difference
    parts = [
        auroc_difference_paired(
            first.scores[:, column], second.scores[:, column], first.truth[:, column], patients, level=level
        )
        for column in asked
    ]
    value, low, high = np.array([part[:3] for part in parts], float).mean(axis=0).tolist()
    if value:
        return Estimate(value, low, high, parts[0].n, parts[0].method)
    smallest = min(_patients_of_smaller_side(first.truth[:, column], patients) for column in asked)
    bound = tango(0, 0, smallest, level)[1]
    return Estimate(0.0, -bound, bound, parts[0].n, f"Tango, no change among {smallest} patients of a class")


def _statistic(found: Answers, asked: np.ndarray, measure: Measure) -> Statistic:
    if measure == "auroc":
        return _macro(found, asked)
    share = found.hits.mean(axis=1) if found.hits.ndim == 2 else found.hits.astype(float)
    return lambda weights: (weights @ share) / weights.sum(axis=1)


def _macro(found: Answers, asked: np.ndarray) -> Statistic:
    areas = [_weighted_auroc(found.scores[:, column], found.truth[:, column]) for column in asked]
    return lambda weights: np.mean([area(weights) for area in areas], axis=0)


def _weighted_auroc(scores: np.ndarray, truth: np.ndarray) -> Statistic:
    """AUROC (R,) of cases drawn as often as weights (R, N) say, ties counting half; NaN without both answers."""
    order = np.argsort(scores, kind="stable")
    ascending, positive = scores[order], truth[order]
    ends = np.flatnonzero(np.append(ascending[1:] != ascending[:-1], True))

    def statistic(weights: np.ndarray) -> np.ndarray:
        drawn = weights[:, order]
        negatives = np.cumsum(drawn * ~positive, axis=1)[:, ends]
        positives = np.cumsum(drawn * positive, axis=1)[:, ends]
        tied = np.diff(negatives, axis=1, prepend=0)
        beaten = np.diff(positives, axis=1, prepend=0) * (negatives - tied / 2)
        return ratio(beaten.sum(axis=1), positives[:, -1] * negatives[:, -1])

    return statistic


def _mean_recall(weights: np.ndarray, *, correct: np.ndarray, members: np.ndarray) -> np.ndarray:
    """(R,) mean of the weighted recalls of the columns of members (N, M); NaN when a resample lacks one."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(((weights @ correct) / (weights @ members)).mean(axis=1))


def _answerable(truth: np.ndarray) -> np.ndarray:
    """Columns in which both answers occur."""
    return np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0))


def _patients_of_smaller_side(truth: np.ndarray, patients: np.ndarray) -> int:
    return min(len(np.unique(patients[truth])), len(np.unique(patients[~truth])))
