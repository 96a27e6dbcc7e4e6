"""Two models on the same cases: what changed, with intervals whose unit is the patient. Shapes: N cases, K classes, R resamples.

Every change is after − before. Both models saw the same cases, so what the cases have in common cancels: intervals are
far narrower than those of two separate samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, stdtrit

from xvision.errors import ConfigError
from xvision.methods.decision import Decision, shifted_logits
from xvision.methods.intervals import (
    Estimate,
    binary,
    bootstrap,
    holm,
    mover,
    not_estimable,
    patient_codes,
    quantile_of,
)
from xvision.methods.scores import missing_class, ranked, ratio

Verdict = Literal["better", "worse", "changed", "equivalent", "not decided"]
Better = Literal["higher", "lower", "neither"]
IDENTICAL = "the same outputs in every case"
_FEWEST = 10
"""Patients below which resampling them says little about other patients."""
_CLEAR = 0.05


class Change(NamedTuple):
    """Values before and after (None where undefined), their difference, and its two-sided p-value against no change."""

    before: float | None
    after: float | None
    difference: Estimate
    p: float | None


def rate_change(before: np.ndarray, after: np.ndarray, patients: np.ndarray, *, level: float = 0.95) -> Change:
    """Change of a proportion of the same cases; before, after: (N,) booleans, patients: (N,).

    Tango's score interval (1998), which has a width even when no case changed: with 0 changes in n cases the change lies
    within ± z² / (n + z²). The p-value is McNemar's (1947), without continuity correction. When patients repeat, counts
    are divided by the design effect of the changes (Rao and Scott 1992), with credit for more than one independent case
    per patient cut by the degrees of freedom, as in :func:`~xvision.methods.intervals.proportion`.
    """
    first, second = binary(before, "outcomes before"), binary(after, "outcomes after")
    codes, count = patient_codes(patients, len(first))
    if not count:
        return Change(None, None, not_estimable("no cases"), None)
    changes = second.astype(float) - first
    effective = _effective(changes, codes, count, level)
    shrink = effective / len(changes)
    gained, lost = float((changes > 0).sum()) * shrink, float((changes < 0).sum()) * shrink
    low, high = tango(gained, lost, effective, level)
    value = float(changes.mean())
    method = "Tango, patient-clustered" if len(codes) > count else "Tango"
    z = abs(gained - lost) / np.sqrt(gained + lost) if gained + lost else 0.0
    estimate = Estimate(value, min(low, value), max(high, value), count, method)
    return Change(float(first.mean()), float(second.mean()), estimate, float(2 * ndtr(-z)))


def _effective(changes: np.ndarray, codes: np.ndarray, count: int, level: float) -> float:
    """The number of independent cases that these changes (N,) are worth."""
    cases = len(changes)
    sizes = np.bincount(codes, minlength=count)
    balanced = cases**2 / float(sizes @ sizes)
    spread = float(changes.var())
    if count == 1 or spread == 0:
        return balanced
    residuals = np.bincount(codes, changes, count) - changes.mean() * sizes
    influence = residuals / cases * (1 - 1 / count) / (1 - sizes / cases)
    effective = min(float(cases), spread / max(float(influence @ influence), 1e-300))
    if cases > count and effective > balanced:
        quantiles = stdtrit(np.array([cases - 1, balanced - 1]), (1 + level) / 2)
        effective = max(balanced, effective * float(quantiles[0] / quantiles[1]) ** 2)
    return effective


def tango(gained: float, lost: float, cases: float, level: float = 0.95) -> tuple[float, float]:
    """Score interval of (gained − lost) / cases for paired proportions (Tango 1998); counts may be fractions."""
    z, value = quantile_of(level), (gained - lost) / cases

    def score(change: float) -> float:
        """The difference in standard errors, if ``change`` were true: its nuisance share is estimated under that."""
        linear = (2 * cases - gained + lost) * change - gained - lost
        constant = -lost * change * (1 - change)
        losing = (np.sqrt(max(linear**2 - 8 * cases * constant, 0.0)) - linear) / (4 * cases)
        spread = cases * (2 * losing + change * (1 - change))
        missed = gained - lost - cases * change
        return float(missed / np.sqrt(spread)) if spread > 0 else float(np.sign(missed)) * np.inf

    def limit(outer: float, target: float) -> float:
        ends = (outer * (1 - 1e-12), value)
        far = score(ends[0]) - target
        if not np.isfinite(far) or far * target <= 0:
            return outer
        return float(brentq(lambda change: (0.0 if change == value else score(change)) - target, *ends, xtol=1e-12))

    return limit(-1.0, z), limit(1.0, -z)


def mean_change(
    before: np.ndarray, after: np.ndarray, patients: np.ndarray, *, rng: np.random.Generator, resamples: int = 2000
) -> Change:
    """Change of a mean over the same cases, such as a Brier score; before, after: (N,). Patient bootstrap."""
    first, second = np.asarray(before, float), np.asarray(after, float)
    changes = second - first
    estimate = _resampled(
        lambda weights: weights @ changes / weights.sum(axis=1), patients, rng=rng, resamples=resamples
    )
    if not len(first):
        return Change(None, None, estimate, None)
    return Change(float(first.mean()), float(second.mean()), estimate, p_value(estimate))


def auroc_change(
    before: np.ndarray,
    after: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
) -> Change:
    """Change of the AUROC on the same cases; scores before and after, labels of 0 or 1, patients: (N,).

    Patient bootstrap. Where every resample ranks alike the change lies within ± z² / (n + z²), n being the patients of
    the smaller class, as for a proportion without changes.
    """
    truth = binary(labels, "labels")
    statistics = [_weighted_auroc(ranked(scores, len(truth)), truth) for scores in (before, after)]
    codes, count = patient_codes(patients, len(truth))
    if reason := missing_class(truth):
        return Change(None, None, not_estimable(reason, count), None)
    seen = min(len(np.unique(codes[truth])), len(np.unique(codes[~truth])))
    once = np.ones((1, len(truth)), np.int64)
    values = [float(statistic(once)[0]) for statistic in statistics]
    if seen < _FEWEST:
        return Change(values[0], values[1], not_estimable(f"fewer than {_FEWEST} patients of a class", count), None)
    estimate = bootstrap(
        lambda weights: statistics[1](weights) - statistics[0](weights), codes, rng=rng, resamples=resamples
    )
    if estimate.low == estimate.high == estimate.value == 0:
        bound = tango(0, 0, seen)[1]
        estimate = estimate._replace(low=-bound, high=bound, method=f"no change among {seen} patients of a class")
    return Change(values[0], values[1], estimate, p_value(estimate))


def _weighted_auroc(scores: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """(R,) AUROCs, ties counting half, of the cases drawn as often as weights (R, N) say."""
    order = np.argsort(scores, kind="stable")
    ascending, positive = scores[order], labels[order]
    starts = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1])) if len(scores) else np.zeros(0, int)

    def statistic(weights: np.ndarray) -> np.ndarray:
        drawn = weights[:, order]
        positives = np.add.reduceat(drawn * positive, starts, axis=1)
        negatives = np.add.reduceat(drawn * ~positive, starts, axis=1)
        below = np.cumsum(negatives, axis=1) - negatives / 2
        return ratio((positives * below).sum(axis=1), positives.sum(axis=1) * negatives.sum(axis=1))

    return statistic


def quantile_changes(
    changes: np.ndarray,
    patients: np.ndarray,
    shares: Sequence[float],
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
) -> tuple[Estimate, ...]:
    """Quantiles of per-case changes (N,), one for each share in (0, 1): the smallest change that so many do not exceed."""
    if not all(0 < share < 1 for share in shares):
        raise ConfigError(f"quantiles {tuple(shares)} are not all between 0 and 1")
    order = np.argsort(changes, kind="stable")
    ascending = np.asarray(changes, float)[order]

    def statistic(share: float) -> Callable[[np.ndarray], np.ndarray]:
        def quantile(weights: np.ndarray) -> np.ndarray:
            reached = np.cumsum(weights[:, order], axis=1)
            return np.asarray(ascending[(reached < share * reached[:, -1:]).sum(axis=1)])

        return quantile

    return tuple(_resampled(statistic(share), patients, rng=rng, resamples=resamples) for share in shares)


def _resampled(
    statistic: Callable[[np.ndarray], np.ndarray], patients: np.ndarray, *, rng: np.random.Generator, resamples: int
) -> Estimate:
    """Patient bootstrap where there are enough patients to say anything of others."""
    count = len(np.unique(patients))
    if count < _FEWEST:
        return not_estimable(f"fewer than {_FEWEST} patients" if count else "no cases", count)
    return bootstrap(statistic, patients, rng=rng, resamples=resamples)


def margins(logits: np.ndarray, labels: np.ndarray, decision: Decision) -> np.ndarray:
    """How far each case (N,) is from a wrong decision, in log-odds: the label's logit minus the largest other one.

    logits: (N, K), labels: (N,) class indices. Measured from the deployed threshold; negative where the decision is wrong.
    """
    shifted = np.array(shifted_logits(np.asarray(logits, float), decision))
    rows = np.arange(len(shifted))
    own = shifted[rows, labels].copy()
    shifted[rows, labels] = -np.inf
    return np.asarray(own - shifted.max(axis=1))


def unpaired_change(before: Estimate, after: Estimate) -> Change:
    """Change between two estimates of which only the intervals are known (square-and-add, Newcombe 1998, method 10).

    It takes the estimates as independent. For two models on the same cases, whose errors go together, the interval is
    too wide: conservative.
    """
    reason = before.reason or after.reason
    if before.value is None or after.value is None:
        return Change(before.value, after.value, not_estimable(reason or "no value"), None)
    if before.low is None or after.low is None:
        return Change(before.value, after.value, not_estimable("no interval"), None)
    value, low, high = mover((after, before), (1.0, -1.0), np.eye(2))
    estimate = Estimate(value, low, high, min(before.n, after.n), "Newcombe, unpaired, conservative")
    return Change(before.value, after.value, estimate, p_value(estimate))


def p_value(estimate: Estimate, *, level: float = 0.95) -> float | None:
    """Two-sided p-value of no change that agrees with the interval: below 1 − level exactly where 0 is outside it.

    The side of the interval towards 0 is read as that many standard errors.
    """
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    if estimate.value == 0:
        return 1.0
    side = estimate.value - estimate.low if estimate.value > 0 else estimate.high - estimate.value
    z = quantile_of(level) * abs(estimate.value) / side if side > 0 else np.inf
    return float(2 * ndtr(-z))


def adjusted(changes: Sequence[Change]) -> list[float | None]:
    """Holm-adjusted p-values over the changes that have one."""
    known = [place for place, change in enumerate(changes) if change.p is not None]
    found: list[float | None] = [None] * len(changes)
    for place, value in zip(known, holm([changes[place].p or 0.0 for place in known]), strict=True):
        found[place] = float(value)
    return found


def verdict(difference: Estimate, p: float | None, better: Better, margin: float | None) -> Verdict:
    """What may be said of a change.

    "equivalent": its whole interval lies within ± margin, whether or not it is clear of 0. "better", "worse" ("changed"
    where neither side is the better one): the interval is clear of 0, and so is the adjusted p-value. Else "not decided",
    which is no evidence of sameness. margin: None where no margin was agreed for this unit.
    """
    if difference.value is None or difference.low is None or difference.high is None:
        return "not decided"
    if margin is not None and -margin <= difference.low and difference.high <= margin:
        return "equivalent"
    if difference.low <= 0 <= difference.high or p is None or p >= _CLEAR:
        return "not decided"
    if better == "neither":
        return "changed"
    return "better" if (difference.value > 0) == (better == "higher") else "worse"
