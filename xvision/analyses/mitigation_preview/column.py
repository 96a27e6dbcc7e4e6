"""One column of patient groups: its previews, judged on the audited cases, as numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from xvision import text
from xvision.audit import Audit, apart, count, metric
from xvision.errors import DataError
from xvision.methods.groups.cases import UNKNOWN, all_levels, known_levels
from xvision.methods.groups.preview_effects import GroupEffect, Moves, group_effects, levels_down, moves
from xvision.methods.groups.previews import Fitted, GroupRule, Tuning, fit_previews
from xvision.methods.paired import mean_change
from xvision.result import Metric, Where
from xvision.targets import log_odds

Recalibration = Literal["platt", "temperature"]
_DEPLOYED = "as deployed"
_MOST_LEVELS = 20
_AIMS = {"sensitivity": "sensitivity", "specificity": "specificity", "both": "the mean of sensitivity and specificity"}
_KINDS = ("newly found", "newly missed", "false alarm spared", "new false alarm")
_FIELDS = ("id", "column", "group", "preview", "before", "after", "effect", "helped", "harmed")


class Options(NamedTuple):
    """How previews are fitted."""

    target: float
    minimum: int
    recalibration: Recalibration


@dataclass(frozen=True)
class Judged:
    """One preview of one column on the audited cases. chance: (N,) of a positive decision."""

    rule: GroupRule
    chance: np.ndarray
    effects: tuple[GroupEffect, ...]

    @property
    def labels(self) -> Iterator[str]:
        """What must be said of it, in plain words."""
        if levels_down(self.effects):
            yield f"levels down: no group surely gains in {_AIMS[self.rule.aim]}, and at least one surely loses"
        drawn = float(((self.chance > 0) & (self.chance < 1)).mean())
        if drawn > 0:
            changed = share_of(float((2 * self.chance * (1 - self.chance)).mean()))
            yield f"decides by chance: {share_of(drawn)} of the decisions are drawn, {changed} would be others with another seed"
        ignored = [(each.group, each.ignored.value) for each in self.effects if each.ignored.value]
        if ignored:
            said = ", ".join(f"{share_of(share)} of decisions in {name}" for name, share in ignored)
            yield f"ignores the image: {said}"
        if self.rule.by_group:
            yield "needs the group at prediction time"


def share_of(share: float) -> str:
    """``43 %``, with a decimal below ten."""
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


class Column:
    """The previews of one column, or the reason why there are none."""

    def __init__(self, audit: Audit, tuning: Audit, name: str, options: Options) -> None:
        self.audit, self.name, self.title = audit, name, text.label(name)
        self.key = apart(name, "preview", "column")
        self.levels = audit.column(name)
        self.unknown = self.levels == UNKNOWN
        self.patients = np.unique(audit.patients, return_inverse=True)[1]
        self.positive = audit.labels == audit.positive
        self.deployed = audit.predictions.decisions == audit.positive
        self.scores = log_odds(audit.predictions.logits, audit.positive)
        self.tuning = Tuning(
            log_odds(tuning.predictions.logits, audit.positive),
            tuning.labels == audit.positive,
            tuning.column(name),
            np.unique(tuning.patients, return_inverse=True)[1],
        )
        self.fitted: Fitted | None = None
        self.judged: tuple[Judged, ...] = ()
        self.reason = self._refused()
        if not self.reason:
            self._fit(float(audit.decision.threshold or 0.5), options)

    @property
    def named(self) -> list[str]:
        """Its groups, the unknown last."""
        return all_levels(self.levels)

    def _refused(self) -> str:
        known = len(known_levels(self.levels))
        if known < 2:
            return f"{text.plural(known, 'known level')} among the audited cases; two are needed"
        if known > _MOST_LEVELS:
            return f"{text.number(known, 'count')} levels; at most {_MOST_LEVELS} are previewed"
        return ""

    def _fit(self, threshold: float, options: Options) -> None:
        try:
            self.fitted = fit_previews(self.tuning, threshold, **options._asdict())
        except DataError as problem:
            self.reason = str(problem)
            return
        self.judged = tuple(self._judge(rule) for rule in self.fitted.rules.values())

    def _judge(self, rule: GroupRule) -> Judged:
        chance = rule.chance(self.scores, self.levels, self.deployed)
        cases = (self.positive, self.deployed, chance, self.levels, self.patients)
        return Judged(rule, chance, group_effects(*cases, aim=rule.aim, ignored=rule.ignored(self.levels)))

    def oriented(self, kinds: Moves) -> Moves:
        """The moves as those of disease, also where the positive class is the healthy one."""
        if self.audit.decision.healthy != self.audit.positive:
            return kinds
        return Moves(kinds.spared, kinds.alarmed, kinds.found, kinds.missed)

    def people(self, what: Literal["helped", "harmed"]) -> float:
        """How many patients the group thresholds would help or harm."""
        return sum((getattr(effect, what).value or 0.0) * effect.patients for effect in self.judged[0].effects)

    def metrics(self) -> Iterator[Metric]:
        if self.reason:
            yield Metric("sensitivity_change", None, where={"column": self.name}, reason=self.reason)
            return
        for effect in self.judged[0].effects:
            where: Where = {self.key: effect.group, "preview": _DEPLOYED}
            yield metric("sensitivity", effect.sensitivity.before, better="higher", where=where)
            yield metric("specificity", effect.specificity.before, better="higher", where=where)
        for judged in self.judged:
            preview: Where = {"preview": judged.rule.name}
            yield count("levels_down", int(levels_down(judged.effects)), where={"column": self.name, **preview})
            for effect in judged.effects:
                yield from self._of_group(judged.rule, effect, {self.key: effect.group, **preview})

    def _of_group(self, rule: GroupRule, effect: GroupEffect, where: Where) -> Iterator[Metric]:
        for name, rates in (("sensitivity", effect.sensitivity), ("specificity", effect.specificity)):
            yield metric(name, rates.after, better="higher", where=where)
            yield metric(f"{name}_change", rates.change, better="higher", where=where)
        for name, share in (("helped", effect.helped), ("harmed", effect.harmed)):
            how = "expected count over the draws" if effect.drawn.value else "exact count"
            patients = round((share.value or 0.0) * effect.patients, 6)
            yield Metric(name, patients, n=effect.patients, unit="count", where=where, interval=how)
            yield metric(f"{name}_share", share, better="higher" if name == "helped" else "lower", where=where)
        if rule.randomised:
            yield metric("randomised_share", effect.randomised, better="lower", where=where)
            yield metric("ignored_share", effect.ignored, better="lower", where=where)
        if rule.lines:
            yield self._brier_change(rule, effect.group, where)

    def _brier_change(self, rule: GroupRule, group: str, where: Where) -> Metric:
        member = self.levels == group
        scores, positive = self.scores[member], self.positive[member]
        losses = [(expit(each) - positive) ** 2 for each in (scores, rule.recalibrated(scores, group))]
        draws = self.audit.rng(f"brier {self.name} {group}")
        change = mean_change(losses[0], losses[1], self.patients[member], rng=draws)
        return metric("brier_change", change.difference, better="lower", where=where)

    def table(self) -> pd.DataFrame:
        """One row per case and preview whose decision could change. after: chance of a positive decision."""
        found = [self._changed(judged) for judged in self.judged]
        numbers = ("after", "helped", "harmed")
        empty = {name: pd.Series(dtype="float64" if name in numbers else "str") for name in _FIELDS}
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame(empty)

    def _changed(self, judged: Judged) -> pd.DataFrame:
        kinds = np.stack(self.oriented(moves(self.positive, self.deployed, judged.chance)))
        some = np.flatnonzero(kinds.sum(axis=0) > 0)
        kinds, names = kinds[:, some], np.array(_KINDS)
        rows = (
            self.audit.ids[some],
            self.name,
            self.levels[some],
            judged.rule.name,
            [self.audit.classes[code] for code in self.audit.predictions.decisions[some]],
            judged.chance[some],
            names[kinds.argmax(axis=0)],
            kinds[0] + kinds[2],
            kinds[1] + kinds[3],
        )
        return pd.DataFrame(dict(zip(_FIELDS, rows, strict=True)))
