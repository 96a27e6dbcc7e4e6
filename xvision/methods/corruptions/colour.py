"""Colours that another lamp, camera or lab gives the same tissue.

Saturation and hue are those of HSV on the stored values; the lamps and the white balance act on linear light, after the
transfer function of sRGB, and keep the luminance of white. All need three channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from xvision.errors import ConfigError
from xvision.methods.corruptions.drawing import LUMA, per_case
from xvision.methods.corruptions.draws import uniform
from xvision.methods.corruptions.kind import Corruption

REFERENCE_KELVIN = 6500.0
_LUMINANCE = (0.2126, 0.7152, 0.0722)  # of linear sRGB
_XYZ_TO_SRGB = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
# lobes (height, place, width below, width above in nm) of Wyman, Sloan and Shirley (2013) for the CIE 1931 observer
_OBSERVER = (
    ((1.056, 599.8, 37.9, 31.0), (0.362, 442.0, 16.0, 26.7), (-0.065, 501.1, 20.4, 26.2)),
    ((0.821, 568.8, 46.9, 40.5), (0.286, 530.9, 16.3, 31.1)),
    ((1.217, 437.0, 11.8, 36.0), (0.681, 459.0, 26.0, 13.8)),
)


def require_colour(pixels: torch.Tensor, what: str) -> None:
    """Raise ConfigError unless there are three channels."""
    if pixels.shape[1] != 3:
        raise ConfigError(
            f"found images of {pixels.shape[1]} channel(s): a change of {what} needs the 3 channels of colour; "
            "leave this corruption out"
        )


def _saturation_down(pixels: torch.Tensor, factor: float, seeds: Sequence[int]) -> torch.Tensor:
    """Towards each pixel's luma: 1 leaves it, 0 makes it grey."""
    require_colour(pixels, "saturation")
    grey = (pixels * pixels.new_tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    return grey + factor * (pixels - grey)


def _saturation_up(pixels: torch.Tensor, change: tuple[float, float], seeds: Sequence[int]) -> torch.Tensor:
    """HSV saturation times the first plus the second number, at most 1; grey pixels have no hue and stay grey."""
    require_colour(pixels, "saturation")
    factor, added = change
    value, least = pixels.amax(dim=1, keepdim=True), pixels.amin(dim=1, keepdim=True)
    span = value - least
    before = span / value.clamp(min=1e-12)
    after = (factor * before + added).clamp(0.0, 1.0)
    ratio = torch.where(span > 0.0, after / before.clamp(min=1e-12), 1.0)
    return value - (value - pixels) * ratio


def _hue(pixels: torch.Tensor, degrees: float, seeds: Sequence[int]) -> torch.Tensor:
    """The HSV hue turned by ``degrees``, forwards or backwards per case; saturation and value stay."""
    require_colour(pixels, "hue")
    turn = degrees * torch.where(uniform(seeds) < 0.5, -1.0, 1.0)
    value = pixels.amax(dim=1, keepdim=True)
    span = value - pixels.amin(dim=1, keepdim=True)
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    scale = span.clamp(min=1e-12)
    from_red, from_green = (green - blue) / scale, (blue - red) / scale + 2.0
    sector = torch.where(value == green, from_green, (red - green) / scale + 4.0)
    sector = torch.where(value == red, from_red, sector) + per_case(turn / 60.0, pixels)
    offsets = pixels.new_tensor((5.0, 3.0, 1.0)).view(1, 3, 1, 1)
    place = (sector + offsets).remainder(6.0)
    return value - span * torch.minimum(place, 4.0 - place).clamp(0.0, 1.0)


def _lamp(pixels: torch.Tensor, kelvin: float, seeds: Sequence[int]) -> torch.Tensor:
    """Seen under a black body of this temperature by a camera balanced for 6500 K."""
    require_colour(pixels, "the lamp")
    gains = black_body(kelvin) / black_body(REFERENCE_KELVIN)
    return _with_gains(pixels, torch.as_tensor(gains, dtype=torch.float32)[None])


def _white_balance(pixels: torch.Tensor, stops: float, seeds: Sequence[int]) -> torch.Tensor:
    """Channel gains off by ``stops`` (length of their log2 vector) in a direction per case that keeps their product."""
    require_colour(pixels, "the white balance")
    angle = 2.0 * math.pi * uniform(seeds)
    first = torch.tensor((1.0, -1.0, 0.0)) / math.sqrt(2.0)
    second = torch.tensor((1.0, 1.0, -2.0)) / math.sqrt(6.0)
    return _with_gains(pixels, torch.exp2(stops * (torch.outer(angle.cos(), first) + torch.outer(angle.sin(), second))))


def _with_gains(pixels: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """Linear light times gains (B or 1, 3) that are scaled to keep the luminance of white."""
    balanced = gains / (gains * torch.tensor(_LUMINANCE)).sum(dim=1, keepdim=True)
    light = torch.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055).pow(2.4))
    light = light * per_case(balanced, pixels)
    return torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light.pow(1.0 / 2.4) - 0.055)


