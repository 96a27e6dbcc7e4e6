"""Cells of level, stratum, label and decision, counted on the data and on resamples of patients, and weighted to one mix.

Shapes: N cases, P patients, R resamples (the first is the data as it is), G levels, K strata.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from xvision.methods.groups.cases import UNKNOWN, Cases, Rate, known_levels
from xvision.methods.intervals import patient_codes

Target = Literal["pooled", "reference"]
RATES: tuple[Rate, ...] = ("sensitivity", "specificity", "ppv", "npv", "selection_rate", "accuracy")
_CELLS = 2_000_000


class Pair(NamedTuple):
    """Two sides as codes of levels. ranked: False for missing values, which are no group of people."""

    group: str
    reference: str
    first: tuple[int, ...]
    second: tuple[int, ...]
    ranked: bool


class Replay(NamedTuple):
    """One comparison at one step.

    rates: (2 sides, rates, R). odds: (2 labels, R), odds ratio of a right decision pooled over strata. mixes, earlier: (2
    sides, 2 labels, R), the share decided positive when only the mixes vary and each cell's share stays as it is, at this
    step and at the one before. weights: of a case (N,), for the sides first and second.
    """

    rates: np.ndarray
    odds: np.ndarray
    mixes: np.ndarray
    earlier: np.ndarray
    weights: tuple[np.ndarray, np.ndarray]


class _Strata(NamedTuple):
    """Of each fine stratum (K,) the one that is held equal; None where nothing is."""

    now: np.ndarray | None
    before: np.ndarray | None


def patient_draws(patients: np.ndarray, *, rng: np.random.Generator, resamples: int = 1000) -> np.ndarray:
    """How often each patient, in sorted order, is drawn in each resample: (R, P). One set serves any number of figures."""
    count = patient_codes(patients, len(patients))[1]
    draws = np.empty((resamples, count), np.int16)
    for row in draws:
        row[:] = np.bincount(rng.integers(count, size=count), minlength=count)
    return draws


def paired_levels(cases: Cases, most: int) -> tuple[np.ndarray, list[Pair]]:
    """The level of each case (N,) as a code, and which codes are compared. Small levels beyond ``most`` share one code."""
    names = known_levels(cases.groups)
    people = {name: len(np.unique(cases.patients[cases.groups == name])) for name in names}
    kept = sorted(sorted(names, key=lambda name: -people[name])[:most])
    place = {name: code for code, name in enumerate(kept)} | {UNKNOWN: len(kept) + 1}
    codes = np.array([place.get(name, len(kept)) for name in cases.groups.tolist()], int)
    known = tuple(range(len(kept) + 1))
    if len(names) == 2:
        small, large = sorted(names, key=lambda name: people[name])
        pairs = [Pair(small, large, (place[small],), (place[large],), True)]
    else:
        rest = {name: tuple(code for code in known if code != place[name]) for name in kept}
        pairs = [Pair(name, "rest", (place[name],), rest[name], True) for name in kept if len(names) > 1]
    if names and (cases.groups == UNKNOWN).any():
        pairs.append(Pair(UNKNOWN, "known", (place[UNKNOWN],), known, False))
    return codes, pairs


def replayed(
    cases: Cases,
    codes: np.ndarray,
    pairs: list[Pair],
    strata: tuple[np.ndarray | None, np.ndarray | None],
    draws: np.ndarray,
    target: Target,
) -> list[Replay]:
    """Each comparison on the data and on every resample, with the weights of both made anew. strata: now and before, (N,)."""
    count = len(codes)
    both = np.stack([np.zeros(count, int) if each is None else each for each in strata])
    fine, within = np.unique(both, axis=1, return_inverse=True)
    held = _Strata(*(None if given is None else side for given, side in zip(strata, fine, strict=True)))
    shape = (int(codes.max(initial=0)) + 1, max(fine.shape[1], 1), 2, 2)
    labels = cases.labels.astype(int)
    cell = np.ravel_multi_index((codes, within, labels, cases.decisions.astype(int)), shape)
    table = csr_array((np.ones(count), (cell, cases.patients)), shape=(int(np.prod(shape)), draws.shape[1]))
    everyone = np.concatenate([np.ones((1, draws.shape[1]), draws.dtype), draws])
    as_is = (table @ everyone[:1].T.astype(float)).reshape(*shape, 1)
    rows = max(1, _CELLS // max(table.shape))
    found: list[list[tuple[np.ndarray, ...]]] = []
    for start in range(0, len(everyone), rows):
        counts = (table @ everyone[start : start + rows].T.astype(float)).reshape(*shape, -1)
        found.append([_compared(counts, as_is, pair, held, target) for pair in pairs])
    replays = []
    for pair, own in zip(pairs, zip(*found, strict=True), strict=True):
        rates, odds, mixes, earlier = (np.concatenate(parts, axis=-1) for parts in zip(*own, strict=True))
        weights = _weights(*_sides(as_is, pair, target), held.now)
        one, other = (each[within, labels, 0] for each in weights)
        replays.append(Replay(rates, odds, mixes, earlier, (one, other)))
    return replays


def _sides(counts: np.ndarray, pair: Pair, target: Target) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts (K, 2, 2, R) of the first side, the second and those whose mix is the target."""
    first, second = (
        counts[[code for code in side if code < len(counts)]].sum(axis=0) for side in (pair.first, pair.second)
    )
    return first, second, second if target == "reference" or not pair.ranked else first + second


