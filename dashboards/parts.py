"""Pieces of pages that more than one page shows: findings, charts, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import pandas as pd
import streamlit as st

from dashboards import inert, markup
from dashboards.charts import figure
from dashboards.gallery import map_legend, pictures
from dashboards.markup import Html
from dashboards.theme import slug
from xvision import text
from xvision.charts import Bars, Chart, Forest, HeatMap, Images, Lines, Table
from xvision.result import Finding, Judgement, Metric, Record, StoredCase, named, spoken
from xvision.store import Run

Links = Mapping[str, st.Page]
"""Pages by key: ``overview``, ``cases``, ``evidence`` and ``analysis/<name>``."""

_ORDER = {"fail": 0, "warn": 1, "insufficient evidence": 2, "pass": 3}
_TOOLBAR = {
    "displaylogo": False,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
}
_ROWS_OF_CASES = 6
_SHORT_LABEL, _FEW_COLUMNS = 16, 6
_METRIC_COLUMNS = ("Metric", "Condition", "Result", "n", "Unit", "Better", "Interval", "Value", "Low", "High")


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """Worst first."""
    return sorted(findings, key=lambda finding: _ORDER[finding.verdict])


def limits(judgement: Judgement, finding: Finding) -> markup.Limits:
    """The numbers the criterion of a finding names; none when the criteria file has another shape."""
    listed = judgement.criteria.get("criterion", [])
    for item in listed if isinstance(listed, list) else []:
        if isinstance(item, dict) and item.get("id") == finding.id:
            within = item.get("within")
            found = [
                item.get("at_least"),
                item.get("at_most"),
                within,
                -within if isinstance(within, int | float) else None,
            ]
            return tuple(float(value) for value in found if isinstance(value, int | float))
    return ()


def finding_card(finding: Finding, judgement: Judgement, links: Links, *, place: str) -> None:
    """One finding: what was demanded and why, what was found, how to see it again. ``place`` makes widget keys unique."""
    with st.container(border=True, key=f"finding-{slug(finding.verdict)}-{place}"):
        demand = [
            markup.subheading(finding.title),
            markup.element("p", finding.sentence),
            markup.facts([("Rule", finding.rule), ("Why", finding.why)]),
        ]
        markup.show(
            markup.row([markup.badge(finding.verdict), markup.chip(finding.severity)]),
            markup.gap(),
            markup.split(markup.join(demand), _evidence(finding, limits(judgement, finding))),
        )
        with st.container(horizontal=True, vertical_alignment="center"):
            page = links.get(f"analysis/{finding.analysis}")
            if page is not None:
                st.page_link(
                    page,
                    label="Open the analysis",
                    icon=":material/arrow_forward:",
                    help="The numbers behind this finding",
                )
            if finding.reproduce:
                with st.popover("How to reproduce", icon=":material/terminal:", type="tertiary"):
                    st.code(inert.plain(finding.reproduce), language=None, wrap_lines=True)


def _evidence(finding: Finding, bounds: markup.Limits) -> Html:
    lines = [
        markup.join(
            [
                markup.element("div", f"{named(metric)}: {spoken(metric)}"),
                markup.interval(metric, finding.verdict, bounds),
                markup.muted(_basis(metric)),
            ]
        )
        for metric in finding.evidence
    ]
    return markup.join([markup.element("div", "Evidence", "xv-name"), *lines]) if lines else Html("")


def _basis(metric: Metric) -> str:
    size = f"n = {text.number(metric.n, 'count')}" if metric.n else ""
    return " · ".join(part for part in (size, metric.interval) if part)


def chart_panel(chart: Chart, run: Run, record: Record, links: Links, *, place: str) -> None:
    """A chart with its title above and, below, the sentence that replaces it for who cannot see it."""
    with st.container(border=True, key=f"chart-{place}"):
        markup.show(markup.subheading(chart.title), markup.muted(chart.alt))
        match chart:
            case Lines() | Bars() | Forest() | HeatMap():
                st.plotly_chart(
                    figure(chart),
                    theme=None,
                    config=_TOOLBAR,
                    key=f"figure-{place}",
                    alt=inert.plain(chart.alt) or None,
                )
            case Images():
                _image_rows(chart, run, record, links, place)
            case Table():
                data_table(table_frame(chart), f"{record.analysis}-{place}", alt=chart.alt)
            case _:
                assert_never(chart)


def is_wide(chart: Chart) -> bool:
    """Whether a chart needs the whole width."""
    if isinstance(chart, Forest):
        return any(len(mark.label) > _SHORT_LABEL for mark in chart.marks)
    return isinstance(chart, Images | Table) or (isinstance(chart, HeatMap) and len(chart.columns) > _FEW_COLUMNS)


def table_frame(chart: Table) -> pd.DataFrame:
    """The rows of a table chart; whole and decimal numbers stay numbers, repeated column names are told apart."""
    columns: dict[str, Any] = {}
    for place, name in enumerate(chart.columns):
        label = inert.plain(name)
        columns[f"{label} ({place + 1})" if label in columns else label] = _column([row[place] for row in chart.rows])
    return pd.DataFrame(columns)


def _column(values: Sequence[str | float | None]) -> pd.Series[Any]:
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, int) for value in known):
        return pd.Series(values, dtype="Int64")
    if known and all(isinstance(value, int | float) for value in known):
        return pd.Series(values, dtype="float64")
    return pd.Series([None if value is None else inert.plain(_words(value)) for value in values], dtype="object")


def _words(value: str | float) -> str:
    """A cell of a column that holds words, too; counts have no decimals."""
    return value if isinstance(value, str) else text.number(value, "count" if isinstance(value, int) else "")


def data_table(rows: pd.DataFrame, name: str, *, alt: str, height: int | None = None) -> None:
    """A sortable table and the same rows as CSV."""
    decimals = {
        column: st.column_config.NumberColumn(format="%.4g")
        for column in rows.columns
        if rows[column].dtype.kind == "f"
    }
    st.dataframe(
        rows,
        hide_index=True,
        column_config=decimals,
        alt=inert.plain(alt) or None,
        height=height or "auto",
        placeholder="–",
    )
    st.download_button(
        "Download CSV", lambda: inert.csv(rows), f"{_file_name(name)}.csv", "text/csv", key=f"csv-{name}",
        icon=":material/download:", type="tertiary", on_click="ignore",
    )  # fmt: skip


def _file_name(name: str) -> str:
    return "".join(character if character.isalnum() and character.isascii() else "-" for character in name)


def metric_frame(metrics: Sequence[Metric]) -> pd.DataFrame:
    """Metrics for reading: what, of whom, the value in words, and the numbers for sorting."""
    rows = [
        {
            "Metric": inert.plain(text.label(metric.name)),
            "Condition": inert.plain(text.condition(metric.where)),
            "Result": inert.plain(spoken(metric)),
            "Value": metric.value,
            "Low": metric.low,
            "High": metric.high,
            "n": metric.n,
            "Unit": inert.plain(metric.unit),
            "Better": metric.better,
            "Interval": inert.plain(metric.interval),
        }
        for metric in metrics
    ]
    numbers = {"Value": "float64", "Low": "float64", "High": "float64", "n": "Int64"}
    return pd.DataFrame(rows, columns=list(_METRIC_COLUMNS)).astype(numbers)


def _image_rows(chart: Images, run: Run, record: Record, links: Links, place: str) -> None:
    stored = {case.id: case for case in record.cases}
    cases = [stored[name] for name in chart.cases if name in stored]
    if not cases:
        markup.show(markup.muted("This run keeps no pictures of these cases (the plan can turn case images off)."))
        return
    pages = -(-len(cases) // _ROWS_OF_CASES)
    page = st.pagination(pages, key=f"pages-{place}") if pages > 1 else 1
    for number, case in enumerate(cases[(page - 1) * _ROWS_OF_CASES : page * _ROWS_OF_CASES]):
        if number:
            st.space("small")
        case_heading(case, links, key=f"{place}-{number}")
        pictures(run, [(case, name, "") for name in chart.pictures if name in case.pictures])
    legend = map_legend(run, (name for name in chart.pictures if any(name in case.mapped for case in cases)))
    if legend:
        markup.show(markup.gap(), markup.subheading("May these maps be believed?"), legend)


def case_heading(case: StoredCase, links: Links, *, key: str) -> None:
    """Which case this is, what is known of it, and the way to its own page."""
    with st.container(horizontal=True, vertical_alignment="center", key=f"case-{key}"):
        said = " · ".join(f"{text.label(name)} {spoken_fact(value)}" for name, value in case.facts.items())
        markup.show(
            markup.join([markup.element("strong", case.id), Html(" &ensp;"), markup.element("span", said, "xv-muted")])
        )
        if "cases" in links:
            st.page_link(
                links["cases"], label="Open case", icon=":material/arrow_forward:", query_params={"case": case.id}
            )


def spoken_fact(value: str | float) -> str:
    return text.number(value) if isinstance(value, float) else str(value)
