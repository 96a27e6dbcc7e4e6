"""Whom the deployed decision serves worse."""

from __future__ import annotations

from collections.abc import Iterator

from xvision import text
from xvision.analyses.fairness.column import PREDICTIVE, TESTED, Column, measured
from xvision.analyses.fairness.confused import confused, macro, table
from xvision.analyses.fairness.diagnosed import ASKED, diagnosed
from xvision.analyses.fairness.page import charts
from xvision.audit import Audit
from xvision.charts import Chart
from xvision.methods.groups.cases import UNKNOWN, Rate, definitions
from xvision.methods.groups.verdicts import counted, not_excluded
from xvision.methods.intervals import Estimate, holm, not_estimable, proportion
from xvision.registry import analysis
from xvision.result import Metric, NotApplicable, Result
from xvision.targets import MOST_CLASSES, NO_COLUMNS, Target, caveats_of_gaps, declared_columns, targets

_MOST_SAID = 3
_TESTED_AT = 0.05
_MOST_CHARTED = 3
"""Classes with charts, where there are more than two; the numbers are of all."""


@analysis("Fairness", pillar="Fairness", need="scores", passes="none beyond the clean predictions")
def fairness(
    audit: Audit, *, minimum: int = 10, permutations: int = 1999, resamples: int = 1000, power: float = 0.8
) -> Result:
    """Who is it worse for?

    Each level of every declared column is a group; a missing value is the group "unknown", shown and never ranked. Rates come from
    fairlearn with Wilson intervals. ``sensitivity_difference`` and its kin compare a group with the other one or with the rest,
    signed, with Newcombe intervals that hold together over the groups of a column, for one rate (Bonferroni); fewer than ``minimum``
    patients in a denominator give no difference. Each gets one of four verdicts: *gap shown* (the interval excludes 0), *below the
    agreed margin* and *equivalent* (both only with ``[fairness] margin`` in the plan), or *not enough data*, which is not "no gap".
    ``any_gap_p`` tests whether any group differs, by permutation within the label; ``any_gap_holm_p`` is corrected for all columns
    and both rates (Holm), as the verdicts on each rate in each column are a family of their own. ``between_group_sd`` is the spread
    of the true rates, chance taken off (Lum et al. 2022). ``underdiagnosis`` is the share of ill cases decided healthy,
    ``overdiagnosis`` the reverse, once the plan says which class means healthy. ppv and npv follow prevalence; a note says what is
    left of a difference at equal prevalence. ``worst_group_sensitivity`` is the lowest of the groups with ``minimum`` patients; its band
    holds for all of them at once (max-T), as picking the lowest asks for. ``power`` is the chance at which "smallest gap found" is meant.

    A difference has many possible causes, and no difference here says nothing about columns that were not recorded.
    """
    columns = declared_columns(audit)
    if not columns:
        raise NotApplicable(NO_COLUMNS)
    by_target = [
        [
            measured(audit, target, column, minimum=minimum, permutations=permutations, resamples=resamples)
            for column in columns
        ]
        for target in targets(audit)
    ]
    found = [part for parts in by_target for part in parts]
    corrected = tuple(_corrected(found))
    classes = confused(audit, columns, resamples)
    metrics = (
        *(item for part in found for item in part.metrics), *corrected, *diagnosed(audit, columns), *macro(classes)
    )  # fmt: skip
    shown: list[Chart] = [
        chart for parts in by_target[:_MOST_CHARTED] for chart in charts(parts, _overall(audit, parts[0].target), power)
    ]
    shown += table(audit, classes)
    summary = _summary(audit, found, corrected) + _by_acquisition(audit, found, corrected)
    return Result(summary, metrics, tuple(shown), caveats=tuple(_caveats(audit, found, minimum)))


def _overall(audit: Audit, target: Target) -> dict[Rate, Estimate]:
    rates = definitions(target.labels, target.decisions)
    return {
        name: proportion(rates[name].hits[rates[name].among], audit.patients[rates[name].among])
        if rates[name].among.any()
        else not_estimable(f"no {rates[name].cases}")
        for name in TESTED
    }


def _corrected(found: list[Column]) -> Iterator[Metric]:
    """The tests for any gap, corrected for both rates and all columns and classes in which one was looked for."""
    looked = [(name, part, part.tests[name]) for name in TESTED for part in found]
    p_values = [test.p_value for _, _, test in looked if test.p_value is not None]
    adjusted = iter(holm(p_values))
    how = f"permutation within label, Holm over {text.plural(len(p_values), 'test')}"
    for name, part, test in looked:
        known = test.p_value is not None
        yield Metric(
            f"{name}_any_gap_holm_p",
            float(next(adjusted)) if known else None,
            n=test.patients if known else None,
            where=part.where,
            interval=how if known else "",
            reason=None if known else test.reason,
        )


