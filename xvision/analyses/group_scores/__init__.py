"""Whether a score can be read in the same way for every group of patients."""

from __future__ import annotations

from collections.abc import Iterator

from xvision import text
from xvision.analyses.group_scores.figures import ERROR_RATE, Figures, gathered
from xvision.analyses.group_scores.pages import charts, counted_columns
from xvision.audit import Audit, apart, metric
from xvision.charts import Chart
from xvision.methods.groups.calibration_by_group import GroupCalibration
from xvision.methods.groups.verdicts import reference_words, verdict
from xvision.methods.intervals import Estimate, held_together, not_estimable
from xvision.registry import analysis
from xvision.result import Better, Metric, NotApplicable, Result, Where
from xvision.targets import MOST_CLASSES, NO_COLUMNS, declared_columns, targets

_MOST_CHARTED = 3
"""Classes with charts, where there are more than two."""


@analysis("Scores by group", pillar="Fairness", need="scores", passes="none beyond the clean predictions")
def group_scores(audit: Audit, *, bins: int = 10, minimum: int = 10, resamples: int = 500, draws: int = 1000) -> Result:
    """Do the scores mean the same in every group?

    ``auroc``: how well cases of one group are ranked among themselves. ``cross_auroc_positives`` (xAUC, Kallus and Zhou 2019): how
    often a positive of the group scores above a negative of the others; ``cross_auroc_negatives``: a positive of the others above a
    negative of the group; ``cross_auroc_difference``: the first minus the second. Above 0 the group is scored higher at the same
    label, so that one threshold finds more of its positives and alarms at more of its negatives, although each AUROC may be equal.
    ``calibration_in_the_large``: observed rate minus mean probability, above 0 where risk is said too low. Slope below 1: too
    extreme. ``debiased_calibration_error`` can be compared between groups of different size. ``ece`` cannot, because it grows as
    groups shrink: read it beside ``ece_if_calibrated``, what a calibrated model would show on the same cases, and ``ece_p``, how
    often it would show as much (``ece_adjusted_p``: Holm over the groups of a column, Bonferroni over columns). All groups share the
    same ``bins`` from 0 to 1. ``_difference`` compares a group with the other one or with the rest; those of one kind hold together
    over all columns.
    ``auprc`` and ``brier`` follow the prevalence, which stands beside them, and must not be compared without it. A group with fewer
    than ``minimum`` patients on either side is shown with its counts and nothing else is said of it. With more than two classes each is
    taken against the rest. Equal figures do not make the labels of all groups equally right.
    """
    columns = declared_columns(audit)
    if not columns:
        raise NotApplicable(NO_COLUMNS)
    metrics: list[Metric] = []
    drawn: list[Chart] = []
    sentences: list[str] = []
    for place, target in enumerate(targets(audit)):
        found = [
            gathered(audit, target, column, len(columns), bins=bins, minimum=minimum, resamples=resamples, draws=draws)
            for column in columns
        ]
        metrics += [item for each in found for item in _metrics(each)]
        if place < _MOST_CHARTED:
            drawn += charts(audit, target, found)
        sentences += [_sentence(audit, each) for each in found]
    return Result(
        " ".join(_said(sentences)), tuple(metrics), tuple(drawn), caveats=tuple(_caveats(audit, columns, minimum))
    )


def _metrics(found: Figures) -> Iterator[Metric]:
    key = apart(found.column, "class", "against")
    for row in found.rows:
        where = {**found.target.where, key: row.group}
        calibrated = row.calibration
        yield metric("auroc", row.auroc, better="higher", where=where)
        yield metric("prevalence", row.prevalence, where=where)
        yield metric("auprc", row.auprc, better="higher", where=where)
        for name, estimate, better in _calibrated(calibrated):
            yield metric(name, estimate, better=better, where=where)
        yield from _by_chance(calibrated, where)
    for name, gaps in (("auroc_difference", found.aurocs), ("calibration_in_the_large_difference", found.in_the_large)):
        for gap in gaps:
            place = {**found.target.where, key: gap.group, "against": gap.reference}
            yield metric(name, _together(gap.difference, gap.level), where=place)
    for cross in found.crossed:
        place = {**found.target.where, key: cross.group, "against": cross.reference}
        yield metric("cross_auroc_positives", cross.of_positives, where=place)
        yield metric("cross_auroc_negatives", cross.of_negatives, where=place)
        yield metric("cross_auroc_difference", _together(cross.difference, cross.level), where=place)


