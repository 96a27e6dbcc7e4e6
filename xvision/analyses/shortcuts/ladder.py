"""One card that joins the rungs: a row for each column or cue, and the sentence that may be quoted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from xvision import text
from xvision.analyses.shortcuts.part import Key, Part, columns_of
from xvision.audit import Audit
from xvision.charts import Table
from xvision.methods.groups.cases import UNKNOWN, largest_levels
from xvision.methods.shortcuts.ladder import (
    AVAILABLE,
    CAUSAL,
    CONCLUSIONS,
    ENCODED,
    FOLLOWED,
    NOTHING,
    RUNGS,
    UNTRIED,
    Rung,
    conclusion,
)
from xvision.targets import MOST_CLASSES

_MOST_ROWS = 20
_MOST_DETAILS = 4
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
    """Who is in the audited data: the largest levels of every declared column, and those whose level is missing."""
    columns = columns_of(audit)
    rows: list[tuple[str | int | float | None, ...]] = []
    left_out = 0
    for column in columns:
        levels = audit.column(column)
        names = largest_levels(levels)
        shown = names[: max(2, _MOST_ROWS // len(columns))]
        left_out += len(names) - len(shown)
        for name in [*shown, *[UNKNOWN] * bool((levels == UNKNOWN).any())]:
            chosen = levels == name
            counts = [int((audit.labels[chosen] == code).sum()) for code in range(len(audit.classes[:MOST_CLASSES]))]
            rows.append((column, name, int(chosen.sum()), len({*audit.patients[chosen]}), *counts))
    if rows:
        more = f"; {text.plural(left_out, 'smaller level')} are not listed" if left_out else ""
        yield Table(
            "Who is in the data",
            f"Images, patients and labels of {text.plural(len(rows), 'level')}{more}.",
            ("Column", "Level", "Images", "Patients", *audit.classes[:MOST_CLASSES]),
            tuple(rows),
            counts=("Images", "Patients", *audit.classes[:MOST_CLASSES]),
            part="Column",
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
    """Answers side by side, strongest conclusion first; then the figures of what was found, with what each rung establishes."""
    rows = sorted(found.items(), key=lambda item: CONCLUSIONS.index(conclusion(item[1])))
    yield Table(
        "Shortcut ladder",
        "; ".join(f"{_who(key)}: {conclusion(rungs)}" for key, rungs in rows[:5])
        + (f". The {_MOST_ROWS} strongest of {len(rows)} are shown." if len(rows) > _MOST_ROWS else "."),
        ("What", *(text.opening(name) for name in RUNGS), "Conclusion"),
        tuple(
            (_who(key), *(_answer(rungs.get(name)) for name in RUNGS), conclusion(rungs))
            for key, rungs in rows[:_MOST_ROWS]
        ),
    )
    for key, rungs in rows[:_MOST_DETAILS]:
        if conclusion(rungs) != NOTHING:
            yield _details(key, rungs)


def _details(key: Key, rungs: Mapping[str, Rung]) -> Table:
    return Table(
        f"{text.opening(_who(key))}: {conclusion(rungs)}",
        f"Rung by rung what was found for {_who(key)}, what that establishes and what it does not.",
        ("Rung", "Figure", "A yes establishes that", "It does not establish"),
        tuple(
            (
                f"{text.opening(name)}: {_answer(rungs.get(name))}",
                rungs[name].figure if name in rungs else "",
                *_ESTABLISHES[name],
            )
            for name in RUNGS
        ),
    )


def _who(key: Key) -> str:
    return f"{key[1]} ({key[0]})" if key[0] else key[1]


def _answer(rung: Rung | None) -> str:
    return "not tried" if rung is None else {"shown": "yes"}.get(rung.state, rung.state)


def summary(found: Mapping[Key, Mapping[str, Rung]]) -> str:
    """The strongest conclusion, of what, with its figure."""
    by = {name: [key for key, rungs in found.items() if conclusion(rungs) == name] for name in CONCLUSIONS}
    best = next((name for name in CONCLUSIONS if by[name]), NOTHING)
    whom = text.listing([_who(key) for key in by.get(best, [])], 3)
    rung = {CAUSAL: "causal", AVAILABLE: "available", UNTRIED: "available", ENCODED: "encoded"}.get(best)
    if best == NOTHING:
        return "Nothing was found among what was recorded; a cue that no column records can still be there."
    first = found[by[best][0]]
    if best == FOLLOWED:
        rung = "followed" if first.get("followed", Rung("left out")).state == "shown" else "used"
    said = {
        CAUSAL: f"Shortcut shown (causal): {whom}",
        FOLLOWED: f"The decision follows {whom}, cause not shown",
        AVAILABLE: f"Available, not shown to be followed: {whom}",
        UNTRIED: f"Available, whether it is followed could not be tested: {whom}",
        ENCODED: f"Encoded, not shown to be used: {whom}",
    }[best]
    return f"{said} ({first[str(rung)].figure})."
