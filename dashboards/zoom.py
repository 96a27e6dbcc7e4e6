"""The zoom of the viewer, kept while its pictures are drawn anew.

Streamlit replaces a plotly chart whose figure changes, and its zoom with it. So the browser tells where it is, and the next
figure begins there. A figure is not drawn anew only because the zoom changed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import streamlit as st

_report = st.components.v2.component("xvision_zoom", js=Path(__file__).with_name("zoom.js").read_text("utf-8"))
_MOST = 1e6  # pixels from the image: further away nothing can be meant


class View(NamedTuple):
    """The part of the image that is shown, in pixels; rows count downwards, so bottom is the larger one."""

    left: float
    right: float
    bottom: float
    top: float


def kept(case: str, panel: str, drawn: object) -> View | None:
    """Where the figure of a case should begin; None for the whole image.

    panel: key of the container that holds the chart. drawn: all else that decides the figure.
    """
    told = _report(key=f"zoom-{case}", data={"panel": panel}, on_view_change=_nothing, height=1)
    memory = f"zoom-memory-{case}"
    before: tuple[object, View | None] = st.session_state.get(memory, (None, None))
    if drawn == before[0]:
        return before[1]
    view = checked(told.view)
    st.session_state[memory] = (drawn, view)
    return view


def checked(told: object) -> View | None:
    """What the browser said, when it is a view at all."""
    if not isinstance(told, list | tuple) or len(told) != 4:
        return None
    if not all(isinstance(value, int | float) and math.isfinite(value) and abs(value) < _MOST for value in told):
        return None
    view = View(*map(float, told))
    return view if view.left < view.right and view.top < view.bottom else None


def _nothing() -> None:
    """The value is read where the figure is drawn."""
