"""What an analysis returns, and what the run folder says of it: plain data, complete, and nothing else is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from xvision import codec, text
from xvision.charts import Chart

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Better = Literal["higher", "lower", "neither"]
Where = Mapping[str, str | int | float]
SCHEMA = 1
"""Of the run folder: readers refuse what they do not know."""
PILLARS = ("Performance", "Calibration", "Explanation", "Robustness", "Shift", "Fairness", "Other")
_DECIDED = ("Performance", "Calibration", "Robustness", "Shift", "Fairness")
"""Pillars whose analyses judge the deployed decision: each of their pages states it."""


class NotApplicable(Exception):
    """Raised by an analysis that cannot say anything about this model or data; its message is the reason shown."""


@codec.record
class Metric:
    """One number with its uncertainty, or the reason why it cannot be given.

    n counts independent units: patients where they are known, else images. An estimate has both ``low`` and ``high``
    (95 % unless ``interval`` says otherwise); an exact count or setting has unit "count" and none. ``where`` says of whom and
    under what: ``{"sex": "F"}``, ``{"epsilon": 0.0157, "norm": "linf"}``.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = ""
    better: Better = "neither"
    where: Where = field(default_factory=dict)
    reason: str | None = None
    interval: str = ""
    """How the interval was made: Wilson, DeLong, patient bootstrap, …"""

    def __post_init__(self) -> None:
        numbers = [number for number in (self.value, self.low, self.high) if number is not None]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"metric {self.name!r}: {numbers} is not finite; use None with a reason")
        if self.value is None:
            if not self.reason or self.low is not None or self.high is not None:
                raise ValueError(f"metric {self.name!r}: a missing value needs a reason and has no interval")
        elif not self.n and self.unit != "count":
            raise ValueError(f"metric {self.name!r}: a value needs n")
        if (self.low is None) != (self.high is None) or (self.low is not None and self.low > (self.high or 0.0)):
            raise ValueError(f"metric {self.name!r}: the interval ({self.low}, {self.high}) is not one")


MapWord = Literal["describes the model", "no better than a control", "fails randomisation", "not decided"]


@codec.record
class MapVerdict:
    """Whether the maps of one method may be relied on, and the figures that say so in one sentence."""

    word: MapWord
    sentence: str

    @property
    def stamp(self) -> str:
        """What is printed over a map that must not be relied on; empty for others."""
        return "do not rely on this map" if self.word in ("no better than a control", "fails randomisation") else ""

    @property
    def said(self) -> str:
        """The word for pages, which tell a method that nothing tested from one that could not be decided."""
        return "not tested" if self == UNTESTED else self.word


UNTESTED = MapVerdict("not decided", "This run did not test whether these maps describe the model.")


@dataclass(frozen=True)
class Case:
    """One image worth looking at. pictures: name → uint8 (H, W) or (H, W, 3); maps: name → float array kept as numbers.

    A picture of the same name as a map is a picture of that map. maps may also hold "mask", the reference mask.
    """

    id: str
    facts: Mapping[str, str | float | int] = field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """summary: one or two sentences an auditor may quote. tables: per-case rows, one per (case, condition).

    map_verdicts: by the label of a method of explanation, which is also the name of its pictures.
    """

    summary: str
    metrics: tuple[Metric, ...]
    charts: tuple[Chart, ...] = ()
    cases: tuple[Case, ...] = ()
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    caveats: tuple[str, ...] = ()
    map_verdicts: Mapping[str, MapVerdict] = field(default_factory=dict)


@codec.record
class StoredCase:
    """A case as the run folder holds it: pictures by name as paths relative to the run."""

    id: str
    facts: Mapping[str, str | float | int]
    pictures: Mapping[str, str]
    maps: str | None = None
    mapped: tuple[str, ...] = ()
    """Names of the pictures that show a map of a method of explanation; none is shown without that method's verdict."""


