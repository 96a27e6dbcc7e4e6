"""Criteria agreed beforehand × the numbers of a run → findings. Needs neither the model nor torch.

A criterion is judged by the interval, not by the point: *pass* when the whole interval keeps it, *fail* when the whole interval
breaks it, *insufficient evidence* when the interval holds both. A number that is missing is never a pass.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Literal

from xvision import codec, text
from xvision.config import read_toml
from xvision.errors import ConfigError
from xvision.result import Finding, Judgement, Metric, Record, RunInfo, named, spoken
from xvision.store import Run

Verdict = Literal["pass", "warn", "fail", "insufficient evidence"]
_WORST_FIRST: tuple[Verdict, ...] = ("fail", "insufficient evidence", "warn", "pass")
_ORDER = {"fail": 0, "warn": 1, "insufficient evidence": 2, "pass": 3}
_MOST_EVIDENCE = 8


@codec.record
class Criterion:
    """One demand on one metric. Exactly one of ``at_least``, ``at_most`` and ``within`` (|value| at most) is given.

    ``where`` must name every condition of the metric, "*" standing for any value; ``by`` adds the group or acquisition
    columns of the plan. Several matching numbers must all keep the criterion.
    """

    id: str
    title: str
    analysis: str
    metric: str
    severity: Literal["critical", "major", "minor"]
    why: str
    at_least: float | None = None
    at_most: float | None = None
    within: float | None = None
    where: Mapping[str, str | int | float] = field(default_factory=dict)
    by: Literal["", "groups", "acquisition"] = ""

    def __post_init__(self) -> None:
        given = [name for name in ("at_least", "at_most", "within") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"criterion {self.id!r}: give exactly one of at_least, at_most and within, not {len(given)}."
            )
        if not self.why.strip():
            raise ConfigError(f"criterion {self.id!r}: say why this threshold was agreed.")

    @property
    def rule(self) -> str:
        """``AUROC at least 0.850``."""
        demand = next(
            f"{words} {text.number(limit, 'count' if limit == 0 or (abs(limit) > 1 and limit == int(limit)) else '')}"
            for words, limit in (("at least", self.at_least), ("at most", self.at_most), ("within ±", self.within))
            if limit is not None
        ).replace("± ", "±")
        scope = text.condition({key: "any" if value == "*" else value for key, value in self.where.items()})
        parts = [
            text.label(self.metric),
            f"({scope})" if scope else "",
            f"for each level of the {self.by} columns" if self.by else "",
        ]
        return " ".join(part for part in [*parts, demand] if part)

    def badness(self, metric: Metric) -> float:
        """Larger is further on the wrong side; a missing number is shown last."""
        if metric.value is None:
            return -math.inf
        return (
            -metric.value
            if self.at_least is not None
            else metric.value
            if self.at_most is not None
            else abs(metric.value)
        )

    def judge(self, metric: Metric) -> Verdict:
        """The verdict on one number. A number without interval (an exact count) is judged as it is."""
        if metric.value is None:
            return "insufficient evidence"
        low = metric.value if metric.low is None else metric.low
        high = metric.value if metric.high is None else metric.high
        bottom = (
            self.at_least if self.at_least is not None else -(self.within or 0.0) if self.within is not None else None
        )
        top = self.at_most if self.at_most is not None else self.within
        kept = (bottom is None or low >= bottom) and (top is None or high <= top)
        broken = (bottom is not None and high < bottom) or (top is not None and low > top)
        failed: Verdict = "warn" if self.severity == "minor" else "fail"
        return "pass" if kept else failed if broken else "insufficient evidence"


@codec.record
class Criteria:
    """A criteria file."""

    criterion: tuple[Criterion, ...]
    title: str = ""

    def __post_init__(self) -> None:
        names = [item.id for item in self.criterion]
        repeated = {name for name in names if names.count(name) > 1}
        if repeated or not names:
            found = f"the ids {', '.join(sorted(repeated))} twice" if repeated else "no [[criterion]]"
            raise ConfigError(f"a criteria file needs at least one [[criterion]], each with its own id; found {found}.")


def load_criteria(path: Path) -> Criteria:
    return codec.read(Criteria, read_toml(path), str(path), ConfigError)


def criteria_sha256(criteria: Criteria) -> str:
    """Hash of the content, not of the file's layout."""
    return hashlib.sha256(json.dumps(codec.plain(criteria), sort_keys=True).encode()).hexdigest()


