"""All findings in the groups of one column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from xvision import text
from xvision.analyses.findings.answers import Answers
from xvision.audit import Audit, apart, count, metric
from xvision.methods.groups.cases import UNKNOWN, all_levels, largest_levels
from xvision.methods.groups.multilabel import FindingGap, Findings, finding_gaps
from xvision.methods.groups.verdicts import Word
from xvision.result import Metric, Where

Compared = Literal["sensitivity", "specificity"]
RATES: tuple[Compared, ...] = ("sensitivity", "specificity")
_FALSE = 0.05
"""The share of the gaps shown in a column and rate that may be false."""
_MOST_LEVELS = 30


@dataclass(frozen=True, eq=False)
class Column:
    """levels: (N,). groups: their names, "unknown" last. pooled: how many small levels were joined into one group."""

    name: str
    levels: np.ndarray
    groups: tuple[str, ...]
    pooled: int
    found: Mapping[Compared, Findings]

    @property
    def comparable(self) -> bool:
        """Whether the means of all known groups are over the same findings."""
        return all(
            len({names for group, (_, names) in found.mean.items() if group != UNKNOWN}) < 2
            for found in self.found.values()
        )

    def where(self, group: str, finding: str = "") -> Where:
        who = {apart(self.name, "finding", "against"): group}
        return {"finding": finding, **who} if finding else who

    def label(self, group: str) -> str:
        return text.condition({self.name: group})

    def inside(self, group: str) -> np.ndarray:
        return np.asarray(self.levels == group)


class Judged(NamedTuple):
    """A comparison of a group with the rest in one finding, and what may be said of it."""

    column: Column
    rate: Compared
    gap: FindingGap
    word: Word

    @property
    def size(self) -> float:
        return self.gap.difference.value or 0.0


def measured(audit: Audit, answers: Answers, name: str, minimum: int, resamples: int) -> Column:
    """The rates of all findings in each group of the column, and every comparison with the rest."""
    levels, pooled = _pooled(audit.column(name))
    found = {
        rate: finding_gaps(
            answers.labels, answers.decisions, levels, audit.patients, answers.names,
            metric=rate, rng=audit.rng(f"means {name}"), minimum=minimum, resamples=resamples,
        )
        for rate in RATES
    }  # fmt: skip
    return Column(name, levels, tuple(all_levels(levels)), pooled, found)


def _pooled(levels: np.ndarray) -> tuple[np.ndarray, int]:
    """The largest levels as they are, all others as one."""
    small = largest_levels(levels)[_MOST_LEVELS:]
    return np.where(np.isin(levels, small), f"{len(small)} other levels", levels), len(small)


def judged_of(column: Column, margin: float | None) -> Iterator[Judged]:
    """Every comparison, of two groups only that of the worse one: the other is its mirror image."""
    two = sum(group != UNKNOWN for group in column.groups) == 2
    for rate, found in column.found.items():
        gaps = found.gaps
        if two:
            pairs = zip(gaps[::2], gaps[1::2], strict=True)
            gaps = tuple(min(pair, key=lambda gap: gap.difference.value or 0.0) for pair in pairs)
        yield from (Judged(column, rate, gap, _word(gap, margin)) for gap in gaps)


def _word(gap: FindingGap, margin: float | None) -> Word:
    value, low, high = gap.difference[:3]
    if value is None or low is None or high is None or gap.adjusted is None:
        return "not enough data"
    if gap.adjusted <= _FALSE and not low <= 0 <= high:
        return "gap shown" if margin is None or abs(value) >= margin else "below the agreed margin"
    return "equivalent" if margin is not None and max(-low, high) < margin else "not enough data"


def metrics_of(column: Column, answers: Answers) -> Iterator[Metric]:
    """Counts, rates, comparisons with their corrected p-values, and means over findings."""
    for at, finding in enumerate(answers.names):
        for group in column.groups:
            there = int((answers.labels[column.inside(group), at] == 1).sum())
            yield count("positives", there, where=column.where(group, finding))
    for rate, found in column.found.items():
        for (finding, group), estimate in found.rates.items():
            yield metric(rate, estimate, better="higher", where=column.where(group, finding))
        tests = sum(gap.adjusted is not None for gap in found.gaps)
        how = f"Rao and Scott, Benjamini and Hochberg over {text.plural(tests, 'comparison')}"
        for gap in found.gaps:
            where = {**column.where(gap.group, gap.finding), "against": "rest"}
            estimate, name = gap.difference, f"{rate}_difference"
            yield metric(name, estimate, where=where)
            if gap.adjusted is None:
                yield Metric(f"{name}_bh_p", None, where=where, reason=estimate.reason or "not compared")
            else:
                yield Metric(f"{name}_bh_p", gap.adjusted, n=estimate.n, where=where, interval=how)
        for group, (estimate, _) in found.mean.items():
            yield metric(f"mean_{rate}", estimate, better="higher", where=column.where(group))
