"""Charts and tables without small cells of people, as the rule says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from reports.suppression.rule import WITHHELD, Rule, completed
from xvision import text
from xvision.charts import Bars, Chart, Forest, HeatMap, Images, Lines, Mark, Table

_COUNTED = frozenset(
    {
        "n",
        "images",
        "patients",
        "cases",
        "people",
        "positive",
        "positives",
        "negative",
        "negatives",
        "calibration cases",
        "of",
    }
)
_SIZE = re.compile(r"(?:\bn = |^)(\d[\d\s\u202f]*)(?: patients?| images?| cases?| positives?| negatives?|\b)")
_PAIR = re.compile(r"(\d+) (?:of|/) (\d+)")
_FIGURE = re.compile(r"\d\.\d|\d %|^–$")
Cell = str | int | float | None


def charts(found: Sequence[Chart], rule: Rule) -> tuple[tuple[Chart, ...], tuple[str, ...]]:
    """What may be shown, and the titles of charts that may not."""
    kept = [(chart, _chart(chart, rule)) for chart in found]
    return tuple(shown for _, shown in kept if shown is not None), tuple(
        old.title for old, shown in kept if shown is None
    )


def _chart(chart: Chart, rule: Rule) -> Chart | None:
    match chart:
        case Table():
            return _table(chart, rule)
        case Forest():
            return _forest(chart, rule)
        case Lines():
            return _lines(chart, rule)
        case HeatMap():
            return _heat_map(chart, rule)
        case Bars():
            return _bars(chart, rule)
        case Images():
            return replace(chart, alt=rule.words(chart.alt))
        case _:
            assert_never(chart)


def _table(chart: Table, rule: Rule) -> Table:
    """Rows with a small count keep their labels alone, and so do rows and columns of a withheld group."""
    counted = {place for place, name in enumerate(chart.columns) if name in chart.counts or name.lower() in _COUNTED}
    first = _first_figure(chart, counted)
    context = _context(chart.title, rule)
    small = [any(_few(cell, place in counted, rule) for place, cell in enumerate(row)) for row in chart.rows]
    named = [_named(row, chart.columns, context, rule) for row in chart.rows]
    hidden = {place for place, row in enumerate(chart.rows) if small[place] or named[place]}
    parts = [_part(row, chart, first, rule) for row in chart.rows]
    sizes = [_most(row, counted) for row in chart.rows]
    hidden = _completed(parts, sizes, small, hidden) if counted else hidden
    gone = {place for place, name in enumerate(chart.columns) if rule.names(name, context)}

    def kept(place: int, spot: int, cell: Cell) -> Cell:
        if spot in gone or (place in hidden and spot >= first and spot not in named[place]):
            return WITHHELD
        if spot < first and spot in named[place]:  # a label: it may hold a number, "F × 0-39"
            return cell
        return rule.words(cell, strict=True) if isinstance(cell, str) else cell

    rows = tuple(
        tuple(kept(place, spot, cell) for spot, cell in enumerate(row)) for place, row in enumerate(chart.rows)
    )
    return replace(chart, rows=rows, alt=_alt(chart.alt, bool(hidden or gone), rule))


def _first_figure(chart: Table, counted: set[int]) -> int:
    """Where the labels of a row end, which begin it."""
    figures = {
        place
        for row in chart.rows
        for place, cell in enumerate(row)
        if isinstance(cell, int | float) or (isinstance(cell, str) and _FIGURE.search(cell))
    }
    return max(min(counted | figures, default=1), 1)


def _most(row: Sequence[Cell], counted: set[int]) -> int | None:
    """The largest count of a row: how many it speaks of."""
    return max((cell for place, cell in enumerate(row) if place in counted and isinstance(cell, int)), default=None)


def _few(cell: Cell, counted: bool, rule: Rule) -> bool:
    """Whether a cell holds a small count, also as "3 of 40"."""
    if isinstance(cell, str):
        pair = _PAIR.fullmatch(cell)
        return pair is not None and any(rule.small(int(number)) for number in pair.groups())
    return counted and rule.small(cell)


def _named(row: Sequence[Cell], columns: Sequence[str], context: str, rule: Rule) -> set[int]:
    """Cells that name a withheld group: as "sex F", as "F" beside "sex", or as "F" under "Sex"."""
    titles = {text.label(column): column for column in rule.columns} | {column: column for column in rule.columns}
    of = next((titles[cell] for cell in row if isinstance(cell, str) and cell in titles), context)
    return {
        place
        for place, (head, cell) in enumerate(zip(columns, row, strict=True))
        if isinstance(cell, str) and cell not in titles and rule.names(cell, titles.get(head, of))
    }


def _part(row: Sequence[Cell], chart: Table, first: int, rule: Rule) -> str:
    if chart.part:
        return str(row[chart.columns.index(chart.part)])
    label = " / ".join(str(cell) for cell in row[: first - 1])
    return label or next((column for column in rule.columns if _starts(str(row[0]), column)), "")


def _forest(chart: Forest, rule: Rule) -> Forest:
    sizes = [_size(mark) for mark in chart.marks]
    context = _context(chart.title, rule)
    small = [rule.small(size) for size in sizes]
    hidden = {
        place
        for place, mark in enumerate(chart.marks)
        if small[place] or rule.names(mark.label, mark.part if mark.part in rule.columns else context)
    }
    parts = [
        mark.part or next((column for column in rule.columns if _starts(mark.label, column)), "")
        for mark in chart.marks
    ]
    places = [place for place, part in enumerate(parts) if part]
    hidden |= {
        places[place]
        for place in _completed(
            [parts[place] for place in places],
            [sizes[place] for place in places],
            [small[place] for place in places],
            {place for place, old in enumerate(places) if old in hidden},
        )
    }
    marks = tuple(
        Mark(mark.label, None, note=WITHHELD)
        if place in hidden
        else replace(mark, note=rule.words(mark.note, strict=True))
        for place, mark in enumerate(chart.marks)
    )
    return replace(chart, marks=marks, alt=_alt(chart.alt, bool(hidden), rule))


def _size(mark: Mark) -> int | None:
    found = _SIZE.search(mark.note)
    return mark.n if mark.n is not None else int(re.sub(r"\D", "", found[1])) if found else None


def _lines(chart: Lines, rule: Rule) -> Lines | None:
    context = _context(chart.title, rule)
    small = [rule.small(series.n) or rule.names(series.name, context) for series in chart.series]
    hidden = completed(
        [series.n for series in chart.series],
        [rule.small(series.n) for series in chart.series],
        {place for place, few in enumerate(small) if few},
    )
    kept = tuple(series for place, series in enumerate(chart.series) if place not in hidden)
    lines = tuple(item for item in chart.references if not rule.names(item.label, context))
    return replace(chart, series=kept, references=lines, alt=_alt(chart.alt, bool(hidden), rule)) if kept else None


def _heat_map(chart: HeatMap, rule: Rule) -> HeatMap:
    """A row or column of a withheld group is emptied, and of counts each row that holds a small one."""
    context = _context(chart.title, rule)
    gone = [rule.names(name, context) for name in chart.columns]
    few = [chart.unit == "count" and any(map(rule.small, row)) for row in chart.values]
    values = tuple(
        tuple(
            None if few[place] or gone[spot] or rule.names(chart.rows[place], context) else value
            for spot, value in enumerate(row)
        )
        for place, row in enumerate(chart.values)
    )
    return replace(chart, values=values, alt=_alt(chart.alt, values != chart.values, rule))


def _bars(chart: Bars, rule: Rule) -> Bars | None:
    """Bars that count people are shown when none is small; a withheld group has none."""
    counted = chart.y.unit == "count" or chart.y.label.lower() in _COUNTED
    if counted and any(rule.small(value) for values in chart.series.values() for value in values):
        return None
    context = _context(chart.title, rule)
    kept = [place for place, name in enumerate(chart.categories) if not rule.names(name, context)]
    series = {
        name: tuple(values[place] for place in kept)
        for name, values in chart.series.items()
        if not rule.names(name, context)
    }
    changed = len(kept) < len(chart.categories) or len(series) < len(chart.series)
    categories = tuple(chart.categories[place] for place in kept)
    return replace(chart, categories=categories, series=series, alt=_alt(chart.alt, changed, rule)) if series else None


def _completed(parts: Sequence[str], sizes: Sequence[int | None], small: Sequence[bool], hidden: set[int]) -> set[int]:
    """``hidden`` made safe against totals within each part."""
    found = set(hidden)
    for part in set(parts):
        members = [place for place, name in enumerate(parts) if name == part]
        inside = {place for place, member in enumerate(members) if member in hidden}
        more = completed([sizes[member] for member in members], [small[member] for member in members], inside)
        found |= {members[place] for place in more}
    return found


def _context(title: str, rule: Rule) -> str:
    """The one group column that a title names, "" where it names none or several."""
    named = [
        column for column in rule.columns if re.search(rf"\b{re.escape(text.label(column))}\b", title, re.IGNORECASE)
    ]
    return named[0] if len(named) == 1 else ""


def _starts(label: str, column: str) -> bool:
    return label.startswith(text.condition({column: ""}))


def _alt(alt: str, withheld: bool, rule: Rule) -> str:
    """What is said of a chart, without its figures where some of them are withheld."""
    if not withheld:
        return rule.words(alt)
    plain = [part for part in re.split(r"(?<=[.!?])\s+", alt) if part and not re.search(r"\d", part)]
    return " ".join(
        [*plain, f"Groups of fewer than {rule.below} people are withheld, and others that would give them away."]
    )
