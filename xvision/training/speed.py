"""How near the machine's limit a training runs: arithmetic done against the arithmetic it could do."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of ``work`` (a multiply-add counts two), from torch's own counter of matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def matrix_rate(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.2) -> float:
    """Floating-point operations per second of large matrix products on the device as it is now: the best of several."""
    side = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, started = 0.0, time.perf_counter()
    _product(left, right, device)
    while time.perf_counter() - started < seconds:
        before = time.perf_counter()
        _product(left, right, device)
        best = max(best, 2 * side**3 / (time.perf_counter() - before))
    return best


def _product(left: torch.Tensor, right: torch.Tensor, device: torch.device) -> None:
    left @ right
    if device.type == "cuda":
        torch.cuda.synchronize(device)
