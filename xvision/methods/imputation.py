"""Filling removed pixels from their neighbours, after Rong et al. (2022), "A consistent and efficient evaluation strategy".

Every removed pixel is the weighted mean of the pixels around it, removed or not: a sparse linear system. A hole filled
in this way keeps no outline of what was there, so a model cannot read the shape of the removed part off its edge.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from scipy.linalg import solveh_banded
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu
from threadpoolctl import ThreadpoolController

from xvision.errors import DataError

_DIRECT, _DIAGONAL = 1.0 / 6.0, 1.0 / 12.0
_AROUND = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if (down, right) != (0, 0))
_BAND_ENTRIES = 2**24
"""Largest band that is factorised as one: 128 MB, enough for a hole that is all of an image of 256 x 256."""
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


class _Holes(NamedTuple):
    """The n removed pixels in reading order, and the 8 neighbours of each, all (8, n).

    around: place in the image. weights: 0 beyond the border. unknown: whether it is removed too. number: which removed
    pixel it then is.
    """

    around: np.ndarray
    weights: np.ndarray
    unknown: np.ndarray
    number: np.ndarray


def _solved(pixels: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """(C, n) values of the removed pixels, row by row; one factorisation for all channels."""
    holes = _holes(removed)
    flat = pixels.reshape(len(pixels), -1)
    right = (flat[:, holes.around] * np.where(holes.unknown, 0.0, holes.weights)).sum(axis=1).T
    own = np.arange(len(right))
    reach = int(np.where(holes.unknown, holes.number - own, 0).max())
    solve = _banded if (reach + 1) * len(right) <= _BAND_ENTRIES else _sparse
    with _libraries().limit(limits=1, user_api="blas"):  # a narrow band is solved several times slower by many threads
        values: np.ndarray = solve(holes, right, reach).T
    return values


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def _banded(holes: _Holes, right: np.ndarray, reach: int) -> np.ndarray:
    """Cholesky's factors within the band: row by row, no neighbour is more than about a row away.

    Several times faster than a sparse solver where the band fits into memory.
    """
    own = np.arange(len(right))
    band = np.zeros((reach + 1, len(right)))
    band[0] = holes.weights.sum(axis=0)
    for unknown, number, weight in zip(holes.unknown, holes.number, holes.weights, strict=True):
        later = unknown & (number > own)
        band[number[later] - own[later], own[later]] = -weight[later]
    values: np.ndarray = solveh_banded(band, right, lower=True, overwrite_ab=True, overwrite_b=True, check_finite=False)
    return values


def _sparse(holes: _Holes, right: np.ndarray, _: int) -> np.ndarray:
    """For large holes, whose band would be mostly empty."""
    own, unknown = np.arange(len(right)), holes.unknown
    rows = np.concatenate((own, np.broadcast_to(own, unknown.shape)[unknown]))
    columns = np.concatenate((own, holes.number[unknown]))
    entries = np.concatenate((holes.weights.sum(axis=0), -holes.weights[unknown]))
    factors = splu(
        csc_matrix((entries, (rows, columns)), shape=(len(own), len(own))),
        permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True},
    )  # fmt: skip  # symmetric and diagonally dominant: no pivoting is needed, and far fewer entries fill in
    values: np.ndarray = factors.solve(np.ascontiguousarray(right))
    return values


def _holes(removed: np.ndarray) -> _Holes:
    flat = removed.ravel()
    gone = np.flatnonzero(flat)
    around = _neighbours(*removed.shape)[:, gone]
    inside = around >= 0
    around = np.where(inside, around, gone)  # a place that exists, with weight 0
    numbers = np.cumsum(flat) - 1
    return _Holes(around, np.where(inside, _WEIGHTS[:, None], 0.0), flat[around] & inside, numbers[around])


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
