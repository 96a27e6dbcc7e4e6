"""The frame around every page: which run, what state it is in, the menu. Run by Streamlit, never imported by the library."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from dashboards import inert, markup, navigation, runs
from dashboards.theme import ICON, STYLE, WORDMARK
from xvision.errors import XVisionError
from xvision.store import Run

PATH_VARIABLE = "XVISION_DASHBOARD"
"""Names the run, or the folder of runs, to show."""


def main() -> None:
    st.set_page_config(page_title="xvision", page_icon=ICON, layout="wide", menu_items={})
    st.html(f"<style>{STYLE}</style>")
    st.logo(WORDMARK, size="large", icon_image=ICON)
    folder = Path(os.environ.get(PATH_VARIABLE, "."))
    try:
        found = runs.find_runs(folder)
        path = found[0] if len(found) == 1 else _picked(found, folder)
        if path is None:
            _library(found, folder)
        else:
            show(path)
    except XVisionError as problem:
        markup.show(markup.alert(problem))


def show(path: Path) -> None:
    """The pages of one run; when its results cannot be read, the reason and what changed in its files."""
    run = runs.open_run(path)
    try:
        found = navigation.entries(run)
    except XVisionError as problem:
        st.navigation([st.Page(_nothing, title="Damaged run", url_path="damaged")], position="hidden").run()
        markup.show(
            markup.title(run.info.name, eyebrow="This run cannot be shown"), markup.gap(), markup.alert(problem)
        )
        markup.show(markup.notes("Files that differ from what was written", runs.problems(path)))
        return
    links = navigation.pages(found)
    page = st.navigation(navigation.sections(found, links), expanded=True)
    _side(run)
    _state(run)
    try:
        page.run()
    except XVisionError as problem:
        markup.show(markup.alert(problem))


def _nothing() -> None:
    """A page without content: the frame says all there is to say."""


def _side(run: Run) -> None:
    with st.sidebar:
        info = run.info
        markup.show(
            markup.element("div", info.name, "xv-side"),
            markup.row([markup.badge(run.judgement.verdict), markup.chip(info.status)]),
        )


def _state(run: Run) -> None:
    """What a reader of any page must know of the run first."""
    if run.info.status == "running":
        markup.show(
            markup.alert(
                "This run is still being written. What is there so far is shown; reload the page for more.",
                "insufficient evidence",
            )
        )
        return
    if run.info.status == "partial":
        failed = [record.title for record in run.records if record.status == "failed"]
        markup.show(
            markup.alert(f"This run is partial: {inert.plain(', '.join(failed)) or 'an analysis'} failed.", "warn")
        )
    changed = runs.problems(run.path)
    if changed:
        markup.show(
            markup.alert(f"This run was altered after it was written. {changed[0]} All of it is listed under Evidence.")
        )


def _picked(found: Sequence[Path], folder: Path) -> Path | None:
    """The run named in the address, checked against what is on disk."""
    names = {str(path.relative_to(folder)): path for path in found}
    with st.sidebar:
        chosen = st.selectbox(
            "Run",
            list(names),
            index=None,
            placeholder="Choose a run",
            format_func=inert.plain,
            key="run",
            bind="query-params",
        )
    return names.get(chosen) if chosen is not None else None


def _library(found: Sequence[Path], folder: Path) -> None:
    """All runs of a folder, newest first."""
    st.navigation([st.Page(_nothing, title="Runs", url_path="runs")], position="hidden").run()
    markup.show(
        markup.title("Runs", eyebrow="xvision", lead=f"{len(found)} runs in {folder}. Choose one."), markup.gap()
    )
    for path in sorted(found, key=lambda run: (run / "run.json").stat().st_mtime, reverse=True):
        _shelf(path, str(path.relative_to(folder)))


def _shelf(path: Path, name: str) -> None:
    with st.container(border=True, key=f"panel-run-{name}"):
        words, action = st.columns([6, 1], vertical_alignment="center")
        with words:
            try:
                run = runs.open_run(path)
                info = run.info
                chips = [markup.badge(run.judgement.verdict), markup.chip(info.status), markup.chip(info.started[:10])]
                model = info.fingerprints.get("model", "")[:12]
                below = f"{name} · {info.cases} images · model {model}"
                markup.show(markup.row([markup.element("strong", info.name), *chips]), markup.muted(below))
            except XVisionError as problem:
                markup.show(markup.alert(problem))
        with action:
            st.button("Open", key=f"open-{name}", on_click=_open, args=(name,))


def _open(name: str) -> None:
    st.session_state["run"] = name


if __name__ == "__main__":
    main()
