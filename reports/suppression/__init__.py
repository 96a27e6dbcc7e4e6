"""Small cells of people, withheld from a report that leaves the house: the one place where that is decided.

A report is built from a run as ``shown`` gives it. Withheld is what counts from 1 to below ``fairness.suppress_below`` of
the plan, every rate of so few, every group with such a cell in the composition, and, so that nothing can be worked out from
a total, at least one larger group of the same column beside them. The run folder, the dashboard and ``xvision metrics`` are
inside the house and show everything. Errors among many people stay: a rate near 1 of a large group tells how few were
missed, not who belongs to a small group.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from reports.suppression.charts import charts
from reports.suppression.rule import WITHHELD, Rule, completed, rule_of
from xvision.errors import RunError
from xvision.result import Check, Finding, Judgement, Metric, Record, RunInfo
from xvision.store import Run

__all__ = ["WITHHELD", "Rule", "metrics", "rule_of", "shown"]

_OF_PERSONS = ("patients_in_two_groups",)
"""Checks whose examples are single people."""


def shown(run: Run) -> Run:
    """The run as a report may show it. Raises RunError where everybody together is too few."""
    rule = rule_of(run.info)
    if not rule.below:
        return run
    for count, noun in ((run.info.cases, "images"), (run.info.patients, "patients")):
        if rule.small(count):
            raise RunError(
                f"{run.path}: fewer than {rule.below} {noun} were audited, and the plan withholds such counts "
                "(fairness.suppress_below): there is nothing that a report could show."
            )
    return _Shown(run, rule)


class _Shown(Run):
    """A run folder without its small cells."""

    def __init__(self, run: Run, rule: Rule) -> None:
        super().__init__(run.path)
        self._run, self._rule = run, rule

    @cached_property
    def info(self) -> RunInfo:
        """The composition stays as it is: ``rule_of`` reads it, and says what to leave out."""
        checks = tuple(
            Check(
                check.name,
                check.status,
                self._rule.words(check.sentence, strict=True),
                ()
                if check.name in _OF_PERSONS
                else tuple(dict.fromkeys(self._rule.words(line, strict=True) for line in check.evidence)),
            )
            for check in self._run.info.checks
        )
        return replace(self._run.info, checks=checks)

    @cached_property
    def records(self) -> tuple[Record, ...]:
        return tuple(_record(record, self._rule) for record in self._run.records)

    @cached_property
    def judgement(self) -> Judgement:
        kept = {(record.analysis, _key(item)): item for record in self.records for item in record.metrics}
        findings = tuple(_finding(item, kept, self._rule) for item in self._run.judgement.findings)
        return replace(self._run.judgement, findings=findings)

    def reviews(self) -> tuple[Mapping[str, Any], ...]:
        return tuple(
            {name: self._rule.words(value) if isinstance(value, str) else value for name, value in entry.items()}
            for entry in self._run.reviews()
        )


def _record(record: Record, rule: Rule) -> Record:
    kept, gone = charts(record.charts, rule)
    lost = [f"Withheld, because it counts fewer than {rule.below} people somewhere: “{title}”." for title in gone]
    return replace(
        record,
        summary=rule.words(record.summary),
        reason=rule.words(record.reason),
        metrics=metrics(record.metrics, rule),
        charts=kept,
        caveats=tuple(dict.fromkeys([*map(rule.words, record.caveats), *lost])),
    )


def metrics(found: Sequence[Metric], rule: Rule) -> tuple[Metric, ...]:
    """Numbers of few people as missing, with the reason, and others from which they could be worked out."""
    small = [rule.small(item.n) for item in found]
    hidden = {
        place
        for place, item in enumerate(found)
        if small[place] or rule.about(item.where) or rule.mentions(item.interval)
    }
    lines = _lines(found, rule.columns)
    while True:
        before = len(hidden)
        for line in lines:
            inside = {place for place, member in enumerate(line) if member in hidden}
            more = completed([found[member].n for member in line], [small[member] for member in line], inside)
            hidden |= {line[place] for place in more}
        if len(hidden) == before:
            break
    return tuple(_missing(item, rule) if place in hidden else item for place, item in enumerate(found))


def _lines(found: Sequence[Metric], columns: Collection[str]) -> list[list[int]]:
    """Places of numbers that differ in the level of one column alone, or in the class: their n add up."""
    lines: dict[tuple[object, ...], list[int]] = {}
    for place, item in enumerate(found):
        for key in item.where:
            if key == "class" or key.removeprefix("group ") in columns:
                rest = tuple(sorted((other, str(value)) for other, value in item.where.items() if other != key))
                lines.setdefault((item.name, key, rest), []).append(place)
    return list(lines.values())


def _missing(item: Metric, rule: Rule) -> Metric:
    reason = f"withheld: fewer than {rule.below} people, or a group that would give such a number away"
    return replace(item, value=None, low=None, high=None, n=None, reason=reason, interval="")


def _finding(finding: Finding, kept: Mapping[tuple[str, object], Metric], rule: Rule) -> Finding:
    evidence = tuple(kept.get((finding.analysis, _key(item)), item) for item in finding.evidence)
    if evidence == finding.evidence:
        return replace(finding, sentence=rule.words(finding.sentence))
    return replace(
        finding, evidence=evidence, sentence="Numbers behind this finding are of groups too small to be shown here."
    )


def _key(item: Metric) -> object:
    return item.name, tuple(sorted((key, str(value)) for key, value in item.where.items()))
