"""What the page shows: who has which finding, how often each is missed, and each comparison in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from xvision import text
from xvision.analyses.findings.answers import Answers
from xvision.analyses.findings.column import RATES, Column, Judged
from xvision.audit import Audit
from xvision.charts import Chart, HeatMap, Table
from xvision.methods.groups.cases import UNKNOWN
from xvision.methods.groups.verdicts import counted

_MOST_ROWS = 20
_MOST_COLUMNS = 6
_MOST_DRAWN = 12
"""Groups that a heat map has room for."""


class _Axis(NamedTuple):
    """A group that has a column of a heat map."""

    column: Column
    group: str

    def __str__(self) -> str:
        return self.column.label(self.group)


def charts(
    audit: Audit, answers: Answers, columns: list[Column], judged: list[Judged], minimum: int
) -> Iterator[Chart]:
    """Sizes first, then sensitivities, comparisons and means."""
    most = max(2, _MOST_DRAWN // len(columns))
    axes = [_Axis(column, group) for column in columns[:_MOST_COLUMNS] for group in _largest(column, most)]
    left = sum(len(column.groups) for column in columns) - len(axes)
    rows = answers.labelled[:_MOST_ROWS]
    more = len(answers.labelled) - len(rows)
    parts = [f"{text.plural(left, 'group')}"] * bool(left) + [f"{text.plural(more, 'rarer finding')}"] * bool(more)
    some = f" Not shown: {text.listing(parts)}, in the metrics." if parts else ""
    yield _sizes(audit, answers, axes, rows, some)
    if rows:
        yield _map(axes, rows, max(minimum, audit.fairness.suppress_below), minimum, some)
    if judged:
        yield _gaps(judged)
    yield _means(axes, len(answers.labelled))


def _largest(column: Column, most: int) -> list[str]:
    kept = sorted(column.groups, key=lambda group: -int(column.inside(group).sum()))[:most]
    return [group for group in column.groups if group in kept]


def _sizes(audit: Audit, answers: Answers, axes: list[_Axis], rows: tuple[str, ...], some: str) -> HeatMap:
    inside = [axis.column.inside(axis.group) for axis in axes]
    people = tuple(float(len(set(audit.patients[chosen]))) for chosen in inside)
    positives = [
        tuple(float((answers.labels[chosen, answers.names.index(name)] == 1).sum()) for chosen in inside)
        for name in rows
    ]
    images = tuple(float(chosen.sum()) for chosen in inside)
    return HeatMap(
        title="Images with each finding, by group",
        alt=f"The first two rows are all images and all patients of a group.{some}",
        columns=tuple(map(str, axes)),
        rows=("All images", "All patients", *rows),
        values=(images, people, *positives),
        x_label="Group",
        y_label="Finding",
        unit="count",
        low=0.0,
        high=max([1.0, *(value for row in positives for value in row)]),
    )


def _map(axes: list[_Axis], rows: tuple[str, ...], least: int, minimum: int, some: str) -> HeatMap:
    found = {(name, axis): axis.column.found["sensitivity"].rates[name, axis.group] for name in rows for axis in axes}
    shown = {place: rate for place, rate in found.items() if rate.value is not None and rate.n >= least}
    few = [f"{name} in {axis}" for name, axis in found if (name, axis) not in shown]
    blank = (
        f" Left blank, with fewer than {least} patients who have the finding: {text.listing(few, 8)}." if few else ""
    )
    ranked = [(rate, name, axis) for (name, axis), rate in shown.items() if axis.group != UNKNOWN]
    lowest = ""
    if ranked:
        rate, name, axis = min(ranked, key=lambda item: item[0].value or 0.0)
        lowest = f"Lowest for {name} in {axis}: {text.value(*rate[:3])}."
    return HeatMap(
        title="Sensitivity of each finding, by group",
        alt=f"{lowest}{blank}{some}".strip() or f"No group has {minimum} patients with a finding.",
        columns=tuple(map(str, axes)),
        rows=rows,
        values=tuple(
            tuple(shown[name, axis].value if (name, axis) in shown else None for axis in axes) for name in rows
        ),
        x_label="Group",
        y_label="Finding",
        low=0.0,
        high=1.0,
        better="higher",
    )


def _gaps(judged: list[Judged]) -> Table:
    known = sorted(
        (one for one in judged if one.gap.difference.value is not None),
        key=lambda one: (one.word != "gap shown", -abs(one.size)),
    )
    short = len(judged) - len(known)
    more = f" {_MOST_ROWS} of {len(known)} are shown: gaps first, then by size." if len(known) > _MOST_ROWS else ""
    none = f" {text.plural(short, 'comparison')} had too few patients." if short else ""
    return Table(
        title="What may be said of each finding and group against the rest",
        alt=f"Of {text.plural(len(judged), 'comparison')}: {counted([one.word for one in judged])}.{more}{none}",
        columns=("Finding", "Group", "Rate", "In the group", "Less the rest", "p, adjusted", "Verdict"),
        rows=tuple(
            (
                one.gap.finding,
                one.column.label(one.gap.group),
                text.label(one.rate),
                text.value(*one.column.found[one.rate].rates[one.gap.finding, one.gap.group][:3]),
                text.value(*one.gap.difference[:3]),
                _p_value(one.gap.adjusted),
                one.word,
            )
            for one in known[:_MOST_ROWS]
        ),
    )


def _p_value(found: float | None) -> str:
    return "–" if found is None else text.number(found) if found >= 0.001 else "< 0.001"


def _means(axes: list[_Axis], findings: int) -> Table:
    return Table(
        title="Mean over findings, by group",
        alt="Each group's mean is over the findings that it has enough patients for; compare only means over the same findings.",
        columns=(
            "Column", "Group", "Images", "Mean sensitivity", "Sensitivity over", "Mean specificity", "Specificity over",
        ),
        rows=tuple(
            (
                text.label(axis.column.name),
                axis.group,
                int(axis.column.inside(axis.group).sum()),
                *(
                    cell
                    for rate in RATES
                    for estimate, names in [axis.column.found[rate].mean[axis.group]]
                    for cell in (
                        text.value(*estimate[:3]),
                        "all" if len(names) == findings else text.listing(names, 8) or "none",
                    )
                ),
            )
            for axis in axes
        ),
        counts=("Images",),
        part="Column",
    )  # fmt: skip
