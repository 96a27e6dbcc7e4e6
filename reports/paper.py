"""What every drawn chart shares: type, sizes in millimetres, axes and keys.

Charts are drawn at one to one and their text stays text, so that typst sets it in the report's own face and letters in a chart
are as large as letters in a table. Only the object interface of matplotlib is used: nothing here has global state.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reports.fonts import clean
from xvision.charts import Axis
from xvision.images import GRID, INK, MUTED

T = TypeVar("T")
Handle = Line2D | Patch

WIDTH = 165.0  # mm: the width of the text on the page
TALLEST = 195.0  # mm of rows in one figure; a longer one continues in the next
PLAIN, KEYED = 142.0, 98.0  # mm: width of a plot without and with a key beside it
LEFT = 15.0  # mm: room for the numbers and the name of a vertical axis
MEASURED_FACE = "STIXGeneral"  # as wide as the face it is set in, and a file that matplotlib can read
SET_FACE = "Libertinus Serif"
LETTER = 1.5  # mm: mean width of a letter, on the safe side

DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 1.6, 1.2, 1.6)))
RULES: tuple[Any, ...] = ((0, (3, 2)), (0, (1, 1.6)), (0, (7, 2)), (0, (5, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----")
_STYLE: dict[Any, Any] = {
    "font.family": [MEASURED_FACE, "DejaVu Sans"],
    "font.size": 8.5,
    "text.parse_math": False,
    "text.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "xvision",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "axes.formatter.useoffset": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@contextmanager
def style() -> Iterator[None]:
    """The settings of matplotlib while a chart is built and written, and not longer."""
    with matplotlib.rc_context(_STYLE):
        yield


def canvas(width: float, height: float, left: float, bottom: float, top: float = 3.0) -> tuple[Figure, Axes]:
    """A figure as wide as the text with one plot of ``width`` × ``height`` mm; ``left``, ``bottom``, ``top`` are its margins."""
    total = bottom + height + top
    figure = Figure(figsize=(WIDTH / 25.4, total / 25.4))
    axes = figure.add_axes((left / WIDTH, bottom / total, width / WIDTH, height / total))
    return figure, axes


def wrapped(words: str, letters: int, lines: int) -> str:
    """At most ``lines`` lines of ``letters`` letters of printable text; an ellipsis stands for the rest."""
    parts = textwrap.wrap(clean(words), max(letters, 4))
    if len(parts) > lines:
        parts = [*parts[: lines - 1], parts[lines - 1][: max(letters, 4) - 1].rstrip() + "…"]
    return "\n".join(parts)


def axis_name(axis: Axis) -> str:
    return f"{axis.label} ({axis.unit})" if axis.unit else axis.label


def dress(axes: Axes, axis: Axis, which: Literal["x", "y"]) -> None:
    """Name, limits and ticks of one axis; stated limits get a hair of room so that points on them are seen whole."""
    low, high = (axes.get_xlim if which == "x" else axes.get_ylim)()
    low, high = low if axis.low is None else axis.low, high if axis.high is None else axis.high
    hair = 0.015 * abs(high - low)
    limits = (low - hair if axis.low is not None else low, high + hair if axis.high is not None else high)
    name, ticks = wrapped(axis_name(axis), 80 if which == "x" else 46, 2), [position for position, _ in axis.ticks]
    words = [wrapped(word, 14, 2) for _, word in axis.ticks]
    if which == "x":
        axes.set(xlabel=name, xlim=limits)
        if ticks:
            axes.set_xticks(ticks, words)
    else:
        axes.set(ylabel=name, ylim=limits)
        if ticks:
            axes.set_yticks(ticks, words)


def key(figure: Figure, axes: Axes, handles: Sequence[Handle], names: Sequence[str]) -> None:
    """The key, right of the plot."""
    box = axes.get_position()
    corner = (box.x1 + 4.0 / WIDTH, box.y1)
    legend(figure, "upper left", corner, handles, [wrapped(name, 27, 3) for name in names])


def key_height(names: Sequence[str]) -> float:
    """The millimetres that a key needs."""
    return sum(2.6 + 3.4 * (wrapped(name, 27, 3).count("\n") + 1) for name in names)


def legend(
    figure: Figure,
    place: Literal["upper left", "lower left"],
    corner: tuple[float, float],
    handles: Sequence[Handle],
    names: Sequence[str],
    columns: int = 1,
) -> None:
    """A matplotlib legend. Names are set afterwards: matplotlib would drop one that starts with an underscore."""
    drawn = figure.legend(
        handles, [" "] * len(handles), loc=place, bbox_to_anchor=corner, ncols=columns, borderaxespad=0.0, borderpad=0.0,
        handlelength=3.2, labelspacing=0.7,
    )  # fmt: skip
    for entry, name in zip(drawn.get_texts(), names, strict=True):
        entry.set_text(name)


def turn(choices: Sequence[T], place: int) -> T:
    """The choice of a series, all in turn."""
    return choices[place % len(choices)]


def dashes(place: int) -> Any:
    """The dashes of a series, shifted each time that the markers start again: 32 series differ without colour."""
    return turn(DASHES, place + place // len(MARKERS))


def finite(values: Sequence[float | None]) -> list[float]:
    """Numbers with NaN for None: matplotlib's word for a gap."""
    return [float("nan") if value is None else value for value in values]
