"""What missing group values could hide, and who they are missing for. Shapes: N cases."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import chi2_contingency, fisher_exact

from xvision.errors import ConfigError, DataError, nearest
from xvision.methods.groups.cases import UNKNOWN, Rate, checked_cases, definitions, known_levels
from xvision.methods.intervals import Estimate, Sample, binary, difference, not_estimable, patient_codes, proportion


class MissingBounds(NamedTuple):
    """A gap, group minus reference, under what the unknown cases could be; each with its own interval.

    observed: without them. lowest, highest: they are shared out between the two sides so that the gap is as small or as
    large as it can be; no other assignment, of all to one side or of some, gives a gap outside. unknown: how many of
    them are in the denominator.
    """

    observed: Estimate
    lowest: Estimate
    highest: Estimate
    unknown: int


class Missingness(NamedTuple):
    """How often an outcome occurs where the group is unknown and where it is known, and whether the two differ.

    unknown, known, difference: by case, with intervals by patient. p_value: of the patients' two by two table, by the
    test named in ``test``; None with the reason.
    """

    unknown: Estimate
    known: Estimate
    difference: Estimate
    p_value: float | None
    patients: int
    test: str
    reason: str | None = None


def missing_bounds(
    labels: np.ndarray,
    decisions: np.ndarray,
    groups: np.ndarray,
    patients: np.ndarray,
    *,
    metric: Rate,
    group: str,
    reference: str = "rest",
    level: float = 0.95,
) -> MissingBounds:
    """The gap in a rate between a group and another one, or all other known ones, if the unknown cases were known.

    labels, decisions: (N,) of 0 or 1. groups: (N,) with ``"unknown"`` where missing. patients: (N,). Hits in one group
    raise its rate and misses lower it, so that the largest gap has every unknown hit in the group and every unknown miss
    in the reference, and the smallest the reverse. ``lowest.low`` to ``highest.high`` joins this with chance and is wide
    on purpose: nothing is assumed of why values are missing.
    """
    cases = checked_cases(labels, decisions, groups, patients)
    rates, levels = definitions(cases.labels, cases.decisions), known_levels(cases.groups)
    if metric not in rates:
        raise ConfigError(f"metric {metric!r} has no gap between groups. {nearest(metric, list(rates))}")
    for name in {group, reference} - {"rest"}:
        if name not in levels:
            raise DataError(f"there is no group {name!r}; the known groups are {', '.join(levels) or 'none'}")
    rate = rates[metric]
    first = rate.among & (cases.groups == group)
    rest = ~np.isin(cases.groups, [group, UNKNOWN])
    second = rate.among & (rest if reference == "rest" else cases.groups == reference)
    unknown = rate.among & (cases.groups == UNKNOWN)

    def sample(side: np.ndarray) -> Sample:
        return Sample(rate.hits[side], cases.patients[side])

    def gap(joining: np.ndarray) -> Estimate:
        return difference(sample(first | joining), sample(second | (unknown & ~joining)), level=level)

    observed = difference(sample(first), sample(second), level=level)
    if observed.value is None:
        observed = not_estimable(f"no {rate.cases} in one of the groups")
    return MissingBounds(
        observed,
        gap(unknown & ~rate.hits),
        gap(unknown & rate.hits),
        int(unknown.sum()),
    )


def missingness(outcome: np.ndarray, groups: np.ndarray, patients: np.ndarray, *, level: float = 0.95) -> Missingness:
    """Whether missing group values go together with an outcome, such as the label or a wrong decision.

    outcome: (N,) of 0 or 1. groups: (N,) with ``"unknown"`` where missing. patients: (N,). The test counts patients: one
    has the outcome if any of its cases has, and is unknown if no case says the group. Pearson's chi-square without
    correction, or Fisher's exact test where fewer than 5 patients are expected in a cell. A large p-value is no proof
    that values are missing at random.
    """
    hits = binary(outcome, "outcomes")
    codes, count = patient_codes(patients, len(hits))
    missing = np.asarray(groups).astype(str) == UNKNOWN
    if missing.shape != hits.shape:
        raise DataError(f"{len(hits)} outcomes came with {len(missing)} groups; give one per case")
    unknown, known = Sample(hits[missing], codes[missing]), Sample(hits[~missing], codes[~missing])
    p_value, test, reason = _tested(hits, missing, codes, count)
    return Missingness(
        proportion(*unknown, level=level),
        proportion(*known, level=level),
        difference(unknown, known, level=level),
        p_value,
        count,
        test,
        reason,
    )


def _tested(
    hits: np.ndarray, missing: np.ndarray, codes: np.ndarray, count: int
) -> tuple[float | None, str, str | None]:
    """The p-value of the patients' table and the test it is of, or the reason why there is none."""
    had = np.bincount(codes, hits, count) > 0
    absent = np.bincount(codes, ~missing, count) == 0
    table = np.array([[np.sum(had[side]), np.sum(~had[side])] for side in (absent, ~absent)])
    if not missing.any():
        return None, "", "no group value is missing"
    if absent.all():
        return None, "", "no patient has a group value"
    if not absent.any():
        return None, "", "every patient has a group value in some case"
    if not table.sum(axis=0).all():
        return None, "", "all patients have the same outcome"
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / count
    if expected.min() < 5:
        return float(fisher_exact(table).pvalue), "Fisher, by patient", None
    return float(chi2_contingency(table, correction=False).pvalue), "chi-square, by patient", None
