"""Noise of detectors and of counting."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xvision.methods.corruptions.draws import pixel_noise
from xvision.methods.corruptions.kind import ANY, Corruption
from xvision.methods.randomness import case_generator


def _gaussian_noise(pixels: torch.Tensor, deviation: float, seeds: Sequence[int]) -> torch.Tensor:
    return pixels + deviation * pixel_noise(pixels, seeds)


def _shot_noise(pixels: torch.Tensor, rate: float, seeds: Sequence[int]) -> torch.Tensor:
    """Counting noise of ``rate`` quanta at full brightness: variance x / rate at brightness x."""
    brightness = pixels.mean(dim=1, keepdim=True).cpu()
    counts = torch.stack(
        [
            torch.poisson(rate * case, generator=case_generator(seed))
            for case, seed in zip(brightness, seeds, strict=True)
        ]
    )
    return pixels + (counts / rate - brightness).to(pixels.device)


# fmt: off
KINDS = (
    Corruption("gaussian_noise", "Detector noise", "standard deviation", "of full range", "MedMNIST-C",
               {ANY: (0.04, 0.08, 0.12, 0.18, 0.26)}, _gaussian_noise),
    Corruption("shot_noise", "Low dose (photon noise)", "quanta at full brightness", "per pixel", "MedMNIST-C",
               {ANY: (60, 25, 18, 10, 5)}, _shot_noise),
)
# fmt: on
