"""What another threshold, or a recalibration by group, would change: a preview, never applied to the model."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from xvision import text
from xvision.analyses.mitigation_preview.column import Column, Options, Recalibration, share_of
from xvision.analyses.mitigation_preview.page import charts
from xvision.audit import Audit
from xvision.errors import ConfigError, nearest
from xvision.methods.groups.preview_effects import levels_down
from xvision.registry import analysis
from xvision.result import NotApplicable, Result
from xvision.tuning import tuning_cases

_WARNING = (
    "Nothing here was applied to the model. A changed threshold or recalibration is a changed device, and thresholds that"
    " depend on a patient's group may be unlawful or clinically unacceptable; neither is for this report to decide."
)


@analysis("Mitigation preview", pillar="Fairness", need="scores", passes="none beyond the clean predictions")
def mitigation_preview(
    audit: Audit, *, column: str = "", target: float = 0.0, fewest: int = 20, recalibration: Recalibration = "platt"
) -> Result:
    """What would changing the threshold or recalibrating by group do, and to whom?

    Everything is fitted on the split "validation" and judged on the audited cases; without that split there is no preview.
    Group thresholds and one new threshold reach a sensitivity of ``target``, or that of the best group if it is 0. The
    recalibration keeps the threshold; a group has its own only from 200 cases with 50 of either class, else the temperature
    shared by all; the ranking within a group stays as it is. Equal sensitivity, equal false alarms and equalised odds are
    fairlearn's randomised thresholds (Hardt et al. 2016): expected values over their draws, none of which is made.
    ``helped``: patients decided rightly after, wrongly before. ``harmed``: the reverse. A patient with several images can be
    both. ``randomised_share``: cases that two seeds would decide differently. ``ignored_share``: cases decided by a coin
    whatever the image shows. "Levels down": no group surely gains in what the preview evens out, and one surely loses.
    Groups with fewer than ``fewest`` positive or negative patients to fit on, and unknown ones, keep the deployed threshold
    wherever a group is needed. Intervals take the previews as fitted. ``column``: only this one, not each patient group column.
    """
    columns = _columns(audit, column)
    if audit.decision.positive is None or audit.decision.threshold is None:
        raise NotApplicable(
            f"the model has {len(audit.classes)} classes and takes the most probable one: there is no threshold to change"
        )
    tuning = tuning_cases(audit)
    if isinstance(tuning, str):
        raise NotApplicable(f"previews are fitted on cases that are not audited: {tuning}")
    figures = [Column(audit, tuning, name, Options(target, fewest, recalibration)) for name in columns]
    return Result(
        _summary(figures),
        tuple(item for each in figures for item in each.metrics()),
        tuple(chart for each in figures for chart in charts(each)),
        tables={"mitigation_preview": pd.concat([each.table() for each in figures], ignore_index=True)},
        caveats=(_WARNING, *_caveats(figures, target)),
    )


def _columns(audit: Audit, column: str) -> tuple[str, ...]:
    if not audit.groups:
        raise NotApplicable("no columns say who the patient is; name them in the plan or with --groups")
    if column and column not in audit.groups:
        raise ConfigError(
            f"analysis.mitigation_preview.column: {column!r} is no patient group column. {nearest(column, audit.groups)}"
        )
    return (column,) if column else audit.groups


def _summary(figures: list[Column]) -> str:
    able = [each for each in figures if each.fitted is not None]
    if not able:
        return (
            f"No preview for {text.listing([each.name for each in figures])} ({figures[0].name}: {figures[0].reason})."
        )
    parts = []
    for each in able[:2]:
        helped, harmed = (round(each.people(name)) for name in ("helped", "harmed"))
        reached = text.number(each.fitted.target if each.fitted else None)
        parts.append(
            f"Thresholds by {each.title.lower()} that reach a sensitivity of {reached} in the tuning cases of each group would help"
            f" {text.plural(helped, 'patient')} and harm {text.number(harmed, 'count')}."
        )
    everything = [judged for each in able for judged in each.judged]
    down = sum(levels_down(judged.effects) for judged in everything)
    chance = sum(any(effect.drawn.value for effect in judged.effects) for judged in everything)
    parts.append(f"Of {text.plural(len(everything), 'preview')}, {down} level down and {chance} decide by chance.")
    return " ".join(parts)


def _caveats(figures: list[Column], target: float) -> Iterator[str]:
    if any(each.judged for each in figures):
        yield "The intervals take each preview as fitted; other tuning cases would have given other thresholds."
    if any(each.judged for each in figures) and not target:
        yield "The sensitivity to reach is that of the best group in the tuning cases, and a group is best in part by luck."
    for each in figures:
        if each.reason:
            yield f"{each.title}: no preview, {each.reason}."
        elif each.unknown.any():
            yield (
                f"{each.title} is unknown for {share_of(float(each.unknown.mean()))} of the images. They keep the deployed threshold"
                " where a preview needs the group; one new threshold and the shared temperature hold for them too."
            )
