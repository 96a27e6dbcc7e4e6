"""Chart data to plotly figures: the numbers of the figure are the numbers of the chart."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, assert_never

import plotly.graph_objects as go

from dashboards.inert import figure_text, plain
from dashboards.theme import ACCENT, FONT, SURFACE, tint, transparent
from xvision import text
from xvision.charts import Axis, Bars, Forest, HeatMap, Lines, Mark, Reference, Series
from xvision.images import GRID, INK, MUTED, PALETTE

Drawable = Lines | Bars | Forest | HeatMap
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
_HEIGHT, _ROW, _LINE, _PADDING = 400, 38, 18, 96
_LABELLED_BARS, _NAMED_BARS = 16, 14


def figure(chart: Drawable) -> go.Figure:
    """The chart without its title, which the page prints as text."""
    match chart:
        case Lines():
            return _lines(chart)
        case Bars():
            return _bars(chart)
        case Forest():
            return _forest(chart)
        case HeatMap():
            return _heat_map(chart)
        case _:
            assert_never(chart)


def _lines(chart: Lines) -> go.Figure:
    drawn = go.Figure()
    if chart.diagonal:
        low, high = _span(chart)
        line = {"color": MUTED, "dash": "dot", "width": 1.5}
        drawn.add_scatter(
            x=[low, high], y=[low, high], mode="lines", name=_legend(chart.diagonal), line=line, hoverinfo="skip"
        )
    for place, series in enumerate(chart.series):
        colour = PALETTE[place % len(PALETTE)]
        for band in _bands(series):
            drawn.add_scatter(**band, fillcolor=transparent(colour, 0.16), legendgroup=str(place))
        drawn.add_scatter(
            **_line(series, chart.x, place),
            line={"color": colour, "width": 2.2, "dash": _dash(place)},
            legendgroup=str(place),
        )
    _references(drawn, chart.references)
    drawn.update_xaxes(**_axis(chart.x))
    drawn.update_yaxes(**_axis(chart.y))
    return _finished(drawn, _HEIGHT, legend=len(chart.series) + bool(chart.diagonal) > 1)


def _line(series: Series, axis: Axis, place: int) -> dict[str, Any]:
    lonely = [low is not None and not _neighbours(series, spot) for spot, low in enumerate(_padded(series.low, series))]
    words = [f"{figure_text(series.name)}<br>{_hover(series, axis, spot)}" for spot in range(len(series.x))]
    dots = series.marks or len(series.x) == 1
    return {
        "x": list(series.x),
        "y": list(series.y),
        "name": _legend(series.name),
        "mode": "lines+markers" if dots else "lines",
        "marker": {"size": 8, "symbol": _SYMBOLS[place % len(_SYMBOLS)], "line": {"color": "#FFFFFF", "width": 1}},
        "error_y": _whiskers(series, lonely) if any(lonely) else None,
        "connectgaps": False,
        "cliponaxis": False,
        "hovertext": words,
        "hoverinfo": "text",
    }


def _hover(series: Series, axis: Axis, spot: int) -> str:
    low, high = _padded(series.low, series)[spot], _padded(series.high, series)[spot]
    named = dict(axis.ticks)
    x = named.get(series.x[spot], text.number(series.x[spot], axis.unit))
    return figure_text(f"{axis.label} {x}: {text.value(series.y[spot], low, high)}")


def _bands(series: Series) -> Iterator[dict[str, Any]]:
    """One outline for each stretch of points that have an interval."""
    low, high = _padded(series.low, series), _padded(series.high, series)
    stretch: list[int] = []
    for spot in range(len(series.x) + 1):
        if spot < len(series.x) and low[spot] is not None and high[spot] is not None:
            stretch.append(spot)
            continue
        if len(stretch) > 1:
            x, top, bottom = ([part[item] for item in stretch] for part in (series.x, high, low))
            yield {
                "x": [*x, *reversed(x)], "y": [*top, *reversed(bottom)], "fill": "toself", "mode": "lines",
                "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "name": f"{figure_text(series.name)} interval",
            }  # fmt: skip
        stretch = []


def _neighbours(series: Series, spot: int) -> bool:
    """Whether a point's interval is part of a band."""
    low = _padded(series.low, series)
    return any(0 <= other < len(low) and low[other] is not None for other in (spot - 1, spot + 1))


def _whiskers(series: Series, lonely: Sequence[bool]) -> dict[str, Any]:
    low, high = _padded(series.low, series), _padded(series.high, series)
    above = [_gap(top, y) if alone else 0.0 for top, y, alone in zip(high, series.y, lonely, strict=True)]
    below = [_gap(y, bottom) if alone else 0.0 for bottom, y, alone in zip(low, series.y, lonely, strict=True)]
    return {"type": "data", "array": above, "arrayminus": below, "thickness": 2, "width": 6}


