"""How large a change is: PSNR and SSIM of each case."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from xvision.errors import DataError

_WINDOW = 7
_K1, _K2 = 0.01, 0.03


def psnr(clean: torch.Tensor, corrupted: torch.Tensor) -> np.ndarray:
    """Peak signal-to-noise ratio in dB per case, (B,) float64: -10 log10 of the mean squared change, peak 1.

    Smaller is a larger change; infinite where nothing changed. It counts pixels, not meaning: a small marker scores
    high and may still decide the prediction.
    """
    _require_same_shape(clean, corrupted)
    error = (clean.double() - corrupted.double()).square().flatten(1).mean(dim=1).cpu().numpy()
    with np.errstate(divide="ignore"):
        decibel: np.ndarray = -10.0 * np.log10(error)
    return decibel


def ssim(clean: torch.Tensor, corrupted: torch.Tensor) -> np.ndarray:
    """Structural similarity per case, (B,) float64, 1 where nothing changed (Wang et al. 2004).

    Uniform windows of 7 x 7 pixels that lie wholly in the image, sample covariance, constants .01 and .03 of the range 1,
    the mean over windows and channels: scikit-image's defaults. Unlike PSNR it hardly counts a change of brightness.
    """
    _require_same_shape(clean, corrupted)
    if min(clean.shape[2:]) < _WINDOW:
        raise DataError(
            f"found images of {tuple(clean.shape[2:])} pixels: the structural similarity needs {_WINDOW} a side"
        )
    first, second = clean.double(), corrupted.double()
    moments = (_windowed(each) for each in (first, second, first * first, second * second, first * second))
    mean_1, mean_2, square_1, square_2, product = moments
    sample = _WINDOW**2 / (_WINDOW**2 - 1)
    covariance = sample * (product - mean_1 * mean_2)
    variances = sample * (square_1 - mean_1**2 + square_2 - mean_2**2)
    luminance = (2.0 * mean_1 * mean_2 + _K1**2) / (mean_1**2 + mean_2**2 + _K1**2)
    structure = (2.0 * covariance + _K2**2) / (variances + _K2**2)
    similarity: np.ndarray = (luminance * structure).mean(dim=(1, 2, 3)).cpu().numpy()
    return similarity


def _windowed(images: torch.Tensor) -> torch.Tensor:
    """Means over the windows, by running sums: the time does not grow with the window."""
    down = F.pad(images.cumsum(dim=2), (0, 0, 1, 0))
    rows = down[:, :, _WINDOW:] - down[:, :, :-_WINDOW]
    across = F.pad(rows.cumsum(dim=3), (1, 0))
    return (across[..., _WINDOW:] - across[..., :-_WINDOW]) / _WINDOW**2


def _require_same_shape(clean: torch.Tensor, corrupted: torch.Tensor) -> None:
    if clean.shape != corrupted.shape:
        raise DataError(f"found images of shape {tuple(clean.shape)} and {tuple(corrupted.shape)}: they must agree")
