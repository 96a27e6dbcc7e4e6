"""What the score loses when parts are taken away: one by one, in sliding windows, or many at once.

Shapes: B images, P units, S masks of each image, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import NamedTuple

import numpy as np

from xvision.errors import ConfigError, DataError
from xvision.methods.randomness import case_seed
from xvision.methods.units import Evaluate, Units

_MOST_CELLS = 2**24
"""Windows times units of one question: bounds the memory of finely stepped windows."""


def patch_ablation(evaluate: Evaluate, images: int, units: Units) -> np.ndarray:
    """Score minus score without each unit, (B, P) float64.

    Exact for what it says, and only that: two units that each hold the same evidence get nothing, since either alone
    suffices. It does not add up to the score. Cost: P + 1 forward passes per image.
    """
    alone = np.vstack((np.zeros((1, units.count), dtype=bool), np.eye(units.count, dtype=bool)))
    rows = np.repeat(np.arange(images), units.count + 1)
    scores = evaluate(rows, np.tile(alone, (images, 1))).reshape(images, units.count + 1)
    return scores[:, :1] - scores[:, 1:]


@dataclass(frozen=True, eq=False)
class Windows:
    """Overlapping windows as sets of units. units: the cells their edges cut out. members: (W, P) bool."""

    units: Units
    members: np.ndarray


def windows(height: int, width: int, *, window: int, stride: int) -> Windows:
    """Square windows of ``window`` pixels, ``stride`` apart; the last in a row or column ends at the image's edge.

    Raises:
        ConfigError: a window larger than the image, or steps that would leave pixels out.
    """
    if not 1 <= stride <= window <= min(height, width):
        raise ConfigError(
            f"found a window of {window} px and a stride of {stride} for an image of {height} x {width}:"
            " 1 <= stride <= window <= the shorter side is needed"
        )
    (row_cells, rows), (column_cells, columns) = (_along(length, window, stride) for length in (height, width))
    labels = row_cells[:, None] * columns.shape[1] + column_cells[None, :]
    members = (rows[:, None, :, None] & columns[None, :, None, :]).reshape(len(rows) * len(columns), -1)
    return Windows(Units(labels.astype(np.int64), members.shape[1]), members)


def window_ablation(evaluate: Evaluate, images: int, sliding: Windows) -> np.ndarray:
    """What covering each place with a sliding window costs, (B, P) over the cells (Zeiler and Fergus 2014).

    The mean of score − covered score over the windows that hold a cell. Cost: one forward pass per window, and one.
    """
    count, cells = sliding.members.shape
    rows = np.arange(images)
    whole = evaluate(rows, np.zeros((images, cells), dtype=bool))
    total = np.zeros((images, cells))
    step = max(1, _MOST_CELLS // (cells * images))
    for first in range(0, count, step):
        part = sliding.members[first : first + step]
        scores = evaluate(np.repeat(rows, len(part)), np.tile(part, (images, 1))).reshape(images, len(part))
        total += (whole[:, None] - scores) @ part.astype(np.float64)
    mean: np.ndarray = total / sliding.members.sum(axis=0)
    return mean


class Bank(NamedTuple):
    """Scores of images with many units removed at once; several summaries can be read off one bank.

    removed: (B, S, P) bool. scores: (B, S) float64. whole, empty: (B,) the score with nothing and with everything
    removed. weights: (S,) of each mask under the Shapley kernel, None for masks that were not chosen for it.
    """

    removed: np.ndarray
    scores: np.ndarray
    whole: np.ndarray
    empty: np.ndarray
    weights: np.ndarray | None = None

    @property
    def drops(self) -> np.ndarray:
        """(B, S) how much the score falls by each mask."""
        fall: np.ndarray = self.whole[:, None] - self.scores
        return fall


def bernoulli_bank(
    evaluate: Evaluate, seeds: Sequence[int], units: Units, *, masks: int, share: float = 0.5, purpose: str
) -> Bank:
    """Every unit removed with probability ``share``, independently; masks of their own for every image.

    Args:
        evaluate: as ``xvision.methods.removal`` makes it, for as many images as there are seeds.
        seeds: one per image.
        units: what is removed together.
        masks: per image.
        share: of the units removed, above 0 and below 1.
        purpose: part of the seed: an explanation must not be judged by the very masks it was fitted to.
    """
    if masks < 1 or not 0.0 < share < 1.0:
        raise ConfigError(f"found masks = {masks} and share = {share}: at least 1 mask and 0 < share < 1 are needed")
    removed = np.stack([_rng(seed, purpose).random((masks, units.count)) < share for seed in seeds])
    return _asked(evaluate, removed, None)


def shapley_bank(evaluate: Evaluate, seeds: Sequence[int], units: Units, *, masks: int, purpose: str) -> Bank:
    """Masks that KernelSHAP needs: sizes by the Shapley kernel, each mask beside its complement.

    All 2^P − 2 masks, with their weights, where ``masks`` allows; else as many pairs as fit into ``masks``. Arguments as
    ``bernoulli_bank``.
    """
    if masks < 2:
        raise ConfigError(f"found masks = {masks}: at least 2 are needed, a mask and its complement")
    if 2**units.count - 2 <= masks:
        every, weights = _all_coalitions(units.count)
        return _asked(evaluate, np.broadcast_to(every, (len(seeds), *every.shape)), weights)
    removed = np.stack([_pairs(_rng(seed, purpose), masks // 2, units.count) for seed in seeds])
    return _asked(evaluate, removed, np.ones(removed.shape[1]))


def kernel_shap(bank: Bank) -> np.ndarray:
    """Shapley values of the units, (B, P): they sum to whole − empty exactly (Lundberg and Lee 2017).

    The least-squares fit of an additive function to the bank under that constraint, in closed form (Covert and Lee
    2021). With all masks these are the Shapley values; with a sample an estimate, whose error falls with the square root
    of the masks. For a score that is additive in the units any bank gives them exactly. A value says what a unit adds on
    average to others that are present or replaced, not what the score would be without it. NaN for an image with a score
    that is not finite.

    Raises:
        DataError: masks that were not chosen for this, or too few of them to tell the units apart.
    """
    if bank.weights is None:
        raise DataError("the masks of this bank were not drawn by the Shapley kernel: make it by shapley_bank")
    root = np.sqrt(bank.weights)[:, None]
    change = (bank.whole - bank.empty)[:, None]
    kept = 1.0 - bank.removed
    # Equal shares of the change, and the rest in the directions that sum to zero: the constraint then always holds.
    left = bank.scores - bank.empty[:, None] - kept.mean(axis=2) * change
    values = np.broadcast_to(change / kept.shape[2], (len(kept), kept.shape[2])).copy()
    for row in range(len(kept)):
        values[row] += _fitted(root * (kept[row] - kept[row].mean(axis=1, keepdims=True)), root[:, 0] * left[row])
    return values


def rise(bank: Bank) -> np.ndarray:
    """Mean score over the masks that keep a unit, (B, P) (Petsiuk et al. 2018).

    The sum of scores over the masks that keep the unit is divided by how many did, not by how many were expected to: the
    expected number would add noise in proportion to the level of the score. Only differences between units of an image
    mean something; masks are of whole units, not smoothed and shifted as in the paper.

    Raises:
        DataError: a unit that no mask keeps.
    """
    kept = 1.0 - bank.removed
    times = kept.sum(axis=1)
    if (times == 0).any():
        image, unit = np.argwhere(times == 0)[0]
        raise DataError(f"no mask of image {image} keeps unit {unit}: {kept.shape[1]} masks are too few")
    mean: np.ndarray = np.einsum("bs,bsp->bp", bank.scores, kept) / times
    return mean


def _along(length: int, window: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Along one side: the cell of every pixel (length,), and which cells each window holds (windows, cells)."""
    starts = stride * np.arange(-(-(length - window) // stride) + 1)
    ends = np.minimum(starts + window, length)
    edges = np.unique(np.concatenate((starts, ends)))[:-1]
    cells = np.searchsorted(edges, np.arange(length), side="right") - 1
    return cells, (edges >= starts[:, None]) & (edges < ends[:, None])


def _asked(evaluate: Evaluate, removed: np.ndarray, weights: np.ndarray | None) -> Bank:
    """The bank of these masks, with both ends, in one question."""
    images, masks, units = removed.shape
    rows = np.arange(images)
    ends = [np.zeros((images, units), dtype=bool), np.ones((images, units), dtype=bool)]
    scores = evaluate(
        np.concatenate((np.repeat(rows, masks), rows, rows)), np.concatenate((removed.reshape(-1, units), *ends))
    )
    inner, whole, empty = np.split(scores, [images * masks, images * (masks + 1)])
    return Bank(removed, inner.reshape(images, masks), whole, empty, weights)


def _rng(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(case_seed(seed, purpose, "masks"))


def _all_coalitions(units: int) -> tuple[np.ndarray, np.ndarray]:
    """All masks but none and all, (2^P − 2, P) removed, and their Shapley kernel weights."""
    numbers = np.arange(1, 2**units - 1)
    removed = (numbers[:, None] >> np.arange(units) & 1).astype(bool)
    sizes = removed.sum(axis=1)
    kernel = np.array([(units - 1) / (comb(units, k) * k * (units - k)) if 0 < k < units else 0 for k in range(units)])
    return removed, kernel[sizes]


def _pairs(rng: np.random.Generator, pairs: int, units: int) -> np.ndarray:
    """(2 pairs, P) removed: masks whose sizes follow the Shapley kernel, then the complement of each."""
    sizes = np.arange(1, units)
    chance = 1.0 / (sizes * (units - sizes))
    drawn = rng.choice(sizes, size=pairs, p=chance / chance.sum())
    places = rng.random((pairs, units)).argsort(axis=1).argsort(axis=1)
    removed = places < drawn[:, None]
    return np.concatenate((removed, ~removed))


def _fitted(masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Least-squares coefficients that sum to zero, for masks (S, P) whose rows do."""
    units = masks.shape[1]
    if units == 1:
        return np.zeros(1)
    if not np.isfinite(scores).all():
        return np.full(units, np.nan)
    values, _, rank, _ = np.linalg.lstsq(masks, scores, rcond=1e-10)
    if rank < units - 1:
        raise DataError(
            f"{len(masks)} masks tell only {rank + 1} of {units} units apart: KernelSHAP needs more masks,"
            f" some {4 * units}, or fewer units"
        )
    return np.asarray(values)