def _bars(chart: Bars) -> go.Figure:
    drawn = go.Figure()
    places = list(range(len(chart.categories)))
    named = places[:: 1 + len(places) // _NAMED_BARS]
    labelled = len(places) * len(chart.series) <= _LABELLED_BARS
    for place, (name, values) in enumerate(chart.series.items()):
        said = _short(values)
        words = [
            figure_text(f"{name}, {category}: {word}") for category, word in zip(chart.categories, said, strict=True)
        ]
        drawn.add_bar(
            x=places, y=list(values), name=_legend(name), marker={"color": PALETTE[place % len(PALETTE)]},
            hovertext=words, hoverinfo="text", textposition="outside" if labelled else "none", cliponaxis=False,
            text=said if labelled else None,
        )  # fmt: skip
    ticks = {
        "tickvals": named,
        "ticktext": wrapped([chart.categories[place] for place in named], 14),
        "showgrid": False,
    }
    drawn.update_xaxes(**{**_axis(chart.x), **ticks})
    drawn.update_yaxes(**_axis(chart.y))
    drawn.update_layout(barmode="group", bargap=0.25, bargroupgap=0.06)
    return _finished(drawn, _HEIGHT, legend=len(chart.series) > 1)


def _forest(chart: Forest) -> go.Figure:
    """First row on top. A row without a value has no point, and its note says why."""
    drawn = go.Figure()
    marks, rows = chart.marks, list(range(len(chart.marks)))[::-1]
    drawn.add_scatter(
        x=[mark.value for mark in marks], y=rows, mode="markers", showlegend=False,
        marker={"color": ACCENT, "size": 10, "symbol": "square"}, cliponaxis=False,
        error_x={
            "type": "data", "array": [_gap(mark.high, mark.value) for mark in marks],
            "arrayminus": [_gap(mark.value, mark.low) for mark in marks], "thickness": 2, "width": 6,
        },
        hovertext=[figure_text(f"{mark.label}: {_spoken(mark)}") for mark in marks], hoverinfo="text",
    )  # fmt: skip
    notes = {"x": [None], "y": [None], "yaxis": "y2", "mode": "markers", "showlegend": False, "hoverinfo": "skip"}
    drawn.add_scatter(**notes)
    labels, words = wrapped([mark.label for mark in marks], 30), [_beside(mark) for mark in marks]
    apart = {
        "ticks": "outside",
        "ticklen": 8,
        "tickcolor": "rgba(0,0,0,0)",
    }  # a point at the end of the axis hides no words
    shared = {"tickvals": rows, "range": [-0.6, len(rows) - 0.4], "automargin": True, "zeroline": False, **apart}
    right = {"overlaying": "y", "side": "right", "showgrid": False, "tickfont": {"color": MUTED, "size": 12}}
    drawn.update_xaxes(**_axis(chart.value))
    drawn.update_layout(
        yaxis={**shared, "ticktext": labels, "showgrid": True, "gridcolor": tint(GRID, 0.6)},
        yaxis2={**shared, **right, "ticktext": words},
    )
    _references(drawn, tuple(Reference(item.label, item.value, "x") for item in chart.references))
    return _finished(drawn, _PADDING + max(_ROW, _tallest(labels, words)) * max(len(rows), 2), legend=False)


def _spoken(mark: Mark) -> str:
    if mark.value is None:
        return mark.note if mark.note.startswith("not estimable") else text.value(None, None, None, reason=mark.note)
    said = text.value(mark.value, mark.low, mark.high)
    return f"{said}, {mark.note}" if mark.note else said


def _beside(mark: Mark) -> str:
    """The row in words, its note on a line of its own."""
    if mark.value is None:
        return wrapped([_spoken(mark)], 26)[0]
    lines = wrapped([text.value(mark.value, mark.low, mark.high), mark.note], 26)
    return "<br>".join(lines if mark.note else lines[:1])


def _heat_map(chart: HeatMap) -> go.Figure:
    columns, rows = list(range(len(chart.columns))), list(range(len(chart.rows)))
    dark = PALETTE[1] if chart.better == "lower" else ACCENT
    hover = [
        [
            figure_text(f"{chart.y_label} {row}, {chart.x_label} {column}: {text.number(value, chart.unit)}")
            for column, value in zip(chart.columns, values, strict=True)
        ]
        for row, values in zip(chart.rows, chart.values, strict=True)
    ]
    drawn = go.Figure(
        go.Heatmap(
            x=columns, y=rows, z=[list(values) for values in chart.values], zmin=chart.low, zmax=chart.high,
            colorscale=[[0, tint(dark, 0.04)], [1, tint(dark, 0.6)]], showscale=False, xgap=2, ygap=2,
            text=_cells(chart), texttemplate="%{text}", textfont={"size": 13, "color": INK},
            hovertext=hover, hoverinfo="text", hoverongaps=True,
        )
    )  # fmt: skip
    below, beside = wrapped(chart.columns, max(10, 56 // max(len(columns), 1))), wrapped(chart.rows, 24)
    flat = {"showgrid": False, "zeroline": False, "ticks": "", "automargin": True}
    drawn.update_xaxes(title=_title(chart.x_label), tickvals=columns, ticktext=below, **flat)
    drawn.update_yaxes(title=_title(chart.y_label), tickvals=rows, ticktext=beside, autorange="reversed", **flat)
    drawn.update_layout(plot_bgcolor=SURFACE)
    height = _PADDING + _tallest(below) + max(_ROW, _tallest(beside)) * len(rows)
    return _finished(drawn, max(260, height), legend=False)


def _cells(chart: HeatMap) -> list[list[str]]:
    words = iter(_short([value for values in chart.values for value in values]))
    return [[next(words) for _ in values] for values in chart.values]


def _axis(axis: Axis) -> dict[str, Any]:
    words = f"{axis.label} ({axis.unit})" if axis.unit else axis.label
    edge = tint(MUTED, 0.5)
    found: dict[str, Any] = {"title": _title(words), "gridcolor": GRID, "zeroline": False, "automargin": True}
    found |= {"linecolor": edge, "ticks": "outside", "ticklen": 4, "tickcolor": edge}
    if axis.low is not None or axis.high is not None:
        found["range"] = [axis.low, axis.high]
    if axis.ticks:
        found |= {
            "tickvals": [position for position, _ in axis.ticks],
            "ticktext": [figure_text(word) for _, word in axis.ticks],
        }
    return found


def _title(words: str) -> dict[str, Any]:
    return {"text": figure_text(words), "standoff": 10, "font": {"color": MUTED, "size": 13}}


def _references(drawn: go.Figure, references: Sequence[Reference]) -> None:
    for item in references:
        line = {"color": INK, "dash": "dash", "width": 1.3}
        words = {"text": figure_text(f"{item.label} {text.number(item.value)}"), "font": {"size": 12, "color": INK}}
        if item.axis == "x":
            drawn.add_vline(x=item.value, line=line)
            drawn.add_annotation(x=item.value, y=1, yref="paper", yanchor="bottom", showarrow=False, **words)
        else:
            drawn.add_hline(y=item.value, line=line)
            drawn.add_annotation(
                x=1, xref="paper", xanchor="right", y=item.value, yanchor="bottom", showarrow=False, **words
            )


def _finished(drawn: go.Figure, height: int, *, legend: bool) -> go.Figure:
    drawn.update_layout(
        height=height,
        margin={"l": 8, "r": 16, "t": 28 if legend or drawn.layout.annotations else 10, "b": 8},
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        hoverlabel={
            "bgcolor": "#FFFFFF",
            "bordercolor": GRID,
            "font": {"family": FONT, "color": INK, "size": 13},
            "align": "left",
        },
        showlegend=legend,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12.5}},
    )
    if drawn.layout.plot_bgcolor is None:
        drawn.update_layout(plot_bgcolor="rgba(0,0,0,0)")
    return drawn


def _span(chart: Lines) -> tuple[float, float]:
    """Where the identity line begins and ends: the declared limits of the x axis, else the data."""
    positions = [position for series in chart.series for position in series.x] or [0.0, 1.0]
    low = chart.x.low if chart.x.low is not None else min(positions)
    high = chart.x.high if chart.x.high is not None else max(positions)
    return low, high


def _padded(values: Sequence[float | None], series: Series) -> Sequence[float | None]:
    return values or (None,) * len(series.x)


def _gap(high: float | None, low: float | None) -> float:
    return high - low if high is not None and low is not None else 0.0


def _short(values: Sequence[float | None]) -> list[str]:
    """Numbers for cells and bars: without decimals where all of them are counts."""
    known = [value for value in values if value is not None]
    counts = all(float(value).is_integer() for value in known) and max(known, default=0) > 1
    return [text.number(value, "count" if counts and value is not None else "") for value in values]


def _dash(place: int) -> str:
    return _DASHES[place // 2 % len(_DASHES)]


def _legend(name: str) -> str:
    return wrapped([name], 44)[0]


def _tallest(*labels: Sequence[str]) -> int:
    """Pixels that the label with the most lines needs."""
    return _LINE * max((label.count("<br>") + 1 for group in labels for label in group), default=1)


def wrapped(labels: Sequence[str], width: int) -> list[str]:
    """Labels broken into lines, none of them cut."""
    return ["<br>".join(figure_text(line) for line in textwrap.wrap(plain(label), width)) or " " for label in labels]
