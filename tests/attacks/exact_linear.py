"""The exact smallest change that breaks an affine classifier, also where pixels meet the end of their range.

What an attack must reach on a linear model: if it needs much more, the attack is broken, and no figure of it on another model
counts. All in float64 on the CPU. Shapes: B cases, D pixel values, K classes.
"""

from __future__ import annotations

import numpy as np
import torch

from xvision.attacks.balls import Norm
from xvision.errors import ConfigError, DataError

Array = np.ndarray | torch.Tensor
_ROUNDING = 1e-12
"""Share of a gap that may be missing: sums that are equal on paper differ by less than this."""


def smallest(
    weights: Array, bias: Array, pixels: Array, wrong: Array, norm: Norm, *, low: Array | float, high: Array | float
) -> torch.Tensor:
    """(B,) size, in the norm's own unit, of the smallest change after which a wrong class scores as much as the right one.

    weights: (K, D), bias: (K,); the class decided at x is the largest of weights @ x + bias; a threshold belongs into the bias.
    pixels: (B, D). wrong: (B, K) bool, all classes but the one that is right, or none of them where nothing counts as a break.
    low, high: anything that broadcasts to (B, D), between which a pixel may move; minus infinity and infinity where it is free.

    0 where a wrong class scores as much already, infinity where low and high let none get there. At the size itself the two
    scores are equal; a decision breaks just beyond it. Where no bound binds, it is |f| / ‖w‖ in the dual norm, for the
    difference f of the scores and w of their weights (Moosavi-Dezfooli et al. 2016). In l0 it is a number of values.
    It says nothing of a model that is not affine in its pixels.

    Raises ConfigError where several classes are right, DataError for shapes that do not fit or pixels outside low and high.
    """
    matrix, offset, points = _double(weights), _double(bias), _double(pixels)
    counted = torch.as_tensor(wrong).cpu()
    classes, values = matrix.shape
    if points.shape[1:] != (values,) or offset.shape != (classes,) or counted.shape != (len(points), classes):
        raise DataError(
            f"found weights {tuple(matrix.shape)}, bias {tuple(offset.shape)}, pixels {tuple(points.shape)} and wrong"
            f" {tuple(counted.shape)}: give (K, D), (K,), (B, D) and (B, K)"
        )
    if bool((counted.any(dim=1) & ((~counted).sum(dim=1) != 1)).any()):
        raise ConfigError(
            "found a row without exactly one right class: where several are right, ask for a bound instead"
        )
    floor, ceiling = (_double(each).broadcast_to(points.shape) - points for each in (low, high))
    scores, right = points @ matrix.T + offset, (~counted).int().argmax(dim=1)
    found = torch.full((len(points),), torch.inf, dtype=torch.float64)
    for place in range(classes):
        rows = torch.nonzero(counted[:, place]).squeeze(1)
        slope = matrix[place] - matrix[right[rows]]
        gap = scores[rows, right[rows]] - scores[rows, place]
        found[rows] = torch.minimum(found[rows], toward(slope, gap, floor[rows], ceiling[rows], norm))
    return found


def toward(slope: Array, gap: Array, low: Array, high: Array, norm: Norm) -> torch.Tensor:
    """(B,) size of the smallest change d with low <= d <= high and slope · d >= gap; slope, low, high: (B, D), gap: (B,).

    0 where the gap is not above 0, infinity where there is no such change. One sort per row finds the values that end at their
    bound; the rest is a formula: the best change moves all values equally (linf), each in proportion to its slope (l2),
    the steepest first (l1) or the largest gains first (l0). Raises DataError unless low <= 0 <= high.
    """
    steep, missing, floor, ceiling = _double(slope), _double(gap), _double(low), _double(high)
    if not bool((floor <= 0).all()) or not bool((ceiling >= 0).all()):
        raise DataError("found a pixel outside low and high, between which it may move: low <= pixel <= high is needed")
    strength = steep.abs()
    room = torch.where(steep > 0, ceiling, torch.where(steep < 0, -floor, 0.0))
    gain = strength * room
    rule = {"linf": _equally, "l2": _in_proportion, "l1": _steepest_first, "l0": _largest_first}[norm]
    possible = gain.sum(dim=1) >= missing * (1 - _ROUNDING)
    sizes = torch.where(possible, rule(strength, room, gain, missing), torch.inf)
    return torch.where(missing > 0, sizes, 0.0)


def _equally(speed: torch.Tensor, end: torch.Tensor, gain: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
    """(B,) the smallest t with sum of speed × min(t, end) >= gap; gain: speed × end."""
    end, order = end.sort(dim=1)
    speed, gain = speed.gather(1, order), gain.gather(1, order)
    moving = speed.flip(1).cumsum(dim=1).flip(1)  # of this value and of all that end later
    ended = _before(gain)
    place = _first(ended + moving * end, gap)
    return ((gap[:, None] - ended.gather(1, place)) / moving.gather(1, place)).squeeze(1)


def _in_proportion(strength: torch.Tensor, room: torch.Tensor, gain: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
    end = torch.where(strength > 0, room / strength, 0.0)
    factor = _equally(strength.square(), end, gain, gap)
    length: torch.Tensor = torch.linalg.vector_norm(torch.minimum(factor[:, None] * strength, room), dim=1)
    return length


def _steepest_first(strength: torch.Tensor, room: torch.Tensor, gain: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
    strength, order = strength.sort(dim=1, descending=True)
    room, gain = room.gather(1, order), gain.gather(1, order)
    place = _first(gain.cumsum(dim=1), gap)
    left = gap[:, None] - _before(gain).gather(1, place)
    return (_before(room).gather(1, place) + left / strength.gather(1, place)).squeeze(1)


def _largest_first(strength: torch.Tensor, room: torch.Tensor, gain: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
    ordered = gain.sort(dim=1, descending=True).values
    return _first(ordered.cumsum(dim=1), gap).squeeze(1).double() + 1


def _before(values: torch.Tensor) -> torch.Tensor:
    """(B, D) the sum of all earlier values, which may be infinite from some place on."""
    return torch.nn.functional.pad(values.cumsum(dim=1)[:, :-1], (1, 0))


def _first(reached: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
    """(B, 1) the first place where a rising row (B, D) reaches the gap, the last place where none does."""
    short = reached < gap[:, None] * (1 - _ROUNDING)
    return short.sum(dim=1, keepdim=True).clamp(max=reached.shape[1] - 1)


def _double(values: Array | float) -> torch.Tensor:
    return torch.as_tensor(values).detach().double().cpu()
