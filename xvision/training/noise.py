"""Random numbers that are a pure function of (seed, epoch, example, place), made on the device where the images are.

A counter is scrambled by the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), in 64-bit integers that wrap around, so
that CPU and GPU draw the same bits. Good enough to augment images; no cryptography.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def uniform(
    count: int, examples: Sequence[int] | np.ndarray, *, seed: int, epoch: int, purpose: int, device: torch.device
) -> torch.Tensor:
    """(B, count) float32 in [0, 1), a row of its own for every example."""
    keys = torch.from_numpy(_keys(np.asarray(examples, dtype=np.int64), seed, epoch, purpose)).to(device)
    places = torch.arange(1, count + 1, device=device, dtype=torch.int64) * _signed(_STEP)
    bits = _scrambled(keys[:, None] + places[None])
    return ((bits >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def normal(
    count: int, examples: Sequence[int] | np.ndarray, *, seed: int, epoch: int, purpose: int, device: torch.device
) -> torch.Tensor:
    """(B, count) float32 from the standard normal distribution (Box and Muller, 1958)."""
    half = (count + 1) // 2
    draws = uniform(2 * half, examples, seed=seed, epoch=epoch, purpose=purpose, device=device)
    first, second = draws[:, :half], draws[:, half:]
    length = torch.sqrt(-2.0 * torch.log1p(-first))
    angle = 2.0 * math.pi * second
    return torch.cat((length * torch.cos(angle), length * torch.sin(angle)), dim=1)[:, :count]


def _keys(examples: np.ndarray, seed: int, epoch: int, purpose: int) -> np.ndarray:
    """(B,) starting points; each word is scrambled before the next one is added, so that no two sums meet by design."""
    with np.errstate(over="ignore"):
        keys: np.ndarray = np.full(len(examples), seed % 2**64, dtype=np.uint64)
        for word in (epoch, purpose, examples.astype(np.uint64)):
            keys = _scrambled_numpy(keys + np.uint64(_STEP)) ^ np.asarray(word, dtype=np.uint64)
        return _scrambled_numpy(keys + np.uint64(_STEP)).view(np.int64)


def _scrambled_numpy(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(_FIRST)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(_SECOND)
    result: np.ndarray = bits ^ (bits >> np.uint64(31))
    return result


def _scrambled(bits: torch.Tensor) -> torch.Tensor:
    """As above in signed integers, whose right shift has to be told not to repeat the sign."""
    bits = (bits ^ _shifted(bits, 30)) * _signed(_FIRST)
    bits = (bits ^ _shifted(bits, 27)) * _signed(_SECOND)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: torch.Tensor, places: int) -> torch.Tensor:
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word
