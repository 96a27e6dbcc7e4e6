"""Does the score fall when what the map marks is taken away? Removal curves and correlations with removals of subsets.

Ranking figures are read off two curves per method; the others compare a map with the drops of one bank of random
subsets, the same for all methods, which must not be the bank a method was fitted on. Every figure is per case, (B,). A
map with one value everywhere, or with a value that is no number, ranks nothing: NaN. Nothing here says that a person
would find the map plausible, and what a removal leaves is an image the model has not been trained on: compare methods
under more than one removal. Shapes: B images, P units, K steps, S subsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from xvision.errors import ConfigError, DataError
from xvision.methods.units import Evaluate

_ROUNDING = 1e-12
"""Spread, as a share of the largest magnitude, that sums of equal numbers may have."""
_FEWEST_SUBSETS = 3
"""Two points always lie on a line."""


class Curves(NamedTuple):
    """Scores of images while units are removed.

    fractions: (K + 1,) share of units removed, from 0 to 1. most_first, least_first: (B, K + 1) score that is left,
    starting at f(x) and ending at f(everything removed), both in the order of ``fractions``.
    """

    fractions: np.ndarray
    most_first: np.ndarray
    least_first: np.ndarray


class Line(NamedTuple):
    """values: (B, K + 1) over fractions (K + 1,)."""

    fractions: np.ndarray
    values: np.ndarray


def curves(evaluate: Evaluate, values: np.ndarray, *, steps: int) -> Curves:
    """Curves of one method; see ``curves_of``."""
    return curves_of(evaluate, {"map": values}, steps=steps)["map"]


def curves_of(evaluate: Evaluate, values: Mapping[str, np.ndarray], *, steps: int) -> dict[str, Curves]:
    """Score while units are removed from most to least important and the other way round, per method (Samek et al. 2017).

    values: (B, P) importance per unit, by method; largest first, so evidence against the class comes last. Equally
    important units are taken in the order of their position, and least-first is most-first read backwards, so removing
    the least important is inserting the most important from the other end. One call of ``evaluate`` serves all methods;
    a set of units that several of them remove from an image, such as none or all, is evaluated once.

    Args:
        evaluate: score of a row with units removed.
        values: all of the same shape, rows in the order of the images.
        steps: most steps of a curve; min(steps, P) are made, of equal size up to rounding.

    Raises:
        ConfigError: fewer than two steps, with which both curves would always be equal.
        DataError: values that are not (B, P), or not the same for all methods.
    """
    shape = _shape_of(values)
    if steps < 2:
        raise ConfigError(f"found steps = {steps}: a removal curve needs at least 2")
    counts = _counts(shape[1], steps)
    order = {name: np.argsort(-found, axis=1, kind="stable") for name, found in values.items()}
    ranking = {name: ~_undefined(found) for name, found in values.items()}
    parts = [
        (np.flatnonzero(ranking[name]), _removed(way[ranking[name]], counts))
        for name in values
        for way in (order[name], order[name][:, ::-1])
    ]
    scores = iter(_scores(evaluate, parts, shape[1]))
    fractions = counts / max(shape[1], 1)
    return {
        name: Curves(fractions, _spread(next(scores), ranking[name]), _spread(next(scores), ranking[name]))
        for name in values
    }


def _shape_of(values: Mapping[str, np.ndarray]) -> tuple[int, int]:
    shapes = {np.shape(found) for found in values.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 2 or not shape[1]:
        found = ", ".join(f"{name} {np.shape(each)}" for name, each in values.items()) or "no method"
        raise DataError(f"found values of {found}: every method needs the same (B, P) with P >= 1")
    return shape


def _counts(units: int, steps: int) -> np.ndarray:
    """Units removed (K + 1,) after each step, rounded to whole ones."""
    made = min(steps, units)
    return np.asarray((np.arange(made + 1) * units + made // 2) // made)


def _undefined(values: np.ndarray) -> np.ndarray:
    """Rows (B,) that rank nothing."""
    return np.asarray(~np.isfinite(values).all(axis=1) | (values.min(axis=1) == values.max(axis=1)))


def _removed(order: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(B, K + 1, P): the first so many units of each order (B, P)."""
    place = np.argsort(order, axis=1)
    return np.asarray(place[:, None, :] < counts[None, :, None])


def _scores(evaluate: Evaluate, parts: Sequence[tuple[np.ndarray, np.ndarray]], units: int) -> list[np.ndarray]:
    """Scores (b, K + 1) of each part's rows (b,) and removed units (b, K + 1, P), equal pairs evaluated once."""
    rows = np.concatenate([np.repeat(kept, removed.shape[1]) for kept, removed in parts])
    removed = np.concatenate([each.reshape(-1, units) for _, each in parts])
    if not len(rows):
        return [np.zeros(each.shape[:2]) for _, each in parts]
    keys = np.concatenate([rows.astype(">u4").view(np.uint8).reshape(-1, 4), np.packbits(removed, axis=1)], axis=1)
    whole = np.ascontiguousarray(keys).view(np.dtype((np.void, keys.shape[1]))).ravel()
    _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
    found = _finite(evaluate(rows[first], removed[first]))[inverse]
    ends = np.cumsum([each.shape[0] * each.shape[1] for _, each in parts])[:-1]
    return [part.reshape(each.shape[:2]) for part, (_, each) in zip(np.split(found, ends), parts, strict=True)]


