"""What a model that may abstain gets wrong: risk among the cases it decides, and rules for when it decides.

Cases of equal confidence have no order: wherever a cut falls among them, their errors count as spread evenly, which is the
mean over all orders. So nothing depends on the order of the cases. Shapes: N cases, K classes, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp, xlog1py

from xvision.errors import ConfigError, DataError
from xvision.methods.decision import TIE, Decision, shifted_logits
from xvision.methods.intervals import Estimate, binary, bootstrap, not_estimable, proportion, with_width

TESTED_COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 21))
"""Shares of the tuning cases at which a rule is tried, fixed beforehand."""
_ROUNDING, _DECIMALS = 1e-9, 9

Statistic = Callable[[np.ndarray], np.ndarray]


class Rule(NamedTuple):
    """Decide where the confidence is at least ``threshold``. bound: the upper limit of the risk on the tuning cases."""

    threshold: float
    coverage: float
    risk: float
    bound: float
    level: float


class NoRule(NamedTuple):
    """Why no rule can be given."""

    reason: str


def confidence(logits: np.ndarray, decision: Decision) -> np.ndarray:
    """(N,) how sure each decision is, in log-odds rounded to nine decimals, for logits (N, K).

    With a threshold: the distance of the positive log-odds from the threshold's. Else the log-odds of the most probable
    class against all others, which rank the cases as its probability does and do not saturate at 1. Without the rounding
    equal probabilities, of one class or the other, would be ordered by their last bit.
    """
    values = np.asarray(logits, float)
    if decision.positive is not None:
        shifted = shifted_logits(values, decision)[:, decision.positive] - TIE
        return np.asarray(np.abs(shifted).round(_DECIMALS))
    ordered = np.sort(values, axis=1)
    return np.asarray((ordered[:, -1] - logsumexp(ordered[:, :-1], axis=1)).round(_DECIMALS))


def aurc(
    sure: np.ndarray,
    wrong: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Area under the risk-coverage curve: the risk of the i surest cases averaged over i = 1..N (Geifman et al. 2019).

    sure, wrong, patients: (N,). It mixes how often the model is wrong with how well it knows; compare models of one error rate
    only, or see :func:`e_aurc`. Patient bootstrap.
    """
    return _estimate(partial(_area, parts=_ordered(sure, wrong)), wrong, patients, rng, resamples, level)


def best_aurc(error_rate: np.ndarray | float) -> np.ndarray:
    """r + (1 - r) ln(1 - r): the area when every error is less sure than every right decision, for many cases."""
    rate = np.asarray(error_rate, float)
    return np.asarray(rate + xlog1py(1 - rate, -rate))