def black_body(kelvin: float) -> np.ndarray:
    """Linear sRGB (3,) of a black body after Planck's law, seen by the CIE 1931 observer; the largest channel is 1."""
    nanometres = np.arange(380.0, 781.0, 5.0)
    metres = 1e-9 * nanometres
    radiance = metres**-5 / np.expm1(1.438777e-2 / (metres * kelvin))
    seen = [sum(_lobe(nanometres, *lobe) for lobe in lobes) @ radiance for lobes in _OBSERVER]
    linear: np.ndarray = _XYZ_TO_SRGB @ np.array(seen)
    return np.asarray(linear / linear.max())


def _lobe(nanometres: np.ndarray, height: float, place: float, below: float, above: float) -> np.ndarray:
    width = np.where(nanometres < place, below, above)
    curve: np.ndarray = height * np.exp(-0.5 * ((nanometres - place) / width) ** 2)
    return curve


_COLOURED = ("dermoscopy", "histology", "fundus", "natural")
_ADDED = ((1.0, 0.05), (1.0, 0.1), (1.0, 0.15), (1.0, 0.2), (1.0, 0.25))

# fmt: off
KINDS = (
    Corruption("saturation_down", "Faded colours", "saturation kept", "share", "xvision",
               dict.fromkeys(_COLOURED, (0.8, 0.6, 0.4, 0.2, 0.0)), _saturation_down),
    # ImageNet-C's first two severities take saturation away and its third adds less than these two: in order here
    Corruption("saturation_up", "Strong colours", "saturation: factor, added", "HSV", "MedMNIST-C; ImageNet-C (natural)",
               dict.fromkeys(("histology", "dermoscopy", "fundus"), _ADDED)
               | {"natural": ((1.5, 0.0), (2.0, 0.0), (3.0, 0.05), (5.0, 0.1), (20.0, 0.2))}, _saturation_up),
    Corruption("hue", "Hue off", "turn of hue, either way", "degrees", "xvision",
               dict.fromkeys(_COLOURED, (5, 10, 15, 20, 30)), _hue),
    Corruption("warm_light", "Warmer light", "temperature of the lamp", "K", "xvision",
               dict.fromkeys(_COLOURED, (5500, 4800, 4200, 3600, 3000)), _lamp),
    Corruption("cold_light", "Colder light", "temperature of the lamp", "K", "xvision",
               dict.fromkeys(_COLOURED, (7500, 9000, 11000, 14000, 20000)), _lamp),
    Corruption("white_balance", "Wrong white balance", "error of the channel gains", "stops", "xvision",
               dict.fromkeys(_COLOURED, (0.15, 0.3, 0.5, 0.7, 1.0)), _white_balance),
)
# fmt: on