def _finite(numbers: np.ndarray) -> np.ndarray:
    """As float64, NaN for what is infinite, which so makes its case undefined and no other."""
    return np.where(np.isfinite(numbers), numbers, np.nan).astype(np.float64)


def _spread(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Scores on their rows, NaN on the others."""
    full = np.full((len(rows), scores.shape[1]), np.nan)
    full[rows] = scores
    return full


def as_probability(found: Curves) -> Curves:
    """Curves of log-odds as curves of the probability of the class, exactly."""
    return found._replace(most_first=expit(found.most_first), least_first=expit(found.least_first))


def deletion_auc(found: Curves) -> np.ndarray:
    """Area under the score while the most important units are removed first: lower is better (Petsiuk et al. 2018)."""
    return _area(found.most_first, found.fractions)


def insertion(found: Curves) -> Line:
    """Score while the most important units are put back first, over the share put back.

    Into the same fill as is used for removal, which makes it the least-first curve read backwards.
    """
    return Line(1.0 - found.fractions[::-1], found.least_first[:, ::-1])


def insertion_auc(found: Curves) -> np.ndarray:
    """Area under ``insertion``: higher is better (Petsiuk et al. 2018)."""
    line = insertion(found)
    return _area(line.values, line.fractions)


def aopc(found: Curves) -> np.ndarray:
    """Mean fall of the score over all steps, the first of which removes nothing: higher is better (Samek et al. 2017)."""
    return np.asarray((found.most_first[:, :1] - found.most_first).mean(axis=1))


def srg(found: Curves) -> np.ndarray:
    """Symmetric relevance gain: least-first area minus most-first area, 0 for a map that knows nothing (Blücher 2024).

    Both orders pass through the same odd-looking images, so much of what a removal does by itself cancels. In the unit
    of the curves; no more than their range.
    """
    return np.asarray(insertion_auc(found) - deletion_auc(found))


def _area(scores: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    return np.asarray(np.trapezoid(scores, fractions, axis=1), dtype=np.float64)


def faithfulness_correlation(values: np.ndarray, removed: np.ndarray, drops: np.ndarray) -> np.ndarray:
    """Correlation over subsets between the importance removed and the fall of the score (Bhatt et al. 2020), (B,).

    1 where the score is a sum of the units' importances. Low for any map when subsets are large and the model is far
    from additive. NaN for a constant map, for drops that are all equal and for fewer than three subsets.
    """
    sums = _importance_removed(values, removed, drops)
    return np.where(_undefined(values), np.nan, _correlation(sums, _finite(drops)))


def infidelity(values: np.ndarray, removed: np.ndarray, drops: np.ndarray, *, normalised: bool = True) -> np.ndarray:
    """Mean squared miss of the falls of the score by the importance removed (Yeh et al. 2019), (B,): lower is better.

    normalised: the map is first multiplied by the factor that suits the drops best (their optimal scaling), so that a
    map is not blamed for its unit; without it, only maps in the unit of the score, such as integrated gradients, can be
    judged. In squared units of the score either way: compare methods on the same images only. A map of zeros misses the
    whole drops.

    Args:
        values: (B, P).
        removed: (B, S, P) bool, or real amounts taken from each unit when ``values`` are per amount, like a gradient.
        drops: (B, S), f(x) - f(x without S).
    """
    sums, wanted = _importance_removed(values, removed, drops), _finite(drops)
    if normalised:
        power = (sums**2).sum(axis=1)
        factor = np.zeros(len(sums))
        np.divide((sums * wanted).sum(axis=1), power, out=factor, where=power != 0)
        sums = factor[:, None] * sums
    return np.asarray(((sums - wanted) ** 2).mean(axis=1))


def _importance_removed(values: np.ndarray, removed: np.ndarray, drops: np.ndarray) -> np.ndarray:
    """(B, S) sums of the importance of what each subset removes."""
    if removed.ndim != 3 or values.shape != removed.shape[::2] or drops.shape != removed.shape[:2]:
        raise DataError(
            f"found values of shape {values.shape}, removed units of {removed.shape} and drops of {drops.shape}:"
            " they must be (B, P), (B, S, P) and (B, S)"
        )
    wide = removed.astype(np.float64) @ _finite(values)[:, :, None]
    return np.asarray(wide[:, :, 0])


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson correlation (B,) of rows (B, S); NaN where one side does not vary, or with too few columns."""
    found = np.full(len(first), np.nan)
    if first.shape[1] < _FEWEST_SUBSETS:
        return found
    one, other = (each - each.mean(axis=1, keepdims=True) for each in (first, second))
    scale = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    usable = _varies(one, first) & _varies(other, second) & (scale > 0)
    np.divide((one * other).sum(axis=1), scale, out=found, where=usable)
    return np.asarray(np.clip(found, -1.0, 1.0))


def _varies(centred: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(B,) whether the spread is more than rounding."""
    return np.asarray(np.abs(centred).max(axis=1) > _ROUNDING * np.abs(values).max(axis=1))
