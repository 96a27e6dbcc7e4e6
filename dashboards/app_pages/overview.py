"""The first page: the verdict, what it rests on, and what was audited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import streamlit as st

from dashboards import inert, markup
from dashboards.gallery import map_table
from dashboards.markup import Html
from dashboards.parts import Links, finding_card, limits, ordered
from xvision import text
from xvision.result import Finding, Group, Judgement, Metric, Record, RunInfo, named, spoken, statement
from xvision.store import Run

_FIRST_FIGURES = 4
_QUALITY, _ARROW = "explanation_quality", ":material/arrow_forward:"
_CHECKS = {"ok": ("pass", "ok"), "warning": ("warn", "warning"), "error": ("fail", "error")}
_WORDS = {"fail": "failed", "warn": "warned", "insufficient evidence": "could not be decided", "pass": "passed"}


def show(run: Run, links: Links) -> None:
    info, judgement = run.info, run.judgement
    findings = ordered(judgement.findings)
    markup.show(markup.title(info.name, eyebrow="Audit of a medical image classifier", lead=_lead(info)))
    _verdict(judgement, run)
    _key_figures(run)
    if findings:
        markup.show(markup.heading("Scorecard"))
        with st.container(border=True, key="panel-scorecard"):
            markup.show(_scorecard(findings, judgement))
        markup.show(markup.heading("Findings"))
        for place, finding in enumerate(findings):
            finding_card(finding, judgement, links, place=f"overview-{place}")
    _maps(run, links)
    _analyses(run, links)
    _audited(run)


def _lead(info: RunInfo) -> str:
    patients = text.plural(info.patients, "patient") if info.patients_declared else "patients not declared"
    return f"{text.plural(info.cases, 'image')} · {patients} · {info.split} split · {info.started[:16].replace('T', ' ')} UTC"


def _verdict(judgement: Judgement, run: Run) -> None:
    if judgement.verdict == "not judged":
        command = markup.mono(f"xvision judge {run.path} --criteria CRITERIA.toml")
        markup.show(
            markup.banner(
                "not judged",
                "No criteria were held against this run, so nothing here is a pass.",
                markup.join(["To judge it: ", command]),
            )
        )
        return
    counts: Counter[str] = Counter(finding.verdict for finding in judgement.findings)
    said = ", ".join(f"{counts[name]} {words}" for name, words in _WORDS.items() if counts[name])
    before = "The criteria were fixed before the run."
    after = "The criteria were not the ones fixed before the run: this verdict is exploratory."
    remark = f"{before if judgement.declared_before_run else after} SHA-256 {judgement.criteria_sha256[:16]}…"
    total = len(judgement.findings)
    sentence = f"Of {total} {'criterion' if total == 1 else 'criteria'}: {said}."
    markup.show(markup.banner(judgement.verdict, sentence, remark))


def _key_figures(run: Run) -> None:
    """The first numbers of the first analysis for the whole data set, and the first one of each other."""
    leading = [
        (record.title, metric)
        for place, record in enumerate(run.records)
        for metric in _leading(record, first=place == 0)
    ]
    if leading:
        markup.show(markup.heading("Key figures"))
        markup.show(markup.figures(leading))


def _leading(record: Record, *, first: bool) -> list[Metric]:
    whole = [metric for metric in record.metrics if not metric.where and metric.unit != "count"]
    return whole[: _FIRST_FIGURES if first else 1]


def _scorecard(findings: list[Finding], judgement: Judgement) -> Html:
    rows = []
    for finding in findings:
        observed = finding.evidence[0] if finding.evidence else None
        said = f"{named(observed)}: {spoken(observed)}" if observed else finding.sentence
        bar = markup.interval(observed, finding.verdict, limits(judgement, finding)) if observed else Html("")
        size = text.number(observed.n, "count") if observed and observed.n else "–"
        rows.append(
            [
                markup.badge(finding.verdict),
                finding.title,
                finding.rule,
                markup.join([said, bar]),
                size,
                finding.severity,
            ]
        )
    return markup.table(
        ["Verdict", "Criterion", "Rule", "Observed, with 95 % interval", "n", "Severity"], rows, right=(4,)
    )


def _maps(run: Run, links: Links) -> None:
    """Every method that drew a map or was judged, with its verdict, and the way to what the verdict rests on."""
    verdicts = run.map_verdicts
    if not verdicts:
        return
    markup.show(markup.heading("May the maps be believed?"))
    with st.container(border=True, key="panel-maps"):
        markup.show(map_table(verdicts))
        with st.container(horizontal=True):
            for record in run.records:
                if record.map_verdicts or record.analysis == _QUALITY:
                    st.page_link(
                        links[f"analysis/{record.analysis}"], label=inert.markdown(record.title), icon=_ARROW,
                        help="What these verdicts rest on",
                    )  # fmt: skip
            st.page_link(links["cases"], label="Maps of single cases", icon=_ARROW)


def _analyses(run: Run, links: Links) -> None:
    markup.show(markup.heading("Analyses"))
    with st.container(border=True, key="panel-analyses", gap="small"):
        for record in run.records:
            words, action = st.columns([6, 1], vertical_alignment="center", gap="medium")
            state = _state(record, run)
            with words:
                markup.show(
                    markup.row([markup.element("strong", record.title), markup.chip(record.pillar), state]),
                    markup.element("div", record.summary if record.status == "ok" else record.reason, "xv-muted"),
                )
            with action:
                st.page_link(links[f"analysis/{record.analysis}"], label="Open", icon=_ARROW)
        if not run.records:
            markup.show(markup.muted("No analysis has been written yet."))


def _state(record: Record, run: Run) -> Html:
    """The worst verdict that rests on the analysis, or what became of it."""
    if record.status != "ok":
        return markup.chip(record.status)
    verdicts = [finding.verdict for finding in ordered(run.findings) if finding.analysis == record.analysis]
    return markup.badge(verdicts[0]) if verdicts else Html("")


def _audited(run: Run) -> None:
    info = run.info
    markup.show(markup.heading("What was audited"))
    left, right = st.columns(2, gap="medium")
    with left, st.container(border=True, key="panel-model"):
        fingerprint = markup.mono(info.fingerprints.get("model", "not recorded"))
        markup.show(markup.subheading("Model"), markup.facts([*_facts(info.model), ("Fingerprint", fingerprint)]))
    with right, st.container(border=True, key="panel-decision"):
        markup.show(markup.subheading("Decision that was judged"), *_decision(info))
        markup.show(markup.subheading("Preflight checks"), _checks(info))
    with st.container(border=True, key="panel-data"):
        markup.show(markup.subheading("Data"), markup.facts(_data(info)), *_composition(info))


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(text.label(name), _fact(value)) for name, value in values.items()]


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{text.label(str(name)).lower()} {_fact(part)}" for name, part in value.items())
    return text.number(value, "count") if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _decision(info: RunInfo) -> tuple[Html, ...]:
    pairs = [("Rule", statement(info.decision)), ("Classes", ", ".join(info.classes))]
    assumed = markup.alert(
        "The plan declares no decision: this one was assumed. Check that it is the one that is deployed.", "warn"
    )
    return markup.facts(pairs), *([] if info.decision.get("declared") else [assumed]), markup.gap()


def _checks(info: RunInfo) -> Html:
    if not info.checks:
        return markup.muted("None recorded.")
    rows = []
    for check in info.checks:
        verdict, word = _CHECKS[check.status]
        evidence = markup.muted(text.listing(check.evidence)) if check.evidence else ""
        rows.append([markup.badge(verdict, word), text.label(check.name), markup.join([check.sentence, evidence])])
    return markup.table(["", "Check", "Found"], rows)


def _data(info: RunInfo) -> list[tuple[str, object]]:
    patients: object = text.number(info.patients, "count")
    if not info.patients_declared:
        patients = "not declared: every image counts as its own patient, so intervals may be too narrow"
    return [
        ("Images", text.number(info.cases, "count")),
        ("Patients", patients),
        ("Split", info.split),
        ("Group columns", ", ".join(info.groups) or "none"),
        ("Acquisition columns", ", ".join(info.acquisition) or "none"),
        ("Fingerprint", markup.mono(info.fingerprints.get("data", "not recorded"))),
    ]


def _composition(info: RunInfo) -> tuple[Html, ...]:
    if not info.composition:
        return (markup.muted("No composition was recorded."),)
    columns = ["Column", "Level", "Images", "Patients", *info.classes]
    rows = [_group_row(group, info.classes) for group in info.composition]
    return markup.gap(), markup.table(columns, rows, right=tuple(range(2, len(columns))))


def _group_row(group: Group, classes: tuple[str, ...]) -> list[object]:
    counts = [text.number(group.by_class.get(name, 0), "count") for name in classes]
    return [
        group.column,
        inert.plain(group.level),
        text.number(group.cases, "count"),
        text.number(group.patients, "count"),
        *counts,
    ]
