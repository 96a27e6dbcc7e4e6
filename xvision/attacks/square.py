"""Square attack: random squares, kept where the margin rises. It sees logits only, so that no gradient can mislead it.

Source: Andriushchenko et al. 2020, with the constants of its code. Shapes: n rows, C H W image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from xvision.attacks.balls import steepest
from xvision.attacks.cases import Seen
from xvision.attacks.search import Rows, State, Walker
from xvision.errors import ConfigError
from xvision.methods.randomness import case_seed

_SHARE = 0.8
"""Of the image, that the first squares cover."""
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the share is halved."""
_TILES = 5
"""Tiles along the shorter side of the image in the first l2 change."""
_TINY = 1e-12


@dataclass(frozen=True)
class Square(Walker):
    """Score-based random search within linf or l2. steps: queries, all of which look at the margin alone.

    What is drawn depends on the case, its start and the number of the query only, and squares shrink with the number of the
    query whatever the number allowed: more queries never break less. Where it departs from the source: each row has its own
    squares; they reach the last row and column; on an image that is not square they keep their area as rectangles (linf); a
    linf square that would change nothing has its signs turned; what the range of the pixels cuts off an l2 change
    goes to its other pixels, which matters on black backgrounds.

    A case left unbroken says nothing about gradient attacks: a random search is far weaker than they are.
    """

    steps: int
    loss = None

    def begin(self, rows: Rows) -> State:
        seeds = [
            case_seed(rows.cases.seed, f"square {start}", key)
            for key, start in zip(rows.cases.keys, rows.start.tolist(), strict=True)
        ]
        seed = torch.tensor(seeds, device=rows.radius.device)
        first = {"linf": _stripes, "l2": _tiles}.get(rows.norm)
        if first is None:
            raise ConfigError(f"Square bounds linf and l2, not {rows.norm}: choose another attack for it")
        image = _image(rows, first(rows, seed))
        best = torch.full((len(rows),), -torch.inf, device=seed.device)
        return {"at": image, "held": image, "best": best, "seed": seed}

    def learn(self, rows: Rows, state: State, seen: Seen) -> State:
        risen = seen.loss > state["best"]
        held = torch.where(risen[:, None, None, None], state["at"], state["held"])
        best = torch.where(risen, seen.loss, state["best"])
        propose = _squared if rows.norm == "linf" else _shifted
        return {"at": propose(rows, held, state["seed"]), "held": held, "best": best, "seed": state["seed"]}


def _image(rows: Rows, change: torch.Tensor) -> torch.Tensor:
    return torch.clamp(rows.cases.pixels + change, rows.cases.low, rows.cases.high)


def _shares(query: torch.Tensor) -> torch.Tensor:
    """(n,) share of the image that a square covers at each query."""
    milestones = torch.tensor(_HALVED_AFTER, device=query.device)
    return _SHARE * 0.5 ** torch.bucketize(query, milestones).double()


# Draws: a counter-based generator (splitmix64, Steele et al. 2014) gives any number of any row's stream at once.

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_BITS = 31


