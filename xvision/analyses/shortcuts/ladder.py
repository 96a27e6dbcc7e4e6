"""One card that joins the rungs: a row for each column or cue, and the sentence that may be quoted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from xvision import text
from xvision.analyses.shortcuts.part import Key, Part, columns_of
from xvision.audit import Audit
from xvision.charts import Table
from xvision.methods.groups.cases import UNKNOWN
from xvision.methods.shortcuts.ladder import (
    AVAILABLE,
    CAUSAL,
    CONCLUSIONS,
    ENCODED,
    FOLLOWED,
    NOTHING,
    RUNGS,
    Rung,
    conclusion,
)

_MOST_ROWS = 20
_ESTABLISHES = {
    "available": ("the label can be told from this without the disease", "that the model does so"),
    "encoded": ("the embeddings hold it", "that the head reads it"),
    "followed": ("at the same label, decisions or scores go along with it", "that it is the cause: case mix may be"),
    "used": ("without its direction in the embeddings, decisions change", "that the direction holds nothing else"),
    "causal": (
        "putting the mark in or taking it out moves the score more than other changes",
        "how often it matters in practice",
    ),
}


def sizes(audit: Audit) -> Iterator[Table]:
    """Who is in the audited data, by level of every declared column."""
    for column in columns_of(audit):
        levels = audit.column(column)
        names = sorted({str(name) for name in levels} - {UNKNOWN}, key=lambda name: -int((levels == name).sum()))
        shown = names[:_MOST_ROWS]
        rows: list[tuple[str | int | float | None, ...]] = []
        for name in [*shown, *[UNKNOWN] * bool((levels == UNKNOWN).any())]:
            chosen = levels == name
            counts = [int((audit.labels[chosen] == code).sum()) for code in range(min(len(audit.classes), 10))]
            rows.append((name, int(chosen.sum()), len({*audit.patients[chosen]}), *counts))
        yield Table(
            f"{text.label(column)}: who is in the data",
            f"{text.plural(len(names), 'level')}"
            + (f", of which the largest {len(shown)} are shown." if len(shown) < len(names) else "."),
            (text.label(column), "Images", "Patients", *audit.classes[:10]),
            tuple(rows),
        )


def joined(ladders: Iterable[Mapping[str, Part]]) -> dict[Key, dict[str, Rung]]:
    """The rungs of every class and column or place, by name."""
    found: dict[Key, dict[str, Rung]] = {}
    for parts in ladders:
        for name, part in parts.items():
            for key, rung in part.rungs.items():
                found.setdefault(key, {})[name] = rung
    return found


def ladder(found: Mapping[Key, Mapping[str, Rung]]) -> Iterator[Table]:
    """The rungs side by side, strongest conclusion first, and what each establishes."""
    rows = sorted(found.items(), key=lambda item: CONCLUSIONS.index(conclusion(item[1])))[:_MOST_ROWS]
    yield Table(
        "Shortcut ladder",
        f"{len(found)} rows: " + "; ".join(f"{_who(key)}, {conclusion(rungs)}" for key, rungs in rows[:5]) + ".",
        ("What", *(text.opening(name) for name in RUNGS), "Conclusion"),
        tuple((_who(key), *(_cell(rungs.get(name)) for name in RUNGS), conclusion(rungs)) for key, rungs in rows),
    )
    yield Table(
        "What each rung establishes",
        "One row per rung, with what a positive answer establishes and what it does not.",
        ("Rung", "This establishes", "This does not establish"),
        tuple((text.opening(name), *_ESTABLISHES[name]) for name in RUNGS),
    )


def _who(key: Key) -> str:
    return f"{key[1]} ({key[0]})" if key[0] else key[1]


def _cell(rung: Rung | None) -> str:
    if rung is None:
        return "not tried"
    if rung.state == "left out":
        return f"left out: {rung.figure}"
    return f"{'yes' if rung.state == 'shown' else 'not shown'}: {rung.figure}"


def summary(found: Mapping[Key, Mapping[str, Rung]]) -> str:
    """The strongest conclusion, of what, with its figure."""
    by = {name: [key for key, rungs in found.items() if conclusion(rungs) == name] for name in CONCLUSIONS}
    best = next((name for name in CONCLUSIONS if by[name]), NOTHING)
    whom = text.listing([_who(key) for key in by.get(best, [])], 3)
    rung = {CAUSAL: "causal", AVAILABLE: "available", ENCODED: "encoded"}.get(best)
    if best == NOTHING:
        return "Nothing was found among what was recorded; a cue that no column records can still be there."
    first = found[by[best][0]]
    if best == FOLLOWED:
        rung = "followed" if first.get("followed", Rung("left out")).state == "shown" else "used"
    said = {
        CAUSAL: f"Shortcut shown (causal): {whom}",
        FOLLOWED: f"The decision follows {whom}, cause not shown",
        AVAILABLE: f"Available, not followed: {whom}",
        ENCODED: f"Encoded, not shown to be used: {whom}",
    }[best]
    return f"{said} ({first[str(rung)].figure})."
