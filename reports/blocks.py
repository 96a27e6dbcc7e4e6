"""What a page is made of, as data: a closed union that ``report.typ`` sets, one function there per kind.

Text and numbers reach typst only as JSON, where ``#``, ``$`` and ``[`` are letters like any other.
"""

from __future__ import annotations

from typing import Literal

from xvision import codec


@codec.record
class Heading:
    """level 1 is a chapter, 2 a section, 3 an unnumbered line inside one. The eyebrow stands above, small."""

    text: str
    level: Literal[1, 2, 3] = 1
    eyebrow: str = ""
    kind: Literal["heading"] = "heading"


@codec.record
class Prose:
    text: str
    style: Literal["body", "lead", "note"] = "body"
    kind: Literal["prose"] = "prose"


@codec.record
class Bullets:
    items: tuple[str, ...]
    kind: Literal["bullets"] = "bullets"


@codec.record
class Notice:
    """A framed sentence that must not be overlooked."""

    text: str
    kind: Literal["notice"] = "notice"


@codec.record
class Code:
    """Lines to be typed or compared."""

    lines: tuple[str, ...]
    kind: Literal["code"] = "code"


@codec.record
class Fact:
    name: str
    value: str
    code: bool = False


@codec.record
class Facts:
    """Names and values, side by side; ``dense`` sets two pairs on a line."""

    rows: tuple[Fact, ...]
    dense: bool = False
    kind: Literal["facts"] = "facts"


@codec.record
class Badge:
    """A verdict as colour, symbol and word."""

    verdict: str


@codec.record
class Grid:
    """A numbered table whose head repeats on every page. ``right``: places of the columns of numbers; ``widths`` as typst takes them."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Badge, ...], ...]
    right: tuple[int, ...] = ()
    widths: tuple[str, ...] = ()
    note: str = ""
    kind: Literal["grid"] = "grid"


@codec.record
class Figure:
    """A chart, already drawn; each file is one part of it."""

    title: str
    alt: str
    files: tuple[str, ...]
    kind: Literal["figure"] = "figure"


@codec.record
class PictureRow:
    name: str
    facts: tuple[str, ...]
    files: tuple[str | None, ...]


@codec.record
class MapColumn:
    """Of a column of maps: the word about its method, what is stamped across each of them, and why."""

    word: str
    stamp: str
    reason: str


@codec.record
class Pictures:
    """Images of cases: a row per case, a column per kind of picture; ``maps`` has None for columns that hold no maps."""

    title: str
    alt: str
    columns: tuple[str, ...]
    rows: tuple[PictureRow, ...]
    maps: tuple[MapColumn | None, ...]
    note: str = ""
    kind: Literal["pictures"] = "pictures"


@codec.record
class Verdict:
    """The overall verdict, large."""

    verdict: str
    sentence: str
    kind: Literal["verdict"] = "verdict"


@codec.record
class FindingLine:
    verdict: str
    severity: str
    title: str
    sentence: str


@codec.record
class FindingLines:
    lines: tuple[FindingLine, ...]
    kind: Literal["findings"] = "findings"


@codec.record
class Status:
    """The verdict on one finding and how much hangs on it."""

    verdict: str
    severity: str
    kind: Literal["status"] = "status"


@codec.record
class Break:
    """What follows starts on a new page; with ``room``, only where fewer millimetres than that are left on this one."""

    room: int = 0
    kind: Literal["break"] = "break"


Block = (
    Heading
    | Prose
    | Bullets
    | Notice
    | Code
    | Facts
    | Grid
    | Figure
    | Pictures
    | Verdict
    | FindingLines
    | Status
    | Break
)


@codec.record
class Cover:
    """The first page."""

    name: str
    subject: str
    date: str
    verdict: str
    notices: tuple[str, ...]
    facts: tuple[Fact, ...]


@codec.record
class Look:
    """How a verdict is shown."""

    word: str
    symbol: str
    colour: str


@codec.record
class Document:
    """Everything that the template needs; ``date`` is year, month, day of the end of the run."""

    title: str
    language: str
    date: tuple[int, int, int]
    header: tuple[str, str]
    footer: str
    cover: Cover
    guide: tuple[str, ...]
    looks: dict[str, Look]
    blocks: tuple[Block, ...]
