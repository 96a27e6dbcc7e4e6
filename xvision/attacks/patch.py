"""A square of the image replaced by whatever hurts most: a sticker, a marker, something lying on the detector.

Shapes: B cases, C H W image, P candidate positions, S the side of the patch in pixels.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from xvision.attacks.cases import Budget, Cases, Found, budget_of, look
from xvision.attacks.gradient_walks import MarginPGD, per_row, single_step, slope_of
from xvision.attacks.search import pursue
from xvision.errors import ConfigError


class Patched(NamedTuple):
    """images: (B, C, H, W), with the patch where it broke the case, else unchanged. broken: (B,) bool. corner: (B, 2) top and
    left of the patch, -1 where none broke. side: S. share: S squared over H × W. looks: (B,) images shown for the case.
    """

    images: torch.Tensor
    broken: torch.Tensor
    corner: torch.Tensor
    side: int
    share: float
    looks: torch.Tensor


def patch(cases: Cases, share: float, *, positions: int, steps: int, width: int) -> Patched:
    """The content of a square patch, optimised at the positions where the slope of the margin promises most.

    share: of the image's area, about; the side is whole pixels. positions: tried one after another, at least half a patch
    apart, best promise first. steps: of projected ascent on the margin with pixels free within ``Cases.low`` and ``high``,
    after one step to the corner of that box; every look is tested. Exact for a linear model, where the promise is the gain.
    Source: Brown et al. (2017) define the patch; here it is one per image, the stronger threat. A case that stands was not
    broken at these positions by this content. Cost: at most 1 + positions × (steps + 1) looks.

    Raises ConfigError for a share outside (0, 1), a patch larger than the image, or fewer than 1 position or step.
    """
    height, width_of_image = cases.pixels.shape[2:]
    if not 0 < share < 1 or positions < 1:
        raise ConfigError(
            f"found a patch of share {share} at {positions} positions: give a share in (0, 1), at least 1"
        )
    side = max(1, round(math.sqrt(share * height * width_of_image)))
    if side > min(height, width_of_image):
        raise ConfigError(
            f"found a patch of {side} pixels a side for images of {height} × {width_of_image}: make it smaller"
        )
    slope = _slopes(cases, width)
    corners = candidates(promise(cases, slope, side), side, positions)
    result = Patched(
        cases.pixels.clone(),
        torch.zeros(len(cases), dtype=torch.bool, device=cases.pixels.device),
        torch.full((len(cases), 2), -1, device=cases.pixels.device),
        side,
        side * side / (height * width_of_image),
        torch.ones(len(cases), dtype=torch.int64),
    )
    for rank in range(positions):
        rows = torch.nonzero(~result.broken & (corners[:, rank, 0] >= 0)).squeeze(1)
        if len(rows):
            _try(result, cases, rows, corners[rows, rank], slope[rows], steps, width)
    return result


def _try(
    result: Patched,
    cases: Cases,
    rows: torch.Tensor,
    corners: torch.Tensor,
    slope: torch.Tensor,
    steps: int,
    width: int,
) -> None:
    """Notes in the result which rows a patch at their corners breaks."""
    part = inside(cases.rows(rows), corners, result.side)
    budget = budget_of("linf", (1.0,), part.pixels)
    first = single_step(part, budget, gradient=slope, width=width)
    rest: Budget = replace(budget, reached=first.size)
    second: Found = pursue(part, rest, MarginPGD(steps=steps), width=width)
    hit = torch.isfinite(torch.minimum(first.size, second.size)).to(rows.device)
    images = torch.where(per_row(torch.isfinite(first.size).to(rows.device)), first.images, second.images)
    result.images[rows[hit]] = images[hit]
    result.broken[rows[hit]] = True
    result.corner[rows[hit]] = corners[hit]
    result.looks[rows.cpu()] += first.looks + second.looks


def _slopes(cases: Cases, width: int) -> torch.Tensor:
    """(B, C, H, W) slope of the margin at the images themselves."""
    slopes = []
    for index in torch.split(torch.arange(len(cases), device=cases.pixels.device), width):
        part = cases.rows(index)
        slopes.append(slope_of(look(part, part.pixels, "margin"), part.pixels))
    return torch.cat(slopes)


def promise(cases: Cases, slope: torch.Tensor, side: int) -> torch.Tensor:
    """(B, H - S + 1, W - S + 1): how much a linear model of this slope would gain from a free patch at each corner."""
    up, down = slope * (cases.high - cases.pixels), slope * (cases.low - cases.pixels)
    gain = torch.maximum(up, down).sum(dim=1, keepdim=True)
    return F.avg_pool2d(gain, side, stride=1).squeeze(1) * side**2


def candidates(promises: torch.Tensor, side: int, count: int) -> torch.Tensor:
    """(B, P, 2) corners of highest promise, best first, none less than half a patch from a better one; -1 where there are no more."""
    left, found = promises.clone(), []
    rows, columns = (torch.arange(size, device=left.device) for size in left.shape[1:])
    apart = (side + 1) // 2
    for _ in range(count):
        value, place = left.flatten(1).max(dim=1)
        top, start = place // left.shape[2], place % left.shape[2]
        there = value > -torch.inf
        found.append(torch.where(there[:, None], torch.stack([top, start], dim=1), -1))
        near = ((rows[None, :, None] - top[:, None, None]).abs() < apart) & (
            (columns[None, None, :] - start[:, None, None]).abs() < apart
        )
        left = left.masked_fill(near, -torch.inf)
    return torch.stack(found, dim=1)


def inside(cases: Cases, corners: torch.Tensor, side: int) -> Cases:
    """The cases with every pixel held but those of a square of S pixels at the corners (B, 2): top and left."""
    height, width = cases.pixels.shape[2:]
    rows, columns = (torch.arange(size, device=corners.device) for size in (height, width))
    tall = (rows[None, :] >= corners[:, :1]) & (rows[None, :] < corners[:, :1] + side)
    wide = (columns[None, :] >= corners[:, 1:]) & (columns[None, :] < corners[:, 1:] + side)
    free = (tall[:, :, None] & wide[:, None, :])[:, None]
    return replace(
        cases, low=torch.where(free, cases.low, cases.pixels), high=torch.where(free, cases.high, cases.pixels)
    )