def _mixed(values: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser on int64, whose products wrap around."""
    values = (values ^ _shift(values, 30)) * _FIRST
    values = (values ^ _shift(values, 27)) * _SECOND
    return values ^ _shift(values, 31)


def _shift(values: torch.Tensor, count: int) -> torch.Tensor:
    """A shift to the right that fills with zeros."""
    return (values >> count) & ((1 << (64 - count)) - 1)


def _numbers(seed: torch.Tensor, query: torch.Tensor, count: int) -> torch.Tensor:
    """(n, count) uniform integers in [0, 2^31) for seeds and queries (n,); the first call of a row has query -1."""
    key = _mixed(seed + (query + 2) * _GOLDEN)
    lanes = torch.arange(1, count + 1, device=seed.device) * _GOLDEN
    return _shift(_mixed(key[:, None] + lanes), 64 - _BITS)


def _signs(numbers: torch.Tensor) -> torch.Tensor:
    return 1.0 - 2.0 * (numbers >> (_BITS - 1)).float()


def _below(numbers: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """Uniform in 0 to bound - 1."""
    return (numbers * bound) >> _BITS


class _Window(NamedTuple):
    """A rectangle per row. row, column: (n, H, 1) and (n, 1, W) places counted from its corner. mask: (n, 1, H, W), 1 in
    it and 0 elsewhere: on a CPU, floats are multiplied in a fraction of the time of a choice by booleans.
    """

    row: torch.Tensor
    column: torch.Tensor
    mask: torch.Tensor


def _window(rows: Rows, height: torch.Tensor, width: torch.Tensor, numbers: torch.Tensor) -> _Window:
    """A place for rectangles of height and width (n,), uniform given numbers (n, 2)."""
    H, W = rows.cases.pixels.shape[2:]
    top, left = _below(numbers[:, 0], H - height + 1), _below(numbers[:, 1], W - width + 1)
    row = torch.arange(H, device=top.device)[None, :, None] - top[:, None, None]
    column = torch.arange(W, device=top.device)[None, None, :] - left[:, None, None]
    mask = _inside(row, height[:, None, None]).float() * _inside(column, width[:, None, None]).float()
    return _Window(row, column, mask[:, None])


def _inside(place: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    return (place >= 0) & (place < length)


# linf


def _stripes(rows: Rows, seed: torch.Tensor) -> torch.Tensor:
    """(n, C, H, W) vertical stripes, a sign per column and channel."""
    count, C, H, W = rows.cases.pixels.shape
    signs = _signs(_numbers(seed, torch.full_like(seed, -1), C * W)).view(count, C, 1, W)
    return (signs * rows.radius[:, None, None, None]).expand(count, C, H, W)


def _squared(rows: Rows, held: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """The held images with the largest change of one sign per channel in a random rectangle."""
    C, H, W = held.shape[1:]
    numbers = _numbers(seed, rows.step, 2 + C)
    area = _shares(rows.step) * H * W
    side = area.sqrt().round().long().clamp(min=1)
    height = torch.where(side > W, (area / W).round().long(), side).clamp(min=1, max=H)
    width = torch.where(side > H, (area / H).round().long(), side).clamp(min=1, max=W)
    mask = _window(rows, height, width, numbers).mask
    edge = _signs(numbers[:, 2:])[:, :, None, None] * rows.radius[:, None, None, None]
    images = torch.lerp(held, _image(rows, edge), mask)
    idle = (images - held).abs().amax(dim=(1, 2, 3), keepdim=True) == 0
    if not bool(idle.any()):
        return images
    return torch.lerp(held, _image(rows, torch.where(idle, -edge, edge)), mask)


# l2


def _spread(rows: Rows, change: torch.Tensor) -> torch.Tensor:
    """The change scaled to the radius; what the range of the pixels cuts off goes to the others, so that none is left over."""
    return steepest(change, rows.low, rows.high, rows.radius, "l2")


def _bump(row: torch.Tensor, column: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
    """(n, H, W) of length 1 in each row's window: a hill in its upper half, a valley in its lower half.

    A hill at Chebyshev distance d from its centre is as high as the sum of 1 / k^2 for k above d, up to its edge: the lower
    of the heights at its distances down and across. row: (n, H, 1), column: (n, 1, W), counted from the window's corner;
    side: (n,).
    """
    side = side[:, None, None]
    upper = side // 2
    steps = torch.arange(1, max(row.shape[1], column.shape[2]) + 2, device=row.device, dtype=torch.float32)
    sums = torch.cat([torch.zeros_like(steps[:1]), (1.0 / steps.square()).cumsum(0)])

    def heights(place: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        far = (place - length // 2).abs().clamp(max=len(sums) - 1)
        return (sums[side // 2 + 1] - sums[far]) * _inside(place, length)

    across = heights(column, side)
    hill = torch.minimum(heights(row, upper), across)
    valley = torch.minimum(heights(row - upper, side - upper), across)
    value = hill / _length(hill).clamp(min=_TINY) - valley / _length(valley).clamp(min=_TINY)
    return value / _length(value)


def _length(values: torch.Tensor) -> torch.Tensor:
    """Euclidean length of each (H, W), which stay as axes of length 1."""
    return values.square().sum(dim=(-2, -1), keepdim=True).sqrt()


def _tiles(rows: Rows, seed: torch.Tensor) -> torch.Tensor:
    """(n, C, H, W) a bump in every tile, lying or standing, a sign per channel."""
    count, C, H, W = rows.cases.pixels.shape
    side = max(min(H, W) // _TILES, 1)
    line = torch.arange(side, device=seed.device)
    bump = _bump(line[None, :, None], line[None, None, :], torch.tensor([side], device=seed.device))[0]
    row, column = torch.arange(H, device=seed.device)[:, None], torch.arange(W, device=seed.device)[None, :]
    across = (W - 1) // side + 1
    tile = (row // side) * across + column // side
    number = ((H - 1) // side + 1) * across
    signs = _signs(_numbers(seed, torch.full_like(seed, -1), number * (1 + C))).view(count, 1 + C, number)[:, :, tile]
    lying, standing = bump[row % side, column % side], bump[column % side, row % side]
    return _spread(rows, torch.where(signs[:, :1] > 0, lying, standing) * signs[:, 1:])


def _shifted(rows: Rows, held: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """The held images with the change of one window taken away, and all that this leaves put into a bump in another."""
    C, H, W = held.shape[1:]
    change = held - rows.cases.pixels
    numbers = _numbers(seed, rows.step, 5 + C)
    side = (_shares(rows.step) * H * W).sqrt().round().long().clamp(min=3)
    side = torch.where(side % 2 == 0, side + 1, side).clamp(max=min(H, W))
    to, away = _window(rows, side, side, numbers[:, :2]), _window(rows, side, side, numbers[:, 2:4])
    bump = _turned(to, side, _signs(numbers[:, 4]) > 0)[:, None]
    old, either = change * to.mask, torch.maximum(to.mask, away.mask)
    fresh = bump * _signs(numbers[:, 5:])[:, :, None, None] + old / _length(old).clamp(min=_TINY)
    fresh = fresh / _length(fresh).clamp(min=_TINY) * _length(change * either)
    return _image(rows, _spread(rows, torch.lerp(change * (1 - either), fresh, to.mask)))


def _turned(window: _Window, side: torch.Tensor, lying: torch.Tensor) -> torch.Tensor:
    """(n, H, W) a bump in each window, lying or standing as ``lying`` (n,) bool says."""
    bumps = torch.empty_like(window.mask[:, 0])
    down, across = torch.nonzero(lying).squeeze(1), torch.nonzero(~lying).squeeze(1)
    bumps[down] = _bump(window.row[down], window.column[down], side[down])
    bumps[across] = _bump(window.column[across].mT, window.row[across].mT, side[across]).mT
    return bumps
