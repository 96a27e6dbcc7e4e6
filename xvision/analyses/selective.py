"""What a model that may abstain gets wrong, and whom it leaves undecided."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from xvision import text
from xvision.audit import Audit, metric
from xvision.charts import Axis, Chart, Forest, Lines, Mark, Reference, Series, Table
from xvision.errors import ConfigError
from xvision.methods.groups.gaps import group_gaps
from xvision.methods.intervals import Estimate, bootstrap, held_together, not_estimable, proportion
from xvision.methods.selective import NoRule, Rule, agreed_rule, aurc, confidence, e_aurc, risk_at, threshold_at
from xvision.registry import analysis
from xvision.result import Metric, Result, Where, spoken
from xvision.tuning import tuning_cases

_SHARES = (0.8, 0.9)
_USUAL = 0.8
_POINTS = 40


@analysis("Abstention", pillar="Calibration", need="scores", passes="1 forward per case of the split validation")
def selective(audit: Audit, *, agreed_risk: float | None = None, minimum: int = 10, resamples: int = 1000) -> Result:
    """What if the model may abstain: how often is it wrong on the cases it decides, and whom does it leave undecided?

    Confidence is the distance of the log-odds from the deployed threshold, or the probability of the most probable class.
    ``selective_risk`` is the share of wrong decisions among the surest cases, ``aurc`` its mean over all shares (Geifman 2019),
    ``e_aurc`` what of it a perfect order of the same errors would save: 0 is a model that knows when it is wrong. With
    ``agreed_risk`` the rule that decides most cases within that risk is chosen on the split "validation" with an exact upper limit
    (95 % over the twenty rules tried) and then tested on the audited cases; without it the rule decides 80 % of the cases.
    ``coverage`` is the share that a rule decides, by class and group; ``risk_change`` is a group's error rate among its decided
    cases minus that among all of them: abstention can raise it for one group while it falls for all (Jones et al. 2021). An
    abstention is no right decision: somebody must read those cases, and they are the hard ones.
    """
    if agreed_risk is not None and not 0 < agreed_risk < 1:
        raise ConfigError(f"analysis.selective.agreed_risk is {agreed_risk}: give a share of errors such as 0.05.")
    found = _Abstention(audit, agreed_risk, minimum, resamples)
    metrics = (*found.whole(), *found.ruled(), *found.parted())
    charts: tuple[Chart, ...] = (_curve(found), _rules(found), _left(found, metrics), _who(found, metrics))
    return Result(
        _summary(found, metrics), metrics, charts, tables={"selective": found.table}, caveats=_caveats(found, metrics)
    )


class _Applied(NamedTuple):
    """The rule that is looked at: its name, where it comes from, and the confidence from which cases are decided."""

    name: str
    source: str
    threshold: float


class _Part(NamedTuple):
    """A class or a level of a column. family: how many levels are compared."""

    label: str
    where: Where
    members: np.ndarray
    family: int


class _Abstention:
    """Confidence, errors and the rule on the audited cases."""

    def __init__(self, audit: Audit, agreed: float | None, minimum: int, resamples: int) -> None:
        self.audit, self.agreed, self.minimum, self.resamples = audit, agreed, minimum, resamples
        self.sure = confidence(audit.predictions.logits, audit.decision)
        self.wrong, self.patients = ~audit.correct, audit.patients
        tuning = tuning_cases(audit)
        self.tuning = None if isinstance(tuning, str) else tuning
        self.untuned = tuning if isinstance(tuning, str) else ""
        self.tried = None if agreed is None else self._tried(agreed)
        self.rule = self._applied()
        self.decided = self.sure >= self.rule.threshold
        self.parts = tuple(self._parts())

    def _tried(self, agreed: float) -> Rule | NoRule:
        if self.tuning is None:
            return NoRule(
                f'insufficient evidence: {self.untuned}; would be settled by a split "validation" with predictions'
            )
        sure = confidence(self.tuning.predictions.logits, self.tuning.decision)
        return agreed_rule(sure, ~self.tuning.correct, self.tuning.patients, agreed)

    def _applied(self) -> _Applied:
        if isinstance(self.tried, Rule) and self.tuning is not None:
            return _Applied(f"agreed risk {self.agreed:g}", self.tuning.called, self.tried.threshold)
        name = f"surest {100 * _USUAL:.0f} %"
        if self.tuning is None:
            return _Applied(name, "the audited cases, without their labels", threshold_at(self.sure, _USUAL))
        sure = confidence(self.tuning.predictions.logits, self.tuning.decision)
        return _Applied(name, self.tuning.called, threshold_at(sure, _USUAL))

    def _parts(self) -> Iterator[_Part]:
        audit = self.audit
        for code, name in enumerate(audit.classes):
            yield _Part(f"class {name}", {"class": name}, audit.labels == code, len(audit.classes))
        for column in (*audit.groups, *audit.acquisition):
            levels = sorted(set(audit.column(column)))
            for level in levels:
                members = audit.column(column) == level
                yield _Part(f"{text.label(column)} {level}", {column: level}, members, len(levels))

    def whole(self) -> Iterator[Metric]:
        """What holds without a rule."""
        sure, wrong, patients = self.sure, self.wrong, self.patients
        for name, estimate in (("aurc", aurc), ("e_aurc", e_aurc)):
            found = estimate(sure, wrong, patients, rng=self.audit.rng(name), resamples=self.resamples)
            yield metric(name, found, better="lower")
        yield metric("error_rate", proportion(wrong, patients), better="lower")
        for share in _SHARES:
            rng = self.audit.rng(f"risk {share}")
            found = risk_at(sure, wrong, patients, share, rng=rng, resamples=self.resamples)
            yield metric("selective_risk", found, better="lower", where={"coverage": share})

    def ruled(self) -> Iterator[Metric]:
        """What the rule decides and gets wrong; reasons where the agreed risk gave none."""
        if isinstance(self.tried, NoRule):
            where: Where = {"rule": f"agreed risk {self.agreed:g}"}
            yield Metric("coverage", None, where=where, reason=self.tried.reason, better="higher")
            yield Metric("selective_risk", None, where=where, reason=self.tried.reason, better="lower")
        everyone = np.ones_like(self.wrong)
        yield self._coverage({}, everyone)
        yield self._risk({}, everyone)
        yield from self._hits()

    def _hits(self) -> Iterator[Metric]:
        audit, named = self.audit, {"rule": self.rule.name}
        binary = audit.decision.positive is not None
        for code, name in enumerate(audit.classes):
            members = (audit.labels == code) & self.decided
            found = proportion(~self.wrong[members], self.patients[members])
            if found.value is None:
                found = found._replace(reason=f"no case of {name} is decided")
            if binary:
                title = "sensitivity" if code == audit.decision.positive else "specificity"
                yield metric(title, found, better="higher", where=named)
            else:
                yield metric("sensitivity", found, better="higher", where={"class": name, **named})

    def parted(self) -> Iterator[Metric]:
        """By class and group."""
        for part in self.parts:
            yield self._coverage(part.where, part.members)
            yield self._risk(part.where, part.members)
            yield self._change(part)
        for column in (*self.audit.groups, *self.audit.acquisition):
            yield from self._differences(column)

    def _coverage(self, where: Where, members: np.ndarray) -> Metric:
        found = proportion(self.decided[members], self.patients[members])
        if found.value is None:
            found = found._replace(reason="no such case is audited")
        return metric("coverage", found, better="higher", where={**where, "rule": self.rule.name})

    def _risk(self, where: Where, members: np.ndarray) -> Metric:
        kept = members & self.decided
        found = proportion(self.wrong[kept], self.patients[kept], exact=True)
        if found.value is None:
            found = found._replace(reason="none of these cases is decided")
        return metric("selective_risk", found, better="lower", where={**where, "rule": self.rule.name})

    def _change(self, part: _Part) -> Metric:
        members, where = part.members, {**part.where, "rule": self.rule.name}
        return metric("risk_change", self._changed(part, members), better="lower", where=where)

    def _changed(self, part: _Part, members: np.ndarray) -> Estimate:
        patients = len(set(self.patients[members]))
        if patients < self.minimum:
            return not_estimable(f"fewer than {self.minimum} patients", patients)
        if not (members & self.decided).any():
            return not_estimable("none of these cases is decided", patients)
        if not self.wrong[members].any():
            return not_estimable("no decision of these cases is wrong", patients)
        if self.decided[members].all():
            return not_estimable("all of these cases are decided", patients)
        level = 1 - 0.05 / part.family
        found = bootstrap(
            partial(_rise, wrong=self.wrong[members], decided=self.decided[members]),
            self.patients[members], rng=self.audit.rng(f"change {part.label}"), resamples=self.resamples, level=level,
        )  # fmt: skip
        return held_together(found, level, part.family)

    def _differences(self, column: str) -> Iterator[Metric]:
        labels = np.ones(len(self.wrong), dtype=int)
        gaps = group_gaps(
            labels, self.decided, self.sure, self.audit.column(column), self.patients,
            metric="selection_rate", minimum=self.minimum,
        )  # fmt: skip
        for gap in gaps:
            found = held_together(gap.difference, gap.level, gap.family)
            where: Where = {column: gap.group, "against": gap.reference, "rule": self.rule.name}
            yield metric("coverage_difference", found, where=where)

    @property
    def table(self) -> pd.DataFrame:
        """One row per case."""
        return pd.DataFrame(
            {"id": self.audit.ids, "confidence": self.sure, "decided": self.decided, "wrong": self.wrong}
        )


def _rise(weights: np.ndarray, *, wrong: np.ndarray, decided: np.ndarray) -> np.ndarray:
    """(R,) error rate among the decided minus that of all, NaN where none is decided."""
    with np.errstate(invalid="ignore", divide="ignore"):
        rise = (weights @ (wrong & decided)) / (weights @ decided) - (weights @ wrong) / weights.sum(axis=1)
    return np.asarray(rise)


def _curve(found: _Abstention) -> Lines:
    points: list[tuple[float, Estimate]] = []
    for share in np.linspace(1 / _POINTS, 1.0, _POINTS):
        decided = found.sure >= threshold_at(found.sure, float(share))
        risk = proportion(found.wrong[decided], found.patients[decided])
        if not points or decided.mean() > points[-1][0]:
            points.append((float(decided.mean()), risk))
    rate = float(found.wrong.mean())
    shares = tuple(share for share, _ in points)
    best = tuple(max(0.0, (share - (1 - rate)) / share) for share in shares)
    risks = [risk.value or 0.0 for _, risk in points]
    highest = max([rate, *(risk.high or 0.0 for _, risk in points)])
    model = Series(
        "model, 95 % interval", shares, tuple(risks), tuple(risk.low for _, risk in points), tuple(risk.high for _, risk in points)
    )  # fmt: skip
    return Lines(
        "Errors among the cases that are decided",
        f"The surest {shares[0]:.3f} of the cases have an error rate of {risks[0]:.3f}; all of them {rate:.3f}.",
        Axis("Share of cases decided", low=0, high=1),
        Axis("Share of wrong decisions", low=0, high=min(1.0, 1.1 * highest)),
        (model, Series("perfect order of the same errors", shares, best, marks=False)),
        (Reference("no order", rate),),
    )


def _rules(found: _Abstention) -> Table:
    rule, tried = found.rule, found.tried
    rows: list[tuple[str | int | float | None, ...]] = [
        ("Rule", rule.name),
        ("Chosen on", rule.source),
        ("Decides from a confidence (log-odds) of", rule.threshold),
        ("Audited cases decided", int(found.decided.sum())),
        ("Audited cases left undecided", int((~found.decided).sum())),
    ]
    if isinstance(tried, Rule):
        rows += [
            ("Coverage there", tried.coverage),
            ("Risk there", tried.risk),
            ("Upper limit of the risk there", tried.bound),
        ]
    if isinstance(tried, NoRule):
        rows.append((f"No rule for the agreed risk {found.agreed:g}", tried.reason))
    return Table("The rule", f"{rule.name}, chosen on {rule.source}.", ("What", "Value"), tuple(rows))


def _left(found: _Abstention, metrics: tuple[Metric, ...]) -> Forest:
    chosen = [(part, _of(metrics, "coverage", part.where, found)) for part in found.parts]
    marks = tuple(Mark(part.label, item.value, item.low, item.high, _note(part, item)) for part, item in chosen)
    overall = _of(metrics, "coverage", {}, found)
    known = [(part, item) for part, item in chosen if item.value is not None]
    least, item = min(known, key=lambda pair: pair[1].value or 0.0)
    return Forest(
        "Who is decided",
        f"Of all cases {spoken(overall)} are decided; fewest of {least.label}: {spoken(item)}.",
        Axis("Share of cases decided", low=0, high=1),
        marks,
        (Reference("all", overall.value or 0.0, "x"),),
    )


def _note(part: _Part, item: Metric) -> str:
    return (
        f"n = {text.number(int(part.members.sum()), 'count')}"
        if item.value is not None
        else f"not estimable ({item.reason})"
    )


def _of(metrics: tuple[Metric, ...], name: str, where: Where, found: _Abstention) -> Metric:
    return next(
        item for item in metrics if item.name == name and dict(item.where) == {**where, "rule": found.rule.name}
    )


def _who(found: _Abstention, metrics: tuple[Metric, ...]) -> Table:
    rows: list[tuple[str | int | float | None, ...]] = []
    for part in found.parts:
        if part.members.any():
            values = [_of(metrics, name, part.where, found) for name in ("coverage", "selective_risk", "risk_change")]
            change = values[2]
            before = float(found.wrong[part.members].mean())
            rows.append(
                (part.label, int(part.members.sum()), values[0].value, before, values[1].value, change.value, change.low, change.high)
            )  # fmt: skip
    return Table(
        "Error rates before and after abstention",
        "One row per class and group; a change above 0 is an error rate that abstention raises.",
        ("Cases", "Images", "Share decided", "Error rate of all", "Error rate of the decided", "Change", "Low", "High"),
        tuple(rows),
    )


def _raised(metrics: tuple[Metric, ...]) -> list[Metric]:
    return [item for item in metrics if item.name == "risk_change" and item.low is not None and item.low > 0]


def _fewer(found: _Abstention, metrics: tuple[Metric, ...]) -> list[Metric]:
    """Groups decided less often than the others, beyond chance."""
    gaps = [item for item in metrics if item.name == "coverage_difference" and item.value is not None]
    return [item for item in gaps if (item.low or 0.0) > 0 or (item.high or 0.0) < 0]


def _summary(found: _Abstention, metrics: tuple[Metric, ...]) -> str:
    whole = next(item for item in metrics if item.name == "error_rate")
    at = next(item for item in metrics if dict(item.where) == {"coverage": _USUAL})
    said = [f"{spoken(whole)} of all decisions are wrong, {spoken(at)} of the surest {100 * _USUAL:.0f} %."]
    said.append(_tested(found, metrics))
    gaps = _fewer(found, metrics)
    if gaps:
        widest = max(gaps, key=lambda item: abs(item.value or 0.0))
        column, level = next(iter(widest.where.items()))
        word = "less" if (widest.value or 0.0) < 0 else "more"
        said.append(
            f"{text.label(column)} {level} is decided {word} often than {widest.where['against']}: {spoken(widest)}."
        )
    raised = _raised(metrics)
    if raised:
        names = [" ".join(map(str, next(iter(item.where.items())))) + f" by {spoken(item)}" for item in raised]
        said.append(f"Abstention raises the error rate of {text.listing(names, most=3)}.")
    return " ".join(said)


def _tested(found: _Abstention, metrics: tuple[Metric, ...]) -> str:
    coverage, risk = (_of(metrics, name, {}, found) for name in ("coverage", "selective_risk"))
    if isinstance(found.tried, NoRule):
        return f"No rule was found for the agreed risk of {found.agreed:g} ({found.tried.reason})."
    if risk.value is None or risk.low is None or risk.high is None:
        return f"The rule {found.rule.name!r} decides no audited case."
    said = f"The rule “{found.rule.name}”, chosen on {found.rule.source}, decides {spoken(coverage)} with a risk of {spoken(risk)}"
    if found.agreed is None:
        return f"{said}."
    if risk.high <= found.agreed:
        return f"{said}: within the agreed {found.agreed:g}."
    return (
        f"{said}: {'above' if risk.low > found.agreed else 'not decided whether within'} the agreed {found.agreed:g}."
    )


def _caveats(found: _Abstention, metrics: tuple[Metric, ...]) -> tuple[str, ...]:
    caveats = [
        "The undecided cases are the hard ones, and whoever reads them instead will be wrong more often than on average."
    ]
    if found.tuning is None:
        caveats.append(
            f"No rule could be chosen elsewhere ({found.untuned}): the share decided is that of the audited cases, by construction."
        )
    if isinstance(found.tried, Rule):
        caveats.append(
            "The agreed risk is promised for cases like those of validation, not for another site or prevalence."
        )
    if found.audit.decision.positive is not None:
        caveats.append("Abstention lies around the deployed threshold, so it moves sensitivity and specificity both.")
    harmed = _raised(metrics)
    if harmed:
        caveats.append(f"Abstention raises the error rate in {len(harmed)} of {len(found.parts)} classes and groups.")
    return tuple(caveats)