def e_aurc(
    sure: np.ndarray,
    wrong: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """AURC beyond that of the best possible order of the same errors: 0 when confidence tells right from wrong perfectly."""
    parts = _ordered(sure, wrong)

    def statistic(weights: np.ndarray) -> np.ndarray:
        drawn = weights[:, parts.order]
        beyond = _area(weights, parts=parts) - best_aurc((drawn @ parts.errors) / drawn.sum(axis=1))
        return np.asarray(np.maximum(beyond, 0.0))  # below only by rounding

    return _estimate(statistic, wrong, patients, rng, resamples, level)


def risk_at(
    sure: np.ndarray,
    wrong: np.ndarray,
    patients: np.ndarray,
    coverage: float,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Share of errors among the surest ``coverage`` of the cases.

    Patient bootstrap, which moves the cut, too; never narrower than the Wilson interval of the cases above the cut, because few
    errors are resampled too much alike.
    """
    if not 0 < coverage <= 1:
        raise ConfigError(f"coverage {coverage} is no share of the cases; give a number above 0, at most 1")
    statistic = partial(_risk, parts=_ordered(sure, wrong), coverage=coverage)
    found = _estimate(statistic, wrong, patients, rng, resamples, level)
    if found.value is None or found.low is None or found.high is None:
        return found
    decided = np.asarray(sure) >= threshold_at(sure, coverage)
    plain = proportion(np.asarray(wrong)[decided], np.asarray(patients)[decided], level=level)
    low, high = min(found.low, plain.low or 0.0), max(found.high, plain.high or 0.0)
    return found._replace(low=low, high=high, method=f"{found.method} and {plain.method}, the wider")


def threshold_at(sure: np.ndarray, coverage: float) -> float:
    """The confidence from which at least ``coverage`` of the cases (N,) are decided; needs no labels."""
    values = np.sort(np.asarray(sure, float))[::-1]
    return float(values[_count(len(values), coverage) - 1])


def agreed_rule(
    sure: np.ndarray, wrong: np.ndarray, patients: np.ndarray, agreed: float, *, level: float = 0.95
) -> Rule | NoRule:
    """The rule that decides most cases while its risk is at most ``agreed``, at the given confidence over its choice.

    sure, wrong, patients: (N,) of tuning cases, which are never the audited ones. Twenty shares of the cases are tried; each has
    an upper limit of its risk by Clopper and Pearson at 1 - (1 - level) / 20, on the effective sample size when patients
    repeat, so that all hold together (Bonferroni) and the best may be taken. Raises ConfigError unless 0 < agreed < 1.
    """
    if not 0 < agreed < 1:
        raise ConfigError(f"an agreed risk of {agreed} is no share of errors between 0 and 1, such as 0.05")
    values, errors = np.asarray(sure, float), binary(wrong, "errors")
    if not len(values):
        return NoRule("insufficient evidence: no tuning cases")
    tail = (1 - level) / len(TESTED_COVERAGES)
    rules = [_rule(values, errors, np.asarray(patients), share, tail) for share in TESTED_COVERAGES]
    kept = [rule for rule in rules if rule.bound <= agreed]
    if kept:
        return max(kept, key=lambda rule: rule.coverage)
    least = math.ceil(math.log(tail) / math.log1p(-agreed))
    nearest = min(rules, key=lambda rule: rule.bound)
    found = (
        f"the lowest upper limit of the risk on {len(values)} tuning cases is {nearest.bound:.3f}, at coverage "
        f"{nearest.coverage:.3f}"
    )
    if nearest.risk <= agreed:
        return NoRule(
            f"insufficient evidence: {found}; would be settled by more cases, at least {least} without an error"
        )
    return NoRule(f"no rule keeps the agreed risk of {agreed:g}: {found}")


def _rule(values: np.ndarray, errors: np.ndarray, patients: np.ndarray, share: float, tail: float) -> Rule:
    threshold = threshold_at(values, share)
    decided = values >= threshold
    found = proportion(errors[decided], patients[decided], level=1 - 2 * tail, exact=True)
    risk, bound = found.value or 0.0, 1.0 if found.high is None else found.high
    return Rule(threshold, float(decided.mean()), risk, bound, 1 - tail)


class _Ordered(NamedTuple):
    """order: (N,) the surest first; starts: (G,) where each confidence begins in it; errors: (N,) booleans in that order."""

    order: np.ndarray
    starts: np.ndarray
    errors: np.ndarray


def _ordered(sure: np.ndarray, wrong: np.ndarray) -> _Ordered:
    values, errors = np.asarray(sure, float), binary(wrong, "errors")
    if values.shape != errors.shape or np.isnan(values).any():
        raise DataError(f"{len(errors)} errors came with confidences of shape {values.shape}; give one number per case")
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1])) if len(values) else np.array([], dtype=int)
    return _Ordered(order, starts, errors[order])


class _Groups(NamedTuple):
    """Of each resample and each confidence (R, G): cases, errors, and both among the surer cases."""

    cases: np.ndarray
    errors: np.ndarray
    before: np.ndarray
    errors_before: np.ndarray


def _groups(weights: np.ndarray, parts: _Ordered) -> _Groups:
    drawn = weights[:, parts.order]
    cases = np.add.reduceat(drawn, parts.starts, axis=1)
    errors = np.add.reduceat(drawn * parts.errors, parts.starts, axis=1)
    return _Groups(cases, errors, np.cumsum(cases, axis=1) - cases, np.cumsum(errors, axis=1) - errors)


def _area(weights: np.ndarray, *, parts: _Ordered) -> np.ndarray:
    """(R,) the mean over i of the expected errors among the i surest, divided by i, in closed form for each confidence.

    In a group of m cases with e errors after b cases with E errors, i = b + j has E + e j / m errors; the sum over j is
    E D + (e / m)(m - b D), where D = 1/(b + 1) + … + 1/(b + m).
    """
    found = _groups(weights, parts)
    ends = found.before + found.cases
    harmonic = np.append(0.0, np.cumsum(1.0 / np.arange(1, int(ends.max()) + 1)))
    span = harmonic[ends] - harmonic[found.before]
    share = found.errors / np.maximum(found.cases, 1)
    total = found.errors_before * span + share * (found.cases - found.before * span)
    return np.asarray(total.sum(axis=1) / ends[:, -1])


def _risk(weights: np.ndarray, *, parts: _Ordered, coverage: float) -> np.ndarray:
    """(R,) expected share of errors among the surest ``coverage`` of each resample."""
    found = _groups(weights, parts)
    ends = found.before + found.cases
    wanted = np.maximum(np.ceil(coverage * ends[:, -1] - _ROUNDING), 1)
    group = (ends < wanted[:, None]).sum(axis=1)
    row = np.arange(len(weights))
    share = found.errors[row, group] / found.cases[row, group]
    missed = found.errors_before[row, group] + share * (wanted - found.before[row, group])
    return np.asarray(missed / wanted)


def _count(cases: int, coverage: float) -> int:
    return max(math.ceil(coverage * cases - _ROUNDING), 1)


def _estimate(
    statistic: Statistic,
    wrong: np.ndarray,
    patients: np.ndarray,
    rng: np.random.Generator,
    resamples: int,
    level: float,
) -> Estimate:
    if not len(np.asarray(wrong)):
        return not_estimable("no cases")
    found = bootstrap(statistic, patients, rng=rng, resamples=resamples, level=level)
    return with_width(found, found.n, level)