def _together(estimate: Estimate, level: float) -> Estimate:
    return held_together(estimate, level, "all columns")


def _calibrated(row: GroupCalibration) -> Iterator[tuple[str, Estimate, Better]]:
    yield "brier", row.brier, "lower"
    yield "calibration_in_the_large", row.in_the_large, "neither"
    yield "calibration_intercept", row.intercept, "neither"
    yield "calibration_slope", row.slope, "neither"
    yield "debiased_calibration_error", row.error, "lower"
    yield "ece", row.ece, "lower"


def _by_chance(row: GroupCalibration, where: Where) -> Iterator[Metric]:
    chance, people = row.chance, row.patients
    if chance is None:
        for name in ("ece_if_calibrated", "ece_p", "ece_adjusted_p"):
            yield metric(name, not_estimable(row.reason or "fewer than 2 patients"), where=where)
        return
    how = "mean and central 95 % of a calibrated model's draws"
    yield Metric("ece_if_calibrated", chance.mean, chance.low, chance.high, people, where=where, interval=how)
    yield Metric(
        "ece_p", chance.p_value, n=people, where=where, interval="draws of a calibrated model with at least this ECE"
    )
    if row.adjusted_p is None:
        yield metric("ece_adjusted_p", not_estimable("cases of unknown group are not in the family"), where=where)
    else:
        yield Metric(
            "ece_adjusted_p",
            row.adjusted_p,
            n=people,
            where=where,
            interval="Holm over the groups of the column, Bonferroni over columns",
        )


def _sentence(audit: Audit, found: Figures) -> str:
    """What is shown in one column; "" where nothing is."""
    parts = [
        word.sentence.rstrip(".")
        for gap in found.aurocs
        if gap.ranked and (word := verdict(gap, "auroc", margin=audit.fairness.margin)).word == "gap shown"
    ]
    parts += [
        f"{cross.group} is scored {'higher' if (cross.difference.value or 0) > 0 else 'lower'} than"
        f" {reference_words(cross.reference)} at the same label (DxAUC {text.value(*cross.difference[:3])})"
        for cross in found.crossed
        if cross.ranked and cross.shown
    ]
    untrue = [
        row for row in found.rows if row.calibration.adjusted_p is not None and row.calibration.adjusted_p <= ERROR_RATE
    ]
    judged = [row for row in found.rows if row.calibration.adjusted_p is not None]
    if len(untrue) == len(judged) > 1:
        parts.append("probabilities come true in no group")
    else:
        parts += [
            f"the probabilities of {row.group} do not come true (ECE {text.number(row.calibration.ece.value)}, adjusted p"
            f" {text.number(row.calibration.adjusted_p)})"
            for row in untrue
        ]
    if not parts:
        return ""
    more = f"; and {len(parts) - 1} more" if len(parts) > 1 else ""
    return f"{text.label(found.column)}{found.target}: {parts[0]}{more}."


def _said(sentences: list[str]) -> list[str]:
    shown = [sentence for sentence in sentences if sentence]
    if not shown:
        return [
            "No group is shown to be ranked, scored or calibrated differently; what the data cannot exclude stands in the tables."
        ]
    rest = len(shown) - 2
    return shown[:2] + ([f"{text.plural(rest, 'more column')} with differences below."] if rest > 0 else [])


def _caveats(audit: Audit, columns: tuple[str, ...], minimum: int) -> Iterator[str]:
    yield "A difference may come from case mix or from labels that are less right in one group, as well as from the model."
    yield (
        "Each kind of difference (in AUROC, across groups, in calibration) has its own 5 % of false alarms, over all columns."
        f" Groups with fewer than {minimum} positive or negative patients are not judged."
    )
    classes = len(audit.classes)
    if audit.decision.positive is None and classes > _MOST_CHARTED:
        counted = f"; figures are of the {MOST_CLASSES} most frequent" if classes > MOST_CLASSES else ""
        yield f"Charts are of the {_MOST_CHARTED} most frequent of {classes} classes{counted}."
    yield from counted_columns(audit, columns)
