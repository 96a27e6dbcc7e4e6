"""Changes of bounded size: their size, the nearest allowed one, the best one for a slope, a random one.

A change is (B, C, H, W); ``low`` and ``high`` (B, C, H, W) bound it too, low <= 0 <= high, because the pixel it lands on must
stay within its range; ``radius`` is (B,), one per case, finite. All sums run over the C, H, W of a case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

Norm = Literal["linf", "l2", "l1", "l0"]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")


def unit(norm: Norm, shape: Sequence[int]) -> float:
    """Size, in the norm's own unit, of epsilon = 1 for images of (C, H, W).

    Epsilons are in [0, 1] for every norm and do not depend on the image's size: the largest change of a pixel (linf), the
    root mean square change (l2), the mean absolute change (l1), the share of pixel values that change (l0).
    """
    count = math.prod(shape)
    return {"linf": 1.0, "l2": math.sqrt(count), "l1": float(count), "l0": float(count)}[norm]


def size(change: torch.Tensor, norm: Norm) -> torch.Tensor:
    """(B,) float64 on the CPU: largest absolute value, Euclidean length, sum of absolute values, number of non-zeros."""
    flat = change.detach().flatten(1)
    if norm == "l0":
        return (flat != 0).sum(dim=1).cpu().double()
    order = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}[norm]
    sizes: torch.Tensor = torch.linalg.vector_norm(flat, order, dim=1, dtype=torch.float64)
    return sizes.cpu()


def project(
    change: torch.Tensor, low: torch.Tensor, high: torch.Tensor, radius: torch.Tensor, norm: Norm
) -> torch.Tensor:
    """The nearest allowed change in Euclidean distance, exact to float32; l0 keeps the values that lose most when dropped.

    It is never outside low and high, and at most about 1e-6 of the radius outside the ball, which is rounding.
    """
    if norm == "linf":
        bound = _each(radius, change)
        return torch.minimum(torch.maximum(change, torch.maximum(low, -bound)), torch.minimum(high, bound))
    flat, floor, ceiling, most = change.flatten(1), low.flatten(1), high.flatten(1), radius.to(change)
    if norm == "l2":
        found = _scaled(flat, floor, ceiling, most, largest=1.0)
    elif norm == "l1":
        found = _softened(flat, torch.where(flat >= 0, ceiling, -floor), most)
    else:
        clipped = torch.minimum(torch.maximum(flat, floor), ceiling)
        gain = clipped * (2 * flat - clipped)  # of squared distance, without the difference of two large squares
        found = _kept(clipped, gain, most)
    return found.view_as(change)


def steepest(
    slope: torch.Tensor, low: torch.Tensor, high: torch.Tensor, radius: torch.Tensor, norm: Norm
) -> torch.Tensor:
    """The allowed change with the largest scalar product with ``slope``: exact for every norm, also where a bound binds.

    A slope that is zero or not a number moves nothing; of equal slopes the earlier one moves first (l1, l0). The length of
    the slope does not matter.
    """
    slope = torch.nan_to_num(slope, nan=0.0)
    if norm == "linf":
        return torch.minimum(torch.maximum(_each(radius, slope) * slope.sign(), low), high)
    flat, floor, ceiling, most = slope.flatten(1), low.flatten(1), high.flatten(1), radius.to(slope)
    flat = flat / flat.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
    room = torch.where(flat > 0, ceiling, -floor)
    if norm == "l2":
        free = flat * (room > 0)  # what cannot move at all is not found out one round later
        found = _scaled(free, floor, ceiling, most, largest=torch.finfo(flat.dtype).max)
    elif norm == "l1":
        found = _spent(flat.abs(), room, most) * flat.sign()
    else:
        found = _kept(room * flat.sign(), flat.abs() * room, most)
    return found.view_as(slope)


def drawn(
    low: torch.Tensor, high: torch.Tensor, radius: torch.Tensor, norm: Norm, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """An allowed random change per case, drawn from its own generator; the same direction at every radius.

    linf: uniform in the cube. l2: a uniform direction. l1: uniform on the sphere. These are as large as the radius, then
    projected. l0: random values, each moved to one of its two bounds, as many as the radius allows and can move.
    """
    patterns = [_pattern(low[0].numel(), norm, generator) for generator in generators]
    pattern = torch.stack(patterns).to(low)
    if norm != "l0":
        change = pattern * radius.to(low)[:, None]
        return project(change.view_as(low), low, high, radius, norm)
    floor, ceiling = low.flatten(1), high.flatten(1)
    moved = torch.where(((pattern < 0) & (floor < 0)) | (ceiling <= 0), floor, ceiling)
    return _kept(moved, pattern.abs() * (moved != 0), radius.to(low)).view_as(low)


def within(
    change: torch.Tensor, low: torch.Tensor, high: torch.Tensor, radius: torch.Tensor, norm: Norm
) -> torch.Tensor:
    """(B,) bool, is the change allowed, up to 1e-6 of the radius and 1e-6 of a pixel."""
    inside = ((change >= low - 1e-6) & (change <= high + 1e-6)).flatten(1).all(dim=1)
    return inside & (size(change, norm) <= radius.cpu().double() * (1 + 1e-6) + 1e-6).to(change.device)


def _each(radius: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    return radius.to(change).view(-1, *[1] * (change.ndim - 1))


def _length(flat: torch.Tensor) -> torch.Tensor:
    """(n,) float64: in float32 the sum would be off by 1e-6 for 150,000 values, and small squares would vanish."""
    length: torch.Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    return length


def _pattern(count: int, norm: Norm, generator: torch.Generator) -> torch.Tensor:
    """(count,) a random change of size 1; for l0, order (absolute value) and direction (sign) of the values."""
    if norm == "l2":
        normal = torch.randn(count, generator=generator)
        return normal / _length(normal[None])
    uniform = torch.rand(count, generator=generator)
    if norm == "linf":
        return 2 * uniform - 1
    sign = 2.0 * torch.randint(2, (count,), generator=generator) - 1
    if norm == "l0":
        return sign * (1 - uniform)
    spacing = -torch.log1p(-uniform)
    return sign * spacing / spacing.sum()


def _kept(values: torch.Tensor, gain: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The ``count`` values (n, D) with the largest gain, the earlier of two equal ones; the others are 0."""
    chosen = _spent(gain, torch.ones_like(gain), count.floor()) > 0
    return torch.where(chosen, values, 0.0)


