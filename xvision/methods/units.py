"""The features that are removed together: patches of a grid, the boxes of a model's tokens, or superpixels.

Whatever removes or ranks features does so by unit, never by pixel and channel. Shapes: B images, P units, H W image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from skimage.segmentation import slic

from xvision.errors import ConfigError, DataError

Evaluate = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Rows (N,) of images and units (N, P) bool that are taken away from each: to the score (N,) float64 that is left.

A row may occur any number of times; the answer of one pair of row and units never depends on the others.
"""


@dataclass(frozen=True, eq=False)
class Units:
    """labels: (H, W) int64, the unit of every pixel, 0 to count − 1, none of them without a pixel."""

    labels: np.ndarray
    count: int

    def __post_init__(self) -> None:
        if self.labels.ndim != 2 or self.labels.dtype != np.int64:
            raise DataError(
                f"units are labels of shape (H, W) and type int64, not {self.labels.shape} {self.labels.dtype}"
            )
        found = np.unique(self.labels)
        if len(found) != self.count or found[0] != 0 or found[-1] != self.count - 1:
            raise DataError(f"found {len(found)} different labels up to {found[-1]} for {self.count} units")

    @cached_property
    def areas(self) -> np.ndarray:
        """(P,) pixels of each unit."""
        return np.bincount(self.labels.ravel(), minlength=self.count)

    def sums(self, maps: np.ndarray) -> np.ndarray:
        """Maps (B, H, W) added up in each unit, (B, P) float64."""
        if maps.ndim != 3 or maps.shape[1:] != self.labels.shape:
            raise DataError(f"found maps of shape {maps.shape} for units of an image of {self.labels.shape}")
        order = np.argsort(self.labels, axis=None, kind="stable")
        starts = np.concatenate(([0], np.cumsum(self.areas)[:-1]))
        flat = maps.reshape(len(maps), -1).astype(np.float64)[:, order]
        added: np.ndarray = np.add.reduceat(flat, starts, axis=1)
        return added

    def painted(self, values: np.ndarray) -> np.ndarray:
        """Values (B, P) on every pixel of their unit, (B, H, W), of the same type."""
        if values.ndim != 2 or values.shape[1] != self.count:
            raise DataError(f"found values of shape {values.shape} for {self.count} units")
        return np.asarray(values[:, self.labels])


def grid(height: int, width: int, side: int) -> Units:
    """Square patches of ``side`` pixels, row by row; those at the right and bottom edge may be smaller."""
    if side < 1 or side > max(height, width):
        raise ConfigError(f"found a patch side of {side} for an image of {height} x {width}")
    columns = -(-width // side)
    rows, places = np.arange(height) // side, np.arange(width) // side
    labels = (rows[:, None] * columns + places[None, :]).astype(np.int64)
    return Units(labels, int(labels.max()) + 1)


def superpixels(pixels: np.ndarray, count: int) -> Units:
    """About ``count`` connected regions of like pixels of an image (C, H, W), by SLIC (Achanta et al. 2012).

    Values are compared relative to the image's own range. An image of one value has no regions, so it is cut into a grid
    of about as many patches.

    Raises:
        ConfigError: a count below 1 or above the number of pixels.
        DataError: an image that is not (C, H, W) or not finite.
    """
    if pixels.ndim != 3 or not np.isfinite(pixels).all():
        raise DataError(f"superpixels need a finite image of shape (C, H, W): found shape {pixels.shape}")
    height, width = pixels.shape[1:]
    if not 1 <= count <= height * width:
        raise ConfigError(f"found {count} superpixels for an image of {height} x {width}")
    if np.ptp(pixels, axis=(1, 2)).max() == 0.0:
        return grid(height, width, min(max(height, width), max(1, round((height * width / count) ** 0.5))))
    # Not in Lab, whose values run to 100: so one compactness serves grey and colour.
    regions = slic(pixels, n_segments=count, compactness=0.2, convert2lab=False, start_label=0, channel_axis=0)
    found, labels = np.unique(regions, return_inverse=True)
    return Units(labels.reshape(height, width).astype(np.int64), len(found))
