"""Changes of bounded size: their size, the nearest allowed one, the best one for a slope, a random one.

A change is (B, C, H, W); ``low`` and ``high`` (B, C, H, W) bound it too, low <= 0 <= high, because the pixel it lands on must
stay within its range; ``radius`` is (B,), one per case. All sums run over the C, H, W of a case.
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
    flat = change.detach().double().flatten(1).cpu()
    if norm == "l0":
        return (flat != 0).sum(dim=1).double()
    order = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}[norm]
    sizes: torch.Tensor = torch.linalg.vector_norm(flat, order, dim=1)
    return sizes


def project(
    change: torch.Tensor, low: torch.Tensor, high: torch.Tensor, radius: torch.Tensor, norm: Norm
) -> torch.Tensor:
    """The nearest allowed change in Euclidean distance, exact to float32; l0 keeps the values that lose most when dropped."""
    if norm == "linf":
        bound = _each(radius, change)
        return torch.minimum(torch.maximum(change, torch.maximum(low, -bound)), torch.minimum(high, bound))
    flat, size_of, floor, ceiling = change.flatten(1), radius.to(change.dtype), low.flatten(1), high.flatten(1)
    clipped = torch.minimum(torch.maximum(flat, floor), ceiling)
    if norm == "l2":
        found = _scaled(flat, floor, ceiling, size_of, most=1.0)
    elif norm == "l1":
        found = _softened(flat, torch.where(flat >= 0, ceiling, -floor), size_of)
    else:
        found = _kept(clipped, flat.square() - (flat - clipped).square(), size_of)
    return found.view_as(change)


def steepest(
    slope: torch.Tensor, low: torch.Tensor, high: torch.Tensor, radius: torch.Tensor, norm: Norm
) -> torch.Tensor:
    """The allowed change with the largest scalar product with ``slope``: exact for every norm, also where a bound binds.

    A slope that is zero or not a number moves nothing.
    """
    slope = torch.nan_to_num(slope, nan=0.0)
    if norm == "linf":
        bound = _each(radius, slope)
        return torch.minimum(torch.maximum(bound * slope.sign(), low), high)
    flat, size_of = slope.flatten(1), radius.to(slope.dtype)
    floor, ceiling = low.flatten(1), high.flatten(1)
    room = torch.where(flat > 0, ceiling, torch.where(flat < 0, -floor, torch.zeros_like(flat)))
    if norm == "l2":
        largest = flat.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
        found = _scaled(flat / largest, floor, ceiling, size_of, most=math.inf)
    elif norm == "l1":
        order = flat.abs().argsort(dim=1, descending=True, stable=True)
        caps = room.gather(1, order)
        spent = (size_of[:, None] - (caps.cumsum(dim=1) - caps)).clamp(min=0)
        found = torch.zeros_like(flat).scatter(1, order, torch.minimum(spent, caps)) * flat.sign()
    else:
        found = _kept(room * flat.sign(), flat.abs() * room, size_of)
    return found.view_as(slope)


def drawn(
    low: torch.Tensor, high: torch.Tensor, radius: torch.Tensor, norm: Norm, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """An allowed random change per case, as large as the radius allows; the same direction at every radius.

    linf: uniform in the ball. l2: a uniform direction. l1: uniform on the sphere. l0: random values moved to a random bound.
    """
    shape, count = low.shape[1:], low[0].numel()
    numbers = torch.stack([torch.rand(2 * count, generator=each) for each in generators]).to(low.device, low.dtype)
    first, second = numbers[:, :count], numbers[:, count:]
    sign = torch.where(second < 0.5, -1.0, 1.0).to(low.dtype)
    if norm == "l0":
        moved = torch.where(second < 0.5, low.flatten(1), high.flatten(1))
        return _kept(moved, first + 1e-9, radius.to(low.dtype)).view(-1, *shape)
    if norm == "linf":
        unit_change = 2 * first - 1
    elif norm == "l2":
        normal = torch.special.ndtri(first.clamp(1e-6, 1 - 1e-6))
        unit_change = normal / torch.linalg.vector_norm(normal, dim=1, keepdim=True)
    else:
        spacing = -torch.log(first.clamp(min=1e-12))
        unit_change = sign * spacing / spacing.sum(dim=1, keepdim=True)
    change = (unit_change * radius.to(low.dtype)[:, None]).view(-1, *shape)
    return project(change, low, high, radius, norm)


def within(
    change: torch.Tensor, low: torch.Tensor, high: torch.Tensor, radius: torch.Tensor, norm: Norm
) -> torch.Tensor:
    """(B,) bool, is the change allowed, up to 1e-6 of the radius and 1e-6 of a pixel."""
    inside = ((change >= low - 1e-6) & (change <= high + 1e-6)).flatten(1).all(dim=1)
    return inside & (size(change, norm) <= radius.double().cpu() * (1 + 1e-6) + 1e-6).to(change.device)


def _each(radius: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    return radius.to(change.dtype).view(-1, *[1] * (change.ndim - 1))


def _kept(values: torch.Tensor, gain: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The ``count`` values with the largest positive gain, the earlier of two equal ones; the others are 0. All (n, D)."""
    order = gain.argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(values.shape[1], device=values.device)[None, :] < count.floor()[:, None]
    mask = torch.zeros_like(chosen).scatter(1, order, chosen) & (gain > 0)
    return torch.where(mask, values, torch.zeros_like(values))


def _scaled(
    flat: torch.Tensor, floor: torch.Tensor, ceiling: torch.Tensor, radius: torch.Tensor, *, most: float
) -> torch.Tensor:
    """clip(s × flat) of Euclidean length radius, for the s that gives it, at most ``most``.

    Values that reach their bound are taken out one set after another: s only grows, so the sets only grow, and when none is
    added the length is exact.
    """
    tiny = torch.finfo(flat.dtype).tiny
    scale = (radius / torch.linalg.vector_norm(flat, dim=1).clamp(min=tiny)).clamp(max=most)
    while True:
        moved = scale[:, None].clamp(max=1e30) * flat
        clipped = torch.minimum(torch.maximum(moved, floor), ceiling)
        bound = moved != clipped
        fixed = torch.where(bound, clipped, torch.zeros_like(clipped)).square().sum(dim=1)
        free = torch.where(bound, torch.zeros_like(flat), flat).square().sum(dim=1)
        wanted = ((radius.square() - fixed).clamp(min=0) / free.clamp(min=tiny)).sqrt()
        wanted = torch.where(free > 0, wanted, torch.full_like(wanted, math.inf)).clamp(max=most)
        grows = (wanted > scale * (1 + 1e-6)) & (scale < 1e30)
        if not bool((grows & bound.any(dim=1)).any()):
            return clipped
        scale = torch.maximum(scale, torch.where(bound.any(dim=1), wanted, scale))


def _softened(flat: torch.Tensor, caps: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """sign × min(max(|flat| - t, 0), caps) with absolute sum radius, or t = 0 where that is within it already."""
    strength = flat.abs()

    def at(threshold: torch.Tensor) -> torch.Tensor:
        return torch.minimum((strength - threshold[:, None]).clamp(min=0), caps)

    low, high = torch.zeros_like(radius), strength.amax(dim=1)
    outside = at(low).sum(dim=1) > radius
    for _ in range(30 if flat.dtype == torch.float32 else 60):
        middle = (low + high) / 2
        over = at(middle).sum(dim=1) > radius
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return flat.sign() * at(torch.where(outside, high, torch.zeros_like(high)))
