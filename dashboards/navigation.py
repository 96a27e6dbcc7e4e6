"""Which pages a run has, in which order, under which address."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import streamlit as st

from dashboards import inert
from dashboards.app_pages import analysis, cases, evidence, overview
from dashboards.parts import Links
from xvision.result import PILLARS, Finding, Record
from xvision.store import Run

_VERDICT_ICONS = {
    "fail": ":material/cancel:",
    "warn": ":material/error:",
    "insufficient evidence": ":material/help:",
    "pass": ":material/check_circle:",
}
_CLOSER = "Look closer"


@dataclass(frozen=True)
class Entry:
    """A page of a run. key: how other pages link to it; address: its part of the URL."""

    key: str
    title: str
    section: str
    icon: str
    address: str
    draw: Callable[[Links], None]


def entries(run: Run) -> tuple[Entry, ...]:
    """Overview, one page per analysis whatever became of it, cases, evidence."""
    taken = {"overview", "cases", "evidence"}
    found = [Entry("overview", "Overview", "", ":material/summarize:", "overview", partial(overview.show, run))]
    for record in run.records:
        address = _address(record.analysis, taken)
        taken.add(address)
        section = record.pillar if record.pillar in PILLARS else PILLARS[-1]
        draw = partial(_analysis, run, record.analysis)
        icon = _icon(record, run.findings)
        found.append(Entry(f"analysis/{record.analysis}", record.title, section, icon, address, draw))
    found.append(Entry("cases", "Cases", _CLOSER, ":material/image_search:", "cases", partial(cases.show, run)))
    found.append(
        Entry("evidence", "Evidence", _CLOSER, ":material/fingerprint:", "evidence", partial(evidence.show, run))
    )
    return tuple(found)


def pages(found: Sequence[Entry]) -> dict[str, st.Page]:
    """Streamlit pages by key; each draws itself with links to all the others."""
    links: dict[str, st.Page] = {}
    for place, entry in enumerate(found):
        title, draw = inert.markdown(entry.title), partial(entry.draw, links)
        links[entry.key] = st.Page(draw, title=title, icon=entry.icon, url_path=entry.address, default=place == 0)
    return links


def sections(found: Sequence[Entry], links: Links) -> dict[str, list[st.Page]]:
    """The menu: pages under their section, sections in the order of the pillars."""
    menu: dict[str, list[st.Page]] = {}
    for entry in found:
        menu.setdefault(entry.section, []).append(links[entry.key])
    return menu


def _analysis(run: Run, name: str, links: Links) -> None:
    analysis.show(run, name, links)


def _address(name: str, taken: set[str]) -> str:
    """The analysis's name, made safe for a URL and different from the others."""
    address = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-") or "analysis"
    while address in taken:
        address += "-2"
    return address


def _icon(record: Record, findings: Sequence[Finding]) -> str:
    """The worst verdict that rests on the analysis, so that the menu is a first scorecard."""
    if record.status != "ok":
        return ":material/block:" if record.status == "skipped" else ":material/warning:"
    found = {finding.verdict for finding in findings if finding.analysis == record.analysis}
    return next((icon for verdict, icon in _VERDICT_ICONS.items() if verdict in found), ":material/bar_chart:")
