"""Models small enough that their attributions are known or can be worked out another way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Logits = Callable[[torch.Tensor], torch.Tensor]
ONES = torch.ones(1, dtype=torch.int64)


def scalar_model(function: Callable[[torch.Tensor], torch.Tensor]) -> Logits:
    """A binary model whose log-odds of class 1 is the given function of the flattened pixels."""

    def logits(pixels: torch.Tensor) -> torch.Tensor:
        score = function(pixels.flatten(1))
        return torch.stack([torch.zeros_like(score), score], dim=1)

    return logits


def pixels_of(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1)


def small_network(seed: int = 0, classes: int = 3) -> nn.Module:
    """For images (2, 6, 6)."""
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 8), nn.Tanh())
    return nn.Sequential(body, nn.Linear(8, classes)).eval()


def images(batch: int = 4, seed: int = 0) -> torch.Tensor:
    """(batch, 2, 6, 6)"""
    return torch.rand(batch, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


class Counted:
    """A model that remembers how many images it was given, and the most at once."""

    def __init__(self, logits: Logits) -> None:
        self.logits, self.total, self.largest = logits, 0, 0

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.total += len(pixels)
        self.largest = max(self.largest, len(pixels))
        return self.logits(pixels)
