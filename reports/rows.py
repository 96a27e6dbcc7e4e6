"""Charts made of rows, which grow with the data: forests and heat maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from reports import paper
from reports.plots import labels_below, rule
from xvision import text
from xvision.charts import Forest, HeatMap, Mark
from xvision.images import GRID, INK, MUTED, PALETTE

T = TypeVar("T")

_NAMES, _PLOT, _VALUES, _NOTES = 0.4, 46.0, 106.0, 140.0  # mm from the left edge: columns of a forest
_CELL, _DENSE = (
    8.4,
    6.0,
)  # mm: height of a cell of a heat map, and of one with more rows than fit in one figure at that height
_LETTERS = 22  # of a row name of a heat map
_COOL, _WARM, _MIDDLE, _EMPTY = "#0B5C94", "#B5520A", "#F4F6F8", "#E4E7EB"
_HALFWAY = 0.22  # luminance at which white and ink stand out equally


def forests(chart: Forest) -> Iterator[Figure]:
    """Name, interval, estimate in numbers, and note: one row each; a long forest continues."""
    height = _row_height(chart.marks)
    limits = _limits(chart)
    for marks in _cut(chart.marks, paper.TALLEST, height):
        yield _forest(replace(chart, marks=marks), height, limits)


def heat_maps(chart: HeatMap) -> Iterator[Figure]:
    """Numbers in coloured cells; every part of a long one has the same colours."""
    known = [value for row in chart.values for value in row if value is not None]
    low = min(known, default=0.0) if chart.low is None else chart.low
    high = max(known, default=1.0) if chart.high is None else chart.high
    scale = Normalize(-max(-low, high), max(-low, high)) if low < 0 < high else Normalize(low, high)
    colours = _colours(chart, diverging=low < 0 < high)
    cell = _CELL if len(chart.rows) * _CELL <= paper.TALLEST else _DENSE
    parts = zip(_cut(chart.rows, paper.TALLEST, cell), _cut(chart.values, paper.TALLEST, cell), strict=True)
    for rows, values in parts:
        yield _heat_map(replace(chart, rows=rows, values=values), cell, scale, colours)


def _cut(items: tuple[T, ...], room: float, height: float) -> list[tuple[T, ...]]:
    """Parts of equal length that each fit into ``room``."""
    most = int(room / height)
    parts = max(1, -(-len(items) // most))
    size = max(1, -(-len(items) // parts))
    return [items[start : start + size] for start in range(0, max(len(items), 1), size)]


def _row_height(marks: Sequence[Mark]) -> float:
    lines = max((max(_name(mark).count("\n"), _note(mark).count("\n")) for mark in marks), default=0)
    return 5.6 + 3.2 * lines


def _name(mark: Mark) -> str:
    return paper.wrapped(mark.label, 30, 2)


def _note(mark: Mark) -> str:
    return paper.wrapped(mark.note, 18 if mark.value is not None else 40, 2)


def _limits(chart: Forest) -> tuple[float, float]:
    marks = [value for mark in chart.marks for value in (mark.value, mark.low, mark.high) if value is not None]
    shown = [*marks, *(reference.value for reference in chart.references)] or [0.0, 1.0]
    low, high = min(shown), max(shown)
    room = 0.06 * (high - low) or 0.5
    stated_low, stated_high = chart.value.low, chart.value.high
    return low - room if stated_low is None else stated_low, high + room if stated_high is None else stated_high


def _forest(chart: Forest, height: float, limits: tuple[float, float]) -> Figure:
    count = max(len(chart.marks), 1)
    keyed = 4.5 * -(-len(chart.references) // 3)
    figure, axes = paper.canvas(_VALUES - _PLOT - 5.0, height * count, _PLOT, 9.5 + keyed, 5.0)
    axes.grid(visible=True, axis="x")
    handles = [rule(axes, place, item, upright=True) for place, item in enumerate(chart.references)]
    for row, mark in enumerate(chart.marks):
        _row(axes, row, mark)
    paper.dress(axes, replace(chart.value, low=limits[0], high=limits[1]), "x")
    axes.set(ylim=(count - 0.5, -0.5), yticks=[])
    axes.spines["left"].set_visible(False)
    _words(axes, _VALUES, -0.5 - 2.2 / height, "Estimate (95 % interval)", MUTED)
    if handles:
        names = [paper.wrapped(item.label, 24, 1) for item in chart.references]
        paper.legend(figure, "lower left", (_PLOT / paper.WIDTH, 0.0), handles, names, columns=3)
    return figure


def _row(axes: Axes, row: int, mark: Mark) -> None:
    ends = [_share(0.0), _share(paper.WIDTH)]
    axes.plot(ends, [row + 0.5] * 2, transform=axes.get_yaxis_transform(), color=GRID, linewidth=0.5, clip_on=False)
    _words(axes, _NAMES, row, _name(mark), INK)
    if mark.value is None:
        _words(axes, _VALUES, row, _note(mark) or "not estimable", MUTED)
        return
    if mark.low is not None and mark.high is not None:
        axes.errorbar(
            mark.value, row, xerr=[[mark.value - mark.low], [mark.high - mark.value]],
            color=PALETTE[0], elinewidth=1.3, capsize=2.2, capthick=0.9, fmt="none",
        )  # fmt: skip
    axes.plot([mark.value], [row], color=PALETTE[0], marker="s", markersize=4.2, linestyle="None")
    _words(axes, _VALUES, row, text.value(mark.value, mark.low, mark.high), INK)
    _words(axes, _NOTES, row, _note(mark), MUTED)


def _words(axes: Axes, millimetres: float, row: float, words: str, colour: str) -> None:
    axes.text(
        _share(millimetres), row, words, transform=axes.get_yaxis_transform(), va="center", color=colour, fontsize=8
    )


def _share(millimetres: float) -> float:
    """A place on the page in widths of the plot, from its left edge."""
    return (millimetres - _PLOT) / (_VALUES - _PLOT - 5.0)


def _heat_map(chart: HeatMap, cell: float, scale: Normalize, colours: Colormap) -> Figure:
    columns = max(len(chart.columns), 1)
    sides = [paper.wrapped(row, *((_LETTERS, 2) if cell == _CELL else (2 * _LETTERS, 1))) for row in chart.rows]
    side = 9.0 + paper.LETTER * max((len(line) for name in sides for line in name.split("\n")), default=0)
    width = min(26.0 * columns, paper.WIDTH - side - 1.0)
    names, upright, room = labels_below(chart.columns, width)
    figure, axes = paper.canvas(width, cell * max(len(chart.rows), 1), side, room + 4.2, 1.0)
    cells = np.ma.masked_invalid([paper.finite(row) for row in chart.values])
    axes.pcolormesh(cells, cmap=colours, norm=scale, edgecolors="white", linewidth=0.8)
    _numbers(axes, chart, width / columns, scale, colours)
    axes.set(xlabel=paper.wrapped(chart.x_label, 80, 1), ylabel=paper.wrapped(chart.y_label, 40, 1))
    axes.set_xticks([place + 0.5 for place in range(len(names))], names, rotation=90 if upright else 0)
    axes.set_yticks([place + 0.5 for place in range(len(chart.rows))], sides)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _numbers(axes: Axes, chart: HeatMap, cell: float, scale: Normalize, colours: Colormap) -> None:
    """The value in each cell, as large as the widest of them allows, in the ink that stands out more."""
    longest = max((len(text.number(value, chart.unit)) for row in chart.values for value in row), default=1)
    size = min(8.0, 4.8 * cell / longest)
    for row, values in enumerate(chart.values):
        for column, value in enumerate(values):
            light = value is None or _luminance(colours(scale(value))) > _HALFWAY
            words = paper.wrapped(text.number(value, chart.unit), 20, 1)
            axes.text(
                column + 0.5, row + 0.5, words, ha="center", va="center", fontsize=size, color=INK if light else "white"
            )


def _luminance(colour: tuple[float, float, float, float]) -> float:
    """Relative luminance of sRGB as WCAG 2 defines it."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _colours(chart: HeatMap, *, diverging: bool) -> Colormap:
    """Dark is high; warm where high is worse; two-sided where values have both signs."""
    good = chart.better != "lower"
    stops = [_WARM if good else _COOL, _MIDDLE] if diverging else [_MIDDLE]
    return LinearSegmentedColormap.from_list("report", [*stops, _COOL if good else _WARM]).with_extremes(bad=_EMPTY)
