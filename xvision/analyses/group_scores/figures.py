"""The figures of one column: each group's own, and the comparisons between groups."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from xvision.audit import Audit
from xvision.methods.groups.calibration_by_group import GroupCalibration, calibration_by_group, in_the_large_gaps
from xvision.methods.groups.cross_auc import Cross, cross_gaps
from xvision.methods.groups.gaps import Gap, group_gaps
from xvision.methods.intervals import Estimate, not_estimable, proportion
from xvision.methods.scores import auprc, auroc
from xvision.targets import Target

ERROR_RATE = 0.05


class Row(NamedTuple):
    """One group alone."""

    group: str
    calibration: GroupCalibration
    auroc: Estimate
    prevalence: Estimate
    auprc: Estimate


class Figures(NamedTuple):
    """One column and one class."""

    column: str
    target: Target
    levels: np.ndarray
    rows: tuple[Row, ...]
    aurocs: tuple[Gap, ...]
    in_the_large: tuple[Gap, ...]
    crossed: tuple[Cross, ...]


def gathered(
    audit: Audit, target: Target, column: str, columns: int, *, bins: int, minimum: int, resamples: int, draws: int
) -> Figures:
    """Every figure of a column's groups; comparisons at a level that holds over this many columns (Bonferroni)."""
    levels, patients = audit.column(column), audit.patients
    cases = (target.scores, target.labels, levels, patients)
    calibrated = calibration_by_group(
        *cases,
        rng=lambda name: audit.rng(f"calibration {target.positive} {column} {name}"),
        bins=bins,
        minimum=minimum,
        resamples=resamples,
        draws=draws,
    )
    rows = tuple(_row(audit, target, column, levels, _over(each, columns), resamples) for each in calibrated)
    gaps = group_gaps(
        target.labels, target.labels, target.scores, levels, patients,
        metric="auroc", minimum=minimum, level=1 - ERROR_RATE / columns,
    )  # fmt: skip
    large = in_the_large_gaps(*cases, gaps)
    return Figures(column, target, levels, rows, gaps, large, cross_gaps(*cases, gaps))


def _over(found: GroupCalibration, columns: int) -> GroupCalibration:
    p_value = found.adjusted_p
    return found if p_value is None else replace(found, adjusted_p=min(1.0, columns * p_value))


def _row(
    audit: Audit, target: Target, column: str, levels: np.ndarray, calibrated: GroupCalibration, resamples: int
) -> Row:
    member = levels == calibrated.group
    scores, labels, patients = target.scores[member], target.labels[member], audit.patients[member]
    ranking = not_estimable(calibrated.reason or "", calibrated.patients)
    if calibrated.reason is None:
        rng = audit.rng(f"auprc {target.positive} {column} {calibrated.group}")
        ranking = auprc(scores, labels, patients, rng=rng, resamples=resamples)
    return Row(calibrated.group, calibrated, auroc(scores, labels, patients), proportion(labels, patients), ranking)
