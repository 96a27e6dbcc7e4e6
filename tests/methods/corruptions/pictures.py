"""Images with a known answer, and one corruption on them."""

from __future__ import annotations

import numpy as np
import torch

from xvision.methods.corruptions import corrupt, severities_of


def chest(side: int = 64, channels: int = 1) -> torch.Tensor:
    """A smooth chest-like image with edges, a small bright lesion and fine texture."""
    y, x = np.mgrid[0:side, 0:side] / side
    image = 0.75 - 0.25 * np.abs(x - 0.5) - 0.1 * y
    for centre in (0.3, 0.7):
        image -= 0.45 * np.exp(-((((x - centre) / 0.13) ** 2 + ((y - 0.48) / 0.26) ** 2) ** 1.5))
    image += 0.15 * np.exp(-((x - 0.68) ** 2 + (y - 0.4) ** 2) / 0.0012)
    image += 0.02 * np.random.default_rng(0).normal(size=image.shape)
    return torch.as_tensor(np.clip(image, 0.02, 0.98), dtype=torch.float32).expand(1, channels, side, side).clone()


def colourful(side: int = 64) -> torch.Tensor:
    """Three channels that differ, (1, 3, side, side)."""
    return torch.cat([chest(side), 0.6 * chest(side).flip(3), 0.3 + 0.5 * chest(side).flip(2)], dim=1)


def keys_of(pixels: torch.Tensor) -> list[str]:
    return [f"case-{row}" for row in range(len(pixels))]


def one(pixels: torch.Tensor, kind: str, severity: int, seed: int = 0, modality: str | None = None) -> torch.Tensor:
    return corrupt(pixels, kind, severity, keys_of(pixels), seed=seed, modality=modality)


def flat(value: float, side: int = 64, batch: int = 1) -> torch.Tensor:
    return torch.full((batch, 1, side, side), value)


def strength(kind: str, severity: int, modality: str | None = None) -> float:
    value = severities_of(kind, modality)[severity - 1]
    assert not isinstance(value, tuple)
    return value
