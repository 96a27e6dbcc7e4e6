"""Sentences and tables that several chapters share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from reports.blocks import Fact, Facts, Grid
from reports.suppression import WITHHELD
from xvision import codec, text
from xvision.errors import RunError
from xvision.result import Metric, RunInfo

MOST_ROWS = 24  # of one table on paper; the rest is in the run folder
_HALF_LINE = 28  # characters


def moment(info: RunInfo) -> datetime:
    """When the run ended, or, while it has not, when it started; never the clock."""
    return _time(info.finished or info.started)


def minute(stamp: str) -> str:
    """A time of the run to the minute."""
    return f"{_time(stamp):%Y-%m-%d %H:%M} UTC"


def _time(stamp: str) -> datetime:
    try:
        found = datetime.fromisoformat(stamp)
    except ValueError:
        raise RunError(
            f"run.json: the time {stamp!r} is not one. The file was changed; run `xvision verify`."
        ) from None
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def plan_sha256(info: RunInfo) -> str:
    """Hash of the plan as resolved."""
    return hashlib.sha256(codec.dumps(dict(info.plan)).encode()).hexdigest()


def split_name(info: RunInfo) -> str:
    return "all splits" if info.split == "all" else f"the {info.split} split"


def metric_grid(title: str, metrics: Sequence[Metric], note: str = "", most: int = MOST_ROWS) -> Grid:
    """Numbers with their intervals; what cannot be estimated says why in the place of the interval.

    What is withheld is counted in the note and has no row.
    """
    told = [metric for metric in metrics if not (metric.reason or "").startswith(WITHHELD)]
    if len(told) < len(metrics):
        gone = text.plural(len(metrics) - len(told), "number")
        note = f"{note} Withheld, because of groups too small to be shown: {gone}.".strip()
    metrics = told
    rows = [
        (
            text.label(metric.name),
            text.condition(metric.where),
            text.number(metric.value, metric.unit),
            metric.reason or "no reason given"
            if metric.value is None
            else text.interval(metric.low, metric.high, metric.unit),
            text.number(metric.n, "count"),
            metric.interval,
        )
        for metric in metrics
    ]
    columns = ("Number", "Of whom, under what", "Value", "95 % interval", "n", "Method")
    explained = any(metric.value is None for metric in metrics)
    widths = ("1.1fr", "1.35fr", "auto", "1.2fr" if explained else "auto", "auto", "1.3fr")
    grid = Grid(title, columns, tuple(rows), (2, 4), widths, note)
    return shortened(grid if any(metric.where for metric in metrics) else _without_second(grid), most)


def _without_second(grid: Grid) -> Grid:
    """The table of numbers that all speak of the whole data set."""
    rows = tuple((row[0], *row[2:]) for row in grid.rows)
    columns, widths = (grid.columns[0], *grid.columns[2:]), (grid.widths[0], *grid.widths[2:])
    return Grid(grid.title, columns, rows, tuple(place - 1 for place in grid.right), widths, grid.note)


def shortened(grid: Grid, most: int = MOST_ROWS) -> Grid:
    """The table with at most ``most`` rows and a note that says how many are left out and where they are."""
    left = len(grid.rows) - most
    if left <= 0:
        return grid
    note = f"{text.plural(left, 'further row')} of this table {'is' if left == 1 else 'are'} in the run folder. {grid.note}".strip()
    return Grid(grid.title, grid.columns, grid.rows[:most], grid.right, grid.widths, note)


def short_first(rows: Sequence[Fact]) -> tuple[Facts, Facts]:
    """Facts that fit two on a line, and those that do not."""
    short = tuple(row for row in rows if len(row.name) < 24 and len(row.value) < _HALF_LINE and not row.code)
    return Facts(short, dense=True), Facts(tuple(row for row in rows if row not in short))


def flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every value of nested tables as ``a.b.c`` and text."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", shown(value)


def shown(value: object) -> str:
    """A value of a plan or a case: words as they are, numbers rounded as everywhere."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return text.number(value, "count")
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "none"
    return "–" if value is None else json.dumps(value, ensure_ascii=False, default=str)