def _spent(gain: torch.Tensor, price: torch.Tensor, budget: torch.Tensor) -> torch.Tensor:
    """(n, D) what a budget (n,) buys: up to ``price`` of each value, those with the largest gain first, then the earlier."""
    last = _last_gain(gain, price, budget)
    full = torch.where(gain > last, price, 0.0)
    tied = torch.where(gain == last, price, 0.0)
    left = (budget - full.sum(dim=1))[:, None] - (tied.cumsum(dim=1) - tied)
    return full + torch.minimum(tied, left.clamp(min=0))


def _last_gain(gain: torch.Tensor, price: torch.Tensor, budget: torch.Tensor) -> torch.Tensor:
    """(n, 1) the gain of the last value that is bought. About as many are sorted as are bought, which is faster than all."""
    count, total = gain.shape[1], price.sum(dim=1)
    wanted = torch.minimum(budget, total)
    needed = (wanted * (price > 0).sum(dim=1) / total.clamp(min=torch.finfo(price.dtype).tiny)).max().item()
    sorted_count = min(count, int(1.1 * needed) + 16)
    while True:
        top = gain.topk(sorted_count, dim=1)
        reached = price.gather(1, top.indices).cumsum(dim=1) >= wanted[:, None]
        if sorted_count == count or bool(reached[:, -1].all()):
            place = (~reached).sum(dim=1, keepdim=True).clamp(max=sorted_count - 1)
            return top.values.gather(1, place)
        sorted_count = min(count, 2 * sorted_count)


def _scaled(
    flat: torch.Tensor, floor: torch.Tensor, ceiling: torch.Tensor, radius: torch.Tensor, *, largest: float
) -> torch.Tensor:
    """clip(s × flat) of Euclidean length radius, for the s that gives it, at most ``largest``.

    Values that pass their bound are fixed there and s is found again for the others: s only grows, so no value comes back,
    and when none passes its bound the length is exact.
    """
    edge = torch.where(flat > 0, ceiling, floor)
    free, fixed, spent = flat, torch.zeros_like(flat, dtype=torch.bool), torch.zeros_like(radius, dtype=torch.float64)
    while True:
        length, left = _length(free), ((radius - spent).clamp(min=0) * (radius + spent)).sqrt()
        scale = torch.where(length > 0, left / length, 0.0).clamp(max=largest)
        moved = free * scale.to(flat)[:, None]
        beyond = (moved > ceiling) | (moved < floor)
        if not bool(beyond.any()):
            return torch.where(fixed, edge, moved)
        fixed |= beyond
        free, spent = flat.masked_fill(fixed, 0.0), _length(edge.masked_fill(~fixed, 0.0))


def _softened(flat: torch.Tensor, caps: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """sign × min(max(|flat| - t, 0), caps) of absolute sum radius, or t = 0 where that is within it already.

    t by Newton's method, which is exact once the right values are free; where a step does not halve what is too much, the
    interval is halved instead. The last step moves the values and not t, whose rounding would show where |flat| is large.
    """
    strength = flat.abs()
    threshold, low, high = torch.zeros_like(radius), torch.zeros_like(radius), strength.amax(dim=1)
    open_rows, before = torch.ones_like(radius, dtype=torch.bool), torch.full_like(radius, torch.inf)
    while True:
        over = strength - threshold[:, None]
        soft, free = torch.minimum(over.clamp(min=0), caps), (over > 0) & (over < caps)
        excess = soft.sum(dim=1) - radius
        step = torch.where((threshold == 0) & (excess <= 0), 0.0, excess / free.sum(dim=1))
        low, high = torch.where(excess > 0, threshold, low), torch.where(excess > 0, high, threshold)
        following = threshold + step
        slow = (excess.abs() > before / 2) | ~((following > low) & (following < high))
        following, before = torch.where(slow, low + (high - low) / 2, following), excess.abs()
        far = (step != 0) & (before > 4 * torch.finfo(flat.dtype).eps * radius)
        open_rows &= far & (following > low) & (following < high)
        if not bool(open_rows.any()):
            break
        threshold = torch.where(open_rows, following, threshold)
    soft = torch.where(free, torch.minimum((over - step[:, None]).clamp(min=0), caps), soft)
    rounding = radius / soft.sum(dim=1).clamp(min=torch.finfo(flat.dtype).tiny)
    return flat.sign() * soft * rounding.clamp(max=1)[:, None]
