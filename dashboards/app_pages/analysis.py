"""One analysis: its question, its answer, the charts and numbers behind it, and what they do not mean."""

from __future__ import annotations

import json

import streamlit as st

from dashboards import inert, markup
from dashboards.parts import Links, chart_panel, data_table, finding_card, is_wide, metric_frame, ordered
from xvision import text
from xvision.charts import Chart, HeatMap
from xvision.result import Record, decision_of_page
from xvision.store import Run

_EVERY = "All metrics"


def show(run: Run, analysis: str, links: Links) -> None:
    record = run.record(analysis)
    markup.show(markup.title(record.title, eyebrow=record.pillar, lead=record.question))
    for place, finding in enumerate(item for item in ordered(run.findings) if item.analysis == analysis):
        finding_card(finding, run.judgement, {}, place=f"{analysis}-{place}")
    if record.status == "ok":
        _answer(run, record, links)
    else:
        _absence(record)
    _background(record)


def _answer(run: Run, record: Record, links: Links) -> None:
    markup.show(markup.element("div", record.summary, "xv-summary"))
    decision = decision_of_page(run.info, record.pillar)
    if decision:
        markup.show(markup.muted(decision))
    _charts(run, record, links)
    if record.caveats:
        markup.show(markup.notes("Read with care", record.caveats))
    _metrics(record)


def _absence(record: Record) -> None:
    """A skipped or failed analysis is shown with its reason: absence of a result is never a pass."""
    if record.status == "skipped":
        markup.show(
            markup.alert(markup.join([markup.element("strong", "Skipped. "), record.reason]), "insufficient evidence")
        )
        return
    markup.show(markup.alert(markup.join([markup.element("strong", "Failed. "), record.reason]), "fail"))
    if record.traceback:
        with st.expander("Traceback", icon=":material/bug_report:"):
            st.code(inert.plain(record.traceback), language=None)


def _charts(run: Run, record: Record, links: Links) -> None:
    """Two columns of charts, pictures and tables over the whole width, in the order of the analysis."""
    pending: list[tuple[str, Chart]] = []
    for place, chart in enumerate(record.charts):
        key = f"{record.analysis}-{place}"
        if not is_wide(chart):
            pending.append((key, chart))
            continue
        _pairs(pending, run, record, links)
        pending = []
        chart_panel(chart, run, record, links, place=key)
    _pairs(pending, run, record, links)


def _pairs(charts: list[tuple[str, Chart]], run: Run, record: Record, links: Links) -> None:
    for start in range(0, len(charts), 2):
        pair = charts[start : start + 2]
        alone = len(pair) == 1 and not isinstance(pair[0][1], HeatMap)
        columns = [st.container()] if alone else st.columns(2, gap="medium")
        for column, (key, chart) in zip(columns, pair, strict=False):
            with column:
                chart_panel(chart, run, record, links, place=key)


def _metrics(record: Record) -> None:
    markup.show(markup.heading("Numbers"))
    if not record.metrics:
        markup.show(markup.muted("This analysis reports no numbers."))
        return
    names = list(dict.fromkeys(metric.name for metric in record.metrics))
    with st.container(border=True, key=f"panel-metrics-{record.analysis}"):
        chosen, wanted = _EVERY, ""
        if len(record.metrics) > 8:
            left, right = st.columns(2)
            chosen = left.selectbox(
                "Metric", [_EVERY, *names], format_func=_metric_label, key=f"metric-{record.analysis}"
            )
            wanted = right.text_input("Condition contains", key=f"condition-{record.analysis}", max_chars=80)
        kept = [
            metric
            for metric in record.metrics
            if chosen in (_EVERY, metric.name) and wanted.casefold() in text.condition(metric.where).casefold()
        ]
        data_table(metric_frame(kept), f"{record.analysis}-metrics", alt=f"Numbers of {record.title}")


def _metric_label(name: str) -> str:
    return name if name == _EVERY else inert.plain(text.label(name))


def _background(record: Record) -> None:
    if record.reference:
        with st.expander("What these numbers mean", icon=":material/menu_book:"):
            markup.show(markup.prose(record.reference))
    with st.expander("Options and passes", icon=":material/tune:"):
        options = [
            (name, markup.mono(json.dumps(value, ensure_ascii=False, default=str)))
            for name, value in record.options.items()
        ]
        markup.show(
            markup.facts(
                [
                    *options,
                    ("Seconds", text.number(record.seconds)),
                    ("Images passed forward", text.number(record.forward, "count")),
                    ("Images passed backward", text.number(record.backward, "count")),
                    ("Per-case tables", ", ".join(f"tables/{name}.parquet" for name in record.tables) or "none"),
                    ("Key", markup.mono(record.key)),
                ]
            )
        )
