"""Maps on paper: which methods' maps may be believed, near the front and beside every figure that shows one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reports.blocks import Badge, Block, Grid, Heading, Look, MapColumn, Prose
from xvision import text
from xvision.images import MAP_LOOKS, VERDICT_COLOURS, VERDICT_SYMBOLS
from xvision.result import MapVerdict, StoredCase
from xvision.store import Run


def looks() -> dict[str, Look]:
    """How the words about maps are shown."""
    return {word: Look(word, VERDICT_SYMBOLS[like], VERDICT_COLOURS[like]) for word, like in MAP_LOOKS.items()}


def believed(run: Run) -> list[Block]:
    """Every method that drew a map or was judged; nothing for a run that holds no maps."""
    verdicts = run.map_verdicts
    if not verdicts:
        return []
    rows = tuple((name, Badge(verdict.said), _reason(verdict)) for name, verdict in verdicts.items())
    grid = Grid("What is known of the maps of each method", ("Method", "Its maps", "Why"), rows, (), _WIDTHS)
    return [Heading("May the maps be believed?", 2), Prose(_sentence(verdicts)), grid]


_WIDTHS = ("1fr", "auto", "2fr")


def _reason(verdict: MapVerdict) -> str:
    return f"{verdict.sentence} {text.label(verdict.stamp)}." if verdict.stamp else verdict.sentence


def _sentence(verdicts: Mapping[str, MapVerdict]) -> str:
    """How many methods' maps may be relied on, and which must not be."""
    count = {word: [name for name, verdict in verdicts.items() if verdict.said == word] for word in MAP_LOOKS}
    good, refused = count["describes the model"], [name for name, verdict in verdicts.items() if verdict.stamp]
    open_ = len(count["not decided"]), len(count["not tested"])
    parts = [
        f"Of {text.plural(len(verdicts), 'method')} with maps, {len(good) or 'none'} was found to describe the model"
    ]
    if refused:
        parts.append(f"{len(refused)} must not be relied on ({text.listing(refused)})")
    parts += [
        f"{number} {word}" for number, word in zip(open_, ("could not be decided", "not tested"), strict=True) if number
    ]
    return f"{'; '.join(parts)}."


def column(run: Run, cases: Sequence[StoredCase], name: str) -> MapColumn | None:
    """What stands with the pictures of one name; None where they are no maps."""
    if not any(name in case.mapped for case in cases):
        return None
    verdict = run.map_verdict(name)
    return MapColumn(
        verdict.said,
        verdict.stamp,
        f"{VERDICT_SYMBOLS[MAP_LOOKS[verdict.said]]} {name}: {verdict.said}. {_reason(verdict)}",
    )
