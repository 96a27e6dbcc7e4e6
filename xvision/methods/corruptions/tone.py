"""Exposure, contrast and window: the same anatomy in other grey values."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xvision.methods.corruptions.kind import ANY, Corruption


def _contrast_down(pixels: torch.Tensor, factor: float, seeds: Sequence[int]) -> torch.Tensor:
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    return mean + factor * (pixels - mean)


def _gamma(pixels: torch.Tensor, gamma: float, seeds: Sequence[int]) -> torch.Tensor:
    return pixels.pow(gamma)


# fmt: off
KINDS = (
    Corruption("contrast_down", "Low contrast", "contrast kept", "share", "MedMNIST-C",
               {ANY: (0.9, 0.8, 0.7, 0.6, 0.4)}, _contrast_down),
    Corruption("gamma_up", "Darker exposure", "gamma", "exponent", "MedMNIST-C",
               {ANY: (1.1, 1.2, 1.3, 1.4, 1.6)}, _gamma),
    Corruption("gamma_down", "Brighter exposure", "gamma", "exponent", "MedMNIST-C",
               {ANY: (0.9, 0.8, 0.7, 0.6, 0.4)}, _gamma),
)
# fmt: on
