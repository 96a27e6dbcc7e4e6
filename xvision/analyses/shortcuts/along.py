"""Second rung: whether decisions and scores follow a column once the true label is held fixed."""

from __future__ import annotations

import numpy as np

from xvision import text
from xvision.analyses.shortcuts.part import Key, Part, columns_of
from xvision.audit import Audit, apart, metric
from xvision.charts import Axis, Forest, Mark, Reference
from xvision.methods.groups.cases import UNKNOWN
from xvision.methods.groups.gaps import Gap, conditional_dependence, sides
from xvision.methods.intervals import Estimate, held_together
from xvision.methods.shortcuts.followed import aligned_difference, cells, conditional_shift, goes_with_positive
from xvision.methods.shortcuts.ladder import Rung, shown
from xvision.result import Metric, spoken
from xvision.targets import Target, targets

_MOST_MARKS = 20
_KEYS = ("against", "class", "label", "column", "scores")


def follows(audit: Audit, minimum: int, available: set[Key]) -> Part:
    """Dependence and score shift of every level; aligned against conflicting cases where a column goes with the label."""
    part = Part()
    looked: list[tuple[Key, Metric, float]] = []
    for target in targets(audit):
        for column in columns_of(audit):
            found = _of_column(audit, target, column, minimum)
            part.metrics += [item for item, _, _ in found]
            looked += [((target.name, column), item, level) for item, level, ranked in found if ranked]
            if (target.name, column) in available:
                part.metrics += _aligned(audit, target, column, minimum)
    reached = shown([_estimate(item) for _, item, _ in looked], levels=[level for _, _, level in looked])
    for key in dict.fromkeys((target.name, column) for target in targets(audit) for column in columns_of(audit)):
        own = [(item, yes) for (where, item, _), yes in zip(looked, reached, strict=True) if where == key]
        part.rungs[key] = _rung(own)
    part.charts += _forest(part.metrics)
    return part


def _estimate(item: Metric) -> Estimate:
    return Estimate(item.value, item.low, item.high, item.n or 0, item.interval, item.reason)


def _of_column(audit: Audit, target: Target, column: str, minimum: int) -> list[tuple[Metric, float, bool]]:
    """Metric, level of its interval, and whether it is a comparison of known levels."""
    levels, patients = audit.column(column), audit.patients
    gaps = conditional_dependence(target.decisions, target.labels, levels, patients, minimum=minimum)
    found = []
    for gap in gaps:
        compared = sides(levels, gap)
        shift = conditional_shift(target.log_odds, target.labels, *compared, patients, minimum=minimum, level=gap.level)
        found.append((_named("dependence", gap, gap.difference, column, target), gap.level, gap.ranked))
        found.append((_named("score_shift", gap, shift, column, target), gap.level, gap.ranked))
    return found


def _named(name: str, gap: Gap, found: Estimate, column: str, target: Target) -> Metric:
    found = held_together(found, gap.level, gap.family)
    where = {**target.where, apart(column, *_KEYS): gap.group, "against": gap.reference}
    return metric(name, found, where=where, unit="standard deviations" if name == "score_shift" else "")


def _aligned(audit: Audit, target: Target, column: str, minimum: int) -> list[Metric]:
    everything, levels, where = audit.everything, audit.column(column), {**target.where, "column": column}
    learned = everything.label_codes(audit.classes) == target.code
    names = goes_with_positive(everything.table[column].to_numpy(dtype=str), learned)
    estimate = aligned_difference(
        target.decisions, target.labels, np.isin(levels, names), levels != UNKNOWN, audit.patients, minimum=minimum
    )
    found = [metric("aligned_accuracy_difference", estimate, where=where)]
    rows = cells(target.decisions, target.labels, levels, audit.patients, minimum=minimum)
    if not rows:
        reason = f"no label and level have {minimum} patients together"
        return [*found, Metric("worst_cell_accuracy", None, better="higher", where=where, reason=reason)]
    lowest = rows[0]
    side = "positive" if lowest.positive else "negative"
    how = f"{lowest.accuracy.method}, lowest of {text.plural(len(rows), 'cell')} ({side}, {column} {lowest.level})"
    return [*found, metric("worst_cell_accuracy", lowest.accuracy._replace(method=how), better="higher", where=where)]


def _rung(own: list[tuple[Metric, bool]]) -> Rung:
    known = [(item, yes) for item, yes in own if item.value is not None]
    if not known:
        return Rung("left out", own[0][0].reason or "" if own else "fewer than two known levels")
    item, yes = max(known, key=lambda pair: (pair[1], pair[0].name == "dependence", abs(pair[0].value or 0.0)))
    said = "share decided positive" if item.name == "dependence" else "score"
    level = next(str(value) for key, value in item.where.items() if key not in {"class", "against"})
    return Rung("shown" if yes else "not shown", f"{said} at {level}, same label: {spoken(item)}")


def _forest(metrics: list[Metric]) -> list[Forest]:
    known = [item for item in metrics if item.name == "dependence" and item.value is not None]
    if not known:
        return []
    strongest = max(known, key=lambda item: abs(item.value or 0.0))
    chosen = sorted(known, key=lambda item: -abs(item.value or 0.0))[:_MOST_MARKS]
    return [
        Forest(
            "Decided positive more often at a level, the true label held fixed",
            f"Furthest from 0: {text.condition(strongest.where)}, {spoken(strongest)}."
            + (f" The {_MOST_MARKS} largest of {len(known)} are shown." if len(known) > len(chosen) else ""),
            Axis("Difference in the share decided positive"),
            tuple(
                Mark(text.condition(item.where), item.value, item.low, item.high, f"n = {item.n}")
                for item in known
                if item in chosen
            ),
            (Reference("no dependence", 0.0, "x"),),
        )
    ]
