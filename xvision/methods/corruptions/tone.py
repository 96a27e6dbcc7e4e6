"""Exposure, contrast and window: the same anatomy in other grey values. Images are clipped to [0, 1] afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xvision.methods.corruptions.draws import pixel_noise, uniform
from xvision.methods.corruptions.kind import ANY, Corruption


def _contrast(pixels: torch.Tensor, factor: float, seeds: Sequence[int]) -> torch.Tensor:
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    return mean + factor * (pixels - mean)


def _brightness(pixels: torch.Tensor, factor: float, seeds: Sequence[int]) -> torch.Tensor:
    return factor * pixels


def _gamma(pixels: torch.Tensor, gamma: float, seeds: Sequence[int]) -> torch.Tensor:
    return pixels.pow(gamma)


def _inversion(pixels: torch.Tensor, share: float, seeds: Sequence[int]) -> torch.Tensor:
    """White for black, as where MONOCHROME1 is read as MONOCHROME2."""
    return 1.0 - pixels


def _overexposure(pixels: torch.Tensor, factor: float, seeds: Sequence[int]) -> torch.Tensor:
    """``factor`` times the quanta on a film that is black where it is hit: what lets most through is lost in black."""
    return 1.0 - factor * (1.0 - pixels)


def _underexposure(pixels: torch.Tensor, share: float, seeds: Sequence[int]) -> torch.Tensor:
    """``share`` of the quanta, of 400 per pixel at full exposure: paler, with counting noise in Gauss's approximation."""
    received = share * (1.0 - pixels)
    return 1.0 - received + (received / _QUANTA).sqrt() * pixel_noise(pixels, seeds)


def _window_centre(pixels: torch.Tensor, shift: float, seeds: Sequence[int]) -> torch.Tensor:
    """The window moved by ``shift`` of its width, up or down, per case."""
    return pixels + shift * _signs(pixels, seeds)


def _window_width(pixels: torch.Tensor, change: float, seeds: Sequence[int]) -> torch.Tensor:
    """The window narrower or wider by the factor 1 - ``change``, per case, about its centre."""
    factor = (1.0 - change) ** _signs(pixels, seeds)
    return 0.5 + (pixels - 0.5) / factor


def _signs(pixels: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """(B, 1, 1, 1) of 1 and -1."""
    return (1.0 - 2.0 * (uniform(seeds, 1, 1, 1) < 0.5).float()).to(pixels.device)


_QUANTA = 400.0
_UP, _DOWN = (1.1, 1.2, 1.3, 1.4, 1.6), (0.9, 0.8, 0.7, 0.6, 0.4)
_LESS, _MICROSCOPE = (0.9, 0.8, 0.7, 0.6, 0.5), (0.8, 0.7, 0.6, 0.55, 0.5)
_MEDMNIST, _OWN = "MedMNIST-C", "xvision"
_ONCE = (1.0, 1.0, 1.0, 1.0, 1.0)
_WINDOW = (0.1, 0.2, 0.3, 0.4, 0.5)

# fmt: off
KINDS = (
    Corruption("contrast_up", "High contrast", "contrast factor", "about the mean", _MEDMNIST,
               {ANY: _UP, "ct": (1.3, 1.4, 1.6, 1.7, 1.8)}, _contrast),
    Corruption("contrast_down", "Low contrast", "contrast kept", "share", f"{_MEDMNIST}; ImageNet-C for natural images",
               {ANY: _DOWN, "ct": _MICROSCOPE, "histology": _MICROSCOPE, "dermoscopy": (0.8, 0.7, 0.6, 0.5, 0.4),
                "natural": (0.4, 0.3, 0.2, 0.1, 0.05)}, _contrast),
    Corruption("brightness_up", "Too bright", "brightness factor", "times", _MEDMNIST,
               {ANY: (1.1, 1.2, 1.3, 1.4, 1.5), "ct": (1.2, 1.3, 1.4, 1.5, 1.6), "ultrasound": (1.4, 1.5, 1.6, 1.8, 2.0),
                "histology": (1.1, 1.15, 1.2, 1.22, 1.25)}, _brightness),
    Corruption("brightness_down", "Too dark", "brightness factor", "times", _MEDMNIST,
               {ANY: _LESS, "ct": (0.8, 0.75, 0.7, 0.65, 0.6), "ultrasound": (0.55, 0.5, 0.45, 0.4, 0.3),
                "histology": (0.85, 0.8, 0.75, 0.72, 0.7)}, _brightness),
    Corruption("gamma_up", "Darker exposure", "gamma", "exponent", _MEDMNIST,
               {ANY: _UP, "ct": (1.3, 1.4, 1.6, 1.8, 2.0)}, _gamma),
    Corruption("gamma_down", "Brighter exposure", "gamma", "exponent", _MEDMNIST, {ANY: _DOWN}, _gamma),
    Corruption("inversion", "Black and white exchanged", "inverted", "all or nothing", _OWN,
               {"xray": _ONCE, "ct": _ONCE, "mr": _ONCE}, _inversion),
    Corruption("overexposure", "Overexposure", "exposure", "times", _OWN, {"xray": (1.05, 1.1, 1.2, 1.3, 1.5)},
               _overexposure),
    Corruption("underexposure", "Underexposure with its noise", "exposure kept", "share", _OWN,
               {"xray": (0.9, 0.8, 0.65, 0.5, 0.35)}, _underexposure),
    Corruption("window_centre", "Wrong window centre", "shift", "of the window", _OWN,
               {"xray": _WINDOW, "ct": _WINDOW, "mr": _WINDOW}, _window_centre),
    Corruption("window_width", "Wrong window width", "change of width", "share", _OWN,
               {"xray": _WINDOW, "ct": _WINDOW, "mr": _WINDOW}, _window_width),
)
# fmt: on