@codec.record
class Record:
    """One analysis in the run folder, whatever became of it."""

    analysis: str
    title: str
    pillar: str
    question: str
    status: Literal["ok", "skipped", "failed"]
    key: str
    options: Mapping[str, object]
    seconds: float
    reason: str = ""
    """Why it was skipped, or the error of a failed one."""
    traceback: str = ""
    forward: int = 0
    """Images passed forward through the model."""
    backward: int = 0
    summary: str = ""
    metrics: tuple[Metric, ...] = ()
    charts: tuple[Chart, ...] = ()
    cases: tuple[StoredCase, ...] = ()
    tables: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    map_verdicts: Mapping[str, MapVerdict] = field(default_factory=dict)
    reference: str = ""
    """What the numbers mean and do not mean: the analysis's own documentation."""


@codec.record
class Check:
    """What the preflight found."""

    name: str
    status: Literal["ok", "warning", "error"]
    sentence: str
    evidence: tuple[str, ...] = ()


@codec.record
class Group:
    """Who is in the audited data: cases, patients and positives of one level of one column."""

    column: str
    level: str
    cases: int
    patients: int
    by_class: Mapping[str, int]


@codec.record
class RunInfo:
    """``run.json``: everything needed to know what was audited, with what, and to do it again."""

    name: str
    status: Literal["running", "complete", "partial"]
    plan: Mapping[str, Any]
    command: str
    seed: int
    classes: tuple[str, ...]
    decision: Mapping[str, Any]
    split: str
    cases: int
    patients: int
    patients_declared: bool
    groups: tuple[str, ...]
    acquisition: tuple[str, ...]
    composition: tuple[Group, ...]
    checks: tuple[Check, ...]
    model: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    versions: Mapping[str, str]
    hardware: Mapping[str, Any]
    git: Mapping[str, Any]
    started: str
    finished: str = ""
    seconds: float = 0.0
    forward: int = 0
    backward: int = 0
    criteria_sha256: str = ""
    showcase: tuple[str, ...] = ()
    """Cases that every analysis pictures, so that one case can be read across analyses."""
    schema: int = SCHEMA


@codec.record
class Finding:
    """A criterion agreed beforehand, held against the run."""

    id: str
    title: str
    verdict: Literal["pass", "warn", "fail", "insufficient evidence"]
    severity: Literal["critical", "major", "minor"]
    analysis: str
    sentence: str
    rule: str
    why: str
    evidence: tuple[Metric, ...] = ()
    reproduce: str = ""


@codec.record
class Judgement:
    """``findings.json``: the verdict, each finding, and the criteria that were used."""

    verdict: Literal["pass", "warn", "fail", "insufficient evidence", "not judged"]
    findings: tuple[Finding, ...]
    criteria: Mapping[str, Any]
    criteria_sha256: str
    declared_before_run: bool


NOT_JUDGED = Judgement("not judged", (), {}, "", False)


def statement(decision: Mapping[str, Any]) -> str:
    """The decision that is judged and how its threshold came about, in words and without a full stop."""
    stated, threshold = decision.get("statement"), decision.get("threshold")
    if stated:
        return str(stated)
    if threshold is None:
        return "the most probable class"
    why = "declared in the plan" if decision.get("declared") else "by convention: the plan declares no operating point"
    return f"{decision.get('positive')} when its probability is at least {threshold:.4g}, {why}"


def decision_of_page(info: RunInfo, pillar: str) -> str:
    """The decision as a sentence for the page of an analysis of this pillar; "" where no decision is judged."""
    return f"Decision: {statement(info.decision)}." if pillar in _DECIDED else ""


def spoken(metric: Metric) -> str:
    """The metric's value with its interval, or why it has none, in words."""
    return text.value(metric.value, metric.low, metric.high, metric.unit, metric.reason)


def named(metric: Metric) -> str:
    """``Sensitivity (sex F)``."""
    condition = text.condition(metric.where)
    return f"{text.label(metric.name)} ({condition})" if condition else text.label(metric.name)
