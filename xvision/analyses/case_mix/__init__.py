"""Gaps between groups at the same case mix, and the question that decides what may be evened out."""

from __future__ import annotations

from collections.abc import Iterator

from xvision import text
from xvision.analyses.case_mix.answers import Question, checked_answers, named_steps, questions
from xvision.analyses.case_mix.drawn import HIDES, MOST_CLASSES, page, step_words
from xvision.analyses.case_mix.figures import Gaps, mix_metrics
from xvision.audit import Audit
from xvision.errors import ConfigError
from xvision.methods.groups.case_mix import case_mix as compared
from xvision.methods.groups.cases import UNKNOWN, known_levels
from xvision.methods.groups.mixes import Target, patient_draws
from xvision.methods.groups.standardised import WITHIN_LABEL
from xvision.methods.intervals import Estimate
from xvision.registry import analysis
from xvision.result import NotApplicable, Result

_MOST = 12
"""Groups of one column that are compared, at most: the largest."""


@analysis("Gaps at the same case mix", pillar="Fairness", need="scores", passes="none beyond the clean predictions")
def case_mix(
    audit: Audit,
    *,
    target: Target = "pooled",
    covered: float = 0.5,
    minimum: int = 10,
    resamples: int = 1000,
    permutations: int = 499,
) -> Result:
    """How much of a gap is left when groups are compared at the same case mix?

    A gap may come from prevalence (groups differ in how often they are ill), presentation (in severity, age or how images are taken)
    or annotation (in how labels came about): Jones et al. 2024. Figures alone cannot tell these apart, so the plan is asked of each
    column whether groups differ in it apart from the group (``confounder``) or because of it (``mediator``, such as late diagnosis).
    Confounders are evened out one after the other, in the plan's order, by weighting each group's cases to one mix: that of all
    cases with a known group, or of the reference (``target``). Mediators are evened out in no main figure: it would hide harm that
    comes about through them; a row beside the others shows by how much. Nothing undeclared is evened out but in the table marked
    exploratory. Sensitivity and specificity are weighted within the label; PPV, NPV, selection rate and accuracy also to one
    prevalence. ``gap_change`` is what a step does to a gap, with its own interval. Strata that one side has no case of are left out:
    ``mix_covered`` is the share of the mix that remains; below ``covered``, or where a side is worth fewer than ``minimum`` patients
    (``effective_patients``), there is no estimate. ``odds_ratio`` (Mantel-Haenszel) pools over the same strata as a cross-check.

    A gap that goes away is accounted for by the columns as recorded, not excused: patients still meet the model with the mix that
    they have. One that stays may come from what was not recorded, wrong labels among it. Coarse strata even out only in part.
    """
    columns = [name for name in audit.groups if known_levels(audit.column(name))]
    if not any(len(known_levels(audit.column(name))) > 1 for name in columns):
        found = (
            "no columns that say who the patients are were declared"
            if not audit.groups
            else "no column has two known groups"
        )
        raise NotApplicable(f"{found}; name them in the plan or with --groups")
    if not 0 < covered <= 1 or resamples < 2:
        raise ConfigError(
            f"case_mix.covered is {covered} and resamples {resamples}: give a share above 0 and at least 2."
        )
    checked_answers(audit)
    draws = patient_draws(audit.patients, rng=audit.rng("patients"), resamples=resamples)
    gaps: list[Gaps] = []
    asked: list[Question] = []
    for column in columns:
        asked += questions(audit, column, permutations)
        steps = named_steps(audit, column)
        for code, name in _classes(audit):
            pairs = compared(
                audit.labels == code, audit.predictions.decisions == code, audit.column(column), audit.patients,
                [named.step for named in steps],
                draws=draws, target=target, minimum=minimum, floor=covered, most=_MOST,
            )  # fmt: skip
            gaps.append(Gaps(column, name, steps, pairs))
    metrics = (*(item for each in gaps for item in each.metrics()), *mix_metrics(asked))
    return Result(_summary(gaps, asked), metrics, page(audit, gaps, asked), caveats=tuple(_caveats(audit, gaps, asked)))


def _classes(audit: Audit) -> list[tuple[int, str]]:
    """The positive class, or each class in turn against the rest, with the name that its figures carry."""
    if audit.decision.positive is not None:
        return [(audit.positive, "")]
    return list(enumerate(audit.classes))


def _summary(gaps: list[Gaps], asked: list[Question]) -> str:
    evened = any(each.last > 1 for each in gaps)
    said = _largest(gaps)
    if not evened:
        said = (
            f"No column is declared as a confounder, so that gaps in sensitivity and specificity stand as found. {said}"
        )
    count = sum(question.open for question in asked)
    if count:
        said += f" {text.opening(text.plural(count, 'question'))} about why groups differ in mix {'is' if count == 1 else 'are'} open."
    return said


def _largest(gaps: list[Gaps]) -> str:
    """The largest gap as found that can also be given at the same mix, on its way."""
    found = []
    for each in gaps:
        for pair in each.compared:
            for rate in WITHIN_LABEL:
                raw, last = (pair.steps[place].figures[rate].gap for place in (0, each.last))
                if pair.ranked and raw.value is not None:
                    found.append(((each.last > 1 and last.value is not None, abs(raw.value)), each, pair, rate))
    if not found:
        return "No gap could be estimated: too few patients in each comparison."
    _, each, pair, rate = max(found, key=lambda item: item[0])
    raw, last = (pair.steps[place].figures[rate].gap for place in (0, each.last))
    of_class = f" for {each.name}" if each.name else ""
    said = (
        f"Largest gap in {rate}{of_class}: {text.condition({each.column: pair.group})} against {pair.reference}"
        f" {_spoken(raw)} as found"
    )
    if each.last == 1:
        return f"{said}."
    return f"{said}, {_spoken(last)} at the {step_words(each.steps[each.last])}."


def _spoken(estimate: Estimate) -> str:
    return text.value(estimate.value, estimate.low, estimate.high, reason=estimate.reason)


def _caveats(audit: Audit, gaps: list[Gaps], asked: list[Question]) -> Iterator[str]:
    if any(each.last > 1 for each in gaps):
        yield "A gap that goes away at the same mix is accounted for by the declared columns, not excused."
    mediators = sorted({question.other for question in asked if question.answer == "mediator"})
    if mediators:
        yield f"Rows that even out {text.listing(mediators)} are for comparison only: evening out a mediator {HIDES}."
    refused = [
        (each, pair)
        for each in gaps
        for pair in each.compared
        if each.last > 1 and all(pair.steps[each.last].figures[rate].gap.value is None for rate in WITHIN_LABEL)
    ]
    if refused:
        yield f"{text.opening(text.plural(len(refused), 'comparison'))} could not be made at the same mix; reasons stand beside the rows."
    if audit.decision.positive is None and len(audit.classes) > MOST_CLASSES:
        yield f"The {MOST_CLASSES} classes with the largest gaps are drawn for each column; all are among the figures."
    for column in dict.fromkeys(each.column for each in gaps):
        levels = audit.column(column)
        if len(known_levels(levels)) > _MOST:
            yield f"{text.label(column)} has {len(known_levels(levels))} groups; the {_MOST} largest are each compared with all others."
        share = 100 * float((levels == UNKNOWN).mean())
        if share > 0:
            yield f"{text.label(column)} is unknown for {share:.0f} % of the images: they do not count for the mix of the target."
    filled = [name for name in audit.fairness.case_mix if (audit.column(name) == UNKNOWN).any()]
    if filled:
        yield f"Cases of unknown {text.listing(filled)} are a stratum of their own."
