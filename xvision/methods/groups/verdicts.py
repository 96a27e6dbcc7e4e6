"""What may be said of a difference between groups, in one of four words and a sentence, and what explains it.

"not enough data" is a verdict: an interval that contains 0 does not show that groups are treated alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import ndtr

from xvision import text
from xvision.errors import DataError
from xvision.methods.groups.cases import UNKNOWN
from xvision.methods.groups.counts import quantiles, rate
from xvision.methods.groups.gaps import Gap
from xvision.methods.intervals import Estimate

Word = Literal["gap shown", "below the agreed margin", "equivalent", "not enough data"]
Explained = Literal["explained by prevalence", "not explained by prevalence", "not enough data"]


class Verdict(NamedTuple):
    """The word, and the figures that it rests on in one sentence."""

    word: Word
    sentence: str


def counted(words: Sequence[str]) -> str:
    """``2 gap shown, 3 not enough data``, in the order in which they first come."""
    return ", ".join(f"{text.number(words.count(word), 'count')} {word}" for word in dict.fromkeys(words))


def not_excluded(gaps: Iterable[Estimate]) -> str:
    """A sentence on the largest size that any interval holds, after a space; "" without intervals."""
    ends = [abs(end) for gap in gaps for end in (gap.low, gap.high) if end is not None]
    return f" Gaps of up to {text.number(max(ends))} are not excluded." if ends else ""


class Prevalence(NamedTuple):
    """A difference in ppv or npv, what is left of it at one prevalence with its limits, and what that means."""

    word: Explained
    sentence: str
    gap: float
    left: float
    low: float
    high: float


class Ranking(NamedTuple):
    """The worst and best of the groups that are large enough, worst over best, and those left out as too small."""

    worst: str | None
    best: str | None
    ratio: float | None
    too_small: tuple[str, ...]
    reason: str | None = None


class Proportions(NamedTuple):
    """A two-sided test of two independent proportions."""

    difference: float
    z: float
    p_value: float


def verdict(gap: Gap, metric: str, *, margin: float | None = None) -> Verdict:
    """What the simultaneous interval of a gap shows. margin: the difference that was agreed to be acceptable.

    "gap shown": the interval excludes 0, and the gap is not below the margin. "below the agreed margin": it excludes 0,
    and the gap itself is below. "equivalent": it contains 0 and lies within the margin, which without an agreed margin
    nothing can. "not enough data": all else; the sentence then says which differences are not excluded.
    """
    if margin is not None and not 0 < margin < 1:
        raise DataError(f"the margin is {margin}; give a difference above 0 and below 1, or None")
    found, what, whom, other = gap.difference, text.label(metric), _group(gap), reference_words(gap.reference)
    if found.value is None or found.low is None or found.high is None:
        sizes = f"{text.plural(gap.cases, 'case')} against {text.number(gap.reference_cases, 'count')}"
        return Verdict(
            "not enough data", f"{what} for {whom} cannot be compared with {other}: {found.reason} ({sizes})."
        )
    if found.low <= 0 <= found.high:
        return _no_gap(f"{what} for {whom} against {other}", found.low, found.high, margin)
    nearest, farthest = sorted((abs(found.low), abs(found.high)))
    size = f"{text.number(abs(found.value))} ({text.interval(nearest, farthest)})"
    said = f"{what} is {size} {_side(found.value)} for {whom} than for {other}"
    if margin is None:
        return Verdict("gap shown", f"{said}.")
    agreed = f"the agreed margin of {text.number(margin)}"
    if abs(found.value) >= margin:
        sure = f", more than {agreed}" if nearest >= margin else f"; the interval also holds gaps below {agreed}"
        return Verdict("gap shown", f"{said}{sure}.")
    sure = f", less than {agreed}" if farthest < margin else f": below {agreed}, but the interval reaches beyond it"
    return Verdict("below the agreed margin", f"{said}{sure}.")


def _no_gap(what: str, low: float, high: float, margin: float | None) -> Verdict:
    span = f"from {_signed(low)} to {_signed(high)}"
    if margin is not None and max(-low, high) < margin:
        agreed = f"the agreed margin of {text.number(margin)}"
        return Verdict("equivalent", f"{what}: only differences {span} are compatible with the data, within {agreed}.")
    return Verdict("not enough data", f"{what}: no difference is shown, and differences {span} are not excluded.")


def _side(value: float) -> str:
    return "lower" if value < 0 else "higher"


def _signed(value: float) -> str:
    return f"{text.number(abs(value))} {_side(value)}"


def _group(gap: Gap) -> str:
    return "patients whose group is unknown" if gap.group == UNKNOWN else gap.group


def reference_words(reference: str) -> str:
    """The reference of a gap in a sentence."""
    return {"rest": "the rest", "known": "all whose group is known"}.get(reference, reference)


def prevalence_note(
    table: np.ndarray, drawn: np.ndarray, metric: Literal["ppv", "npv"], *, level: float = 0.95
) -> Prevalence | None:
    """How much of a difference in ppv or npv between two groups is left if both had their mean prevalence.

    table: confusion counts (4, 2), cells first. drawn: resamples of them (4, 2, R). The difference is of the first
    group minus the second. "explained" when what is left is surely less than half of the gap and its interval contains
    0. None where there is no difference or a rate is undefined.
    """
    gap = float(-np.diff(rate(table, metric))[0])
    prevalence = table[2:].sum(axis=0) / np.maximum(table.sum(axis=0), 1)
    common = float(prevalence.mean())
    left = float(_at_prevalence(table, common, metric))
    if not np.isfinite(left) or not abs(gap) > 0:
        return None
    tails = (1 - level) / 2, (1 + level) / 2
    low, high = (float(limit) for limit in quantiles(_at_prevalence(drawn, common, metric), tails))
    inside = low <= 0 <= high
    if inside and max(-low, high) < abs(gap) / 2:
        word: Explained = "explained by prevalence"
    else:
        word = "not enough data" if inside or not np.isfinite(low) else "not explained by prevalence"
    sentence = (
        f"The difference of {text.number(gap)} in {text.label(metric)} would be {text.value(left, low, high)} if both"
        f" groups had a prevalence of {text.number(common)} instead of {text.number(float(prevalence[0]))} and"
        f" {text.number(float(prevalence[1]))}: {word}."
    )
    return Prevalence(word, sentence, gap, left, low, high)


def _at_prevalence(counts: np.ndarray, prevalence: float, metric: Literal["ppv", "npv"]) -> np.ndarray:
    """Difference (...,) of predictive values at one prevalence, first group minus second, of counts (4, 2, ...)."""
    sensitivity, fpr = rate(counts, "sensitivity"), rate(counts, "fpr")
    if metric == "ppv":
        hits, misses = prevalence * sensitivity, (1 - prevalence) * fpr
    else:
        hits, misses = (1 - prevalence) * (1 - fpr), prevalence * (1 - sensitivity)
    values = np.full(hits.shape, np.nan)
    np.divide(hits, hits + misses, out=values, where=hits + misses > 0)
    return np.asarray(values[0] - values[1])


def worst_group(
    estimates: Mapping[str, Estimate], *, minimum: int, better: Literal["higher", "lower"] = "higher"
) -> Ranking:
    """Which of the groups with at least ``minimum`` patients in the denominator does worst, and which best.

    "unknown" is no group and never ranked. The worst of many groups looks worse than it is, by chance alone: this is
    a place to look, not a verdict.
    """
    named = {name: found for name, found in estimates.items() if name != UNKNOWN}
    values = {name: found.value for name, found in named.items() if found.value is not None and found.n >= minimum}
    small = tuple(name for name in named if name not in values)
    if len(values) < 2:
        return Ranking(None, None, None, small, f"fewer than 2 groups with {minimum} patients")
    ordered = sorted(values, key=lambda name: (values[name], name), reverse=better == "lower")
    worst, best = ordered[0], ordered[-1]
    return Ranking(worst, best, values[worst] / values[best] if values[best] else None, small)


def two_proportions(hits: int, cases: int, other_hits: int, other_cases: int) -> Proportions:
    """z test of two proportions with their pooled variance; z² is Pearson's chi-square. For one case per patient."""
    if not (0 <= hits <= cases and 0 <= other_hits <= other_cases and cases and other_cases):
        raise DataError(f"{hits} of {cases} and {other_hits} of {other_cases} are not two proportions")
    pooled = (hits + other_hits) / (cases + other_cases)
    gap = hits / cases - other_hits / other_cases
    error = np.sqrt(pooled * (1 - pooled) * (1 / cases + 1 / other_cases))
    z = float(gap / error) if error else 0.0
    return Proportions(gap, z, float(2 * ndtr(-abs(z))))
