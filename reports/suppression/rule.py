"""Which groups of people are too small to be shown, and how labels and sentences speak of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from xvision import text
from xvision.result import Group, RunInfo

WITHHELD = "withheld"
LEFT_OUT = "What speaks of groups too small to be shown is left out."
"""Instead of sentences, once for all of them."""
_NOUNS = "patients?|images?|cases?|people|persons?|women|men|positives?|negatives?|decisions?|labels?|errors?|rows?"
_THINGS = "groups?|columns?|levels?|thresholds?"
_COUNT = re.compile(
    rf"(?<![\d.,–−-])(?<!\d[\s\u202f])\b([1-9]\d*)(?![\s\u202f]\d{{3}}\b)(?=\s(?!(?:{_THINGS})\b)(?:\w+\s){{0,3}}?(?:{_NOUNS})\b)",
    re.IGNORECASE,
)
_SHARE = re.compile(r"(?<![\d.,–−-])(?<!\d[\s\u202f])\b([1-9]\d*)(?= (?:of|to) \d)")
_SIZE = re.compile(r"\bn = ([1-9]\d*)\b(?![\s\u202f]\d)")
_GLUE = "\0"
"""Instead of the spaces of a level, whose full stop ends no sentence: "St. Mary"."""
_SENTENCES = re.compile(r"(?<=[.!?])\s+")
_TOGETHER = re.compile(r" \(| − | and | against | vs |, | × |\)|: ")
_OTHERS = ("against", "reference", "group", "level")
"""Conditions beside a group column that may name a group, too."""


@dataclass(frozen=True)
class Rule:
    """below: the least number of people that is shown. levels: (column, level) of groups that are withheld altogether."""

    below: int
    columns: tuple[str, ...]
    levels: frozenset[tuple[str, str]]

    def small(self, number: float | None) -> bool:
        """Whether so many people are too few to be shown."""
        return number is not None and 0 < number < self.below

    def names(self, label: str, column: str = "") -> bool:
        """Whether a label stands for a withheld group: ``Sex F``, or the level alone. column: whose level that must be, if known."""
        return self.mentions(label) or any(pattern.search(label) for of, pattern in self._alone if column in ("", of))

    def mentions(self, said: str) -> bool:
        """Whether a withheld group stands in it with its column: ``lowest of 9 cells (sex F)``."""
        return any(pattern.search(said) for pattern in self._conditions)

    @cached_property
    def _alone(self) -> tuple[tuple[str, re.Pattern[str]], ...]:
        """By column, levels that are a whole label or a whole part of one; a level may hold commas itself."""
        ends = _TOGETHER.pattern
        return tuple(
            (column, re.compile(rf"(?:^\s*|{ends})(?:{_any(levels)})(?=\s*$|{ends})"))
            for column, levels in self._by_column.items()
        )

    @cached_property
    def _conditions(self) -> tuple[re.Pattern[str], ...]:
        return tuple(
            re.compile(rf"(?<!\w)(?i:{re.escape(_condition(column, ''))})(?:{_any(levels)})(?!\w)")
            for column, levels in self._by_column.items()
        )

    @cached_property
    def _words(self) -> re.Pattern[str] | None:
        """Levels in a sentence; a number alone may be anything."""
        spoken = [level for _, level in self.levels if not _number(level)]
        return re.compile(rf"(?<!\w)(?:{_any(spoken)})(?!\w)") if spoken else None

    @cached_property
    def _by_column(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for column, level in sorted(self.levels):
            found.setdefault(column, []).append(level)
        return found

    def about(self, where: Mapping[str, object]) -> bool:
        """Whether a condition speaks of a withheld group."""
        return any(
            (column, str(value)) in self.levels or (key in _OTHERS and self.names(str(value)))
            or self.mentions(str(value))
            for key, value in where.items() for column in [key.removeprefix("group ")]
        )  # fmt: skip

    def words(self, said: str, *, strict: bool = False) -> str:
        """Text without small counts, and without sentences that give figures of withheld groups.

        strict: every "3 of 40" counts people, whatever follows.
        """
        if not self.below:
            return said
        whole = self._words.sub(lambda found: found[0].replace(" ", _GLUE), said) if self._words else said
        parts = (part.replace(_GLUE, " ") for part in _SENTENCES.split(whole))
        kept = [LEFT_OUT if self._tells(part) else part for part in parts]
        once = [part for place, part in enumerate(kept) if part != LEFT_OUT or part not in kept[:place]]
        counted = _COUNT.sub(self._fewer, " ".join(once))
        counted = _SHARE.sub(self._fewer, counted) if strict else counted
        return _SIZE.sub(lambda found: f"n below {self.below}" if self.small(int(found[1])) else found[0], counted)

    def _tells(self, sentence: str) -> bool:
        """Whether a sentence gives figures and names a withheld group."""
        for pattern in (*self._conditions, *([self._words] if self._words else [])):
            rest, found = pattern.subn("", sentence)
            if found and re.search(r"\d", rest):
                return True
        return False

    def _fewer(self, found: re.Match[str]) -> str:
        return f"fewer than {self.below}" if self.small(int(found[1])) else found[0]


def rule_of(info: RunInfo) -> Rule:
    """What the plan of a run asks for; 0 withholds nothing."""
    fairness = info.plan.get("fairness") or {}
    below = int(fairness.get("suppress_below", 0)) if isinstance(fairness, Mapping) else 0
    rule = Rule(below, (*info.groups, *info.acquisition), frozenset())
    levels: set[tuple[str, str]] = set()
    for column in dict.fromkeys(group.column for group in info.composition if below):
        rows = [group for group in info.composition if group.column == column]
        small = [any(map(rule.small, _cells(row))) for row in rows]
        hidden = completed([row.patients for row in rows], small, {place for place, few in enumerate(small) if few})
        levels |= {(column, rows[place].level) for place in hidden}
    return replace(rule, levels=frozenset(levels))


def completed(sizes: Sequence[int | None], small: Sequence[bool], hidden: Collection[int]) -> set[int]:
    """``hidden`` with the smallest other parts of a known total, until it holds two and one that is not small."""
    found = set(hidden)
    others = sorted((size, place) for place, size in enumerate(sizes) if size and place not in found)
    while found and others and (len(found) < 2 or all(small[place] for place in found)):
        found.add(others.pop(0)[1])
    return found


def _cells(group: Group) -> Iterable[int]:
    return (group.cases, group.patients, *group.by_class.values())


def _condition(column: str, level: str) -> str:
    return text.condition({column: level})


def _any(levels: Iterable[str]) -> str:
    """A pattern for one of them, the longest first."""
    return "|".join(map(re.escape, sorted(levels, key=lambda level: (-len(level), level))))


def _number(level: str) -> bool:
    return not re.search(r"[^\W\d_]", level)
