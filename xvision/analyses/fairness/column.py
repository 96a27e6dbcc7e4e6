"""The numbers of one column: each group, every comparison with its verdict, and tests over all groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from xvision import text
from xvision.audit import Audit, apart, metric
from xvision.methods.groups.bands import rate_bands
from xvision.methods.groups.cases import UNKNOWN, Rate, definitions
from xvision.methods.groups.counts import coded, group_draws, rate, tabulated
from xvision.methods.groups.gaps import Gap, GroupTest, group_gaps, permutation_test, sides
from xvision.methods.groups.missing import MissingBounds, missing_bounds, missingness
from xvision.methods.groups.spread import Spread, between_groups, resampled_noise
from xvision.methods.groups.table import GroupRow, group_table
from xvision.methods.groups.verdicts import Prevalence, Verdict, prevalence_note, verdict, worst_group
from xvision.methods.intervals import Estimate, held_together, not_estimable, proportion
from xvision.methods.operating_point import Judged, tuned_differences, tuned_rates
from xvision.result import Better, Metric, Where
from xvision.targets import Target

TESTED: tuple[Literal["sensitivity", "specificity"], ...] = ("sensitivity", "specificity")
COMPARED: tuple[Rate, ...] = ("sensitivity", "specificity", "ppv", "npv")
PREDICTIVE: tuple[Literal["ppv", "npv"], ...] = ("ppv", "npv")
_BETTER: Mapping[str, Better] = {"fpr": "lower", "fnr": "lower", "selection_rate": "neither"}
KEYS = ("class", "against", "column", "outcome", "bound")


@dataclass(frozen=True, eq=False)
class Column:
    """One column for one class. judged: by rate, each gap with its verdict. bounds: by rate and group, for missing values.

    worst: by rate, the lowest of the groups that are large enough ("" for none) with a band that holds for all of these.
    """

    name: str
    target: Target
    rows: tuple[GroupRow, ...]
    judged: Mapping[Rate, tuple[tuple[Gap, Verdict], ...]]
    tests: Mapping[Rate, GroupTest]
    spreads: Mapping[Rate, Spread]
    explained: Mapping[tuple[Rate, str], Prevalence]
    bounds: Mapping[tuple[Rate, str], MissingBounds]
    worst: Mapping[Rate, tuple[str, Estimate]]
    metrics: tuple[Metric, ...]

    @property
    def where(self) -> Where:
        return {**self.target.where, "column": self.name}


def measured(audit: Audit, target: Target, column: str, *, minimum: int, permutations: int, resamples: int) -> Column:
    """Everything the page says of a column."""
    levels, who = audit.column(column), audit.patients
    rows = group_table(target.labels, target.decisions, target.scores, levels, who)
    rows = tuple(_with_choice(audit, target, levels, row) for row in rows)
    judged = {name: _judged(audit, target, column, name, minimum) for name in COMPARED}
    tests: dict[Rate, GroupTest] = {
        name: permutation_test(
            target.labels, target.decisions, levels, who, rng=audit.rng(f"permutation {target.name} {column} {name}"),
            metric=name, minimum=minimum, permutations=permutations,
        )
        for name in TESTED
    }  # fmt: skip
    draws = _Draws(audit, target, column, resamples)
    spreads: dict[Rate, Spread] = {name: draws.spread(name) for name in TESTED}
    explained: dict[tuple[Rate, str], Prevalence] = {
        (name, gap.group): note
        for name in PREDICTIVE
        for gap, _ in judged[name]
        if gap.difference.value is not None and (note := draws.explained(gap, name)) is not None
    }
    bounds: dict[tuple[Rate, str], MissingBounds] = {
        (name, gap.group): missing_bounds(
            target.labels, target.decisions, levels, who, metric=name, group=gap.group, reference=gap.reference
        )
        for name in TESTED
        for gap, _ in judged[name]
        if gap.ranked and (levels == UNKNOWN).any()
    }
    worst: dict[Rate, tuple[str, Estimate]] = {
        name: _worst(audit, target, column, rows, name, minimum, resamples) for name in TESTED
    }
    found = Column(column, target, rows, judged, tests, spreads, explained, bounds, worst, ())
    return replace(found, metrics=tuple(_metrics(audit, found)))


def _worst(
    audit: Audit, target: Target, column: str, rows: tuple[GroupRow, ...], name: Rate, minimum: int, resamples: int
) -> tuple[str, Estimate]:
    """The lowest is picked after looking, so that its own interval would say too much."""
    ranking = worst_group({row.group: row.estimates[name] for row in rows}, minimum=minimum)
    if ranking.worst is None or audit.operating.tuned:
        return "", not_estimable(ranking.reason or "the bands do not know that the threshold was chosen on cases")
    names = [row.group for row in rows if row.group not in (UNKNOWN, *ranking.too_small)]
    levels = audit.column(column)
    member = np.isin(levels, names)
    bands = rate_bands(
        target.labels[member], target.decisions[member], np.searchsorted(names, levels[member]), len(names),
        audit.patients[member], metric=name, rng=audit.rng(f"bands {target.name} {column} {name}"), resamples=resamples,
    )  # fmt: skip
    band = bands[names.index(ranking.worst)]
    return ranking.worst, band._replace(method=f"{band.method}; {ranking.worst}, of {len(names)} groups")


def _with_choice(audit: Audit, target: Target, levels: np.ndarray, row: GroupRow) -> GroupRow:
    """The row with intervals that know that the threshold was chosen on cases, where it was."""
    if not audit.operating.tuned or audit.decision.threshold is None:
        return row
    widened = tuned_rates(
        _cases(audit, target, levels == row.group), audit.decision.threshold, audit.operating.thresholds
    )
    return replace(row, estimates={**row.estimates, **widened})


def _cases(audit: Audit, target: Target, member: np.ndarray) -> Judged:
    return Judged(target.scores[member], target.labels[member], audit.patients[member])


def _judged(audit: Audit, target: Target, column: str, name: Rate, minimum: int) -> tuple[tuple[Gap, Verdict], ...]:
    levels = audit.column(column)
    gaps = group_gaps(
        target.labels, target.decisions, target.scores, levels, audit.patients, metric=name, minimum=minimum
    )
    if audit.operating.tuned and audit.decision.threshold is not None:
        gaps = tuple(_chosen(audit, target, levels, gap, name, audit.decision.threshold) for gap in gaps)
    return tuple((gap, verdict(_named(gap, column), name, margin=audit.fairness.margin)) for gap in gaps)


def _chosen(audit: Audit, target: Target, levels: np.ndarray, gap: Gap, name: str, threshold: float) -> Gap:
    if gap.difference.value is None:
        return gap
    first, second = (_cases(audit, target, member) for member in sides(levels, gap))
    return replace(
        gap, difference=tuned_differences(first, second, threshold, audit.operating.thresholds, level=gap.level)[name]
    )


def _named(gap: Gap, column: str) -> Gap:
    """The gap with groups called by their column, for sentences."""
    words = {
        side: text.condition({column: name}) if name not in (UNKNOWN, "rest", "known") else name
        for side, name in (("group", gap.group), ("reference", gap.reference))
    }
    return replace(gap, group=words["group"], reference=words["reference"])


class _Draws:
    """Resampled confusion counts of a column's groups. counts: (4, G); drawn: (4, G, R)."""

    def __init__(self, audit: Audit, target: Target, column: str, resamples: int) -> None:
        self.coding = coded({column: audit.column(column)})
        codes, count = self.coding.codes, self.coding.count
        self.counts = tabulated(target.labels, target.decisions, codes, count)
        blocks = group_draws(
            target.labels, target.decisions, codes, count, audit.patients,
            rng=audit.rng(f"counts {target.name} {column}"), resamples=resamples,
        )  # fmt: skip
        self.drawn = np.concatenate([block.counts for block in blocks], axis=1)
        self.levels, self.target, self.patients = self.coding.levels[0], target, audit.patients

    def spread(self, name: Rate) -> Spread:
        known = [place for place, level in enumerate(self.levels) if level != UNKNOWN]
        among = definitions(self.target.labels, self.target.decisions)[name].among
        people = np.array(
            [len(np.unique(self.patients[among & (self.coding.codes == place)])) for place in known], dtype=int
        )
        drawn = rate(self.drawn[:, known], name)
        return between_groups(rate(self.counts[:, known], name), resampled_noise(drawn, people), drawn, people)

    def explained(self, gap: Gap, name: Literal["ppv", "npv"]) -> Prevalence | None:
        """What prevalence has to do with a difference of known groups."""
        if not gap.ranked:
            return None
        own = self.levels.index(gap.group)
        rest = [
            place
            for place, level in enumerate(self.levels)
            if (level == gap.reference if gap.reference != "rest" else level not in (gap.group, UNKNOWN))
        ]
        pair = np.stack([self.counts[:, own], self.counts[:, rest].sum(axis=1)], axis=1)
        drawn = np.stack([self.drawn[:, own], self.drawn[:, rest].sum(axis=1)], axis=1)
        return prevalence_note(pair, drawn, name)


