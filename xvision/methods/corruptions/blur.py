"""Loss of sharpness: focus and motion."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from xvision.methods.corruptions.kind import ANY, Corruption, scaled
from xvision.methods.filters import gaussian_blur
from xvision.methods.randomness import case_generator


def _gaussian_blur(pixels: torch.Tensor, sigma: float, seeds: Sequence[int]) -> torch.Tensor:
    return gaussian_blur(pixels, scaled(sigma, pixels))


def _motion_blur(pixels: torch.Tensor, length: float, seeds: Sequence[int]) -> torch.Tensor:
    """Steady motion of ``length`` during the exposure, in a direction within 45 degrees of horizontal, per case."""
    batch, channels = pixels.shape[:2]
    reach = scaled(length, pixels)
    angles = [math.pi / 4.0 * (2.0 * torch.rand((), generator=case_generator(seed)).item() - 1.0) for seed in seeds]
    kernels = torch.stack([_line_kernel(reach, angle) for angle in angles]).to(pixels.device)
    radius = kernels.shape[-1] // 2
    padded = F.pad(pixels, (radius,) * 4, mode="replicate")
    planes = padded.reshape(1, batch * channels, *padded.shape[2:])
    weights = kernels.unsqueeze(1).repeat_interleave(channels, dim=0)
    return F.conv2d(planes, weights, groups=batch * channels).reshape(pixels.shape)


def _line_kernel(length: float, angle: float) -> torch.Tensor:
    """Weights (S, S), summing to 1, of a line through the centre, spread over the four pixels around each point."""
    radius = max(1, math.ceil(length / 2.0) + 1)
    along = np.linspace(-length / 2.0, length / 2.0, 16 * radius + 1)
    rows, columns = radius + along * math.sin(angle), radius + along * math.cos(angle)
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = (1.0 - np.abs(rows - top - down)) * (1.0 - np.abs(columns - left - right))
        np.add.at(kernel, (top + down, left + right), weight)
    return torch.as_tensor(kernel / kernel.sum(), dtype=torch.float32)


# fmt: off
KINDS = (
    # the blur widths of MedMNIST-C vanish on small inputs
    Corruption("gaussian_blur", "Blur", "standard deviation", "px at side 224", "ImageNet-C",
               {ANY: (1, 2, 3, 4, 6)}, _gaussian_blur),
    Corruption("motion_blur", "Patient motion", "distance moved", "px at side 224", "xvision",
               {ANY: (5, 10, 15, 20, 30)}, _motion_blur),
)
# fmt: on
