"""What an image is like before any model looks at it, one number per image. Shapes: B images, C channels, H W pixels."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import convolve, laplace

from xvision.errors import DataError

_EDGE = 0.5 / 255
"""Within half a grey level of the ends, a pixel is black or white."""
_LEVELS = 256
_NOISE = np.array([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])

STATISTICS = {
    "mean": "Mean grey value",
    "sd": "Standard deviation (contrast)",
    "p05": "5th percentile",
    "median": "Median",
    "p95": "95th percentile",
    "sharpness": "Sharpness (variance of the Laplacian)",
    "noise": "Noise (Immerkær 1996)",
    "black": "Share of black pixels",
    "white": "Share of white pixels",
    "entropy": "Entropy of the grey values, bits",
}


def image_statistics(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Each of :data:`STATISTICS` (B,) for pixels (B, C, H, W) in [0, 1], on the mean of the channels.

    noise estimates the standard deviation of white noise from what a straight edge does not explain (Immerkær 1996): fine
    texture counts as noise. entropy is of the histogram of 256 grey levels. All are of the image as the model sees it:
    resizing has already taken away part of what tells scanners apart. Raises DataError for images under 3 × 3 pixels.
    """
    if pixels.ndim != 4 or min(pixels.shape[2:]) < 3:
        raise DataError(f"found pixels of shape {pixels.shape}; give (B, C, H, W) of at least 3 × 3 pixels")
    grey = np.asarray(pixels, float).mean(axis=1)
    flat = grey.reshape(len(grey), -1)
    low, middle, high = np.percentile(flat, [5, 50, 95], axis=1)
    inner = (slice(None), slice(1, -1), slice(1, -1))
    residue = np.stack([convolve(image, _NOISE) for image in grey])[inner] if len(grey) else grey[inner]
    return {
        "mean": flat.mean(axis=1),
        "sd": flat.std(axis=1),
        "p05": low,
        "median": middle,
        "p95": high,
        "sharpness": np.array([laplace(image)[1:-1, 1:-1].var() for image in grey]),
        "noise": np.sqrt(np.pi / 2) / 6 * np.abs(residue).mean(axis=(1, 2)),
        "black": (flat <= _EDGE).mean(axis=1),
        "white": (flat >= 1 - _EDGE).mean(axis=1),
        "entropy": np.array([_entropy(values) for values in flat]),
    }


def _entropy(values: np.ndarray) -> float:
    counts = np.bincount(np.clip(np.rint(values * (_LEVELS - 1)), 0, _LEVELS - 1).astype(int), minlength=_LEVELS)
    shares = counts[counts > 0] / len(values)
    return float(-(shares @ np.log2(shares)))