def judge_run(run: Run, criteria: Criteria) -> Judgement:
    """Every criterion held against the run. Reads only; ``xvision judge`` writes the result."""
    records = {record.analysis: record for record in run.records}
    findings = tuple(_finding(item, records.get(item.analysis), run.info) for item in criteria.criterion)
    ordered = tuple(sorted(findings, key=lambda finding: (_ORDER[finding.verdict], finding.severity)))
    digest = criteria_sha256(criteria)
    return Judgement(
        verdict=_worst([finding.verdict for finding in findings]),
        findings=ordered,
        criteria=codec.plain(criteria),
        criteria_sha256=digest,
        declared_before_run=digest == run.info.criteria_sha256,
    )


def exit_code(judgement: Judgement) -> int:
    """0 all pass, 1 a fail, 3 insufficient evidence."""
    return {"fail": 1, "insufficient evidence": 3, "not judged": 3}.get(judgement.verdict, 0)


def _finding(criterion: Criterion, record: Record | None, info: RunInfo) -> Finding:
    metrics = [item for item in record.metrics if _matches(criterion, item, info)] if record else []
    judged = [(criterion.judge(item), item) for item in metrics]
    verdict = _worst([found for found, _ in judged]) if judged else "insufficient evidence"
    evidence = sorted((item for found, item in judged if found == verdict), key=criterion.badness, reverse=True)
    return Finding(
        id=criterion.id,
        title=criterion.title,
        verdict=verdict,
        severity=criterion.severity,
        analysis=criterion.analysis,
        sentence=_sentence(evidence, len(judged), verdict) if judged else _absence(criterion, record),
        rule=criterion.rule,
        why=criterion.why,
        evidence=tuple(evidence[:_MOST_EVIDENCE]),
        reproduce=f"{info.command} --only {criterion.analysis}",
    )


def _matches(criterion: Criterion, metric: Metric, info: RunInfo) -> bool:
    if metric.name != criterion.metric:
        return False
    for key, wanted in criterion.where.items():
        if key not in metric.where or (wanted != "*" and metric.where[key] != wanted):
            return False
    rest = set(metric.where) - set(criterion.where)
    columns = set(info.groups if criterion.by == "groups" else info.acquisition) if criterion.by else set()
    return bool(rest) and rest <= columns if criterion.by else not rest


def _sentence(evidence: list[Metric], judged: int, verdict: Verdict) -> str:
    lead = f"{named(evidence[0])}: {spoken(evidence[0])}."
    if judged == 1:
        return lead
    ending = "s" if len(evidence) == 1 else ""
    words = {
        "pass": f"keep{ending} the criterion",
        "fail": f"break{ending} it",
        "warn": f"break{ending} it",
        "insufficient evidence": "cannot be decided",
    }
    return f"{lead} Of {text.number(judged, 'count')} numbers, {text.number(len(evidence), 'count')} {words[verdict]}."


def _absence(criterion: Criterion, record: Record | None) -> str:
    if record is None:
        return f"The analysis {criterion.analysis!r} is not in this run."
    if record.status != "ok":
        return f"The analysis {criterion.analysis!r} {record.status}: {record.reason}"
    return f"The analysis {criterion.analysis!r} gives no number called {criterion.metric!r} under this condition."


def _worst(verdicts: list[Verdict]) -> Verdict:
    return next(verdict for verdict in _WORST_FIRST if verdict in verdicts)
