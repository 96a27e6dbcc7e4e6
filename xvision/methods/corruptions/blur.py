"""Loss of sharpness: focus and motion."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len

from xvision.methods.corruptions.draws import uniform
from xvision.methods.corruptions.kind import ANY, Corruption, scaled
from xvision.methods.filters import gaussian_blur

_LARGEST_DIRECT = 11
"""Side of a kernel in pixels above which the Fourier transform is faster than summing."""


def _gaussian_blur(pixels: torch.Tensor, sigma: float, seeds: Sequence[int]) -> torch.Tensor:
    return gaussian_blur(pixels, scaled(sigma, pixels))


def _defocus_blur(pixels: torch.Tensor, radius: float, seeds: Sequence[int]) -> torch.Tensor:
    """The circle of confusion of a lens out of focus: the mean of the image moved to every point of a disc."""
    reach = scaled(radius, pixels)
    fine = np.linspace(-1.0, 1.0, 8 * math.ceil(reach) + 25)
    rows, columns = np.meshgrid(fine, fine, indexing="ij")
    inside = rows**2 + columns**2 <= 1.0 + 1e-9  # the same points on both sides, whatever is rounded
    return _spread(pixels, _kernels(reach * rows[inside][None], reach * columns[inside][None], reach))


def _motion_blur(pixels: torch.Tensor, length: float, seeds: Sequence[int]) -> torch.Tensor:
    """Steady motion of ``length`` during the exposure, in a direction within 45 degrees of horizontal, per case."""
    angles = math.pi / 4.0 * (2.0 * uniform(seeds, 1).numpy().astype(np.float64) - 1.0)
    half = scaled(length, pixels) / 2.0
    along = np.linspace(-half, half, 16 * max(1, math.ceil(half) + 1) + 1)
    return _spread(pixels, _kernels(np.sin(angles) * along, np.cos(angles) * along, half))


def _kernels(down: np.ndarray, right: np.ndarray, reach: float) -> torch.Tensor:
    """Weights (B, S, S), summing to 1, of points (B, P) up to ``reach`` off the centre, each spread over the four pixels around it."""
    radius = math.ceil(reach) + 1
    size = 2 * radius + 1
    rows, columns = radius + down, radius + right
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    first = size * size * np.arange(len(rows))[:, None]
    weights = np.zeros(len(rows) * size * size)
    for below, beside in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = (1.0 - np.abs(rows - top - below)) * (1.0 - np.abs(columns - left - beside))
        places = first + (top + below) * size + left + beside
        weights += np.bincount(places.ravel(), share.ravel(), minlength=len(weights))
    return torch.as_tensor(weights.reshape(len(rows), size, size) / rows.shape[1], dtype=torch.float32)


def _spread(pixels: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) blurred with point-symmetric kernels (B or 1, S, S), the edge pixels repeated outwards."""
    batch, channels, height, width = pixels.shape
    size, radius = kernels.shape[-1], kernels.shape[-1] // 2
    padded = F.pad(pixels, (radius,) * 4, mode="replicate")
    weights = kernels.to(pixels.device)
    if size <= _LARGEST_DIRECT:
        planes = padded.reshape(1, batch * channels, *padded.shape[2:])
        each = weights.expand(batch, -1, -1).repeat_interleave(channels, dim=0).unsqueeze(1)
        return F.conv2d(planes, each, groups=batch * channels).reshape(pixels.shape)
    extent = [next_fast_len(length, real=True) for length in padded.shape[2:]]
    spectrum = torch.fft.rfft2(padded, s=extent) * torch.fft.rfft2(weights, s=extent).unsqueeze(1)
    blurred: torch.Tensor = torch.fft.irfft2(spectrum, s=extent)
    return blurred[..., size - 1 : size - 1 + height, size - 1 : size - 1 + width]


_LENS = (4, 5, 6, 7, 8)

# fmt: off
KINDS = (
    # the blur widths of MedMNIST-C vanish on small inputs
    Corruption("gaussian_blur", "Blur", "standard deviation", "px at side 224", "ImageNet-C",
               {ANY: (1, 2, 3, 4, 6)}, _gaussian_blur),
    Corruption("defocus_blur", "Out of focus", "radius", "px at side 224", "MedMNIST-C; ImageNet-C elsewhere",
               {ANY: (3, 4, 6, 8, 10), "dermoscopy": _LENS, "fundus": _LENS, "histology": (3, 4, 5, 6, 7)},
               _defocus_blur),
    Corruption("motion_blur", "Patient motion", "distance moved", "px at side 224", "xvision",
               {ANY: (5, 10, 15, 20, 30)}, _motion_blur),
)
# fmt: on
