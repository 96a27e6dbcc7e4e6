"""Where a binary decision is taken: thresholds chosen on tuning cases, and rates that know that they were chosen.

Shapes: N cases, R resamples, T different scores. Scores are probabilities of the positive class, and "at least the threshold"
decides positive. Cases whose log-odds differ by no more than ``TIE`` have the same score, as for the deployed decision; so have
all above log-odds of 20, where a probability no longer tells them apart. A threshold of infinity calls nobody positive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import expit, logit

from xvision.errors import DataError
from xvision.methods.decision import TIE
from xvision.methods.intervals import Estimate, Sample, binary, difference, not_estimable, patient_codes, proportion

Target = Literal["sensitivity", "fpr", "net benefit"]

RATES = ("sensitivity", "specificity", "fpr", "fnr", "ppv", "npv", "selection_rate", "accuracy")

_HIGHEST, _LOWEST = 20.0, -700.0
_CELLS = 2_000_000
_AMONG = {
    "sensitivity": "positive cases", "fnr": "positive cases", "specificity": "negative cases", "fpr": "negative cases",
    "ppv": "cases called positive", "npv": "cases called negative", "selection_rate": "cases", "accuracy": "cases",
}  # fmt: skip


class Rule(NamedTuple):
    """How a threshold is chosen: for a sensitivity, for a false positive rate, or for net benefit at a threshold probability."""

    target: Target
    value: float


class Judged(NamedTuple):
    """Cases that are judged at a threshold. scores: (N,) probabilities; positive: (N,) bool; patients: (N,)."""

    scores: np.ndarray
    positive: np.ndarray
    patients: np.ndarray


@dataclass(frozen=True, eq=False)
class OperatingPoint:
    """How the deployed threshold came about, in words. rule, tuning: only of one that was chosen, and the cases it was chosen on.

    statement: a sentence without its full stop. seed: of the draws of ``thresholds``.
    """

    statement: str = ""
    rule: Rule | None = None
    tuning: Judged | None = None
    seed: int = 0
    resamples: int = 1000

    @property
    def tuned(self) -> bool:
        """Whether the threshold was chosen on cases, so that it would be another one on others."""
        return self.tuning is not None

    @cached_property
    def thresholds(self) -> np.ndarray:
        """(R,) what the rule chooses on resampled tuning patients; the same for every analysis. Empty without a rule."""
        if self.rule is None or self.tuning is None:
            return np.array([])
        return resampled_thresholds(self.rule, self.tuning, np.random.default_rng(self.seed), self.resamples)


def called(scores: np.ndarray, threshold: float) -> np.ndarray:
    """(N,) bool, decided positive: the score is at least the threshold."""
    return np.asarray(_odds(scores) >= _odds(np.array(threshold)) - TIE)


def chosen_thresholds(rule: Rule, cases: Judged, weights: np.ndarray | None = None) -> np.ndarray:
    """(R,) the threshold that the rule chooses for each row of weights (R, N), how often each case counts; one row of ones if None.

    The candidates are the scores of cases that count. sensitivity: the largest whose sensitivity is at least the value. fpr: the
    smallest whose false positive rate is at most the value, infinity where none is. net benefit: the one with the largest
    TP / n - FP / n * pt / (1 - pt), of equal ones the nearest to pt, infinity where every one loses. NaN where a rate is undefined.
    """
    positive = binary(cases.positive, "labels")
    odds = _odds(cases.scores)
    if odds.shape != positive.shape or not len(odds):
        raise DataError(
            f"{len(positive)} labels came with scores of shape {odds.shape}: give at least one case of each"
        )
    rows = np.ones((1, len(odds)), np.int64) if weights is None else weights
    order = np.argsort(-odds, kind="stable")
    starts = np.flatnonzero(np.r_[True, -np.diff(odds[order]) > TIE])
    lowest = odds[order][np.r_[starts[1:] - 1, len(odds) - 1]]
    found, false = (
        np.add.reduceat(rows[:, order] * members[order], starts, axis=1) for members in (positive, ~positive)
    )
    place = _place(rule, found, false, lowest)
    with np.errstate(invalid="ignore"):
        return np.where(np.isnan(place), np.nan, np.r_[expit(lowest), np.inf][np.nan_to_num(place).astype(int)])


def _place(rule: Rule, found: np.ndarray, false: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """(R,) place among the T candidates, from the highest; T for nobody, NaN where undefined. found, false: (R, T) counts."""
    counts = found + false > 0
    tp, fp = np.cumsum(found, axis=1), np.cumsum(false, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        if rule.target == "sensitivity":
            reached = (tp / tp[:, -1:] >= rule.value) & counts
            return np.where(tp[:, -1] > 0, reached.argmax(axis=1), np.nan)
        if rule.target == "fpr":
            kept = (fp / fp[:, -1:] <= rule.value) & counts
            last = kept.shape[1] - 1 - kept[:, ::-1].argmax(axis=1)
            return np.where(fp[:, -1] > 0, np.where(kept.any(axis=1), last, kept.shape[1]), np.nan)
    # Times n and 1 - pt: sums of two whole numbers, so that equal ones are told from unequal ones.
    gain = np.where(counts, tp * (1 - rule.value) - fp * rule.value, -np.inf)
    gain = np.c_[gain, np.zeros(len(gain))]
    equal = gain >= gain.max(axis=1, keepdims=True) - 1e-9 * (tp[:, -1:] + fp[:, -1:])
    far = np.r_[np.abs(odds - logit(rule.value)), 1e9]
    return np.asarray(np.where(equal, far, np.inf).argmin(axis=1), float)


def resampled_thresholds(rule: Rule, tuning: Judged, rng: np.random.Generator, resamples: int = 1000) -> np.ndarray:
    """(R,) the threshold that the rule chooses on each resample of the tuning patients; NaN where it is undefined."""
    codes, count = patient_codes(tuning.patients, len(tuning.scores))
    found = np.empty(resamples)
    rows = max(1, _CELLS // max(len(codes), 1))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        found[start : start + size] = chosen_thresholds(rule, tuning, weights[:, codes])
    return found


def tuned_rates(
    cases: Judged, threshold: float, thresholds: np.ndarray, *, level: float = 0.95
) -> Mapping[str, Estimate]:
    """The ``RATES`` of audited cases at a threshold that was chosen on other patients, with intervals that include the choice.

    thresholds: (R,) of :func:`resampled_thresholds`. Two chances are independent: which patients are audited, whose Wilson interval
    at the threshold :func:`intervals.proportion` gives, and which ones the threshold was chosen on, whose 2.5 % and 97.5 % points are
    those of the rate at the resampled thresholds. Their distances from the rate are joined as roots of sums of squares (MOVER, Zou
    and Donner 2008). So no interval is narrower than at a fixed threshold, as a resample of both would be where all cases of
    a small group are decided alike.
    """
    samples, drawn = _samples(cases, threshold), _rates_at(cases, thresholds)
    found = {}
    for name, sample in samples.items():
        estimate = proportion(sample.hits, sample.patients, level=level)
        if estimate.value is None:
            estimate = estimate._replace(reason=f"no {_AMONG[name]}")
        found[name] = _widened(estimate, drawn[name], level, 0.0)
    return found


def tuned_differences(
    first: Judged, second: Judged, threshold: float, thresholds: np.ndarray, *, level: float = 0.95
) -> Mapping[str, Estimate]:
    """The ``RATES`` of the first cases minus those of the second, joined as in :func:`tuned_rates` from Newcombe's interval.

    Both are judged at the same resampled thresholds, so that what moves both alike does not widen the difference.
    """
    samples = _samples(first, threshold), _samples(second, threshold)
    drawn = _rates_at(first, thresholds), _rates_at(second, thresholds)
    found = {}
    for name in RATES:
        estimate = difference(samples[0][name], samples[1][name], level=level)
        if estimate.value is None:
            estimate = estimate._replace(reason=f"no {_AMONG[name]} in one of the groups")
        found[name] = _widened(estimate, drawn[0][name] - drawn[1][name], level, -1.0)
    return found


def _widened(estimate: Estimate, drawn: np.ndarray, level: float, lowest: float) -> Estimate:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return estimate
    usable = drawn[~np.isnan(drawn)]
    if not len(drawn) or 2 * len(usable) < len(drawn):
        reason = f"undefined at {len(drawn) - len(usable)} of {len(drawn)} thresholds chosen on resampled patients"
        return not_estimable(reason, estimate.n)
    low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2])
    value = estimate.value
    below = np.hypot(value - estimate.low, max(value - low, 0.0))
    above = np.hypot(estimate.high - value, max(high - value, 0.0))
    return estimate._replace(
        low=max(float(value - below), lowest),
        high=min(float(value + above), 1.0),
        method=f"{estimate.method}, threshold re-tuned",
    )


def _samples(cases: Judged, threshold: float) -> dict[str, Sample]:
    positive, patients = binary(cases.positive, "labels"), np.asarray(cases.patients)
    decided = called(cases.scores, threshold)

    def sample(hits: np.ndarray, among: np.ndarray) -> Sample:
        return Sample(hits[among], patients[among])

    everyone = np.ones(len(positive), dtype=bool)
    return {
        "sensitivity": sample(decided, positive), "specificity": sample(~decided, ~positive),
        "fpr": sample(decided, ~positive), "fnr": sample(~decided, positive),
        "ppv": sample(positive, decided), "npv": sample(~positive, ~decided),
        "selection_rate": sample(decided, everyone), "accuracy": sample(decided == positive, everyone),
    }  # fmt: skip


def _rates_at(cases: Judged, thresholds: np.ndarray) -> dict[str, np.ndarray]:
    """(R,) each rate at each threshold, NaN where it is undefined."""
    positive, odds = binary(cases.positive, "labels"), _odds(cases.scores)
    cut = _odds(np.asarray(thresholds, float))
    p, n = float(positive.sum()), float((~positive).sum())
    tp, fp = (
        np.where(np.isnan(cut), np.nan, members.sum() - np.searchsorted(np.sort(odds[members]), cut - TIE))
        for members in (positive, ~positive)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "sensitivity": tp / p, "specificity": 1 - fp / n, "fpr": fp / n, "fnr": 1 - tp / p,
            "ppv": tp / (tp + fp), "npv": (n - fp) / (n - fp + p - tp),
            "selection_rate": (tp + fp) / (p + n), "accuracy": (tp + n - fp) / (p + n),
        }  # fmt: skip


def _odds(values: np.ndarray) -> np.ndarray:
    """Log-odds of probabilities, within what a probability can tell apart; infinity stays."""
    given = np.asarray(values, float)
    wrong = (given < 0) | ((given > 1) & (given < np.inf))
    if wrong.any():
        raise DataError(f"found the score {given[wrong].flat[0]}: give probabilities from 0 to 1")
    inside = np.clip(logit(np.minimum(given, 1.0)), _LOWEST, _HIGHEST)
    return np.where(np.isposinf(given), np.inf, inside)
