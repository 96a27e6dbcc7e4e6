"""The gaps of one column of patient groups, step by step, as metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from xvision.analyses.case_mix.answers import Named, Question
from xvision.audit import apart, count, metric
from xvision.methods.groups.case_mix import Compared, MixStep
from xvision.methods.groups.cases import Rate
from xvision.methods.groups.mixes import RATES
from xvision.methods.groups.standardised import WITHIN_LABEL, Adjusted
from xvision.methods.intervals import Estimate, held_together
from xvision.result import Metric, Where

_KEYS = ("class", "against", "adjusted", "as", "figure", "among", "side", "column", "group")


@dataclass(frozen=True, eq=False)
class Gaps:
    """Comparisons of the groups of one column, for one class against the rest. name: of the class, "" with two classes."""

    column: str
    name: str
    steps: list[Named]
    compared: tuple[Compared, ...]

    def shown(self, rate: Rate) -> list[int]:
        """Positions of the steps that say something of a figure: prevalence alone cannot move sensitivity or specificity."""
        within = rate in WITHIN_LABEL
        return [
            place
            for place, named in enumerate(self.steps)
            if not (within and named.adjusted == "prevalence") and (within or named.kind == "main")
        ]

    @property
    def last(self) -> int:
        """Position of the last step of the main figures."""
        return max(place for place, named in enumerate(self.steps) if named.kind == "main")

    def where(self, found: Compared, place: int) -> dict[str, str]:
        named = self.steps[place]
        own = {"class": self.name} if self.name else {}
        own |= {apart(self.column, *_KEYS): found.group, "against": found.reference, "adjusted": named.adjusted}
        return own if named.kind == "main" else {**own, "as": named.kind}

    def metrics(self) -> Iterator[Metric]:
        for found in self.compared:
            for rate in RATES:
                for place in self.shown(rate):
                    yield from self._figure(found, place, rate)
            for place, named in enumerate(self.steps):
                if named.column:
                    yield from _cover(found.steps[place], self.where(found, place))

    def _figure(self, found: Compared, place: int, rate: Rate) -> Iterator[Metric]:
        figure, where = found.steps[place].figures[rate], self.where(found, place)
        yield metric(f"{rate}_difference", _held(figure.gap, found.levels[rate]), where=where)
        if place:
            yield metric("gap_change", _held(figure.change, found.levels[rate]), where={**where, "figure": rate})
        if rate in WITHIN_LABEL and place in (0, self.last):
            yield metric("odds_ratio", _held(figure.odds_ratio, found.levels[rate]), where={**where, "figure": rate})
        if rate in WITHIN_LABEL and place and self.steps[place].kind == "main":
            yield from _worth(figure, {**where, "figure": rate})


def _cover(step: MixStep, where: Where) -> Iterator[Metric]:
    for among, share in zip(("negative cases", "positive cases"), step.covered, strict=True):
        yield metric("mix_covered", share, better="higher", where={**where, "among": among})


def _worth(figure: Adjusted, where: Where) -> Iterator[Metric]:
    for side, patients in zip(("group", "reference"), figure.effective, strict=True):
        yield count("effective_patients", int(np.floor(patients + 1e-9)), where={**where, "side": side})


def _held(estimate: Estimate, level: float) -> Estimate:
    return held_together(estimate, level, "all groups'")


def mix_metrics(asked: list[Question]) -> Iterator[Metric]:
    """How far the groups differ in each other column, and whether chance would do."""
    for question in asked:
        where: Where = {"column": question.other, "group": question.column}
        yield metric("mix_difference", question.mix.strength, where=where)
        if question.mix.p is None:
            yield Metric("mix_difference_p", None, where=where, reason=question.mix.strength.reason or "not tested")
        else:
            strength = question.mix.strength
            yield Metric("mix_difference_p", question.mix.p, n=strength.n, where=where, interval=question.mix.how)