def _compared(
    counts: np.ndarray, as_is: np.ndarray, pair: Pair, held: _Strata, target: Target
) -> tuple[np.ndarray, ...]:
    """rates, odds, mixes and earlier of :class:`Replay`. counts: (G, K, 2, 2, R). as_is: the same of the data alone."""
    first, second, aim = _sides(counts, pair, target)
    now, before = (_weights(first, second, aim, to) for to in held)
    sides = (first, second)
    tables = [(weight[:, :, None] * side).sum(axis=0) for weight, side in zip(now, sides, strict=True)]
    shares = [_over(side[:, :, 1], side.sum(axis=2)) for side in _sides(as_is, pair, target)[:2]]
    mixes, earlier = (
        np.stack([_expected(*each) for each in zip(weights, sides, shares, strict=True)]) for weights in (now, before)
    )
    return np.stack([_rates(table) for table in tables]), _odds_ratios(first, second), mixes, earlier


def _weights(
    first: np.ndarray, second: np.ndarray, aim: np.ndarray, to: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """(K, 2, R) what a case of each fine stratum and label counts on either side, 0 where one side has none to compare."""
    if to is None:
        return np.ones_like(first[:, :, 0]), np.ones_like(second[:, :, 0])
    gather = csr_array((np.ones(len(to)), (to, np.arange(len(to)))), shape=(int(to.max(initial=0)) + 1, len(to)))
    sizes = [side.sum(axis=2) for side in (first, second, aim)]
    one, other, wanted = ((gather @ size.reshape(len(to), -1)).reshape(-1, *size.shape[1:]) for size in sizes)
    mix = np.where((one > 0) & (other > 0), wanted, 0.0)
    share = wanted.sum(axis=0) * _over(mix, mix.sum(axis=0))
    heavy, light = (share / np.where(size > 0, size, 1.0) for size in (one, other))
    return heavy[to], light[to]


def _expected(weights: np.ndarray, side: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(2, R) share decided positive by label, when each cell keeps the share (K, 2, 1) that it has in the data."""
    mass = weights * side.sum(axis=2)
    return _over((mass * np.nan_to_num(shares)).sum(axis=0), mass.sum(axis=0))


def _over(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """A share, NaN of nothing."""
    return np.asarray(part / np.where(whole > 0, whole, np.nan))


def _rates(table: np.ndarray) -> np.ndarray:
    """(rates, R) of a table (2, 2, R) of label by decision."""
    (tn, fp), (fn, tp) = table
    total = tn + fp + fn + tp
    return np.stack([
        _over(tp, tp + fn), _over(tn, tn + fp), _over(tp, tp + fp), _over(tn, tn + fn),
        _over(tp + fp, total), _over(tp + tn, total),
    ])  # fmt: skip


def _odds_ratios(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(2, R) of a right decision, first against second side, pooled over strata, by label (Mantel and Haenszel 1959)."""
    found = []
    for label in (0, 1):
        (hits, misses), (other_hits, other_misses) = (
            (side[:, label, label], side[:, label, 1 - label]) for side in (first, second)
        )
        total = np.maximum(hits + misses + other_hits + other_misses, 1.0)
        found.append(_over((hits * other_misses / total).sum(axis=0), (misses * other_hits / total).sum(axis=0)))
    return np.stack(found)
