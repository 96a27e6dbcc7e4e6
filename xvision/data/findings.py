"""Label cells that name several findings at once.

A cell holds names separated by ``|``. No finding is the empty cell, ``none`` or ``no finding`` in any case; "normal" is a
name like any other, because some data sets use it for a class. A case without a label ("na", "?" and the like) is not a
case without a finding, and stays an error.
"""

from __future__ import annotations

from collections.abc import Sequence

SEPARATOR = "|"
NOTHING = frozenset({"", "none", "no finding"})
# "none" is not among them: "device: none" is a finding, not a gap.
MISSING = frozenset({"", "na", "n/a", "nan", "null", "unknown", "?"})


def fault(cell: str) -> str:
    """Why ``cell`` cannot be read as findings and what to do, or "" when it can."""
    names = _parts(cell)
    if len(names) > 1 and "" in names:
        return f"has an empty name between the separators of {cell!r}: remove the separator or fill in the name"
    if len(names) > 1 and any(name.lower() in NOTHING for name in names):
        return f"says in {cell!r} that there is none and names a finding: decide for one"
    if len(names) > 1 and any(name.lower() in MISSING for name in names):
        return f"says in {cell!r} that something is not known and names a finding: correct it or remove the row"
    return ""


def canonical(cell: str) -> str:
    """Names in alphabetical order, each once, joined by the separator; "" for no finding."""
    return SEPARATOR.join(sorted({name for name in _parts(cell) if name.lower() not in NOTHING}))


def names_in(cell: str) -> Sequence[str]:
    """The findings of a canonical cell; none for ""."""
    return cell.split(SEPARATOR) if cell else ()


def _parts(cell: str) -> list[str]:
    return [name.strip() for name in cell.split(SEPARATOR)]
