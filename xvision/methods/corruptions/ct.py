"""Artefacts of computed tomography, drawn on the reconstructed slice.

Strengths are in Hounsfield units (HU) of a soft-tissue window of ``WINDOW`` HU, which [0, 1] is taken to span: 20 HU are
0.05. Where the image was made with another window, so many HU are more or less than stated. The middle of the image
stands for the centre of rotation. They imitate what an artefact looks like, not the physics behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from xvision.methods.corruptions.draws import normal
from xvision.methods.corruptions.kind import REFERENCE_SIDE, Corruption, scaled, side
from xvision.methods.filters import gaussian_blur

WINDOW = 400.0


def _dose_noise(pixels: torch.Tensor, deviation: float, seeds: Sequence[int]) -> torch.Tensor:
    """Gaussian noise of ``deviation`` HU with the power of filtered back projection: f exp(-2 f^2 / f0^2), none at f = 0.

    The power is scaled so that the variance is as stated at the image's own size; the noise continues across the border.
    """
    height, width = pixels.shape[2:]
    down = torch.fft.fftfreq(height)[:, None]
    across = torch.fft.fftfreq(width)
    frequency = (down**2 + across**2).sqrt() * side(pixels) / REFERENCE_SIDE
    power = frequency * torch.exp(-2.0 * (frequency / _CUT_OFF) ** 2)
    gain = (power / power.mean()).sqrt()[:, : width // 2 + 1]
    white = torch.fft.rfft2(normal(seeds, 1, height, width).to(pixels.device))
    noise: torch.Tensor = torch.fft.irfft2(white * gain.to(pixels.device), s=(height, width))
    return pixels + deviation / WINDOW * noise


def _rings(pixels: torch.Tensor, deviation: float, seeds: Sequence[int]) -> torch.Tensor:
    """Every fifth detector, by chance, is off by a normal amount of ``deviation`` HU, which back projection makes a ring."""
    x, y = _from_centre(pixels)
    place = (x**2 + y**2).sqrt() / max(1.0, scaled(_DETECTOR, pixels))
    count = int(place.max()) + 2
    off, chance = normal(seeds, 2, count).to(pixels.device).unbind(dim=1)
    profile = off * (chance > _FIFTH)
    inner = place.long()
    weight = place - inner
    rings = torch.lerp(profile[:, inner], profile[:, inner + 1], weight)
    return pixels + deviation / WINDOW * rings.unsqueeze(1)


def _metal_streaks(pixels: torch.Tensor, deviation: float, seeds: Sequence[int]) -> torch.Tensor:
    """Rays from a bright implant, per case somewhere in the middle half, of ``deviation`` HU at its edge, weaker outwards."""
    height, width = pixels.shape[2:]
    radius = max(1.0, scaled(_IMPLANT, pixels))
    x, y = _from_centre(pixels)
    drawn = normal(seeds, 2 + _RAYS).to(pixels.device)
    places, rays = (0.12 * drawn[:, :2]).clamp(-0.25, 0.25), drawn[:, 2:]
    x, y = x - width * places[:, 0, None, None], y - height * places[:, 1, None, None]
    distance = (x**2 + y**2).sqrt()
    turn = (torch.atan2(y, x) / math.pi + 1.0) * (_RAYS / 2.0)
    inner = turn.long()
    first, second = (rays.gather(1, (inner + step).flatten(1) % _RAYS).view_as(turn) for step in (0, 1))
    streaks = torch.lerp(first, second, turn - inner) * radius / torch.clamp(distance, min=radius)
    implant = torch.clamp(radius + 0.5 - distance, 0.0, 1.0).unsqueeze(1)
    return torch.lerp(pixels + deviation / WINDOW * streaks.unsqueeze(1), torch.ones(()).to(pixels.device), implant)


def _cupping(pixels: torch.Tensor, depth: float, seeds: Sequence[int]) -> torch.Tensor:
    """Beam hardening: the middle of the body ``depth`` HU too dark, its rim right; what is black already stays so."""
    x, y = _from_centre(pixels)
    cup = (1.0 - (x**2 + y**2) / (side(pixels) / 2.0) ** 2).clamp(min=0.0)
    return pixels - depth / WINDOW * cup


def _sharp_kernel(pixels: torch.Tensor, strength: float, seeds: Sequence[int]) -> torch.Tensor:
    """``strength`` times what a blur of 1.5 px takes away, added: a bone kernel, edges overshoot."""
    return pixels + strength * (pixels - gaussian_blur(pixels, scaled(1.5, pixels)))


def _soft_kernel(pixels: torch.Tensor, sigma: float, seeds: Sequence[int]) -> torch.Tensor:
    return gaussian_blur(pixels, scaled(sigma, pixels))


def _from_centre(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x (W,) and y (H, 1) in pixels from the middle."""
    height, width = pixels.shape[2:]
    across = torch.arange(width, device=pixels.device) - (width - 1) / 2.0
    down = torch.arange(height, device=pixels.device) - (height - 1) / 2.0
    return across, down[:, None]


_CUT_OFF = 0.3  # cycles per pixel at the reference side
_DETECTOR = 2.0  # pixels at the reference side
_IMPLANT = 8.0
_RAYS = 90
_FIFTH = 0.8416  # a standard normal number is above it in a fifth of all draws

# fmt: off
KINDS = (
    Corruption("ct_dose", "Low dose", "standard deviation", "HU of a window of 400", "xvision", {"ct": (10, 20, 40, 60, 80)},
               _dose_noise),
    Corruption("ct_rings", "Ring artefact", "standard deviation of a ring", "HU of a window of 400", "xvision",
               {"ct": (20, 40, 70, 110, 160)}, _rings),
    Corruption("ct_metal", "Metal streaks", "standard deviation at the metal", "HU of a window of 400", "xvision",
               {"ct": (50, 100, 200, 350, 550)}, _metal_streaks),
    Corruption("ct_cupping", "Beam hardening", "depth in the middle", "HU of a window of 400", "xvision",
               {"ct": (20, 40, 65, 95, 130)}, _cupping),
    Corruption("ct_sharp_kernel", "Sharp reconstruction kernel", "edges added", "times", "xvision",
               {"ct": (0.4, 0.8, 1.4, 2.2, 3.2)}, _sharp_kernel),
    Corruption("ct_soft_kernel", "Soft reconstruction kernel", "standard deviation", "px at side 224", "xvision",
               {"ct": (0.6, 1.0, 1.5, 2.2, 3.0)}, _soft_kernel),
)
# fmt: on
