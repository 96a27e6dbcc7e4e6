"""Performance per group; the only door to fairlearn. Shapes: N cases.

fairlearn gives the point estimates. Counts, intervals and reasons are made here, because fairlearn gives 0.0 to a rate
whose denominator is empty. Differences between groups are in :mod:`xvision.methods.gaps`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from xvision.errors import DataError
from xvision.methods.intervals import Estimate, binary, not_estimable, patient_codes, proportion
from xvision.methods.scores import auroc, ranked

UNKNOWN = "unknown"
"""The level of cases whose group is missing: shown as a row of its own, never ranked."""

Rate = Literal["sensitivity", "specificity", "fpr", "fnr", "ppv", "npv", "selection_rate", "accuracy"]


class Definition(NamedTuple):
    """A rate is the share of ``hits`` (N,) among the cases in ``among`` (N,); cases, patients: what these are called."""

    among: np.ndarray
    hits: np.ndarray
    cases: str
    patients: str


class Cases(NamedTuple):
    """Checked inputs (N,): booleans, group names, and patients as integers from 0."""

    labels: np.ndarray
    decisions: np.ndarray
    groups: np.ndarray
    patients: np.ndarray


@dataclass(frozen=True)
class GroupRow:
    """One group: its counts and, by metric name, its estimates (every :data:`Rate`, and ``auroc``)."""

    group: str
    cases: int
    patients: int
    positives: int
    negatives: int
    estimates: Mapping[str, Estimate]


def definitions(labels: np.ndarray, decisions: np.ndarray) -> dict[str, Definition]:
    """Every :data:`Rate` by name, for labels and decisions (N,) as booleans."""
    everyone = np.ones_like(labels)
    return {
        "sensitivity": Definition(labels, decisions, "positive cases", "positive patients"),
        "specificity": Definition(~labels, ~decisions, "negative cases", "negative patients"),
        "fpr": Definition(~labels, decisions, "negative cases", "negative patients"),
        "fnr": Definition(labels, ~decisions, "positive cases", "positive patients"),
        "ppv": Definition(decisions, labels, "positive decisions", "patients with a positive decision"),
        "npv": Definition(~decisions, ~labels, "negative decisions", "patients with a negative decision"),
        "selection_rate": Definition(everyone, decisions, "cases", "patients"),
        "accuracy": Definition(everyone, decisions == labels, "cases", "patients"),
    }


def checked_cases(labels: np.ndarray, decisions: np.ndarray, groups: np.ndarray, patients: np.ndarray) -> Cases:
    """Inputs (N,) ready for counting. Raises DataError when one is of another length or a group is missing."""
    truth, decided, named = binary(labels, "labels"), binary(decisions, "decisions"), np.asarray(groups)
    if not truth.shape == decided.shape == named.shape:
        raise DataError(
            f"{len(truth)} labels came with {len(decided)} decisions, {len(named)} groups; give one per case"
        )
    missing = sum(value is None or value != value for value in named.tolist())
    if missing:
        raise DataError(f"{missing} of {len(named)} group values are missing; write them as {UNKNOWN!r}")
    return Cases(truth, decided, named.astype(str), patient_codes(patients, len(truth))[0])


def known_levels(groups: np.ndarray) -> list[str]:
    """Names of the groups (N,) without ``"unknown"``, sorted."""
    return [str(level) for level in np.unique(groups) if level != UNKNOWN]


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
    :func:`~xvision.methods.gaps.group_gaps`.
    """
    cases = checked_cases(labels, decisions, groups, patients)
    values = ranked(scores, len(cases.labels))
    points = _fairlearn(cases)
    names = known_levels(cases.groups) + [UNKNOWN] * bool((cases.groups == UNKNOWN).any())
    return tuple(_row(cases, values, name, points[name], level) for name in names)


def _row(cases: Cases, scores: np.ndarray, name: str, points: Mapping[str, float], level: float) -> GroupRow:
    member = cases.groups == name
    labels, patients = cases.labels[member], cases.patients[member]
    estimates = {}
    for metric, rate in definitions(labels, cases.decisions[member]).items():
        estimate = proportion(rate.hits[rate.among], patients[rate.among], level=level)
        estimable = estimate.value is not None
        estimates[metric] = estimate._replace(value=points[metric]) if estimable else not_estimable(f"no {rate.cases}")
    estimates["auroc"] = auroc(scores[member], labels, patients, level=level)
    counts = (int(member.sum()), len(np.unique(patients)), int(labels.sum()), int((~labels).sum()))
    return GroupRow(name, *counts, estimates)


def _fairlearn(cases: Cases) -> dict[str, dict[str, float]]:
    """Point estimates by group and metric."""
    # Imported here because fairlearn takes seconds to load, which listing or reading must not wait for.
    from fairlearn.metrics import (
        MetricFrame,
        false_negative_rate,
        false_positive_rate,
        selection_rate,
        true_negative_rate,
        true_positive_rate,
    )
    from sklearn.metrics import accuracy_score, precision_score

    def ppv(truth: np.ndarray, decided: np.ndarray) -> float:
        return float(precision_score(truth, decided, zero_division=0.0))

    def npv(truth: np.ndarray, decided: np.ndarray) -> float:
        return float(precision_score(truth, decided, pos_label=0, zero_division=0.0))

    metrics: dict[str, Callable[..., float]] = {
        "sensitivity": true_positive_rate,
        "specificity": true_negative_rate,
        "fpr": false_positive_rate,
        "fnr": false_negative_rate,
        "ppv": ppv,
        "npv": npv,
        "selection_rate": selection_rate,
        "accuracy": accuracy_score,
    }
    if not len(cases.labels):
        return {}
    frame = MetricFrame(
        metrics=metrics,
        y_true=cases.labels.astype(int),
        y_pred=cases.decisions.astype(int),
        sensitive_features=cases.groups,
    )
    return {
        str(group): {metric: float(value) for metric, value in row.items()} for group, row in frame.by_group.iterrows()
    }
