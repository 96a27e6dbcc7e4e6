"""``xvision.charts`` on paper: matplotlib draws, and what it writes is the same whenever the chart is."""

from __future__ import annotations

import io
import unicodedata
from typing import assert_never

import matplotlib
from matplotlib.figure import Figure

from reports import paper, plots, rows
from xvision.charts import Bars, Forest, HeatMap, Lines

_AFTER_CYRILLIC, _SIGNS = 0x530, range(0x2000, 0x2300)

Drawn = Lines | Bars | Forest | HeatMap
"""The charts that are drawn; pictures and tables are typeset."""


def svg(chart: Drawn) -> tuple[bytes, ...]:
    """The chart as SVG, more than one where its rows do not fit on a page."""
    with paper.style():
        return tuple(_written(figure) for figure in figures(chart))


def figures(chart: Drawn) -> tuple[Figure, ...]:
    """The chart as matplotlib figures."""
    with paper.style():
        match chart:
            case Lines():
                return (plots.lines(chart),)
            case Bars():
                return (plots.bars(chart),)
            case Forest():
                return tuple(rows.forests(chart))
            case HeatMap():
                return tuple(rows.heat_maps(chart))
            case _:
                assert_never(chart)


def _written(figure: Figure) -> bytes:
    """Text as text, so that it can be searched and set in the report's face; as outlines where that face cannot be relied on."""
    content = _saved(figure)
    if all(_settable(letter) for letter in content.decode()):
        return content
    with matplotlib.rc_context({"svg.fonttype": "path"}):
        return _saved(figure)


def _settable(letter: str) -> bool:
    """Latin, Greek, Cyrillic and common signs, without loose accents: beyond these, typst may find no glyph in an SVG."""
    code = ord(letter)
    return (code < _AFTER_CYRILLIC or code in _SIGNS) and not unicodedata.category(letter).startswith("M")


def _saved(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return buffer.getvalue().replace(paper.MEASURED_FACE.encode(), paper.SET_FACE.encode())
