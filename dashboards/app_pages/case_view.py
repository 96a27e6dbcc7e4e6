"""One case across all analyses: the image, its maps, its adversarial and corrupted twins side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from dashboards import markup
from dashboards.app_pages import map_view
from dashboards.gallery import map_legend, pictures
from dashboards.parts import spoken_fact
from xvision import text
from xvision.result import StoredCase
from xvision.store import Run, sha256

_DECIDED = {"label", "decision", "probability"}


def show(run: Run, row: pd.Series[Any], stored: Mapping[str, StoredCase]) -> None:
    facts = {str(name): value for name, value in row.items()}
    badge = ""
    if "right" in facts:
        badge = markup.badge("pass", "right decision") if facts["right"] else markup.badge("fail", "wrong decision")
    markup.show(markup.row([markup.heading(facts["id"]), badge]))
    with st.container(border=True, key="panel-facts"):
        markup.show(markup.tiles(_known(facts)))
    if not stored:
        markup.show(
            markup.muted("No analysis keeps pictures of this case. Each pictures a few cases; the list shows which.")
        )
        return
    map_view.show(run, stored)
    shown = _gallery(run, stored)
    with st.container(border=True, key="panel-pictures"):
        pictures(run, shown)
        legend = map_legend(run, (name for case, name, _ in shown if name in case.mapped))
        if legend:
            markup.show(markup.gap(), markup.subheading("May these maps be believed?"), legend)
    noted = _noted(run, stored)
    if noted:
        with st.container(border=True, key="panel-noted"):
            markup.show(markup.subheading("What the analyses noted"), markup.table(["Analysis", "Of this case"], noted))


def _known(facts: Mapping[str, object]) -> list[tuple[str, object]]:
    hidden = {"id", "right", "score", "pictures"}
    named = [
        (text.label(name), value)
        for name, value in facts.items()
        if name not in hidden and not name.startswith(("prob:", "logit:"))
    ]
    return named + [
        (f"P({name.removeprefix('prob:')})", text.number(value))
        for name, value in facts.items()
        if name.startswith("prob:") and isinstance(value, float)
    ]


def _noted(run: Run, stored: Mapping[str, StoredCase]) -> list[tuple[str, str]]:
    """Facts of each analysis beyond the decision, which stands above."""
    titles, rows = _titles(run), []
    for analysis, case in stored.items():
        beyond = {name: value for name, value in case.facts.items() if name not in _DECIDED}
        if beyond:
            said = " · ".join(f"{text.label(name)} {spoken_fact(value)}" for name, value in beyond.items())
            rows.append((titles.get(analysis, analysis), said))
    return rows


def _gallery(run: Run, stored: Mapping[str, StoredCase]) -> list[tuple[StoredCase, str, str]]:
    """Every analysis's pictures, the image first; one equal to another already listed is not repeated."""
    titles = _titles(run)
    seen: set[str] = set()
    found = []
    for analysis, case in stored.items():
        for name in sorted(case.pictures, key=lambda name: name != "image"):
            digest = _digest(run, case.pictures[name])
            if digest not in seen:
                seen.add(digest)
                found.append((case, name, titles.get(analysis, analysis)))
    return found


def _titles(run: Run) -> dict[str, str]:
    return {record.analysis: record.title for record in run.records}


def _digest(run: Run, path: str) -> str:
    file = run.file(path)
    return sha256(file) if file.is_file() else path
