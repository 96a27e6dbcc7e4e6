"""One section for each analysis, in the order of the run."""

from __future__ import annotations

from typing import assert_never

from reports import maps
from reports.blocks import Block, Break, Bullets, Figure, Grid, Heading, PictureRow, Pictures, Prose
from reports.shelf import Shelf
from reports.words import metric_grid, shortened, shown
from xvision import images, text
from xvision.charts import Bars, Chart, Forest, HeatMap, Images, Lines, Table
from xvision.errors import RunError
from xvision.result import Record, StoredCase, decision_of_page
from xvision.store import Run

_MOST_CASES, _MOST_COLUMNS, _MOST_PICTURES = 8, 7, 60  # pictures: of one figure, of one figure, of one section
_MOST_FACTS = 12
_ROOM = 150  # mm that an analysis wants on the page where it starts
_LARGEST = 2048  # pixels on a side of a picture in a report


def results(run: Run, shelf: Shelf) -> list[Block]:
    """The chapter of all analyses that gave a result."""
    done = [record for record in run.records if record.status == "ok"]
    if not done:
        return [Break(), Heading("Results"), Prose("No analysis of this run has a result.")]
    blocks: list[Block] = [Break(), Heading("Results")]
    for place, record in enumerate(done):
        blocks += [*([Break(_ROOM)] if place else []), *_section(run, record, shelf)]
    return blocks


def _section(run: Run, record: Record, shelf: Shelf) -> list[Block]:
    decision = decision_of_page(run.info, record.pillar)
    blocks: list[Block] = [
        Heading(record.title, 2, record.pillar if record.pillar != record.title else ""),
        Prose(record.question, "lead"),
        Prose(record.summary),
        *([Prose(decision, "note")] if decision else []),
    ]
    room = _MOST_PICTURES
    for chart in record.charts:
        block = _chart(run, record, chart, shelf, room)
        room -= sum(len(row.files) for row in block.rows) if isinstance(block, Pictures) else 0
        blocks.append(block)
    if record.metrics:
        blocks.append(metric_grid(f"Numbers of {record.title}", record.metrics))
    blocks += _other_cases(record)
    if record.caveats:
        blocks += [Heading("Caveats", 3), Bullets(record.caveats)]
    meaning = _paragraphs(record)
    if meaning:
        blocks += [Heading("What these numbers mean, and what they do not", 3), *map(Prose, meaning)]
    return [*blocks, Prose(_cost(record), "note")]


def _chart(run: Run, record: Record, chart: Chart, shelf: Shelf, room: int) -> Block:
    match chart:
        case Lines() | Bars() | Forest() | HeatMap():
            return Figure(chart.title, chart.alt, _drawn(run, record, chart, shelf))
        case Images():
            return _pictures(run, record, chart, shelf, room)
        case Table():
            return _table(chart)
        case _:
            assert_never(chart)


def _drawn(run: Run, record: Record, chart: Lines | Bars | Forest | HeatMap, shelf: Shelf) -> tuple[str, ...]:
    from reports.charts import svg

    try:
        return tuple(shelf.keep(part, "svg") for part in svg(chart))
    except ValueError as problem:  # of matplotlib: values and labels that do not fit each other
        raise _broken(run, record, chart.title, str(problem)) from None


def _broken(run: Run, record: Record, title: str, why: str) -> RunError:
    place = run.path / "results" / f"{record.analysis}.json"
    return RunError(f"{place}: the chart {title!r} cannot be drawn ({why}). Run `xvision verify {run.path}`.")