def _metrics(audit: Audit, found: Column) -> Iterator[Metric]:
    key, before = apart(found.name, *KEYS), found.target.where
    for row in found.rows:
        for name, estimate in row.estimates.items():
            if name != "auroc":  # the page on scores has it
                yield metric(name, estimate, better=_BETTER.get(name, "higher"), where={**before, key: row.group})
    for name, pairs in found.judged.items():
        for gap, _ in pairs:
            where = {**before, key: gap.group, "against": gap.reference}
            yield metric(f"{name}_difference", held_together(gap.difference, gap.level, gap.family), where=where)
    for name in TESTED:
        yield _tested(f"{name}_any_gap_p", found.tests[name], found.where)
        yield metric(f"{name}_between_group_sd", found.spreads[name].sd, better="lower", where=found.where)
        yield metric(f"worst_group_{name}", found.worst[name][1], better="higher", where=found.where)
    for (name, group), bound in found.bounds.items():
        for side in ("lowest", "highest"):
            where = {**before, key: group, "bound": f"{side} that missing values allow"}
            yield metric(f"{name}_difference", getattr(bound, side), where=where)
    yield from _missing(audit, found)


def _tested(name: str, test: GroupTest, where: Where) -> Metric:
    if test.p_value is None:
        return Metric(name, None, where=where, reason=test.reason)
    how = f"permutation within label; largest gap {text.number(test.gap)}, {text.number(test.expected)} by chance"
    return Metric(name, test.p_value, n=test.patients, where=where, interval=how)


def _missing(audit: Audit, found: Column) -> Iterator[Metric]:
    """How much is missing, and whether it is missing with the label or with errors."""
    levels, target = audit.column(found.name), found.target
    unknown = levels == UNKNOWN
    if not unknown.any():
        return
    yield metric("unknown_share", proportion(unknown, audit.patients), better="lower", where=found.where)
    for outcome, values in (("label", target.labels), ("error", target.labels != target.decisions)):
        test, where = missingness(values, levels, audit.patients), {**found.where, "outcome": outcome}
        if test.p_value is None:
            yield Metric("missingness_p", None, where=where, reason=test.reason)
        else:
            yield Metric("missingness_p", test.p_value, n=test.patients, where=where, interval=test.test)
