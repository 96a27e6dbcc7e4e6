"""Disease called healthy and health called diseased, which need to know the class that means healthy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from xvision.audit import Audit, apart, metric
from xvision.methods.groups.cases import all_levels
from xvision.methods.intervals import Estimate, not_estimable, proportion
from xvision.result import Metric

ASKED = "the plan does not say which class means healthy: name it as decision.no_disease"
NAMES = ("underdiagnosis", "overdiagnosis")


def diagnosed(audit: Audit, columns: tuple[str, ...]) -> Iterator[Metric]:
    """Shares of all ill and of all healthy cases by group, whatever the illness; None with the question where it is not declared."""
    healthy = audit.decision.no_disease
    if healthy is None:
        yield from (Metric(name, None, better="lower", reason=ASKED) for name in NAMES)
        return
    ill, cleared = audit.labels != healthy, audit.predictions.decisions == healthy
    everyone = np.ones(len(ill), dtype=bool)
    yield from _both(audit, ill, cleared, everyone, {})
    for column in columns:
        levels = audit.column(column)
        for level in all_levels(levels):
            yield from _both(audit, ill, cleared, levels == level, {apart(column, "class", "against", "column"): level})


def _both(
    audit: Audit, ill: np.ndarray, cleared: np.ndarray, member: np.ndarray, where: dict[str, str]
) -> Iterator[Metric]:
    for name, among, wrong, whom in (
        ("underdiagnosis", ill, cleared, "cases with disease"),
        ("overdiagnosis", ~ill, ~cleared, "healthy cases"),
    ):
        yield metric(name, _share(wrong, among & member, audit.patients, whom), better="lower", where=where)


def _share(wrong: np.ndarray, among: np.ndarray, patients: np.ndarray, whom: str) -> Estimate:
    return proportion(wrong[among], patients[among]) if among.any() else not_estimable(f"no {whom}")
