"""Randomness that belongs to a case: the same draw whatever the batch, the order or the device."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch

from xvision.errors import DataError


def case_seed(seed: int, purpose: str, key: str) -> int:
    """A 63-bit seed for one case and one purpose, a hash of all three; stable over processes and machines."""
    digest = blake2b(f"{seed}\x1f{purpose}\x1f{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def case_generator(seed: int) -> torch.Generator:
    """A generator on the CPU, so that a GPU run draws the same numbers."""
    return torch.Generator().manual_seed(seed)


def require_keys(keys: Sequence[str], count: int) -> None:
    """Raise DataError unless there is one key per image."""
    if len(keys) != count:
        raise DataError(f"found {len(keys)} case keys for {count} images: give one key (the case id) per image")
