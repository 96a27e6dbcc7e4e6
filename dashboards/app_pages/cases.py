"""The cases of a run: filtered, listed, and one of them chosen."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import streamlit as st

from dashboards import inert, markup
from dashboards.app_pages import case_view
from dashboards.parts import Links
from xvision import text
from xvision.store import Run

_OUTCOMES = ("All", "Right", "Wrong")
_ALL = "All"
_LIST_HEIGHT = 300


def show(run: Run, links: Links) -> None:
    markup.show(
        markup.title("Cases", eyebrow="Look closer", lead="Choose a case to see what every analysis shows of it.")
    )
    rows = overview(run)
    if rows.empty:
        markup.show(markup.muted("This run holds no predictions and no pictures of cases."))
        return
    kept = _filtered(rows, run)
    chosen = _choose(kept, rows)
    if chosen is None:
        return
    case_view.show(run, rows.loc[rows["id"] == chosen].iloc[0], run.cases.get(chosen, {}))


def overview(run: Run) -> pd.DataFrame:
    """One row per case: the stored columns, ``right``, ``score`` (probability of the decision) and the number of ``pictures``."""
    counts = {name: sum(len(case.pictures) for case in found.values()) for name, found in run.cases.items()}
    if (run.path / "tables" / "predictions.parquet").is_file():
        rows = run.predictions.copy()
    else:
        rows = pd.DataFrame({"id": list(counts)}, dtype="object")
    rows["id"] = rows["id"].astype(str)
    if {"label", "decision"} <= set(rows.columns):
        rows["right"] = rows["label"] == rows["decision"]
        rows["score"] = np.nan
        for name in rows["decision"].unique():
            if f"prob:{name}" in rows.columns:
                decided = rows["decision"] == name
                rows.loc[decided, "score"] = rows.loc[decided, f"prob:{name}"]
    rows["pictures"] = rows["id"].map(counts).fillna(0).astype(int)
    return rows


def groups(rows: pd.DataFrame, run: Run) -> list[str]:
    """Columns a reader may filter by."""
    return [name for name in (*run.info.groups, *run.info.acquisition) if name in rows.columns]


def _filtered(rows: pd.DataFrame, run: Run) -> pd.DataFrame:
    """The rows that every filter keeps. A changed filter forgets the case in the address, so that the list decides."""
    kept = rows
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if "right" in rows.columns:
            outcome = st.segmented_control(
                "Decision", _OUTCOMES, default=_ALL, required=True, key="case-outcome", on_change=_forget
            )
            kept = kept if outcome == _ALL else kept[kept["right"] == (outcome == "Right")]
        if rows["pictures"].any():
            only = st.toggle("With pictures only", value=True, key="case-pictured", on_change=_forget)
            kept = kept[kept["pictures"] > 0] if only else kept
        for column in groups(rows, run):
            levels = ["", *sorted(rows[column].astype(str).unique())]
            label = inert.markdown(text.label(column))
            level = st.selectbox(label, levels, format_func=_level, key=f"case-{column}", width=180, on_change=_forget)
            kept = kept[kept[column].astype(str) == level] if level else kept
    return kept


def _level(level: str) -> str:
    return inert.plain(level) if level else _ALL


def _forget() -> None:
    st.query_params.pop("case", None)


def _choose(kept: pd.DataFrame, rows: pd.DataFrame) -> str | None:
    """The case named in the address, or the row that was clicked, which then is named in the address."""
    asked = st.query_params.get("case")
    clicked = _listing(kept, asked)
    if clicked is not None and clicked != asked:
        st.query_params["case"] = asked = clicked
    if asked is None or asked not in set(rows["id"]):
        found = (
            "No case matches the filters."
            if asked is None
            else f"This run has no case {asked!r}. Choose one from the list."
        )
        markup.show(markup.alert(found, "insufficient evidence"))
        return None
    return asked


def _listing(kept: pd.DataFrame, asked: str | None) -> str | None:
    """The list of cases, the asked one marked, else the first; returns the marked or clicked case."""
    ids = list(kept["id"])
    marked = [ids.index(asked)] if asked in ids else [0] if asked is None and ids else []
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:12]
    event = st.dataframe(
        _list(kept),
        hide_index=True,
        height=min(_LIST_HEIGHT, 40 + 35 * max(len(ids), 1)),
        key=f"cases-{digest}",
        on_select="rerun",
        selection_mode="single-row",
        selection_default={"selection": {"rows": marked}},
        alt="Cases that match the filters",
        column_config={"Probability": st.column_config.NumberColumn(format="%.3f")},
    )
    picked = [place for place in event.selection.rows if 0 <= place < len(ids)]
    return ids[picked[0]] if picked else None


def _list(kept: pd.DataFrame) -> pd.DataFrame:
    shown = pd.DataFrame({"Case": [inert.plain(name) for name in kept["id"]]})
    if "right" in kept.columns:
        shown["Outcome"] = ["✓ right" if right else "✗ wrong" for right in kept["right"]]
        shown["Label"] = [inert.plain(value) for value in kept["label"]]
        shown["Decision"] = [inert.plain(value) for value in kept["decision"]]
        shown["Probability"] = kept["score"].to_numpy(dtype="float64")
    shown["Pictures"] = kept["pictures"].to_numpy()
    return shown
