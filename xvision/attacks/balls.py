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
    raise NotImplementedError


def steepest(
    slope: torch.Tensor, low: torch.Tensor, high: torch.Tensor, radius: torch.Tensor, norm: Norm
) -> torch.Tensor:
    """The allowed change with the largest scalar product with ``slope``: exact for every norm, also where a bound binds."""
    raise NotImplementedError


def drawn(
    low: torch.Tensor, high: torch.Tensor, radius: torch.Tensor, norm: Norm, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """An allowed random change per case, as large as the radius allows; the same direction at every radius."""
    raise NotImplementedError


def within(
    change: torch.Tensor, low: torch.Tensor, high: torch.Tensor, radius: torch.Tensor, norm: Norm
) -> torch.Tensor:
    """(B,) bool, is the change allowed, up to 1e-6."""
    raise NotImplementedError
