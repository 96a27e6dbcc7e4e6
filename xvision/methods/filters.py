"""Linear filters on image batches (B, C, H, W), with the edge pixels repeated beyond the border."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import ive

_SOBEL_DERIVATIVE = (-0.5, 0.0, 0.5)
_SOBEL_SMOOTHING = (0.25, 0.5, 0.25)


def gaussian_blur(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of standard deviation ``sigma`` in pixels, cut beyond 4 sigma; 0 leaves the image unchanged.

    The kernel is Lindeberg's discrete Gaussian (1990), whose standard deviation is sigma also far below one pixel, where
    a sampled Gaussian does nothing. A constant image stays constant. Shapes: (B, C, H, W) in and out.
    """
    if sigma == 0.0:
        return pixels
    radius = math.ceil(4.0 * sigma) + 1
    weights = ive(np.abs(np.arange(-radius, radius + 1)), sigma**2)
    kernel = (weights / weights.sum()).tolist()
    return _separable(pixels, kernel, kernel)


def sobel_gradient(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Horizontal and vertical derivative of (B, C, H, W), per pixel: exact on a linear ramp away from the border."""
    horizontal = _separable(image, _SOBEL_SMOOTHING, _SOBEL_DERIVATIVE)
    return horizontal, _separable(image, _SOBEL_DERIVATIVE, _SOBEL_SMOOTHING)


def _separable(
    pixels: torch.Tensor, vertical: list[float] | tuple[float, ...], horizontal: list[float] | tuple[float, ...]
) -> torch.Tensor:
    batch, channels, height, width = pixels.shape
    planes = (
        batch * channels
    )  # as channels of one image, which torch convolves far faster than as images of one channel
    rows, columns = len(vertical) // 2, len(horizontal) // 2
    padded = F.pad(pixels.reshape(1, planes, height, width), (columns, columns, rows, rows), mode="replicate")
    down = pixels.new_tensor(vertical).view(1, 1, -1, 1).expand(planes, 1, -1, 1)
    across = pixels.new_tensor(horizontal).view(1, 1, 1, -1).expand(planes, 1, 1, -1)
    return F.conv2d(F.conv2d(padded, down, groups=planes), across, groups=planes).reshape(pixels.shape)
