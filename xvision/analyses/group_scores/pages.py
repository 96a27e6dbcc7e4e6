"""What is shown of the figures: sizes first, then ranking, then calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from xvision import text
from xvision.analyses.group_scores.figures import ERROR_RATE, Figures, Row
from xvision.audit import Audit
from xvision.charts import Axis, Chart, Forest, Lines, Mark, Reference, Series, Table
from xvision.methods.groups.cases import UNKNOWN
from xvision.methods.groups.gaps import Gap
from xvision.methods.groups.roc import thinned_roc
from xvision.methods.groups.verdicts import reference_words, verdict
from xvision.methods.intervals import Estimate
from xvision.methods.scores import auroc
from xvision.targets import Target

_MOST_ROWS = 20
_MOST_CURVES = 4
_FEWEST = 5
"""Patients in a bin that is drawn."""


def charts(audit: Audit, target: Target, found: Sequence[Figures]) -> Iterator[Chart]:
    """All of one class, for every column; the largest groups where there are many."""
    shown = _largest([(each, row) for each in found for row in each.rows])
    of = str(target)
    yield _sizes(found, shown, of)
    yield _forest(
        f"AUROC of each group{of}",
        "AUROC",
        shown,
        lambda row: row.auroc,
        auroc(target.scores, target.labels, audit.patients).value,
    )
    yield from _crossed(found, of)
    yield _ranking(shown, of)
    yield _forest(
        f"Observed rate minus mean probability of {target.positive}, by group",
        "Above 0: risk is said too low",
        shown,
        lambda row: row.calibration.in_the_large,
        0.0,
    )
    yield _calibration(shown, of)
    yield _compared(audit, found, of)
    for each in found:
        if each.column in audit.groups or not audit.groups or _apart(audit, each):
            yield from _curves(each, of)


def _apart(audit: Audit, found: Figures) -> bool:
    """Whether a column of how images were taken has a difference worth curves."""
    return any(verdict(gap, "auroc", margin=audit.fairness.margin).word == "gap shown" for gap in found.aurocs) or any(
        cross.shown for cross in found.crossed
    )


def counted_columns(audit: Audit, columns: tuple[str, ...]) -> Iterator[str]:
    """What a reader must know of missing groups and of tables that do not hold all."""
    levels = 0
    for column in columns:
        values = audit.column(column)
        levels += len(np.unique(values))
        share = float((values == UNKNOWN).mean())
        if share > 0:
            yield f"{text.label(column)} is unknown for {100 * share:.0f} % of the images; they are a row of their own and never ranked."
    if levels > _MOST_ROWS:
        yield f"Tables and forests show the {_MOST_ROWS} largest of {levels} groups; the metrics hold all."


def _largest(pairs: list[tuple[Figures, Row]]) -> list[tuple[Figures, Row]]:
    """At most so many rows, the largest groups, in the order of their columns."""
    order = sorted(range(len(pairs)), key=lambda place: (-pairs[place][1].calibration.cases, place))[:_MOST_ROWS]
    return [pairs[place] for place in sorted(order)]


def _named(each: Figures, row: Row) -> str:
    return f"{text.label(each.column)} {row.group}"


def _sizes(found: Sequence[Figures], shown: list[tuple[Figures, Row]], of: str) -> Table:
    total = sum(len(each.rows) for each in found)
    little = sum(row.calibration.reason is not None for each in found for row in each.rows)
    return Table(
        title=f"Who is in the data{of}",
        alt=f"{len(shown)} of {text.plural(total, 'group')} are shown; {little} of all have not enough data.",
        columns=("Column", "Group", "Images", "Patients", "Positive", "Negative", "Enough to judge"),
        rows=tuple(
            (
                text.label(each.column),
                row.group,
                row.calibration.cases,
                row.calibration.patients,
                row.calibration.events,
                row.calibration.cases - row.calibration.events,
                f"not enough data: {row.calibration.reason}" if row.calibration.reason else "yes",
            )
            for each, row in shown
        ),
        counts=("Images", "Patients", "Positive", "Negative"),
        part="Column",
    )


def _forest(
    title: str, axis: str, shown: list[tuple[Figures, Row]], pick: Callable[[Row], Estimate], line: float | None
) -> Forest:
    marks = tuple(_mark(_named(each, row), pick(row), row.calibration.cases, each.column) for each, row in shown)
    known = [mark for mark in marks if mark.value is not None]
    lowest = min(known, key=lambda mark: mark.value or 0.0, default=None)
    highest = max(known, key=lambda mark: mark.value or 0.0, default=None)
    alt = "No group has enough data."
    if lowest and highest:
        alt = (
            f"From {text.number(lowest.value)} for {lowest.label} to {text.number(highest.value)} for {highest.label}."
        )
    named = "all images" if line else "as said"
    references = () if line is None else (Reference(named, line, "x"),)
    return Forest(title, alt, Axis(axis), marks, references)


def _mark(label: str, estimate: Estimate, cases: int, column: str) -> Mark:
    if estimate.value is None:
        return Mark(label, None, note=f"not enough data: {estimate.reason}", n=cases, part=column)
    note = f"n = {text.number(cases, 'count')}"
    return Mark(label, estimate.value, estimate.low, estimate.high, note, n=cases, part=column)


def _crossed(found: Sequence[Figures], of: str) -> Iterator[Forest]:
    pairs = [(each, cross) for each in found for cross in each.crossed][:_MOST_ROWS]
    known = [(each, cross) for each, cross in pairs if cross.difference.value is not None]
    if not known:
        return
    each, far = max(known, key=lambda pair: abs(pair[1].difference.value or 0.0))
    yield Forest(
        title=f"Scored higher or lower at the same label: xAUC of the group minus xAUC of the others{of}",
        alt=f"Furthest from 0: {text.label(each.column)} {far.group}, {text.value(*far.difference[:3])}.",
        value=Axis("DxAUC: above 0 the group is scored higher"),
        marks=tuple(
            _mark(
                f"{text.label(each.column)} {cross.group} and {reference_words(cross.reference)}",
                cross.difference,
                int((each.levels == cross.group).sum()),
                each.column,
            )
            for each, cross in pairs
        ),
        references=(Reference("scored alike", 0.0, "x"),),
    )


def _spoken(estimate: Estimate) -> str:
    return text.value(*estimate[:3]) if estimate.value is not None else "not enough data"


def _ranking(shown: list[tuple[Figures, Row]], of: str) -> Table:
    return Table(
        title=f"Ranking in each group, beside its prevalence{of}",
        alt="AUPRC and Brier score follow the prevalence: groups of unequal prevalence cannot be compared by them.",
        columns=("Group", "AUROC", "Prevalence", "AUPRC", "Brier"),
        rows=tuple(
            (_named(each, row), *map(_spoken, (row.auroc, row.prevalence, row.auprc, row.calibration.brier)))
            for each, row in shown
        ),
    )


def _calibration(shown: list[tuple[Figures, Row]], of: str) -> Table:
    flagged = [_named(each, row) for each, row in shown if _word(row) == "miscalibrated"]
    return Table(
        title=f"Calibration of each group{of}",
        alt=f"Miscalibrated beyond chance: {text.listing(flagged)}."
        if flagged
        else "No group is shown to be miscalibrated.",
        columns=("Group", "Slope", "Debiased error", "ECE", "ECE if calibrated", "Adjusted p", "Verdict"),
        rows=tuple((_named(each, row), *_calibrated(row)) for each, row in shown),
    )


def _calibrated(row: Row) -> Iterator[str]:
    judged = row.calibration
    yield _spoken(judged.slope)
    yield _spoken(judged.error)
    yield text.number(judged.ece.value)
    yield text.value(judged.chance.mean, judged.chance.low, judged.chance.high) if judged.chance else "–"
    yield text.number(judged.adjusted_p)
    yield _word(row)


def _word(row: Row) -> str:
    if row.calibration.chance is None:
        return "not enough data"
    p_value = row.calibration.adjusted_p
    if p_value is None:
        return "not judged"
    return "miscalibrated" if p_value <= ERROR_RATE else "not shown"


def _compared(audit: Audit, found: Sequence[Figures], of: str) -> Table:
    rows = [row for each in found for row in _comparisons(audit, each)]
    shown = sum("gap shown" in row[2:] for row in rows)
    return Table(
        title=f"Differences between groups, and what may be said of them{of}",
        alt=f"{shown} of {text.plural(len(rows), 'comparison')} show a difference in AUROC or in calibration in the large.",
        columns=("Comparison", "AUROC difference", "In AUROC", "Difference of observed − said", "In calibration"),
        rows=tuple(rows[:_MOST_ROWS]),
    )


def _comparisons(audit: Audit, each: Figures) -> Iterator[tuple[str, ...]]:
    for ranking, large in zip(each.aurocs, each.in_the_large, strict=True):
        yield (
            f"{text.label(each.column)} {ranking.group} and {reference_words(ranking.reference)}",
            _spoken(ranking.difference),
            _judged(ranking, "auroc", audit.fairness.margin),
            _spoken(large.difference),
            _judged(large, "calibration_in_the_large", None),
        )


def _judged(gap: Gap, name: str, margin: float | None) -> str:
    return verdict(gap, name, margin=margin).word if gap.ranked else "not ranked"


def _curves(each: Figures, of: str) -> Iterator[Lines]:
    """ROC and calibration curves of the largest groups that have enough data, where there are two of them."""
    enough = [row for row in each.rows if row.calibration.reason is None]
    shown = sorted(enough, key=lambda row: (-row.calibration.cases, row.group))[:_MOST_CURVES]
    if len(shown) < 2:
        return
    some = f" ({len(shown)} largest of {len(each.rows)} groups)" if len(shown) < len(each.rows) else ""
    title = f"{text.label(each.column)}{of}{some}"
    values = "; ".join(f"{row.group} {text.number(row.auroc.value)}" for row in shown)
    yield Lines(
        title=f"ROC curves: {title}",
        alt=f"AUROC: {values}. Curves that lie on each other are reached at different thresholds where scores are shifted.",
        x=Axis("False positive rate", low=0, high=1),
        y=Axis("Sensitivity", low=0, high=1),
        series=tuple(_roc(each, row) for row in shown),
        diagonal="chance",
    )
    gaps = "; ".join(f"{row.group} {text.number(row.calibration.in_the_large.value)}" for row in shown)
    yield Lines(
        title=f"Calibration curves: {title}",
        alt=f"Observed rate minus mean probability: {gaps}. Bins are the same for all and drawn from {_FEWEST} patients on; Wilson.",
        x=Axis(f"Mean predicted probability of {each.target.positive}", low=0, high=1),
        y=Axis("Observed rate", low=0, high=1),
        series=tuple(_reliability(row) for row in shown),
        diagonal="perfect calibration",
    )


def _roc(each: Figures, row: Row) -> Series:
    member = each.levels == row.group
    false, true = thinned_roc(each.target.scores[member], each.target.labels[member])
    name, people = f"{row.group} (n = {text.number(row.calibration.cases, 'count')})", row.calibration.patients
    return Series(name, tuple(false.tolist()), tuple(true.tolist()), marks=False, n=people)


def _reliability(row: Row) -> Series:
    bins = [each for each in row.calibration.bins if each.observed.n >= _FEWEST]
    return Series(
        f"{row.group} (n = {text.number(row.calibration.cases, 'count')})",
        tuple(each.predicted for each in bins),
        tuple(each.observed.value for each in bins),
        tuple(each.observed.low for each in bins),
        tuple(each.observed.high for each in bins),
        n=row.calibration.patients,
    )
