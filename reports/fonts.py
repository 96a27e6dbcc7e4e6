"""Which characters the report can print, and what becomes of those that it cannot.

Typst brings Libertinus Serif; the fall-back for everything that face lacks is DejaVu Sans, which comes with matplotlib
and is given to typst as files, so that its coverage is known here. PDF/UA refuses a page with a missing glyph: one odd
character in a file name would otherwise stop the whole report.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

FACES = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf", "DejaVuSans-BoldOblique.ttf")

LONGEST = 1500  # characters of one text; more is no text that anybody reads, and would fill pages


def files() -> tuple[Path, ...]:
    """The four fall-back faces."""
    import matplotlib

    return tuple(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name for name in FACES)


@cache
def coverage() -> frozenset[int]:
    """Code points that the regular fall-back face can draw."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(files()[0])).get_charmap())


def clean(text: str) -> str:
    """One line of printable text: white space becomes a space, what cannot be printed becomes ``[U+XXXX]``.

    Composed to NFC first. Invisible characters (controls, zero-width and direction marks, private use) are always spelled out:
    a reader must see that they are there.
    """
    return "".join(_printable(character) for character in unicodedata.normalize("NFC", text))


def clean_all(value: Any) -> Any:
    """Plain data with every string in it cleaned and of bounded length; keys are left alone."""
    if isinstance(value, str):
        return _bounded(clean(value))
    if isinstance(value, list | tuple):
        return [clean_all(item) for item in value]
    if isinstance(value, dict):
        return {key: clean_all(item) for key, item in value.items()}
    return value


def _bounded(text: str) -> str:
    left = len(text) - LONGEST
    return f"{text[:LONGEST]}… ({left} further characters)" if left > 0 else text


def _printable(character: str) -> str:
    if character.isspace():
        return " "
    hidden = unicodedata.category(character).startswith("C")
    return f"[U+{ord(character):04X}]" if hidden or ord(character) not in coverage() else character
