"""The same question in other words: how its options and answers can be written, and how much the decisions follow that.

Shapes: V variants (the deployed one first), M states of the image (as it is first), N cases, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from xvision.errors import DataError
from xvision.methods.intervals import Estimate, bootstrap, not_estimable
from xvision.methods.paired import rate_change

SOURCES = ("cases", "words", "corruption", "words and corruption")


def listings(count: int) -> dict[str, tuple[int, ...]]:
    """Other orders of ``count`` options by name: backwards, and started at each later one; each order once."""
    plain = tuple(range(count))
    found = {"reversed": plain[::-1]} if count > 1 else {}
    for start in range(1, count):
        turned = plain[start:] + plain[:start]
        if turned not in found.values():
            found[f"rotated by {start}"] = turned
    return found


def recased(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The words in other letter case, by name; what changes no word is left out."""
    ways: dict[str, Callable[[str], str]] = {
        "small letters": str.lower,
        "first letter large": lambda word: word[:1].upper() + word[1:],
        "large letters": str.upper,
    }
    found: dict[str, tuple[str, ...]] = {}
    for name, way in ways.items():
        changed = tuple(way(word) for word in words)
        if changed != tuple(words) and changed not in found.values():
            found[name] = changed
    return found


class Consistency(NamedTuple):
    """Per case, (N,). unanimous: every variant decides alike. agreement: share of the variants that decide as most do. deployed:
    the deployed prompt decides as most do; where two decisions are the most frequent, each counts.
    """

    unanimous: np.ndarray
    agreement: np.ndarray
    deployed: np.ndarray


def consistency(decisions: np.ndarray) -> Consistency:
    """decisions: (V, N) class indices, the deployed prompt's in the first row."""
    votes = (decisions[:, None, :] == np.unique(decisions)[None, :, None]).sum(axis=0)
    most = votes.max(axis=0)
    own = (decisions == decisions[0]).sum(axis=0)
    return Consistency(most == len(decisions), most / len(decisions), own == most)


class Spread(NamedTuple):
    """How the variance of one number is divided, per case: (N,) each, and (N,) the case's own mean."""

    mean: np.ndarray
    words: np.ndarray
    corruption: np.ndarray
    both: np.ndarray


def spread(values: np.ndarray) -> Spread:
    """values (V, M, N), every variant with every state of the image. For each case the variance of its V × M values is the sum of:

    words: variance between the variants' means over the states. corruption: between the states' means over the variants.
    both: the rest, what one variant changes more in one state than in another. It is the two-way analysis of variance of
    that case, with the values as the whole population, not as a sample of other prompts.
    """
    if values.ndim != 3:
        raise DataError(f"found values of shape {values.shape}: give variants × states × cases")
    mean = values.mean(axis=(0, 1))
    words = values.mean(axis=1).var(axis=0)
    corruption = values.mean(axis=0).var(axis=0)
    both = np.maximum(values.var(axis=(0, 1)) - words - corruption, 0.0)
    return Spread(mean, words, corruption, both)


def variance_of(parts: Spread, source: str) -> Callable[[np.ndarray], np.ndarray]:
    """Integer weights (R, N) of the cases to the variance (R,) from one of ``SOURCES``, or "all" of them.

    "cases" is the variance of the cases' means; with the three others, averaged over cases, it adds up to the variance
    of all V × M × N values.
    """
    own = {"words": parts.words, "corruption": parts.corruption, "words and corruption": parts.both}

    def between(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(axis=1)
        centre = weights @ parts.mean / total
        return np.asarray((weights * (parts.mean[None] - centre[:, None]) ** 2).sum(axis=1) / total)

    def within(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        return lambda weights: np.asarray(weights @ values / weights.sum(axis=1))

    if source == "cases":
        return between
    if source == "all":
        inside = within(parts.words + parts.corruption + parts.both)
        return lambda weights: between(weights) + inside(weights)
    return within(own[source])


def variance_share(
    parts: Spread, source: str, patients: np.ndarray, *, rng: np.random.Generator, resamples: int
) -> Estimate:
    """The share of all variance that comes from one source, with a patient bootstrap; none where nothing varies."""
    part, whole = variance_of(parts, source), variance_of(parts, "all")
    if whole(np.ones((1, len(patients))))[0] == 0.0:
        return not_estimable("all values are equal", len(np.unique(patients)))

    def share(weights: np.ndarray) -> np.ndarray:
        total = whole(weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(total > 0, part(weights) / total, np.nan))

    return bootstrap(share, patients, rng=rng, resamples=resamples)


class Range(NamedTuple):
    """best, worst: rows of the variants decided rightly most and least often. seen: their difference on the same cases, which
    choosing makes too large. fresh: the difference of two variants chosen on other patients, averaged over two halves.
    """

    best: int
    worst: int
    seen: Estimate
    fresh: Estimate


def accuracy_range(right: np.ndarray, patients: np.ndarray, *, rng: np.random.Generator) -> Range:
    """How far apart the best and the worst prompt are; right: (V, N) bool, patients: (N,).

    ``fresh`` chooses on one half of the patients and compares on the other, and the other way round: choosing the
    largest of many noisy shares then does not favour them. Tango's paired interval, clustered by patient.
    """
    best, worst = _extremes(right)
    seen = rate_change(right[worst], right[best], patients).difference
    names, codes = np.unique(patients, return_inverse=True)
    if len(names) < 2:
        return Range(best, worst, seen, not_estimable("fewer than 2 patients", len(names)))
    half = (rng.permutation(len(names)) % 2 == 0)[codes]
    high, low = np.zeros(len(patients), dtype=bool), np.zeros(len(patients), dtype=bool)
    for own in (half, ~half):
        first, last = _extremes(right[:, ~own])
        high[own], low[own] = right[first, own], right[last, own]
    return Range(best, worst, seen, rate_change(low, high, patients).difference)


def _extremes(right: np.ndarray) -> tuple[int, int]:
    """Rows with the largest and the smallest share; the earlier of equals."""
    shares = right.mean(axis=1)
    return int(shares.argmax()), int(shares.argmin())
