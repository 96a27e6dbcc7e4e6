"""Whether it does good to act on a model, weighed in found cases and false alarms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from xvision import text
from xvision.audit import Audit, apart, count, metric
from xvision.charts import Axis, Chart, Lines, Reference, Series, Table
from xvision.errors import ConfigError
from xvision.methods.groups.cases import all_levels
from xvision.methods.groups.net_benefit import Benefit, Curve, better_range, decided_benefit, decision_curve, runs
from xvision.methods.intervals import Estimate, held_together, not_estimable
from xvision.registry import analysis
from xvision.result import Metric, Result, Where
from xvision.targets import declared_columns, frequent_classes

_MOST_ROWS = 20
_MOST_CURVES = 4
_MOST_CHARTED = 3
"""Classes with charts, where there are more than two and none is known to be without disease."""
_ALL = "all"
_IN_FULL = {
    "better than both": "better than treating everybody and nobody",
    "worse than one": "worse than the better of treating everybody and nobody",
    "not decided": "not shown to be better than treating everybody and nobody",
}


@analysis("Net benefit", pillar="Fairness", need="scores", passes="none beyond the clean predictions")
def net_benefit(
    audit: Audit, *, low: float = 0.05, high: float = 0.5, steps: int = 10, minimum: int = 10, resamples: int = 1000
) -> Result:
    """Is acting on the model better than treating everybody or nobody, in every group?

    ``net_benefit`` (Vickers and Elkin 2006) = true positives / n − false positives / n × t / (1 − t). The threshold t is the risk
    from which one would act, and with it the worth of a false alarm: at t = 0.1 one found case outweighs nine of them. Treating
    nobody has 0. ``net_benefit_advantage`` is the model minus the better of treating everybody and nobody, for the same patients.
    For thresholds from ``low`` to ``high`` its intervals hold at all ``steps`` of them together; which range matters is a clinical
    question that this page does not decide. "Better than both" needs an interval above 0, "worse than one" one below; all else is
    "not decided". ``decision: deployed`` judges the decisions as they are made, with a false alarm weighed at the deployed
    threshold, or at the one that was agreed where the threshold was chosen for net benefit.
    A probability that does not come true is acted upon as if it did, so a miscalibrated model can be worse than no model.
    With more than two classes one acts on all but the class without disease, if the plan names it, else on each by itself.
    Net benefit follows the prevalence of these cases: compare a group's curve with that group's alternatives, never with another
    group's curve, and do not carry it to a place with another prevalence. It knows no cost of the test itself.
    """
    thresholds = _grid(low, high, steps)
    metrics: list[Metric] = []
    charts: list[Chart] = []
    sentences: list[str] = []
    cases = list(_cases(audit))
    for place, case in enumerate(cases):
        groups = [_judged(audit, case, thresholds, *level, minimum, resamples) for level in _levels(audit)]
        metrics += [item for each in groups for item in _metrics(case, each)]
        if place < _MOST_CHARTED:
            charts += _charts(audit, case, groups, thresholds)
            sentences.append(_summary(case, groups, thresholds))
    caveats = (*_caveats(audit, cases[0]), *_left_out(audit, cases))
    return Result(" ".join(sentences), tuple(metrics), tuple(charts), caveats=caveats)


def _grid(low: float, high: float, steps: int) -> tuple[float, ...]:
    if not 0 < low < high < 1 or not 2 <= steps <= 100:
        raise ConfigError(
            f"net_benefit: found low = {low}, high = {high}, steps = {steps}: give two probabilities, the lower first, and 2 to 100 steps"
            " between them."
        )
    return tuple(np.round(np.linspace(low, high, steps), 6).tolist())


class _Case(NamedTuple):
    """What is acted upon. labels, acted: (N,) booleans. scores: (N,). worth: the threshold at which a false alarm is weighed.

    worth is None where no threshold is deployed, as with more than two classes; the decisions are then not weighed.
    """

    name: str
    where: Where
    labels: np.ndarray
    scores: np.ndarray
    acted: np.ndarray
    worth: float | None

    @property
    def exchange(self) -> str:
        worth = self.worth or 0.5
        alarms = f"{(1 - worth) / worth:.3g}"
        return f"one found case is weighed like {alarms} false alarm{'' if alarms == '1' else 's'} (t = {worth:.3g})"

    @property
    def of(self) -> str:
        return f", {self.name}" if self.where else ""


def _cases(audit: Audit) -> Iterator[_Case]:
    """The class with disease of two; of more, all but the one without, or where that is not known each of the most frequent."""
    decided, probabilities, healthy = (
        audit.predictions.decisions,
        audit.predictions.probabilities,
        audit.decision.healthy,
    )
    if healthy is not None and len(audit.classes) > 2:
        name = f"any class but {audit.classes[healthy]}"
        yield _Case(name, {}, audit.labels != healthy, 1 - probabilities[:, healthy], decided != healthy, None)
        return
    worth = None if healthy is None else _worth(audit)
    for code in frequent_classes(audit) if healthy is None else [1 - healthy]:
        name = audit.classes[code]
        where: Where = {"class": name} if healthy is None else {}
        yield _Case(name, where, audit.labels == code, probabilities[:, code], decided == code, worth)


def _worth(audit: Audit) -> float:
    """Of a binary model. One that is positive for the healthy is acted upon where it is negative."""
    rule, worth = audit.operating.rule, audit.decision.threshold or 0.5
    if rule is not None and rule.target == "net benefit":
        worth = rule.value
    return 1 - worth if audit.decision.healthy == audit.decision.positive else worth


class _Judged(NamedTuple):
    """One level of a column, or all images (column ""). deployed: its decisions as they are, where they can be weighed."""

    column: str
    level: str
    curve: Curve
    deployed: Curve | None

    @property
    def called(self) -> str:
        return f"{text.label(self.column)} {self.level}" if self.column else "All images"

    @property
    def where(self) -> Where:
        return {apart(self.column, "threshold", "decision", "class"): self.level} if self.column else {}


def _levels(audit: Audit) -> Iterator[tuple[str, str]]:
    yield "", _ALL
    for column in declared_columns(audit):
        yield from ((column, level) for level in all_levels(audit.column(column)))


def _judged(
    audit: Audit, case: _Case, thresholds: tuple[float, ...], column: str, level: str, minimum: int, resamples: int
) -> _Judged:
    member = audit.column(column) == level if column else np.ones(len(case.labels), bool)
    labels, patients = case.labels[member], audit.patients[member]
    rng = audit.rng(f"bands {case.name} {column} {level}")
    curve = decision_curve(
        case.scores[member], labels, patients, thresholds, rng=rng, minimum=minimum, resamples=resamples
    )
    if case.worth is None:
        return _Judged(column, level, curve, None)
    deployed = decided_benefit(case.acted[member], labels, patients, case.worth, minimum=minimum)
    return _Judged(column, level, curve, deployed)


def _metrics(case: _Case, each: _Judged) -> Iterator[Metric]:
    place: Where = {**case.where, **each.where}
    missing = not_estimable(each.curve.reason or "", each.curve.patients)
    if each.deployed is not None:
        here: Where = {**place, "decision": "deployed"}
        found = each.deployed.benefits[0] if each.deployed.benefits else None
        yield metric("net_benefit", found.model if found else missing, better="higher", where=here)
        yield metric("net_benefit_of_everybody", found.everybody if found else missing, where=here)
        yield metric("net_benefit_advantage", found.advantage if found else missing, better="higher", where=here)
    if not each.curve.benefits:
        yield metric("net_benefit_advantage", missing, better="higher", where=place)
        return
    for benefit in each.curve.benefits:
        where: Where = {**place, "threshold": benefit.threshold}
        yield metric("net_benefit_advantage", _banded(each.curve, benefit), better="higher", where=where)
    for name, answer in (
        ("thresholds_better_than_both", "better than both"),
        ("thresholds_worse_than_one", "worse than one"),
    ):
        yield count(name, sum(benefit.answer == answer for benefit in each.curve.benefits), where=place)


def _banded(curve: Curve, benefit: Benefit) -> Estimate:
    """The advantage with the interval that holds at all thresholds together."""
    low, high = benefit.band
    found = benefit.advantage._replace(low=low, high=high)
    return held_together(found, curve.level, f"{len(curve.benefits)} thresholds")


def _words(curve: Curve) -> str:
    """The verdict over the range."""
    if curve.reason:
        return f"not enough data: {curve.reason}"
    better = [benefit for benefit in curve.benefits if benefit.answer == "better than both"]
    if len(better) == len(curve.benefits):
        return "better than both at every threshold asked for"
    spans = [_span(*limits) for limits in better_range(curve)]
    parts = [f"better than both {text.listing(spans)}"] if spans else []
    for name, wanted in (("everybody", True), ("nobody", False)):
        spans = [_span(*limits) for limits in runs(curve, partial(_worse, everybody=wanted))]
        parts += [f"worse than treating {name} {text.listing(spans)}"] if spans else []
    if not parts:
        return "not shown to be better or worse at any threshold asked for"
    open_ = any(benefit.answer == "not decided" for benefit in curve.benefits)
    return "; ".join([*parts, *["not decided elsewhere"] * open_])


def _worse(benefit: Benefit, everybody: bool) -> bool:
    """Than everybody, or than nobody, whichever is the better of them."""
    return benefit.answer == "worse than one" and ((benefit.everybody.value or 0.0) > 0) == everybody


def _span(low: float, high: float) -> str:
    return f"at {low:g}" if low == high else f"from {low:g} to {high:g}"


def _largest(groups: Sequence[_Judged], most: int) -> list[_Judged]:
    """The first and the largest others, in the order given."""
    order = sorted(range(1, len(groups)), key=lambda place: (-groups[place].curve.cases, place))[: most - 1]
    return [groups[place] for place in sorted([0, *order])]


def _charts(audit: Audit, case: _Case, groups: Sequence[_Judged], thresholds: tuple[float, ...]) -> Iterator[Chart]:
    yield _verdicts(case, groups, thresholds)
    yield _overall(case, groups[0])
    if case.worth is not None:
        yield _deployed(case, groups)
    for column in audit.groups or audit.acquisition:
        yield from _by_group(case, column, groups)


def _verdicts(case: _Case, groups: Sequence[_Judged], thresholds: tuple[float, ...]) -> Table:
    shown = _largest(groups, _MOST_ROWS)
    answered = sum(bool(better_range(each.curve)) for each in groups[1:])
    return Table(
        title=f"Better than treating everybody and nobody? {len(thresholds)} thresholds {_span(thresholds[0], thresholds[-1])}{case.of}",
        alt=f"All images: {_words(groups[0].curve)}. Better than both somewhere in {answered} of {text.plural(len(groups) - 1, 'group')};"
        f" {len(shown) - 1} are shown.",
        columns=("Column", "Group", "Images", "Patients", "Positive", "Negative", "Acting on the model is"),
        rows=tuple(
            (
                text.label(each.column) or "All images",
                each.level,
                each.curve.cases,
                each.curve.patients,
                each.curve.positives,
                each.curve.cases - each.curve.positives,
                _words(each.curve),
            )
            for each in shown
        ),
        counts=("Images", "Patients", "Positive", "Negative"),
        part="Column",
    )


def _overall(case: _Case, everyone: _Judged) -> Lines:
    """The decision curve; treating everybody is left out where it falls far below all else."""
    benefits = everyone.curve.benefits
    places = tuple(benefit.threshold for benefit in benefits)
    bottom = -max([benefit.model.high or 0.0 for benefit in benefits] or [1.0]) / 2
    everybody = tuple(value if (value := benefit.everybody.value or 0.0) >= bottom else None for benefit in benefits)
    model = Series(
        "acting on the model",
        places,
        tuple(benefit.model.value for benefit in benefits),
        tuple(benefit.model.low for benefit in benefits),
        tuple(benefit.model.high for benefit in benefits),
    )
    return Lines(
        title=f"Decision curve of all images{case.of}",
        alt=f"Acting on the model is {_words(everyone.curve)}.",
        x=Axis(f"Probability of {case.name} from which one would act"),
        y=Axis("Net benefit per image"),
        series=(model, Series("treating everybody", places, everybody)),
        references=(Reference("treating nobody", 0.0),),
    )


def _deployed(case: _Case, groups: Sequence[_Judged]) -> Table:
    shown = _largest(groups, _MOST_ROWS)
    answers = [each.deployed.benefits[0].answer for each in groups[1:] if each.deployed and each.deployed.benefits]
    return Table(
        title=f"The deployed decision: {case.exchange}",
        alt=f"Better than both in {answers.count('better than both')}, worse than one in {answers.count('worse than one')}, not decided in"
        f" {answers.count('not decided')} of {text.plural(len(groups) - 1, 'group')}; the others have not enough data.",
        columns=(
            "Group",
            "Net benefit",
            "Treating everybody",
            "Model minus the better of both",
            "Acting on the model is",
        ),
        rows=tuple((each.called, *_row(each.deployed)) for each in shown),
    )


def _row(deployed: Curve | None) -> tuple[str, str, str, str]:
    if deployed is None or not deployed.benefits:
        return "–", "–", "–", f"not enough data: {deployed.reason if deployed else ''}"
    found = deployed.benefits[0]
    return (
        text.value(*found.model[:3]),
        text.number(found.everybody.value),
        text.value(*found.advantage[:3]),
        found.answer,
    )


def _by_group(case: _Case, column: str, groups: Sequence[_Judged]) -> Iterator[Lines]:
    """Advantages of the largest groups of a column, which prevalence does not set apart as it does net benefits."""
    own = [each for each in groups if each.column == column and each.curve.benefits]
    shown = sorted(own, key=lambda each: (-each.curve.cases, each.level))[:_MOST_CURVES]
    if not shown:
        return
    total = sum(each.column == column for each in groups)
    some = f" ({len(shown)} of {text.plural(total, 'group')})" if len(shown) < total else ""
    yield Lines(
        title=f"Net benefit beyond the better of everybody and nobody: {text.label(column)}{case.of}{some}",
        alt="; ".join(f"{each.level} is {_words(each.curve)}" for each in shown) + ".",
        x=Axis("Probability from which one would act"),
        y=Axis("Gain over the better alternative"),
        series=tuple(_advantage(each) for each in shown),
        references=(Reference("no gain", 0.0),),
    )


def _advantage(each: _Judged) -> Series:
    benefits = each.curve.benefits
    return Series(
        f"{each.level} (n = {text.number(each.curve.cases, 'count')})",
        tuple(benefit.threshold for benefit in benefits),
        tuple(benefit.advantage.value for benefit in benefits),
        tuple(benefit.band[0] for benefit in benefits),
        tuple(benefit.band[1] for benefit in benefits),
        n=each.curve.patients,
    )


def _summary(case: _Case, groups: Sequence[_Judged], thresholds: tuple[float, ...]) -> str:
    span = f"{len(thresholds)} thresholds {_span(thresholds[0], thresholds[-1])}"
    said = [f"Over {span}, acting on the probability of {case.name} is {_words(groups[0].curve)}."]
    worse = [each for each in groups[1:] if _has(each, "worse than one")]
    open_ = [each for each in groups[1:] if each.curve.benefits and not better_range(each.curve) and each not in worse]
    short = [each for each in groups[1:] if each.curve.reason]
    parts = [
        f"{words} in {text.number(len(chosen), 'count')}{f' ({text.listing([each.called for each in chosen], 2)})' * named}"
        for words, chosen, named in (
            ("it is worse than an alternative somewhere", worse, True),
            ("nowhere shown to be better", open_, True),
            ("not enough is known", short, False),
        )
        if chosen
    ]
    if parts:
        said.append(f"Of {text.plural(len(groups) - 1, 'group')}, {text.listing(parts)}.")
    elif len(groups) > 1:
        said.append(
            f"In each of {len(groups) - 1} groups it is better than both somewhere in that range and nowhere worse."
        )
    deployed = groups[0].deployed.benefits if groups[0].deployed else ()
    if deployed:
        said.append(f"The deployed decision is {_IN_FULL[deployed[0].answer]}: {case.exchange}.")
    return " ".join(said)


def _has(each: _Judged, answer: str) -> bool:
    return any(benefit.answer == answer for benefit in each.curve.benefits)


def _caveats(audit: Audit, case: _Case) -> Iterator[str]:
    yield "Net benefit follows the prevalence of the audited cases; where cases were selected, it is not that of practice."
    yield "Groups of unequal prevalence have unequal net benefit under any model: each is compared with its own alternatives alone."
    if case.worth is None:
        yield "No threshold is deployed with more than two classes, so the decisions themselves are not weighed, only the probabilities."
    elif not audit.decision.declared:
        yield f"No threshold was declared; {case.worth:g} is a convention, and so is the weight of a false alarm that follows from it."
    elif audit.operating.rule is None or audit.operating.rule.target != "net benefit":
        yield (
            "The deployed threshold is read as the risk from which one would act; if it was chosen for another reason, ask what a false"
            " alarm is worth."
        )
    if audit.operating.tuned:
        yield "The threshold was chosen on validation cases and is taken as it is: its own uncertainty is not in these intervals."


def _left_out(audit: Audit, cases: Sequence[_Case]) -> Iterator[str]:
    groups = sum(1 for _ in _levels(audit)) - 1
    if groups >= _MOST_ROWS:
        yield f"Tables show the {_MOST_ROWS - 1} largest of {groups} groups; the metrics hold all."
    if cases[0].where:
        yield "The plan does not say which class is without disease (decision.no_disease): acting on each class is weighed by itself."
    if len(cases) > _MOST_CHARTED:
        yield f"Charts are of the {_MOST_CHARTED} most frequent of {len(audit.classes)} classes; figures of {len(cases)}."
