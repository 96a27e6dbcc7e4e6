"""Curves and bars."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reports import paper
from reports.fonts import clean
from xvision.charts import Bars, Lines, Reference, Series
from xvision.images import INK, MUTED, PALETTE

_SQUARE, _HEIGHT = 68.0, 56.0  # mm: plots with equal axes, and others
_DIAGONAL: dict[str, Any] = {"color": MUTED, "linewidth": 0.8, "linestyle": (0, (1, 1.6))}


def lines(chart: Lines) -> Figure:
    """Curves with their bands; a chart with an identity line and equal limits is square."""
    names = [item.name for item in chart.series] + [item.label for item in chart.references]
    names += [chart.diagonal] if chart.diagonal else []
    keyed = len(names) > 1
    square = bool(chart.diagonal) and (chart.x.low, chart.x.high) == (chart.y.low, chart.y.high)
    height = max(_SQUARE if square else _HEIGHT, min(paper.key_height(names), paper.TALLEST))
    width = min(height, paper.KEYED) if square else paper.KEYED if keyed else paper.PLAIN
    upright = _crowded(chart, width)
    room = 0.85 * paper.LETTER * max((len(word) for _, word in chart.x.ticks), default=0) if upright else 2.5
    figure, axes = paper.canvas(width, height, paper.LEFT, 8.0 + room)
    axes.grid(visible=True)
    handles: list[paper.Handle] = [_curve(axes, place, series) for place, series in enumerate(chart.series)]
    handles += [rule(axes, place, item, item.axis == "x") for place, item in enumerate(chart.references)]
    paper.dress(axes, chart.x, "x")
    axes.tick_params(axis="x", labelrotation=90 if upright else 0)
    paper.dress(axes, chart.y, "y")
    if chart.diagonal:
        axes.axline((0.0, 0.0), slope=1.0, **_DIAGONAL)
        handles.append(Line2D([], [], **_DIAGONAL))
    if keyed:
        paper.key(figure, axes, handles, names)
    return figure


def _crowded(chart: Lines, width: float) -> bool:
    """Whether the words under the horizontal axis would touch when they lie flat."""
    places = sorted(position for position, _ in chart.x.ticks)
    shown = [*places, *(x for series in chart.series for x in series.x)]
    low = min(shown, default=0.0) if chart.x.low is None else chart.x.low
    high = max(shown, default=1.0) if chart.x.high is None else chart.x.high
    closest = min((right - left for left, right in pairwise(places)), default=high - low)
    longest = max((len(word) for _, word in chart.x.ticks), default=0)
    return high > low and closest / (high - low) * width < paper.LETTER * longest


def rule(axes: Axes, place: int, reference: Reference, upright: bool) -> Line2D:
    """A straight line to compare with, told apart from curves by its ink and from other rules by its dashes."""
    look: dict[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": paper.turn(paper.RULES, place)}
    draw = axes.axvline if upright else axes.axhline
    draw(reference.value, **look)
    return Line2D([], [], **look)


def _curve(axes: Axes, place: int, series: Series) -> Line2D:
    single = len(series.x) == 1
    look: dict[str, Any] = {
        "color": paper.turn(PALETTE, place),
        "linestyle": "None" if single else paper.dashes(place),
        "marker": paper.turn(paper.MARKERS, place) if series.marks or single else "None",
        "linewidth": 1.3,
        "markersize": 4.2,
    }
    if series.low and series.high:
        _band(axes, series, look["color"])
    axes.plot(series.x, paper.finite(series.y), **look)
    return Line2D([], [], **look)


def _band(axes: Axes, series: Series, colour: str) -> None:
    """The interval as a band, and as a whisker where a point has no neighbour that a band could reach."""
    low, high = np.array(paper.finite(series.low)), np.array(paper.finite(series.high))
    axes.fill_between(series.x, low, high, color=colour, alpha=0.16, linewidth=0)
    known = np.concatenate([[False], np.isfinite(low) & np.isfinite(high), [False]])
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    if alone.any():
        axes.vlines(np.asarray(series.x)[alone], low[alone], high[alone], color=colour, linewidth=1.0)


def bars(chart: Bars) -> Figure:
    """Grouped bars, one hatch and one colour per series."""
    keyed = len(chart.series) > 1
    width = paper.KEYED if keyed else paper.PLAIN
    names, upright, room = labels_below(chart.categories, width)
    height = max(_HEIGHT, min(paper.key_height(tuple(chart.series)), paper.TALLEST))
    figure, axes = paper.canvas(width, height, paper.LEFT, room + (5.0 if chart.x.label else 0.0))
    axes.grid(visible=True, axis="y")
    handles = [_group(axes, chart, place, values) for place, values in enumerate(chart.series.values())]
    axes.axhline(0.0, color=MUTED, linewidth=0.6)
    paper.dress(axes, chart.y, "y")
    axes.set(xlim=(-0.6, len(names) - 0.4), xlabel=paper.wrapped(paper.axis_name(chart.x), 80, 1))
    axes.set_xticks(range(len(names)), names, rotation=90 if upright else 0)
    axes.tick_params(axis="x", length=0)
    if keyed:
        paper.key(figure, axes, handles, list(chart.series))
    return figure


def _group(axes: Axes, chart: Bars, place: int, values: Sequence[float]) -> Patch:
    share = 0.8 / len(chart.series)
    look: dict[str, Any] = {
        "facecolor": paper.turn(PALETTE, place),
        "hatch": paper.turn(paper.HATCHES, place),
        "edgecolor": "white",
        "linewidth": 0.0,
    }
    axes.bar(np.arange(len(values)) + (place + 0.5) * share - 0.4, values, width=share, **look)
    return Patch(**look)


def labels_below(names: Sequence[str], width: float) -> tuple[list[str], bool, float]:
    """Labels under ``width`` mm of columns, whether they stand upright, and the millimetres that they need."""
    letters = int(width / max(len(names), 1) / paper.LETTER)
    longest = max((len(word) for name in names for word in clean(name).split()), default=0)
    if longest <= letters:
        flat = [paper.wrapped(name, letters, 3) for name in names]
        return flat, False, 3.0 + 3.2 * max((name.count("\n") + 1 for name in flat), default=1)
    upright = [paper.wrapped(name, 26, 1) for name in names]
    return upright, True, 4.0 + 0.85 * paper.LETTER * max(len(name) for name in upright)
