"""Filling removed pixels from their neighbours, after Rong et al. (2022), "A consistent and efficient evaluation strategy".

Every removed pixel is the weighted mean of the pixels around it, removed or not: a sparse linear system. A hole filled
in this way keeps no outline of what was there, so a model cannot read the shape of the removed part off its edge.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu

from xvision.errors import DataError

_DIRECT, _DIAGONAL = 1.0 / 6.0, 1.0 / 12.0
_AROUND = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if (down, right) != (0, 0))
_WEIGHTS = np.array([_DIAGONAL if down and right else _DIRECT for down, right in _AROUND])


def linear_imputation(pixels: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The image (C, H, W) float64 with its removed pixels (H, W) bool interpolated; the others are untouched.

    A direct neighbour weighs 1/6 and a diagonal one 1/12; beyond the border there is none, and the weights of the others
    are scaled to sum to one. When every pixel is removed nothing is left to interpolate from: each channel becomes its
    own mean, which is what the system tends to, though no solution of it is better than another.

    Raises:
        DataError: the mask does not match the image.
    """
    if pixels.ndim != 3 or removed.shape != pixels.shape[1:]:
        raise DataError(
            f"found an image of shape {pixels.shape} and a mask of shape {removed.shape}:"
            " they must be (C, H, W) and (H, W)"
        )
    filled = pixels.astype(np.float64)
    if removed.all():
        filled[:] = filled.mean(axis=(1, 2), keepdims=True)
    elif removed.any():
        filled[:, removed] = _solved(filled, removed)
    return filled


class _System(NamedTuple):
    """matrix: (n, n) over the n removed pixels. known: (8, n) weight of each neighbour that is an untouched pixel."""

    matrix: csc_matrix
    around: np.ndarray
    known: np.ndarray


def _solved(pixels: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """(C, n) values of the removed pixels, row by row; one factorisation for all channels."""
    system = _system(removed)
    flat = pixels.reshape(len(pixels), -1)
    right = (flat[:, system.around] * system.known).sum(axis=1).T
    factors = splu(
        system.matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
    )  # symmetric and diagonally dominant: no pivoting is needed, and far fewer entries fill in
    values: np.ndarray = factors.solve(np.ascontiguousarray(right)).T
    return values


def _system(removed: np.ndarray) -> _System:
    flat = removed.ravel()
    gone = np.flatnonzero(flat)
    around = _neighbours(*removed.shape)[:, gone]
    inside = around >= 0
    weights = np.where(inside, _WEIGHTS[:, None], 0.0)
    around = np.where(inside, around, gone)  # a place that exists, with weight 0
    unknown = flat[around] & inside
    number = np.cumsum(flat) - 1
    own = np.arange(len(gone))
    rows = np.concatenate((own, np.broadcast_to(own, unknown.shape)[unknown]))
    columns = np.concatenate((own, number[around[unknown]]))
    entries = np.concatenate((weights.sum(axis=0), -weights[unknown]))
    matrix = csc_matrix((entries, (rows, columns)), shape=(len(gone), len(gone)))
    return _System(matrix, around, np.where(unknown, 0.0, weights))


@lru_cache(maxsize=8)
def _neighbours(height: int, width: int) -> np.ndarray:
    """(8, H * W) the place of each neighbour of each pixel, −1 beyond the border."""
    row, column = np.indices((height, width))
    places = []
    for down, right in _AROUND:
        there, across = row + down, column + right
        inside = (there >= 0) & (there < height) & (across >= 0) & (across < width)
        places.append(np.where(inside, there * width + across, -1).ravel())
    return np.stack(places)