def _pictures(run: Run, record: Record, chart: Images, shelf: Shelf, room: int) -> Pictures | Prose:
    columns = chart.pictures[:_MOST_COLUMNS]
    kept = {case.id: case for case in record.cases}
    present = [kept[name] for name in chart.cases if name in kept]
    if not present:
        return Prose(f"{chart.title}: the pictures of these cases were not kept in the run folder.", "note")
    cases = present[: min(_MOST_CASES, room // max(len(columns), 1))]
    rest = len(present) - len(cases), len(chart.pictures) - len(columns)
    left = [
        text.plural(count, noun) for count, noun in zip(rest, ("further case", "further picture"), strict=True) if count
    ]
    note = f"In the run folder: {' and '.join(left)}." if left else ""
    if not cases:
        return Prose(f"{chart.title}. {note}", "note")
    rows = tuple(
        PictureRow(case.id, _facts(case), tuple(_picture(run, case, name, shelf) for name in columns)) for case in cases
    )
    names, told = tuple(text.label(name) for name in columns), tuple(maps.column(run, cases, name) for name in columns)
    return Pictures(chart.title, chart.alt, names, rows, told, note)


def _picture(run: Run, case: StoredCase, name: str, shelf: Shelf) -> str | None:
    """A picture written anew from its pixels, so that nothing else in the file reaches the report."""
    if name not in case.pictures:
        return None
    try:
        pixels = images.read_png(run.picture(case, name), _LARGEST)
    except ValueError as problem:
        raise RunError(f"{run.path / case.pictures[name]}: {problem}. Run `xvision verify {run.path}`.") from None
    return shelf.keep(images.png(pixels), "png")


def _facts(case: StoredCase) -> tuple[str, ...]:
    return tuple(f"{text.label(name)}: {shown(value)}" for name, value in case.facts.items())


def _table(chart: Table) -> Grid:
    numeric = tuple(
        place
        for place in range(len(chart.columns))
        if all(isinstance(row[place], int | float | None) for row in chart.rows)
    )
    rows = tuple(tuple(_entry(value) for value in row) for row in chart.rows)
    return shortened(Grid(chart.title, chart.columns, rows, numeric, _widths(chart.columns, rows), note=chart.alt))


_LONG, _SENTENCE = 24, 45
"""Characters from which an entry is broken into lines; of a line that is easy to read."""
_GAP = 4
"""Characters between the longest word of a column and the next column."""


def _widths(columns: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """Shares of the page by what is written, at least the longest word; () where nothing is long and columns fit themselves."""
    written = list(zip(columns, *rows, strict=True))
    if max((len(entry) for column in written for entry in column[1:]), default=0) <= _LONG:
        return ()
    words = [max(len(word) for entry in column for word in entry.split() or [""]) for column in written]
    most = [_most(column[1:]) for column in written]
    return tuple(f"{max(word + _GAP, min(length, _SENTENCE))}fr" for word, length in zip(words, most, strict=True))


def _most(entries: tuple[str, ...]) -> int:
    """The length that four of five entries keep, dashes and empty ones not counted."""
    lengths = sorted(len(entry) for entry in entries if len(entry) > 1)
    return lengths[(4 * (len(lengths) - 1)) // 5] if lengths else 0


def _entry(value: str | float | None) -> str:
    if isinstance(value, str):
        return value
    return text.number(value, "count" if isinstance(value, int) else "")


def _other_cases(record: Record) -> list[Block]:
    """Cases that no figure shows, as facts."""
    pictured = {name for chart in record.charts if isinstance(chart, Images) for name in chart.cases}
    others = [case for case in record.cases if case.id not in pictured]
    if not others:
        return []
    rows = tuple((case.id, "; ".join(_facts(case))) for case in others)
    grid = Grid(f"Cases of {record.title}", ("Case", "What is known of it"), rows, (), ("1fr", "3fr"))
    return [shortened(grid, _MOST_FACTS)]


def _paragraphs(record: Record) -> list[str]:
    """The analysis's documentation without the question, which stands above."""
    parts = [" ".join(part.replace("``", "").split()) for part in record.reference.split("\n\n")]
    return [part for part in parts if part and part != record.question]


def _cost(record: Record) -> str:
    options = ", ".join(f"{name} = {shown(value) or 'none'}" for name, value in record.options.items())
    passes = f"{text.plural(record.forward, 'image')} forward and {text.number(record.backward, 'count')} backward"
    return f"Options: {options or 'none'}. Cost: {record.seconds:.1f} s, {passes} through the model."
