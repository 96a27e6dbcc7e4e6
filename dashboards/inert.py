"""Untrusted text made inert for each place it is shown in: labels, ids and captions of a run may be hostile.

Almost everything is shown through ``markup``, which escapes by itself; Markdown is reached only by page titles.
"""

from __future__ import annotations

import html
import re
from collections.abc import Hashable
from csv import QUOTE_NONNUMERIC

import pandas as pd

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def plain(value: object) -> str:
    """Text in which nothing is hidden: control, direction-changing and unassigned characters are written as ``[U+202E]``."""
    words = str(value)
    return words if words.isprintable() else "".join(_visible(character) for character in words)


def markup_text(value: object) -> str:
    """Literal text inside HTML, in text and in attributes."""
    return html.escape(plain(value), quote=True)


def figure_text(value: object) -> str:
    """Literal text inside plotly, which reads a subset of HTML in titles, names, ticks and hover texts, but not ``&quot;``."""
    return html.escape(plain(value).replace("\n", " "), quote=False)


def markdown(value: object) -> str:
    """Literal text inside Markdown: CommonMark lets every ASCII punctuation mark be escaped."""
    return _PUNCTUATION.sub(r"\\\1", plain(value).replace("\n", " "))


def csv(rows: pd.DataFrame) -> bytes:
    """UTF-8 CSV whose text cells a spreadsheet cannot take for formulas; numbers stay numbers."""
    safe = rows.map(_cell)
    safe.columns = pd.Index([_cell(name) for name in rows.columns])
    return safe.to_csv(index=False, quoting=QUOTE_NONNUMERIC).encode("utf-8", errors="replace")


def _visible(character: str) -> str:
    if character.isprintable() or character == "\n":
        return character
    return " " if character.isspace() else f"[U+{ord(character):04X}]"


def _cell(value: Hashable) -> Hashable:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
