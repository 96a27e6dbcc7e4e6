"""Noise of detectors and of counting. Grey images get the same noise in every channel, colour images one per channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xvision.methods.corruptions.draws import is_grey, pixel_noise
from xvision.methods.corruptions.kind import ANY, Corruption
from xvision.methods.randomness import case_generator


def _gaussian_noise(pixels: torch.Tensor, deviation: float, seeds: Sequence[int]) -> torch.Tensor:
    return pixels + deviation * pixel_noise(pixels, seeds)


def _speckle_noise(pixels: torch.Tensor, deviation: float, seeds: Sequence[int]) -> torch.Tensor:
    return pixels + deviation * pixels * pixel_noise(pixels, seeds)


def _shot_noise(pixels: torch.Tensor, rate: float, seeds: Sequence[int]) -> torch.Tensor:
    """Counting noise of ``rate`` quanta at full brightness: variance x / rate at brightness x."""
    counts = []
    for case, grey, seed in zip(rate * pixels.cpu(), is_grey(pixels), seeds, strict=True):
        drawn = torch.poisson(case[:1] if grey else case, generator=case_generator(seed))
        counts.append(drawn.expand(case.shape))
    return (torch.stack(counts) / rate).to(pixels.device)


def _impulse_noise(pixels: torch.Tensor, share: float, seeds: Sequence[int]) -> torch.Tensor:
    """``share`` of the pixels dead or saturated, half of them each."""
    channels, height, width = pixels.shape[1:]
    drawn = [
        torch.rand((1 if grey else channels, height, width), generator=case_generator(seed)).expand(channels, -1, -1)
        for seed, grey in zip(seeds, is_grey(pixels), strict=True)
    ]
    chance = torch.stack(drawn).to(pixels.device)
    return torch.where(chance < share, (chance < share / 2.0).to(pixels.dtype), pixels)


_CHEST_SD, _MILD_SD = (0.04, 0.08, 0.12, 0.18, 0.26), (0.04, 0.08, 0.12, 0.16, 0.20)
_SOURCE = "MedMNIST-C; ImageNet-C for natural images"

# fmt: off
KINDS = (
    Corruption("gaussian_noise", "Detector noise", "standard deviation", "of full range", _SOURCE,
               {ANY: _CHEST_SD, "ct": _MILD_SD, "fundus": _MILD_SD, "natural": (0.08, 0.12, 0.18, 0.26, 0.38)},
               _gaussian_noise),
    Corruption("shot_noise", "Low dose (photon noise)", "quanta at full brightness", "per pixel", _SOURCE,
               {ANY: (60, 25, 18, 10, 5), "ct": (200, 100, 50, 25, 15), "natural": (60, 25, 12, 5, 3)}, _shot_noise),
    Corruption("impulse_noise", "Dead and saturated pixels", "pixels replaced", "share", _SOURCE,
               {ANY: (0.01, 0.03, 0.06, 0.09, 0.17), "ct": (0.01, 0.02, 0.03, 0.05, 0.08),
                "natural": (0.03, 0.06, 0.09, 0.17, 0.27)}, _impulse_noise),
    Corruption("speckle_noise", "Noise in proportion to brightness", "standard deviation", "of the pixel", _SOURCE,
               {ANY: (0.05, 0.15, 0.2, 0.35, 0.45), "ct": (0.05, 0.1, 0.2, 0.3, 0.4),
                "ultrasound": (0.10, 0.15, 0.20, 0.25, 0.30), "fundus": (0.10, 0.15, 0.20, 0.25, 0.30),
                "natural": (0.15, 0.2, 0.35, 0.45, 0.6)}, _speckle_noise),
)
# fmt: on
