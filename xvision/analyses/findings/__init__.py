"""All findings of one model side by side, in groups of patients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from xvision import text
from xvision.analyses.findings.answers import CONVENTION, Answers, answered
from xvision.analyses.findings.column import Column, Judged, judged_of, measured, metrics_of
from xvision.analyses.findings.page import charts
from xvision.audit import Audit, count
from xvision.methods.groups.verdicts import counted, not_excluded
from xvision.registry import analysis
from xvision.result import Result
from xvision.targets import THRESHOLD_AS_GIVEN, caveats_of_gaps

_MOST_SAID = 3


@analysis(
    "Findings side by side",
    pillar="Fairness",
    need="scores",
    passes="1, for the other findings (none with predictions)",
)
def findings(
    audit: Audit, *, thresholds: Mapping[str, float] | None = None, minimum: int = 10, resamples: int = 1000
) -> Result:
    """Which finding is missed more often in which group?

    A model of several findings is audited for one; this page looks at all of them. ``sensitivity`` and ``specificity`` of each
    finding in each patient group have Wilson intervals by patient. ``sensitivity_difference`` and its kin are a group's rate minus
    that of all others whose group is known, signed (Newcombe, each interval of its own); fewer than ``minimum`` patients in a
    denominator give none. ``…_difference_bh_p`` is its p-value (Rao and Scott), adjusted over all findings and groups of a column by
    Benjamini and Hochberg: *gap shown* needs it at 0.05 or below and an interval that excludes 0, and of the gaps so shown in a column
    and rate one in twenty may be false on average. *Below the agreed margin* and *equivalent* need ``[fairness] margin``; all else is
    *not enough data*, which is not "no gap". ``mean_sensitivity`` averages a group over the findings it has enough patients for:
    means over different findings cannot be compared.

    The audited finding is decided as deployed, the others at 0.5 or at ``thresholds`` (finding to probability): at another threshold
    gaps differ. A finding that an image does not name counts as absent; one that no case names counts as not labelled
    (``labels_missing``). Findings occur together, so that a gap in one may come from another. A difference may come from how ill
    patients are or how labels were made as well as from the model.
    """
    answers = answered(audit, thresholds or {})
    columns = [measured(audit, answers, name, minimum, resamples) for name in dict.fromkeys(audit.groups)]
    judged = [one for column in columns for one in judged_of(column, audit.fairness.margin)]
    metrics = [
        count("findings", len(answers.names)),
        *(
            count("labels_missing", int(missing), where={"finding": name})
            for name, missing in zip(answers.names, np.isnan(answers.labels).sum(axis=0), strict=True)
        ),
        *(item for column in columns for item in metrics_of(column, answers)),
    ]
    shown = tuple(charts(audit, answers, columns, judged, minimum))
    return Result(
        _summary(judged), tuple(metrics), shown, caveats=tuple(_caveats(audit, answers, columns, judged, minimum))
    )


def _summary(judged: list[Judged]) -> str:
    missed = [one for one in judged if one.rate == "sensitivity"]
    if not missed:
        return "No finding could be compared between patient groups: there are fewer than two known levels."
    shown = sorted((one for one in missed if one.word == "gap shown" and one.size < 0), key=lambda one: one.size)
    alarms = sum(one.word == "gap shown" and one.rate == "specificity" for one in judged)
    other = f" Specificity: {text.plural(alarms, 'gap')} shown." if alarms else ""
    if shown:
        said = " ".join(map(_said, shown[:_MOST_SAID]))
        more = len(shown) - _MOST_SAID
        rest = f" {text.plural(more, 'further gap')} in the metrics." if more > 0 else ""
        return f"Gap shown. {said}{rest}{other}"
    widest = not_excluded(one.gap.difference for one in missed if one.word == "not enough data")
    return (
        "No finding is shown to be missed more often in any patient group. Of"
        f" {text.plural(len(missed), 'comparison')}: {counted([one.word for one in missed])}.{widest}{other}"
    )


def _said(one: Judged) -> str:
    value, low, high = one.gap.difference[:3]
    nearest_to_0, farthest = sorted((abs(low or 0.0), abs(high or 0.0)))
    size = f"{text.number(abs(value or 0.0))} ({text.interval(nearest_to_0, farthest)})"
    return f"Sensitivity for {one.gap.finding} is {size} lower for {one.column.label(one.gap.group)} than for the rest."


def _caveats(
    audit: Audit, answers: Answers, columns: list[Column], judged: list[Judged], minimum: int
) -> Iterator[str]:
    yield from caveats_of_gaps(audit, [one.gap.difference for one in judged], minimum)
    yield from _about_decisions(audit, answers)
    yield from _about_labels(answers)
    families = len({(one.column.name, one.rate) for one in judged})
    if families > 1:
        yield (
            f"Gaps are corrected over the findings and groups of each column and rate, not over all {families} of these: among as many"
            " without any gap, one may be shown by chance."
        )
    for column in columns:
        if column.pooled:
            yield f"The {text.plural(column.pooled, 'smaller level')} of {text.label(column.name)} are one group here."
        if not column.comparable:
            yield f"Means of the groups of {text.label(column.name)} are over different findings, so that they cannot be compared."


def _about_decisions(audit: Audit, answers: Answers) -> Iterator[str]:
    given = [f"{name} at {value:.4g}" for name, value in answers.given.items()]
    others = [name for name in answers.names if name != answers.audited and name not in answers.given]
    if others:
        but = f" ({text.listing(given)} as given)" if given else ""
        yield (
            f"Only {answers.audited} is decided as deployed. The other findings are decided at {CONVENTION} by convention{but}: how"
            " often they are missed depends on thresholds that nobody declared here."
        )
    elif given:
        yield f"{text.opening(answers.audited)} is decided as deployed, the others as given: {text.listing(given)}."
    if audit.operating.tuned:
        yield THRESHOLD_AS_GIVEN


def _about_labels(answers: Answers) -> Iterator[str]:
    unlabelled = [name for name in answers.names if name not in answers.labelled]
    yield "A finding that an image's label does not name counts as absent: labels that say so of an uncertain one hide misses."
    if unlabelled:
        yield (
            f"No case of the data has {text.listing(unlabelled)}: whether anybody looked for it is not known, so that all"
            f" {text.plural(len(answers.labels), 'label')} count as missing."
        )
    if answers.extra:
        yield f"The data also names {text.listing(answers.extra)}, on which the model does not decide."
    if answers.left_out:
        yield f"Of {answers.left_out + len(answers.names)} findings the {len(answers.names)} most frequent are looked at."
