"""Performance per group. Shapes: N cases.

Rates of up to 20 groups come from fairlearn, those of more from counts: fairlearn takes milliseconds for each group and
rate, and the two are equal to the last digit, which a test holds. Counts, intervals and reasons are made here, because
fairlearn gives 0.0 to a rate whose denominator is empty. Differences between groups are in
:mod:`xvision.methods.groups.gaps`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from xvision.methods.groups.cases import Cases, all_levels, checked_cases, definitions
from xvision.methods.groups.fairlearn_rates import fairlearn_rates
from xvision.methods.intervals import Estimate, not_estimable, proportion
from xvision.methods.scores import auroc, ranked

_MOST_WITH_FAIRLEARN = 20


@dataclass(frozen=True)
class GroupRow:
    """One group: its counts and, by metric name, its estimates (every :data:`Rate`, and ``auroc``)."""

    group: str
    cases: int
    patients: int
    positives: int
    negatives: int
    estimates: Mapping[str, Estimate]


def group_table(
    labels: np.ndarray,
    decisions: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    patients: np.ndarray,
    *,
    level: float = 0.95,
) -> tuple[GroupRow, ...]:
    """Each group's metrics, with the interval of that group alone, by name, ``"unknown"`` last.

    labels, decisions: (N,) of 0 or 1. scores: (N,), higher for the positive class. groups, patients: (N,). ppv and npv
    follow the group's prevalence. Overlapping intervals do not show that groups are equal: use
    :func:`~xvision.methods.groups.gaps.group_gaps`.
    """
    cases = checked_cases(labels, decisions, groups, patients)
    values = ranked(scores, len(cases.labels))
    found, codes = np.unique(cases.groups, return_inverse=True)
    points = fairlearn_rates(cases) if len(found) <= _MOST_WITH_FAIRLEARN else {}
    order, ends = np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes, minlength=len(found)))
    members = {str(name): order[start:end] for name, start, end in zip(found, [0, *ends], ends, strict=False)}
    names = all_levels(found)
    return tuple(_row(cases, values, name, members[name], points.get(name, {}), level) for name in names)


def _row(
    cases: Cases, scores: np.ndarray, name: str, member: np.ndarray, points: Mapping[str, float], level: float
) -> GroupRow:
    labels, patients = cases.labels[member], cases.patients[member]
    estimates = {}
    for metric, rate in definitions(labels, cases.decisions[member]).items():
        estimate = proportion(rate.hits[rate.among], patients[rate.among], level=level)
        if estimate.value is None:
            estimate = not_estimable(f"no {rate.cases}")
        estimates[metric] = estimate._replace(value=points[metric]) if metric in points and estimate.n else estimate
    estimates["auroc"] = auroc(scores[member], labels, patients, level=level)
    counts = (len(member), len(np.unique(patients)), int(labels.sum()), int((~labels).sum()))
    return GroupRow(name, *counts, estimates)
