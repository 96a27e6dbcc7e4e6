"""Combinations of patient groups, which figures by one column at a time cannot show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from xvision import text
from xvision.audit import Audit, apart, count, metric
from xvision.charts import Chart, HeatMap, Table
from xvision.errors import ConfigError
from xvision.methods.groups.cases import known_levels
from xvision.methods.groups.crossed import COMPARED, Cell, Compared, Crossed, crossed
from xvision.methods.groups.gaps import Gap
from xvision.methods.groups.verdicts import Verdict, counted, verdict
from xvision.methods.intervals import held_together
from xvision.registry import analysis
from xvision.result import Metric, NotApplicable, Result, Where
from xvision.targets import THRESHOLD_AS_GIVEN, Target, caveats_of_gaps, targets

_MOST_ROWS = 20
_MOST_MAPPED = 2
"""Pairs of columns that are drawn, those with the largest differences first."""
_MOST_LEVELS = 12
"""Levels of a column that a heat map holds, the largest first."""
_MOST_SAID = 3


@analysis("Combinations of groups", pillar="Fairness", need="scores", passes="none beyond the clean predictions")
def intersections(audit: Audit, *, depth: int = 2, minimum: int = 10, resamples: int = 1000) -> Result:
    """Which combinations of groups is it worse for?

    Every combination of the levels of two group columns (of up to ``depth`` columns) is a cell. ``sensitivity_difference`` and
    ``specificity_difference`` are a cell's rate minus that of all others whose levels of the same columns are known: signed, so that
    the interval can hold 0, by patient (Newcombe). All intervals of a class hold together over all cells and both rates: their level
    comes from the largest deviation over all cells in ``resamples`` resamples of whole patients (max-T), never stricter than
    Bonferroni. Each comparison gets one of four verdicts; *not enough data* is not "no gap". A cell with fewer than ``minimum``
    patients in a denominator is shown with its counts and not compared; one with an unknown level is never ranked; one that nobody
    is in is listed with 0.

    A combination can be worse only because one of its columns is: read it beside the page on single columns. Many small cells are
    compared with little data each, so that only large differences can be shown, and cells overlap between pairs of columns. No
    difference here says nothing about columns that were not recorded.
    """
    columns = _columns(audit, depth)
    found = [
        _Page(
            audit,
            target,
            crossed(
                target.labels, target.decisions, {name: audit.column(name) for name in columns}, audit.patients,
                rng=audit.rng(f"cells {target.name}"), depth=depth, minimum=minimum, resamples=resamples,
            ),
        )
        for target in targets(audit)
    ]  # fmt: skip
    first = found[0].crossed
    counts = (
        count("cells", len(first.cells) + first.left_out),
        count("empty_cells", first.empty_cells),
    )
    metrics = (*counts, *(item for page in found for item in page.metrics()))
    charts = (_sizes(found[0], columns), *(_verdicts(found)), *_maps(found))
    return Result(_summary(found), metrics, charts, caveats=tuple(_caveats(audit, found, minimum)))


def _columns(audit: Audit, depth: int) -> tuple[str, ...]:
    columns = tuple(name for name in dict.fromkeys(audit.groups) if len(known_levels(audit.column(name))) > 1)
    if len(columns) < 2:
        there = text.listing(columns) if columns else "none"
        raise NotApplicable(
            f"combinations need two group columns with two known levels each, and {there} of the declared ones has them;"
            " name more in the plan or with --groups"
        )
    if not 2 <= depth <= len(columns):
        raise ConfigError(
            f"analysis.intersections.depth is {depth}, with {len(columns)} group columns: give 2 to {len(columns)}."
        )
    return columns


@dataclass(frozen=True)
class _Judged:
    """A comparison of a cell with the rest, in words."""

    page: _Page
    cell: Cell
    rate: Compared
    gap: Gap
    verdict: Verdict


class _Page:
    """The cells of one class."""

    def __init__(self, audit: Audit, target: Target, found: Crossed) -> None:
        self.audit, self.target, self.crossed = audit, target, found
        self.judged = [
            _Judged(
                self, cell, name, gap, verdict(replace(gap, group=_words(cell)), name, margin=audit.fairness.margin)
            )
            for cell in found.cells
            if cell.known
            for name, gap in cell.gaps.items()
        ]

    def metrics(self) -> Iterator[Metric]:
        for cell in self.crossed.cells:
            where = self._where(cell)
            for name in COMPARED:
                yield metric(name, cell.rates[name], better="higher", where=where)
                gap = cell.gaps[name]
                estimate = held_together(gap.difference, gap.level, gap.family)
                yield metric(f"{name}_difference", estimate, where={**where, "against": "rest"})

    def _where(self, cell: Cell) -> Where:
        keys = [apart(column, "class", "against") for column in cell.columns]
        return {**self.target.where, **dict(zip(keys, cell.levels, strict=True))}


def _words(cell: Cell) -> str:
    return text.condition(dict(zip(cell.columns, cell.levels, strict=True)))


def _crossing(columns: tuple[str, ...]) -> str:
    return " × ".join(
        text.label(column) if place == 0 else text.label(column).lower() for place, column in enumerate(columns)
    )


def _sizes(page: _Page, columns: tuple[str, ...]) -> Table:
    found = page.crossed
    empty = [(_crossing(each.columns), " × ".join(each.levels), 0, 0, 0, 0) for each in found.empty]
    there = [
        (_crossing(cell.columns), " × ".join(cell.levels), cell.cases, cell.patients, cell.positives, cell.negatives)
        for cell in found.cells
    ]
    shown = there + empty
    if len(shown) > _MOST_ROWS:  # the largest, and of the empty ones as many as fit
        kept = min(len(empty), _MOST_ROWS // 4)
        shown = there[: _MOST_ROWS - kept] + empty[:kept]
    more = len(there) + found.left_out + found.empty_cells - len(shown)
    said = f" The largest are shown, {text.plural(more, 'cell')} more are in the data or empty." if more else ""
    names = ("Positive", "Negative") if not page.target.name else (page.target.name, f"not {page.target.name}")
    return Table(
        title=f"Who is in each combination of {text.listing([text.label(name).lower() for name in columns])}",
        alt=f"{text.plural(len(there) + found.left_out, 'cell')} with somebody in it, {found.empty_cells} with nobody.{said}",
        columns=("Columns", "Combination", "Images", "Patients", *names),
        rows=tuple(shown),
        counts=("Images", "Patients", *names),
        part="Columns",
    )


def _ordered(found: list[_Page]) -> list[_Judged]:
    """Comparisons that could be made, the worst first."""
    known = [one for page in found for one in page.judged if one.gap.difference.value is not None]
    return sorted(known, key=lambda one: (one.verdict.word != "gap shown", one.gap.difference.value or 0.0))


def _verdicts(found: list[_Page]) -> Iterator[Table]:
    every = _ordered(found)
    if not every:
        return
    short = sum(one.gap.difference.value is None for page in found for one in page.judged)
    words = [one.verdict.word for one in every]
    more = f" {len(every) - _MOST_ROWS} more are in the metrics." if len(every) > _MOST_ROWS else ""
    yield Table(
        title="What may be said of each combination against the rest, the worst first",
        alt=f"Of {text.plural(len(every), 'comparison')}: {counted(words)}.{more} {text.plural(short, 'comparison')} had too few patients.",
        columns=("Combination", "Rate", "In the combination", "Less the rest", "Verdict"),
        rows=tuple(
            (
                _words(one.cell),
                text.label(one.rate) + str(one.page.target),
                text.value(*one.cell.rates[one.rate][:3]),
                text.value(*one.gap.difference[:3]),
                one.verdict.word,
            )
            for one in every[:_MOST_ROWS]
        ),
    )


def _maps(found: list[_Page]) -> Iterator[Chart]:
    """Of the class and the pairs of columns with the worst differences."""
    pairs = dict.fromkeys((one.page, one.cell.columns) for one in _ordered(found) if len(one.cell.columns) == 2)
    for page, columns in list(pairs)[:_MOST_MAPPED]:
        for name in COMPARED:
            cells = [cell for cell in page.crossed.cells if cell.columns == columns and cell.known]
            if any(cell.gaps[name].difference.value is not None for cell in cells):
                yield _map(page, columns, name, cells)


def _map(page: _Page, columns: tuple[str, ...], name: Compared, cells: list[Cell]) -> HeatMap:
    sizes: list[dict[str, int]] = [{}, {}]
    for cell in cells:
        for side, level in zip(sizes, cell.levels, strict=True):
            side[level] = side.get(level, 0) + cell.patients
    axes = [sorted(sorted(side, key=lambda level: -side[level])[:_MOST_LEVELS]) for side in sizes]
    there = {cell.levels: cell for cell in cells}
    values = tuple(tuple(_shown(there.get((row, column)), name) for column in axes[1]) for row in axes[0])
    few = [
        f"{' × '.join((row, column))} ({_who(there.get((row, column)), name, page.audit.fairness.suppress_below)})"
        for row in axes[0]
        for column in axes[1]
        if _shown(there.get((row, column)), name) is None
    ]
    known = [cell for cell in cells if _shown(cell, name) is not None]
    worst = min(known, key=lambda cell: cell.rates[name].value or 0.0)
    blank = f" Left blank, with too few patients: {text.listing(few, 8)}." if few else ""
    return HeatMap(
        title=f"{text.label(name)} by {text.listing([text.label(column).lower() for column in columns])}{page.target}",
        alt=f"Lowest for {_words(worst)}: {text.value(*worst.rates[name][:3])}.{blank}",
        columns=tuple(axes[1]),
        rows=tuple(axes[0]),
        values=values,
        x_label=text.label(columns[1]),
        y_label=text.label(columns[0]),
        low=0.0,
        high=1.0,
        better="higher",
    )


def _shown(cell: Cell | None, name: Compared) -> float | None:
    """The rate of a cell that was compared."""
    return None if cell is None or cell.gaps[name].difference.value is None else cell.rates[name].value


def _who(cell: Cell | None, name: Compared, withheld: int) -> str:
    """How many cases there are, unless the plan withholds so small a number."""
    kind = "positive" if name == "sensitivity" else "negative"
    size = 0 if cell is None else cell.positives if name == "sensitivity" else cell.negatives
    return f"fewer than {withheld} {kind}" if 0 < size < withheld else f"{text.number(size, 'count')} {kind}"


def _summary(found: list[_Page]) -> str:
    every = _ordered(found)
    if not every:
        return "No combination of groups has enough patients to be compared with the rest."
    shown = [one for one in every if one.verdict.word == "gap shown"]
    worse = [one for one in shown if (one.gap.difference.value or 0.0) < 0]
    if worse:
        said = " ".join(one.verdict.sentence for one in worse[:_MOST_SAID])
        more = len(worse) - _MOST_SAID
        return f"Gap shown. {said}" + (
            f" {text.plural(more, 'further combination')} in the tables." if more > 0 else ""
        )
    words = [one.verdict.word for one in every]
    better = " The gaps shown are of combinations that do better than the rest." if shown else ""
    said = f"Of {text.plural(len(every), 'comparison')}: {counted(words)}."
    return f"No combination of groups is shown to do worse than the rest. {said}{better}"


def _caveats(audit: Audit, found: list[_Page], minimum: int) -> Iterator[str]:
    first = found[0].crossed
    yield from caveats_of_gaps(audit, [one.gap.difference for page in found for one in page.judged], minimum)
    if first.empty_cells:
        yield f"Nobody is in {text.plural(first.empty_cells, 'combination')} of levels that occur: nothing is known there."
    if first.left_out:
        yield f"{text.plural(first.left_out, 'smaller combination')} beyond the largest {len(first.cells)} were not looked at."
    unknown = sum(not cell.known for cell in first.cells)
    if unknown:
        yield f"{text.plural(unknown, 'combination')} with an unknown level are shown and not ranked."
    if audit.operating.tuned:
        yield THRESHOLD_AS_GIVEN
