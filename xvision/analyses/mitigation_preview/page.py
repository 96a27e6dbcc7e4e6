"""The previews of one column as tables: who is judged, what each preview does, and before and after by group."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import expit

from xvision import text
from xvision.analyses.mitigation_preview.column import Column, Judged, share_of
from xvision.charts import Chart, Table
from xvision.methods.decision import TIE
from xvision.methods.groups.fairlearn_thresholds import Mixture
from xvision.methods.groups.preview_effects import GroupEffect, Rates, levels_down
from xvision.methods.groups.previews import GROUP_THRESHOLDS, NEW_THRESHOLD, RECALIBRATION, GroupRule

_MOST_ROWS = 20
_IMPORTANT = (
    GROUP_THRESHOLDS,
    "equalised odds",
    NEW_THRESHOLD,
    RECALIBRATION,
    "equal sensitivity",
    "equal false alarms",
)
_KINDS = ("Newly found", "Newly missed", "Alarms spared", "New alarms")


def charts(column: Column) -> Iterator[Chart]:
    """Group sizes first; the rest only where there is a preview."""
    yield _sizes(column)
    if not column.judged:
        return
    yield _labelled(column)
    groups = len(column.judged[0].effects)
    names = _IMPORTANT[: max(_MOST_ROWS // groups, 1)]
    shown = [judged for judged in column.judged if judged.rule.name in names]
    left = len(column.judged) - len(shown)
    note = f" {text.plural(left, 'further preview')} in the metrics." if left else ""
    yield _rates(column, shown, note)
    if moved := [row for row in _rows(shown) if any(kind.any() for kind in row[1].moves)]:
        yield _people(column, moved, note)


def _sizes(column: Column) -> Table:
    largest = sorted(column.named, key=lambda level: -int((column.levels == level).sum()))[:_MOST_ROWS]
    less = f", the largest {len(largest)} shown" if len(largest) < len(column.named) else ""
    positive = column.audit.classes[column.audit.positive]
    return Table(
        title=f"{column.title}: who is judged, and who was fitted on",
        alt=f"{text.plural(len(column.named), 'group')}{less}; positive is {positive}.",
        columns=("Group", "Images", "Patients", "Positive", "Negative", "Fitted on", "Positive of these", "Thresholds"),
        rows=tuple(
            (level, *_counted(column, level), _use(column, level)) for level in column.named if level in largest
        ),
        counts=("Images", "Patients", "Positive", "Negative"),
    )


def _counted(column: Column, level: str) -> tuple[int, int, int, int, int, int]:
    member, fitted = column.levels == level, column.tuning.groups == level
    cases, positive = int(member.sum()), int((member & column.positive).sum())
    patients = len(np.unique(column.patients[member]))
    return cases, patients, positive, cases - positive, int(fitted.sum()), int((fitted & column.tuning.labels).sum())


def _use(column: Column, level: str) -> str:
    if column.fitted is None:
        return "no preview"
    if level in column.fitted.eligible:
        return "own"
    return f"deployed ({column.fitted.refused.get(level, 'no group to fit on')})"


def _labelled(column: Column) -> Table:
    down = [judged.rule.name for judged in column.judged if levels_down(judged.effects)]
    return Table(
        title=f"{column.title}: what each preview does and what must be said of it",
        alt=f"Levels down: {text.listing(down, most=6) or 'none'}.",
        columns=("Preview", "Thresholds on the probability", "Must be said"),
        rows=tuple(
            (judged.rule.name, _settings(judged.rule), "; ".join(judged.labels) or "–") for judged in column.judged
        ),
    )


def _settings(rule: GroupRule) -> str:
    if rule.name == RECALIBRATION:
        said = [f"{name}: {line.words}" for name, line in rule.lines.items()]
        return f"as deployed; {'; '.join(said)}" if said else "no recalibration could be fitted"
    mixtures = {**rule.mixtures, **({"all": rule.others} if rule.others else {})}
    return "; ".join(f"{name} {_thresholds(mixture)}" for name, mixture in mixtures.items())


def _thresholds(mixture: Mixture) -> str:
    """``0.412``, or ``0.300 or 0.350 (12 %)`` where a draw decides between two."""
    first, second = (text.number(float(expit(at + TIE))) for at in mixture.thresholds)
    if mixture.second in (0.0, 1.0) or first == second:
        return second if mixture.second == 1.0 else first
    return f"{first} or {second} ({share_of(mixture.second)})"


def _rows(shown: list[Judged]) -> list[tuple[GroupRule, GroupEffect]]:
    return [(judged.rule, effect) for judged in shown for effect in judged.effects]


def _rates(column: Column, shown: list[Judged], note: str) -> Table:
    rows = [(effect, rule.mixture(effect.group) is None, rule.name) for rule, effect in _rows(shown)]
    return Table(
        title=f"{column.title}: sensitivity and specificity before and after",
        alt=f"Rows by preview and group.{note}",
        columns=("Preview", "Group", "Sensitivity", "Change", "Specificity", "Change of specificity"),
        rows=tuple(
            (name, effect.group, *_spoken(effect.sensitivity, kept), *_spoken(effect.specificity, kept))
            for effect, kept, name in rows
        ),
    )


def _spoken(rates: Rates, kept: bool) -> tuple[str, str]:
    if rates.change.value is None:
        return text.value(None, None, None, reason=rates.change.reason), "–"
    if kept:
        return text.number(rates.before.value), "none: decided as deployed"
    return f"{text.number(rates.before.value)} → {text.number(rates.after.value)}", text.value(*rates.change[:3])


def _people(column: Column, moved: list[tuple[GroupRule, GroupEffect]], note: str) -> Table:
    rows = [
        (
            rule.name,
            effect.group,
            *(_number(kind) for kind in column.oriented(effect.moves)),
            *(text.value(*share[:3], reason=share.reason) for share in (effect.helped, effect.harmed)),
        )
        for rule, effect in moved
    ]
    return Table(
        title=f"{column.title}: whom it would help and harm",
        alt=f"Expected numbers of images, and shares of patients helped and harmed, where any decision changes.{note}",
        columns=("Preview", "Group", *_KINDS, "Patients helped", "Patients harmed"),
        rows=tuple(rows),
        counts=_KINDS,
        part="Preview",
    )


def _number(values: np.ndarray) -> int | float:
    total = round(float(values.sum()), 1)
    return int(total) if total.is_integer() else total
