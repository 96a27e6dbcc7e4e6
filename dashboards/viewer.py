"""The viewer of a case: its image and maps side by side under one zoom. Draws figures and knows nothing of pages."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.charts import wrapped
from dashboards.inert import figure_text
from dashboards.patches import Patch, border
from dashboards.theme import ACCENT, FONT, transparent
from dashboards.zoom import View
from xvision import images
from xvision.images import INK, MUTED, PALETTE, VERDICT_COLOURS

_WIDTH, _LINE, _TOOLS = 970, 17, 28  # pixels: width of the page, height of a line of a title, of the row of tools
_LOWEST, _TALLEST = 200, 560
_EDGE = 0.1  # of the picture's height: a mark needs so much room above it
MASK, FOR, AGAINST = ("#00C878", "dot"), (PALETTE[5], "solid"), (PALETTE[4], "dash")
"""Colour and dash of the outlines of the reference mask, of evidence for and of evidence against."""
TOOLS = {
    "displaylogo": False,
    "displayModeBar": True,
    "scrollZoom": True,
    "doubleClick": "autosize",
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "resetScale2d"],
}


@dataclass(frozen=True, eq=False)
class Outline:
    """A line around the pixels (H, W) of a mask; ``mark`` is written at its upper left corner."""

    pixels: np.ndarray
    look: tuple[str, str]
    mark: str = ""


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture (H, W, 3) with its name, what is said of it below the name, and what is stamped across it."""

    name: str
    picture: images.Picture
    said: str = ""
    stamp: str = ""
    outlines: tuple[Outline, ...] = ()


def outlined(patches: Sequence[Patch], look: tuple[str, str], sign: str) -> tuple[Outline, ...]:
    """Patches of a map as numbered outlines."""
    return tuple(Outline(patch.pixels, look, f"{sign}{place}") for place, patch in enumerate(patches, start=1))


def figure(panels: Sequence[Panel], view: View | None = None) -> go.Figure:
    """The panels, all of one size, zoomed and moved as one, beginning at ``view``."""
    height, width = panels[0].picture.shape[:2]
    columns = len(panels) if len(panels) < 5 else min(4, -(-len(panels) // 2))
    rows = -(-len(panels) // columns)
    side = min(_TALLEST, max(_LOWEST, round(_WIDTH / columns * height / width)))
    titles = [_title(panel, columns) for panel in panels]
    room = 10 + _LINE * max(title.count("<br>") + 1 for title in titles)
    whole = rows * (side + room)
    drawn = make_subplots(
        rows, columns, subplot_titles=titles, horizontal_spacing=0.012, vertical_spacing=room / whole if rows > 1 else 0
    )
    for place, panel in enumerate(panels):
        _draw(drawn, panel, place // columns + 1, place % columns + 1, str(place + 1) if place else "")
    for place in range(len(panels) + 1, rows * columns + 1):
        drawn.update_layout({f"xaxis{place}": {"visible": False}, f"yaxis{place}": {"visible": False}})
    bare = {"showgrid": False, "zeroline": False, "showticklabels": False, "ticks": "", "constrain": "domain"}
    shown = view or View(-0.5, width - 0.5, height - 0.5, -0.5)
    drawn.update_xaxes(range=[shown.left, shown.right], matches="x", **bare)
    drawn.update_yaxes(range=[shown.bottom, shown.top], matches="y", scaleanchor="x", scaleratio=1, **bare)
    drawn.update_annotations(font={"family": FONT, "color": INK})
    drawn.update_layout(
        height=whole + _TOOLS, margin={"l": 0, "r": 0, "t": room + _TOOLS, "b": 0}, dragmode="pan",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": MUTED, "activecolor": ACCENT}, showlegend=False,
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"family": FONT, "size": 13, "color": INK},
    )  # fmt: skip
    return drawn


def _title(panel: Panel, columns: int) -> str:
    letters = 130 // columns
    name = "<br>".join(f"<b>{line}</b>" for line in wrapped([panel.name], letters)[0].split("<br>"))
    return f"{name}<br>{wrapped([panel.said], letters)[0]}"


def _draw(drawn: go.Figure, panel: Panel, row: int, column: int, axis: str) -> None:
    source = f"data:image/png;base64,{base64.b64encode(images.png(panel.picture)).decode()}"
    where = "row %{y}, column %{x}<extra></extra>"
    drawn.add_trace(go.Image(source=source, zsmooth=False, hovertemplate=where), row=row, col=column)
    for item in panel.outlines:
        x, y = border(item.pixels)
        colour, dash = item.look
        for line in ({"color": "#000000", "width": 3.6}, {"color": colour, "width": 1.8, "dash": dash}):
            drawn.add_trace(go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip"), row=row, col=column)
        if item.mark:
            drawn.add_annotation(_mark(item, panel.picture.shape[0]), xref=f"x{axis}", yref=f"y{axis}")
    if panel.stamp:
        drawn.add_annotation(_stamp(panel.stamp), xref=f"x{axis} domain", yref=f"y{axis} domain")


def _mark(item: Outline, height: int) -> dict[str, Any]:
    """The mark of an outline above its upper left corner; below that corner where the picture begins there."""
    rows, columns = np.nonzero(item.pixels)
    top = int(rows.min())
    return {
        "x": int(columns.min()) - 0.5, "y": top - 0.5, "xanchor": "left",
        "yanchor": "bottom" if top > _EDGE * height else "top", "text": f"<b>{figure_text(item.mark)}</b>",
        "bgcolor": "rgba(255,255,255,0.88)", "bordercolor": INK, "borderpad": 1, "showarrow": False,
    }  # fmt: skip


def _stamp(words: str) -> dict[str, Any]:
    """A band across the middle of the panel, wherever it is zoomed to."""
    return {
        "x": 0.5, "y": 0.5, "text": f'<b><span style="color:#FFFFFF">{figure_text(words)}</span></b>',
        "bgcolor": transparent(VERDICT_COLOURS["fail"], 0.92), "borderpad": 5, "showarrow": False,
    }  # fmt: skip
