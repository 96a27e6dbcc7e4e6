"""What can be drawn, as data: a closed union, described once and drawn by plotly on screen and matplotlib on paper.

Every chart carries the sentence that replaces it for a reader who cannot see it (``alt``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Annotated, Literal

from xvision import codec


@codec.record
class Axis:
    """A labelled axis; ``unit`` is printed after the label; limits left out follow the data."""

    label: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    ticks: tuple[tuple[float, str], ...] = ()
    """Positions and their words, e.g. ((0.0157, "4/255"),)."""


@codec.record
class Series:
    """Points joined by a line, with an interval band where ``low`` and ``high`` are given; None is a gap."""

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    marks: bool = True
    n: int | None = None
    """How many people the curve is of, where that is a group of them: reports withhold small ones where the plan says so."""

    def __post_init__(self) -> None:
        for part in (self.y, self.low, self.high):
            if part and len(part) != len(self.x):
                raise ValueError(f"series {self.name!r}: {len(part)} values for {len(self.x)} positions")


@codec.record
class Reference:
    """A straight line to compare with: a threshold, chance, a clean value."""

    label: str
    value: float
    axis: Literal["x", "y"] = "y"


@codec.record
class Lines:
    title: str
    alt: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    references: tuple[Reference, ...] = ()
    diagonal: str = ""
    """Label of the identity line; empty draws none."""
    kind: Literal["lines"] = "lines"


@codec.record
class Bars:
    """Grouped vertical bars: one value per category and series."""

    title: str
    alt: str
    categories: tuple[str, ...]
    y: Axis
    series: Mapping[str, tuple[float, ...]]
    x: Axis = Axis("")
    kind: Literal["bars"] = "bars"

    def __post_init__(self) -> None:
        _same_length(self.title, "categories", len(self.categories), self.series.values())


@codec.record
class Mark:
    """One row of a forest: a value with its interval, or a reason why there is none."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""
    """Printed beside the row: group size, or why there is no value."""
    n: int | None = None
    """How many people the value is of: reports withhold small groups where the plan says so."""
    part: str = ""
    """What the groups divide, a column's name for instance: the rows of one part add up to a total that a reader knows."""


@codec.record
class Forest:
    """Rows of point and interval on one value axis: groups, methods, criteria."""

    title: str
    alt: str
    value: Axis
    marks: tuple[Mark, ...]
    references: tuple[Reference, ...] = ()
    kind: Literal["forest"] = "forest"


@codec.record
class HeatMap:
    """A small matrix of numbers, printed in its cells. Images are never heat maps."""

    title: str
    alt: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    x_label: str
    y_label: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    better: Literal["higher", "lower", "neither"] = "neither"
    kind: Literal["heat map"] = "heat map"

    def __post_init__(self) -> None:
        _same_length(self.title, "rows", len(self.rows), [self.values])
        _same_length(self.title, "columns", len(self.columns), self.values)


@codec.record
class Images:
    """Pictures of stored cases: one row per case, one column per picture, both named in the run's case records."""

    title: str
    alt: str
    cases: tuple[str, ...]
    pictures: tuple[str, ...]
    kind: Literal["images"] = "images"


@codec.record
class Table:
    """Rows of text and numbers; numbers stay numbers so that each outlet can align and export them."""

    title: str
    alt: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]
    counts: tuple[str, ...] = ()
    """The columns that count people: reports withhold rows with small counts where the plan says so."""
    part: str = ""
    """The column whose equal entries hold rows that add up to a known total; "" when all rows do."""
    kind: Literal["table"] = "table"

    def __post_init__(self) -> None:
        _same_length(self.title, "columns", len(self.columns), self.rows)
        strange = [name for name in (*self.counts, *filter(None, [self.part])) if name not in self.columns]
        if strange:
            raise ValueError(f"table {self.title!r}: there is no column {strange[0]!r}")


def _same_length(title: str, what: str, expected: int, parts: Iterable[Sized]) -> None:
    wrong = [len(part) for part in parts if len(part) != expected]
    if wrong:
        raise ValueError(f"chart {title!r}: {wrong[0]} values for {expected} {what}")


Chart = Annotated[Lines | Bars | Forest | HeatMap | Images | Table, codec.told_apart_by("kind")]
