"""What the page shows of a column: who is in it, the rates, and each comparison in words."""

from __future__ import annotations

from collections.abc import Iterator

from xvision import text
from xvision.analyses.fairness.column import COMPARED, TESTED, Column
from xvision.charts import Axis, Chart, Forest, Mark, Reference, Table
from xvision.methods.groups.cases import UNKNOWN, Rate
from xvision.methods.groups.gaps import Gap
from xvision.methods.groups.power import detectable_difference
from xvision.methods.groups.table import GroupRow
from xvision.methods.groups.verdicts import Verdict, worst_group
from xvision.methods.intervals import Estimate

_MOST_ROWS = 20
_AMONG = {"sensitivity": "positives", "specificity": "negatives"}


def charts(found: Column, overall: dict[str, Estimate], power: float, minimum: int) -> Iterator[Chart]:
    """Sizes first, then a forest of each tested rate, then what may be said."""
    shown = sorted(found.rows, key=lambda row: -row.cases)[:_MOST_ROWS]
    kept = [row for row in found.rows if row in shown]
    yield _sizes(found, kept, overall, power)
    for name in TESTED:
        if any(row.estimates[name].value is not None for row in kept):
            yield _forest(found, kept, name, overall[name], minimum)
    if any(found.judged[name] for name in COMPARED):
        yield _verdicts(found)
    if found.bounds:
        yield _bounds(found)


def _title(found: Column) -> str:
    return f"{text.label(found.name)}{found.target}"


def _sizes(found: Column, kept: list[GroupRow], overall: dict[str, Estimate], power: float) -> Table:
    smallest = {name: _detectable(found, name, overall[name], power) for name in TESTED}
    more = f", of which the {_MOST_ROWS} largest are shown" if len(kept) < len(found.rows) else ""
    return Table(
        title=f"{_title(found)}: who is in the data",
        alt=f"{text.plural(len(found.rows), 'level')}{more}. The last columns say how much lower a group's rate would have to be for"
        f" this comparison to show it with a chance of {100 * power:.0f} %, were every image a patient.",
        columns=(
            "Group", "Images", "Patients", "Positive", "Negative", "Sensitivity: smallest gap found",
            "Specificity: smallest gap found",
        ),
        rows=tuple(
            (
                row.group, row.cases, row.patients, row.positives, row.negatives,
                *(smallest[name].get(row.group, "") for name in TESTED),
            )
            for row in kept
        ),
        counts=("Images", "Patients", "Positive", "Negative"),
    )  # fmt: skip


def _detectable(found: Column, name: Rate, overall: Estimate, power: float) -> dict[str, str]:
    """By group, in words."""
    said = {}
    for gap, _ in found.judged[name][:_MOST_ROWS]:
        if not gap.ranked or overall.value is None or not min(gap.cases, gap.reference_cases):
            continue
        least = detectable_difference(
            overall.value, gap.cases, gap.reference_cases, power=power, family=max(gap.family, 1)
        )
        said[gap.group] = "none" if least is None else text.number(least)
        if gap.reference not in ("rest", "known"):
            said[gap.reference] = said[gap.group]
    return said


def _forest(found: Column, kept: list[GroupRow], name: Rate, overall: Estimate, minimum: int) -> Forest:
    ranking = worst_group({row.group: row.estimates[name] for row in found.rows}, minimum=minimum)
    test = found.tests[name]
    said = (
        f"Lowest of the groups with {minimum} patients or more: {text.condition({found.name: ranking.worst})}, "
        f"{_spoken(found, ranking.worst, name)}."
        if ranking.worst is not None
        else f"No ranking: {ranking.reason}."
    )
    if test.p_value is not None:
        said += (
            f" Largest gap {text.number(test.gap)}, by chance alone {text.number(test.expected)} on average;"
            f" p = {text.number(test.p_value)}."
        )
    return Forest(
        title=f"{_title(found)}: {text.label(name).lower()} of each group",
        alt=said,
        value=Axis(text.label(name), low=0, high=1),
        marks=tuple(_mark(row, name, found.name) for row in kept),
        references=(Reference("all", overall.value, "x"),) if overall.value is not None else (),
    )


def _spoken(found: Column, group: str, name: Rate) -> str:
    estimate = next(row.estimates[name] for row in found.rows if row.group == group)
    return text.value(estimate.value, estimate.low, estimate.high)


def _mark(row: GroupRow, name: str, column: str) -> Mark:
    estimate, among = row.estimates[name], getattr(row, _AMONG[name])
    if estimate.value is None:
        return Mark(row.group, None, note=f"not estimable ({estimate.reason})", n=row.patients, part=column)
    note = f"{text.number(among, 'count')} {_AMONG[name][:-1]}"
    return Mark(row.group, estimate.value, estimate.low, estimate.high, note, min(among, row.patients), column)


def _verdicts(found: Column) -> Table:
    rows = [(name, gap, verdict) for name in COMPARED for gap, verdict in found.judged[name]]
    worst = sorted(rows, key=lambda row: -abs(row[1].difference.value or 0.0))[:_MOST_ROWS]
    words = [verdict.word for _, _, verdict in rows]
    counted = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    more = f" The {_MOST_ROWS} largest differences are shown." if len(worst) < len(rows) else ""
    return Table(
        title=f"{_title(found)}: what may be said of each difference",
        alt=f"Of {text.plural(len(rows), 'comparison')}: {counted}.{more}",
        columns=("Group", "Against", "Rate", "Difference", "Verdict", "Note"),
        rows=tuple(
            (
                gap.group,
                gap.reference,
                text.label(name),
                _difference(gap),
                verdict.word,
                _note(found, name, gap, verdict),
            )
            for name, gap, verdict in rows
            if (name, gap, verdict) in worst
        ),
    )


def _difference(gap: Gap) -> str:
    found = gap.difference
    return text.value(found.value, found.low, found.high) if found.value is not None else "–"


def _note(found: Column, name: Rate, gap: Gap, verdict: Verdict) -> str:
    if gap.difference.value is None:
        return gap.difference.reason or ""
    explained = found.explained.get((name, gap.group))
    if explained is not None:
        return f"at equal prevalence {text.value(explained.left, explained.low, explained.high)}: {explained.word}"
    if verdict.word == "not enough data" and gap.difference.low is not None and gap.difference.high is not None:
        widest = max(abs(gap.difference.low), abs(gap.difference.high))
        return f"gaps of up to {text.number(widest)} are not excluded"
    return ""


def _bounds(found: Column) -> Table:
    return Table(
        title=f"{_title(found)}: what the missing values could hide",
        alt=f"For each group, the difference without the {UNKNOWN} cases, and the least and greatest over every way to assign them.",
        columns=("Group", "Rate", "Known cases only", "Least", "Greatest", "Unknown cases"),
        rows=tuple(
            (
                group, text.label(name),
                *(text.value(each.value, each.low, each.high) for each in (bound.observed, bound.lowest, bound.highest)),
                bound.unknown,
            )
            for (name, group), bound in list(found.bounds.items())[:_MOST_ROWS]
        ),
        counts=("Unknown cases",),
    )  # fmt: skip
