"""What the page shows of all columns: who is in them, the rates, and each comparison in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from xvision import text
from xvision.analyses.fairness.column import COMPARED, TESTED, Column
from xvision.charts import Axis, Chart, Forest, Mark, Reference, Table
from xvision.methods.groups.cases import UNKNOWN, Rate
from xvision.methods.groups.gaps import Gap
from xvision.methods.groups.power import among, detectable_difference, minimum_size
from xvision.methods.groups.table import GroupRow
from xvision.methods.groups.verdicts import Verdict, counted
from xvision.methods.intervals import Estimate

_MOST_ROWS = 30
_FEWEST_OF_A_COLUMN = 5
_HALF_WIDTH = 0.1
_AMONG = {"sensitivity": "positives", "specificity": "negatives"}


class _Shown(NamedTuple):
    """A group that has a row."""

    column: Column
    row: GroupRow

    @property
    def label(self) -> str:
        return text.condition({self.column.name: self.row.group})


def charts(columns: Sequence[Column], overall: dict[Rate, Estimate], power: float) -> Iterator[Chart]:
    """Of one class: sizes first, then a forest of each tested rate, then what may be said."""
    most = max(_FEWEST_OF_A_COLUMN, _MOST_ROWS // len(columns))
    shown = [_Shown(column, row) for column in columns for row in _largest(column, most)]
    left = sum(len(column.rows) for column in columns) - len(shown)
    some = f" The {most} largest of each column are shown, {text.number(left, 'count')} are not." if left else ""
    yield _sizes(columns, shown, overall, power, some)
    for name in TESTED:
        if any(each.row.estimates[name].value is not None for each in shown):
            yield _forest(columns, shown, name, overall[name], some)
    if any(column.judged[name] for column in columns for name in COMPARED):
        yield _verdicts(columns)
    if any(bound.unknown for column in columns for bound in column.bounds.values()):
        yield _bounds(columns)


def _largest(column: Column, most: int) -> list[GroupRow]:
    kept = sorted(column.rows, key=lambda row: -row.cases)[:most]
    return [row for row in column.rows if row in kept]


def _sizes(
    columns: Sequence[Column], shown: Sequence[_Shown], overall: dict[Rate, Estimate], power: float, some: str
) -> Table:
    least = {
        (column.name, name): _detectable(column, name, overall[name], power) for column in columns for name in TESTED
    }
    return Table(
        title=f"Who is in the data{columns[0].target}",
        alt=f"{text.plural(sum(len(column.rows) for column in columns), 'group')} in {text.plural(len(columns), 'column')}.{some} The last"
        f" columns say how far below the others a rate would have to lie to be shown with a chance of {100 * power:.0f} %, were every"
        f" image a patient.{_needed(overall)}",
        columns=(
            "Column", "Group", "Images", "Patients", "Positive", "Negative", "Smallest gap found: sensitivity", "specificity",
        ),
        rows=tuple(
            (
                text.label(each.column.name), each.row.group, each.row.cases, each.row.patients, each.row.positives,
                each.row.negatives, *(least[each.column.name, name].get(each.row.group, "") for name in TESTED),
            )
            for each in shown
        ),
        counts=("Images", "Patients", "Positive", "Negative"),
        part="Column",
    )  # fmt: skip


def _needed(overall: dict[Rate, Estimate]) -> str:
    """How large a group must be for its rate to be known well."""
    said = [
        f"{minimum_size(found.value, _HALF_WIDTH)} {among(name)} ({text.label(name).lower()} {text.number(found.value)})"
        for name, found in overall.items()
        if found.value is not None
    ]
    return f" To know a group's rate to within {_HALF_WIDTH} takes {' and '.join(said)}." if said else ""


def _detectable(column: Column, name: Rate, overall: Estimate, power: float) -> dict[str, str]:
    """By group, in words."""
    said = {}
    for gap, _ in column.judged[name][:_MOST_ROWS]:
        if not gap.ranked or overall.value is None or gap.difference.value is None:
            continue
        least = detectable_difference(
            overall.value, gap.cases, gap.reference_cases, power=power, family=max(gap.family, 1)
        )
        said[gap.group] = "none" if least is None else text.number(least)
        if gap.reference not in ("rest", "known"):
            said[gap.reference] = said[gap.group]
    return said


def _forest(columns: Sequence[Column], shown: Sequence[_Shown], name: Rate, overall: Estimate, some: str) -> Forest:
    marks = tuple(_mark(each, name) for each in shown)
    return Forest(
        title=f"{text.label(name)} of each group{columns[0].target}",
        alt=f"{' '.join(_ranked(column, name) for column in columns)}{some}",
        value=Axis(text.label(name), low=_from(marks), high=1),
        marks=marks,
        references=(Reference("all", overall.value, "x"),) if overall.value is not None else (),
    )


def _from(marks: tuple[Mark, ...]) -> float:
    """Where the axis begins: the tenth below every interval."""
    return float(np.floor(10 * min((mark.low for mark in marks if mark.low is not None), default=0.0)) / 10)


def _ranked(column: Column, name: Rate) -> str:
    """The lowest group of a column, and how large a gap chance alone would make."""
    worst, band = column.worst[name]
    if not worst:
        return f"{text.label(column.name)} is not ranked: {band.reason}."
    test, lowest = column.tests[name], text.condition({column.name: worst})
    said = f"Lowest by {text.label(column.name).lower()}: {lowest}, {text.value(*band[:3])} in a band that holds for all groups"
    if test.p_value is None:
        return f"{said}."
    return f"{said}; largest gap {text.number(test.gap)}, {text.number(test.expected)} by chance alone, p = {text.number(test.p_value)}."


def _mark(each: _Shown, name: Rate) -> Mark:
    estimate, among = each.row.estimates[name], getattr(each.row, _AMONG[name])
    if estimate.value is None:
        reason = f"not estimable ({estimate.reason})"
        return Mark(each.label, None, note=reason, n=each.row.patients, part=each.column.name)
    note = f"{text.number(among, 'count')} {_AMONG[name][:-1]}"
    people = min(among, each.row.patients)
    return Mark(each.label, estimate.value, estimate.low, estimate.high, note, people, each.column.name)


def _verdicts(columns: Sequence[Column]) -> Table:
    rows = [(column, name, gap, word) for column in columns for name in COMPARED for gap, word in column.judged[name]]
    worst = sorted(rows, key=lambda row: (row[3].word != "gap shown", -abs(row[2].difference.value or 0.0)))[
        :_MOST_ROWS
    ]
    words = [word.word for *_, word in rows]
    more = f" {_MOST_ROWS} are shown: gaps first, then by size." if len(worst) < len(rows) else ""
    return Table(
        title=f"What may be said of each difference{columns[0].target}",
        alt=f"Of {text.plural(len(rows), 'comparison')}: {counted(words)}. The intervals of a column and rate hold together.{more}",
        columns=("Group", "Rate", "Difference", "Verdict", "Note"),
        rows=tuple(
            (
                text.condition({column.name: gap.group, "against": gap.reference}), text.label(name), _difference(gap),
                word.word, _note(column, name, gap, word),
            )
            for column, name, gap, word in (worst if more else rows)
        ),
    )  # fmt: skip


def _difference(gap: Gap) -> str:
    found = gap.difference
    return text.value(found.value, found.low, found.high) if found.value is not None else "–"


def _note(column: Column, name: Rate, gap: Gap, verdict: Verdict) -> str:
    if gap.difference.value is None:
        return gap.difference.reason or ""
    explained = column.explained.get((name, gap.group))
    if explained is not None:
        return f"at equal prevalence {text.value(explained.left, explained.low, explained.high)}: {explained.word}"
    if verdict.word == "not enough data" and gap.difference.low is not None and gap.difference.high is not None:
        widest = max(abs(gap.difference.low), abs(gap.difference.high))
        return f"gaps of up to {text.number(widest)} are not excluded"
    return ""


def _bounds(columns: Sequence[Column]) -> Table:
    rows = [(column, key, bound) for column in columns for key, bound in column.bounds.items() if bound.unknown]
    return Table(
        title=f"What the missing values could hide{columns[0].target}",
        alt=f"For each group, the difference without the {UNKNOWN} cases, and the least and greatest over every way to assign them.",
        columns=("Column", "Group", "Rate", "Known cases only", "Least", "Greatest", "Unknown cases"),
        rows=tuple(
            (
                text.label(column.name), group, text.label(name),
                *(text.value(*each[:3]) for each in (bound.observed, bound.lowest, bound.highest)),
                bound.unknown,
            )
            for column, (name, group), bound in rows[:_MOST_ROWS]
        ),
        counts=("Unknown cases",),
    )  # fmt: skip
