"""Who it is worse for, and whether the decision follows how an image was taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from xvision import text
from xvision.audit import Audit, metric
from xvision.charts import Axis, Chart, Forest, Mark, Reference, Table
from xvision.methods.groups.cases import UNKNOWN
from xvision.methods.groups.gaps import Gap, GapMetric, conditional_dependence, group_gaps, permutation_test
from xvision.methods.groups.table import GroupRow, group_table
from xvision.methods.shortcuts.metadata import metadata_auroc, stratified_auroc
from xvision.registry import analysis
from xvision.result import Better, Metric, NotApplicable, Result, Where, named, spoken

_SHOWN = ("sensitivity", "specificity", "auroc")
_GAPS: tuple[GapMetric, ...] = ("sensitivity", "specificity", "auroc")
_BETTER: dict[str, Better] = {"fpr": "lower", "fnr": "lower", "selection_rate": "neither"}
_MOST_ROWS = 20


@analysis("Fairness and shortcuts", pillar="Fairness", need="scores", passes="none beyond the clean predictions")
def fairness(audit: Audit, *, minimum: int = 10, permutations: int = 1999) -> Result:
    """Who is it worse for, and does the decision follow how the image was taken?

    Each level of every declared column is a group; a missing value is the group "unknown" and is dropped from nothing. Point
    estimates come from fairlearn, intervals are Wilson and DeLong per group. ``sensitivity_difference`` and its kin compare a
    group with the other one or with the rest, signed, with Newcombe intervals that hold together over the groups of a column
    (Bonferroni); fewer than ``minimum`` patients in a denominator give no difference. ``dependence`` is how much the share of positive
    decisions differs between levels once the true label is held fixed: for acquisition columns it is evidence of a shortcut.
    ``metadata_auroc`` is how well the column alone, without any image, predicts the label over all splits (Zech 2018): it says a
    shortcut is available. ``auroc_within`` compares only cases of the same level, so the column cannot help. A gap has many possible
    causes, and no gap in these columns says nothing about columns that were not recorded.
    """
    columns = (*audit.groups, *audit.acquisition)
    if not columns:
        raise NotApplicable("no group or acquisition columns were declared; name them in the plan or with --groups")
    metrics: list[Metric] = []
    charts: list[Chart] = []
    for target in _targets(audit):
        for column in columns:
            rows = group_table(target.labels, target.decisions, target.scores, audit.column(column), audit.patients)
            metrics += _rates(rows, column, target.where)
            metrics += _differences(audit, target, column, minimum)
            charts += _charts(rows, column, target)
        metrics += [
            item for column in columns for item in _column_metrics(audit, target, column, permutations, minimum)
        ]
    metrics += [_availability(audit, target, column) for target in _targets(audit) for column in columns]
    return Result(_summary(metrics, audit), tuple(metrics), tuple(charts), caveats=_caveats(audit, metrics, minimum))


class _Target(NamedTuple):
    """One class against the rest: the positive class, or each class in turn when there are more than two."""

    code: int
    where: Where
    labels: np.ndarray
    decisions: np.ndarray
    scores: np.ndarray


def _targets(audit: Audit) -> Iterator[_Target]:
    binary = audit.decision.positive is not None
    for code in [audit.positive] if binary else range(len(audit.classes)):
        where: Where = {} if binary else {"class": audit.classes[code]}
        decided = audit.predictions.decisions == code
        yield _Target(code, where, audit.labels == code, decided, audit.predictions.probabilities[:, code])


def _rates(rows: tuple[GroupRow, ...], column: str, where: Where) -> list[Metric]:
    return [
        metric(name, estimate, better=_BETTER.get(name, "higher"), where={**where, column: row.group})
        for row in rows
        for name, estimate in row.estimates.items()
    ]


def _differences(audit: Audit, target: _Target, column: str, minimum: int) -> list[Metric]:
    levels, patients = audit.column(column), audit.patients
    found = []
    for name in _GAPS:
        gaps = group_gaps(
            target.labels, target.decisions, target.scores, levels, patients, metric=name, minimum=minimum
        )
        found += [_difference(f"{name}_difference", gap, column, target.where) for gap in gaps]
    dependence = conditional_dependence(target.decisions, target.labels, levels, patients, minimum=minimum)
    return found + [_difference("dependence", gap, column, target.where) for gap in dependence]


def _difference(name: str, gap: Gap, column: str, where: Where) -> Metric:
    found = gap.difference
    if found.value is not None and gap.family > 1:
        found = found._replace(
            method=f"{found.method}, {100 * gap.level:.4g} % each so that {gap.family} hold together"
        )
    return metric(name, found, where={**where, column: gap.group, "against": gap.reference})


def _column_metrics(audit: Audit, target: _Target, column: str, permutations: int, minimum: int) -> list[Metric]:
    levels, patients = audit.column(column), audit.patients
    within = stratified_auroc(target.scores, target.labels, levels, patients, rng=audit.rng(f"within {column}"))
    found = [metric("auroc_within", within, better="higher", where={**target.where, "column": column})]
    for name in ("sensitivity", "specificity"):
        test = permutation_test(
            target.labels, target.decisions, levels, patients,
            rng=audit.rng(f"permutation {column} {name}"), metric=name, minimum=minimum, permutations=permutations,
        )  # fmt: skip
        where = {**target.where, "column": column}
        if test.p_value is None:
            found.append(Metric(f"{name}_any_gap_p", None, where=where, reason=test.reason))
        else:
            how = f"permutation within label, {permutations} draws; gap {text.number(test.gap)}, {text.number(test.expected)} by chance"
            found.append(Metric(f"{name}_any_gap_p", test.p_value, n=test.patients, where=where, interval=how))
    return found


def _availability(audit: Audit, target: _Target, column: str) -> Metric:
    everything = audit.everything
    labels = everything.label_codes(audit.classes) == target.code
    levels, patients = (everything.table[name].to_numpy(dtype=str) for name in (column, "patient"))
    estimate = metadata_auroc(levels, labels, patients, rng=audit.rng(f"metadata {column} {target.code}"))
    return metric("metadata_auroc", estimate, better="lower", where={**target.where, "column": column, "split": "all"})


def _charts(rows: tuple[GroupRow, ...], column: str, target: _Target) -> list[Chart]:
    largest = sorted(rows, key=lambda row: -row.cases)[:_MOST_ROWS]
    shown = [row for row in rows if row in largest]
    title = text.label(column) + (f", {target.where['class']} against the rest" if target.where else "")
    sizes = Table(
        title=f"{title}: who is in the data",
        alt=f"{text.plural(len(rows), 'level')}"
        + (f", of which the largest {len(shown)} are shown." if len(shown) < len(rows) else "."),
        columns=("Group", "Images", "Patients", "Positive", "Negative"),
        rows=tuple((row.group, row.cases, row.patients, row.positives, row.negatives) for row in shown),
    )
    charts: list[Chart] = [sizes]
    for name in _SHOWN:
        overall = _overall(name, target)
        marks = tuple(_mark(row, name) for row in shown)
        estimable = [mark for mark in marks if mark.value is not None]
        if not estimable:
            continue
        lowest = min(estimable, key=lambda mark: mark.value or 0.0)
        charts.append(
            Forest(
                title=f"{title}: {text.label(name)}",
                alt=f"Lowest for {lowest.label}: {text.value(lowest.value, lowest.low, lowest.high)}.",
                value=Axis(text.label(name), low=0, high=1),
                marks=marks,
                references=(Reference("all", overall, "x"),) if overall is not None else (),
            )
        )
    return charts


def _mark(row: GroupRow, name: str) -> Mark:
    estimate = row.estimates[name]
    if estimate.value is None:
        return Mark(row.group, None, note=f"not estimable ({estimate.reason})")
    among = {"sensitivity": row.positives, "specificity": row.negatives}.get(name, row.cases)
    return Mark(row.group, estimate.value, estimate.low, estimate.high, f"n = {text.number(among, 'count')}")


def _overall(name: str, target: _Target) -> float | None:
    among = {"sensitivity": target.labels, "specificity": ~target.labels}.get(name)
    if among is None or not among.any():
        return None
    return float((target.decisions == target.labels)[among].mean())


def _summary(metrics: list[Metric], audit: Audit) -> str:
    def largest(name: str, columns: tuple[str, ...]) -> str:
        found = [
            item for item in metrics if item.name == name and item.value is not None and set(item.where) & set(columns)
        ]
        found = [item for item in found if UNKNOWN not in item.where.values()]
        if not found:
            return "not estimable"
        worst = max(found, key=lambda item: abs(item.value or 0.0))
        return f"{named(worst)} {spoken(worst)}"

    parts = []
    if audit.groups:
        parts.append(
            f"Largest difference in sensitivity between patient groups: {largest('sensitivity_difference', audit.groups)}."
        )
    if audit.acquisition:
        parts.append(f"Strongest dependence on how the image was taken: {largest('dependence', audit.acquisition)}.")
    return " ".join(parts)


def _caveats(audit: Audit, metrics: list[Metric], minimum: int) -> tuple[str, ...]:
    found = ["A difference may come from case mix, prevalence or label quality as well as from the model."]
    missing = [item for item in metrics if item.name == "sensitivity_difference" and item.value is None]
    if missing:
        found.append(
            f"{text.plural(len(missing), 'comparison')} had fewer than {minimum} patients in a denominator: nothing is known there."
        )
    for column in (*audit.groups, *audit.acquisition):
        share = float((audit.column(column) == UNKNOWN).mean())
        if share > 0:
            found.append(
                f"{text.label(column)} is unknown for {100 * share:.0f} % of the images; they are shown as a group of their own."
            )
    return tuple(found)
