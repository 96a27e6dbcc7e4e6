"""What goes wrong on an ultrasound machine: gain, depth, shadow, echoes that are none, a wide beam, speckle.

The top row lies at the transducer and depth runs down the rows, as far as a picture alone can tell. Brightness is the
logarithm of the echo, over 60 dB from black to white: a gain in decibels adds to it, except in what is nearly black, so
that the black beside the sector stays black. All channels get the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import ive

from xvision.methods.corruptions.draws import normal, uniform
from xvision.methods.corruptions.kind import Corruption, scaled

_DYNAMIC_RANGE = 60.0  # decibels
_DARK = 0.05  # brightness below which a gain fades out
_GRAIN = 1.0  # standard deviation of the speckle's grain, px at side 224
_RAYLEIGH_MEAN, _RAYLEIGH_SD = math.sqrt(math.pi / 2.0), math.sqrt(2.0 - math.pi / 2.0)
_SLIDERS = 8
_VIRTUAL_APEX = 0.5  # of the height, above the image: where the rays of the sector meet
_ECHOES, _ECHO_DECAY = 5, 0.75


def _rayleigh_speckle(pixels: torch.Tensor, deviation: float, seeds: Sequence[int]) -> torch.Tensor:
    """Brightness times 1 plus ``deviation`` times a standardised Rayleigh field: the magnitude of many random echoes."""
    grain = scaled(_GRAIN, pixels)
    # unit weights in the square keep the variance of every pixel at 1, at the border too
    down, across = (F.normalize(_blur_weights(length, grain), dim=1).to(pixels.device) for length in pixels.shape[2:])
    echoes = down @ normal(seeds, 2, *pixels.shape[2:]).to(pixels.device) @ across.T
    magnitude = torch.hypot(echoes[:, :1], echoes[:, 1:])
    return pixels * (1.0 + deviation * (magnitude - _RAYLEIGH_MEAN) / _RAYLEIGH_SD)


def _gain(pixels: torch.Tensor, decibel: float | torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    return pixels + (pixels / _DARK).clamp(max=1.0) * decibel / _DYNAMIC_RANGE


def _time_gain(pixels: torch.Tensor, decibel: float, seeds: Sequence[int]) -> torch.Tensor:
    """Eight sliders of gain over the depth, ``decibel`` off in root mean square, with lines between them."""
    drawn = normal(seeds, _SLIDERS)
    sliders = decibel * drawn / drawn.square().mean(dim=1, keepdim=True).sqrt()
    gain = F.interpolate(sliders.unsqueeze(1), pixels.shape[2], mode="linear", align_corners=True)
    return _gain(pixels, gain.unsqueeze(3).to(pixels.device), seeds)


def _depth_attenuation(pixels: torch.Tensor, decibel: float, seeds: Sequence[int]) -> torch.Tensor:
    """Echoes weaken evenly with depth, by ``decibel`` at the bottom: poor penetration."""
    return _gain(pixels, -decibel * _centres(pixels.shape[2])[:, None].to(pixels.device), seeds)


def _acoustic_shadow(pixels: torch.Tensor, parameter: tuple[float, float], seeds: Sequence[int]) -> torch.Tensor:
    """A darker wedge along the rays of the sector, from a drawn point down: behind a rib, stone or gap of contact.

    It can cover the finding, and a shadow is itself a sign in some organs.

    Args:
        parameter: width at its tip, as a share of the image's width; loss in decibels.
    """
    share, decibel = parameter
    height, width = pixels.shape[2:]
    across, down = uniform(seeds, 2).unbind(dim=1)
    column, tip = 0.25 + 0.5 * across[:, None, None], 0.1 + 0.25 * down[:, None, None]
    depth, aside = _centres(height)[:, None], _centres(width)[None]
    spread = (depth + _VIRTUAL_APEX) / (tip + _VIRTUAL_APEX)
    middle = 0.5 + (column - 0.5) * spread
    soft = scaled(3.0, pixels)
    within = ((share * spread / 2.0 - (aside - middle).abs()) * width / soft + 0.5).clamp(0.0, 1.0)
    below = ((depth - tip) * height / soft + 0.5).clamp(0.0, 1.0)
    return _gain(pixels, -decibel * (within * below).unsqueeze(1).to(pixels.device), seeds)


def _reverberation(pixels: torch.Tensor, brightness: float, seeds: Sequence[int]) -> torch.Tensor:
    """Five bright lines at equal distances below one another, each three quarters of the one above."""
    height, width = pixels.shape[2:]
    down, apart, across, wide = uniform(seeds, 4)[:, :, None].unbind(dim=1)
    first, spacing = 0.15 + 0.2 * down, 0.06 + 0.06 * apart
    middle, spread = 0.3 + 0.4 * across, 0.12 + 0.13 * wide
    depth, thickness = _centres(height)[None], scaled(1.5, pixels) / height
    rows = torch.zeros(len(seeds), height)
    for echo in range(_ECHOES):
        rows += _ECHO_DECAY**echo * torch.exp(-(((depth - first - echo * spacing) / thickness) ** 2) / 2.0)
    columns = torch.exp(-(((_centres(width)[None] - middle) / spread) ** 4) / 2.0)
    lines = rows[:, :, None] * columns[:, None, :]
    return pixels + brightness * lines.unsqueeze(1).to(pixels.device)


def _lateral_blur(pixels: torch.Tensor, deviation: float, seeds: Sequence[int]) -> torch.Tensor:
    """A beam wider than its pulse is long: a Gaussian blur along the rows only, edge pixels repeated beyond the border."""
    return pixels @ _blur_weights(pixels.shape[3], scaled(deviation, pixels)).T.to(pixels.device)


def _blur_weights(length: int, sigma: float) -> torch.Tensor:
    """(length, length) Weights of a line's pixels in each of its blurred pixels, of Lindeberg's discrete Gaussian."""
    radius = math.ceil(4.0 * sigma) + 1
    kernel = torch.as_tensor(ive(np.abs(np.arange(-radius, radius + 1)), sigma**2), dtype=torch.float32)
    each = F.pad(torch.eye(length).unsqueeze(1), (radius, radius), mode="replicate")
    return F.conv1d(each, (kernel / kernel.sum()).view(1, 1, -1)).squeeze(1).T


def _centres(length: int) -> torch.Tensor:
    """Pixel centres from 0 to 1."""
    return (torch.arange(length) + 0.5) / length


# name, title, parameter, unit, source, severities 1 to 5, function
# fmt: off
KINDS = (
    Corruption("rayleigh_speckle", "Speckle", "standard deviation", "of the pixel", "xvision; deviations of MedMNIST-C's speckle",
               {"ultrasound": (0.10, 0.15, 0.20, 0.25, 0.30)}, _rayleigh_speckle),
    Corruption("gain_up", "Gain too high", "gain", "dB of 60", "xvision",
               {"ultrasound": (3.0, 6.0, 9.0, 12.0, 18.0)}, _gain),
    Corruption("gain_down", "Gain too low", "gain", "dB of 60", "xvision",
               {"ultrasound": (-3.0, -6.0, -9.0, -12.0, -18.0)}, _gain),
    Corruption("time_gain", "Wrong gain over depth (TGC)", "gain, root mean square", "dB of 60", "xvision",
               {"ultrasound": (2.0, 4.0, 6.0, 9.0, 12.0)}, _time_gain),
    Corruption("depth_attenuation", "Poor penetration", "loss at the bottom", "dB of 60", "xvision",
               {"ultrasound": (6.0, 12.0, 18.0, 24.0, 30.0)}, _depth_attenuation),
    Corruption("acoustic_shadow", "Acoustic shadow", "(width, loss)", "(of width, dB of 60)", "xvision",
               {"ultrasound": ((0.06, 9.0), (0.09, 12.0), (0.12, 18.0), (0.16, 24.0), (0.20, 30.0))}, _acoustic_shadow),
    Corruption("reverberation", "Reverberation lines", "brightness of the first line", "of full range", "xvision",
               {"ultrasound": (0.1, 0.2, 0.3, 0.45, 0.6)}, _reverberation),
    Corruption("lateral_blur", "Wide beam (lateral blur)", "standard deviation", "px at side 224", "xvision",
               {"ultrasound": (2.0, 4.0, 6.0, 8.0, 12.0)}, _lateral_blur),
)
# fmt: on