def _summary(audit: Audit, found: list[Column], corrected: tuple[Metric, ...]) -> str:
    who = audit.groups or audit.acquisition
    judged = [
        (gap, verdict)
        for part in found
        if part.name in who
        for name in TESTED
        for gap, verdict in part.judged[name]
        if gap.ranked
    ]
    whom = "patient groups" if audit.groups else "levels of how images were taken"
    if not judged:
        return f"No {whom} could be compared: there are fewer than two known levels."
    shown = [pair for pair in judged if pair[1].word == "gap shown"]
    if shown:
        shown.sort(key=lambda pair: -abs(pair[0].difference.value or 0.0))
        more = len(shown) - _MOST_SAID
        said = " ".join(verdict.sentence for _, verdict in shown[:_MOST_SAID])
        further = f" {text.plural(more, 'further gap')} in the tables." if more > 0 else ""
        places = [
            (f"{name}_any_gap_holm_p", part.where)
            for part in found
            for name in TESTED
            if any(pair in shown for pair in part.judged[name])
        ]
        own = [item.value for item in corrected if item.value is not None and (item.name, item.where) in places]
        return f"Gap shown. {said}{further}{_unconfirmed(own)}"
    words = [verdict.word for _, verdict in judged]
    widest = not_excluded(gap.difference for gap, verdict in judged if verdict.word == "not enough data")
    other = _predictive([part for part in found if part.name in who])
    return (
        f"No gap between {whom} is shown. Of {text.plural(len(words), 'comparison')}: {counted(words)}.{widest}{other}"
    )


def _by_acquisition(audit: Audit, found: list[Column], corrected: tuple[Metric, ...]) -> str:
    """The largest gap by how images were taken, where the corrected tests show one beside patient groups."""
    tested = {
        (item.name, *item.where.values()) for item in corrected if item.value is not None and item.value <= _TESTED_AT
    }
    shown = [
        pair
        for part in found
        if audit.groups and part.name in audit.acquisition
        for name in TESTED
        if (f"{name}_any_gap_holm_p", *part.where.values()) in tested
        for pair in part.judged[name]
        if pair[0].ranked and pair[1].word == "gap shown"
    ]
    if not shown:
        return ""
    _, verdict = max(shown, key=lambda pair: abs(pair[0].difference.value or 0.0))
    return f" By how images were taken: {verdict.sentence}"


def _predictive(found: list[Column]) -> str:
    """Gaps in ppv and npv, which a summary of sensitivity and specificity must not pass over."""
    shown = [
        gap
        for part in found
        for name in PREDICTIVE
        for gap, verdict in part.judged[name]
        if gap.ranked and verdict.word == "gap shown"
    ]
    return f" {text.plural(len(shown), 'gap')} in PPV or NPV in the table." if shown else ""


def _unconfirmed(p_values: list[float]) -> str:
    """What readers must know of gaps that only their own families show."""
    if any(p_value <= _TESTED_AT for p_value in p_values):
        return ""
    return f" Corrected for all columns and both rates, no test is at or below {_TESTED_AT}: it may be chance."


def _caveats(audit: Audit, found: list[Column], minimum: int) -> Iterator[str]:
    gaps = [gap.difference for part in found for name in TESTED for gap, _ in part.judged[name]]
    yield from caveats_of_gaps(audit, gaps, minimum)
    columns = list(dict.fromkeys(part.name for part in found))
    families = sum(
        any(gap.difference.value is not None for gap, _ in pairs) for part in found for pairs in part.judged.values()
    )
    if families > 1:
        yield (
            "The verdicts on one rate in one column hold together, those of several rates and columns do not: of the"
            f" {families} such families here, each may show a gap by chance once in 20 data sets without any. The Holm-corrected"
            " tests cover sensitivity and specificity in all columns."
        )
    for column in columns:
        share = float((audit.column(column) == UNKNOWN).mean())
        if share > 0:
            yield f"{text.label(column)} is unknown for {100 * share:.0f} % of the images; they are a row of their own."
    if audit.decision.no_disease is None:
        yield f"Under- and overdiagnosis are not given: {ASKED}."
    if len(audit.classes) > MOST_CLASSES:
        yield f"Of {len(audit.classes)} classes the {MOST_CLASSES} most frequent are looked at."
