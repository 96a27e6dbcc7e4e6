"""Images that are nearly the same, found by hash and by embedding, with a threshold read off the data.

Shapes: B images, C channels, H W image, Q queries, M images searched in, D width, J nearest. Medical images of one kind all
look alike: two chests of different people may differ in 2 of the 63 bits of a usual perceptual hash. The threshold is
therefore what nearest neighbours of *different patients* almost never reach. Copies that were mirrored, turned, or cropped by
more than a pixel are not found by the hash.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

from xvision.errors import DataError

SIDE = 16
BITS = 2 * SIDE * SIDE
FEWEST = 20
"""Cases with a neighbour of another patient below which no threshold is read off."""
ALARMS = 0.05
"""Expected pairs of different patients below the threshold, over all queries."""
_UPPER, _MIDDLE = (0.5, 0.75), (0.25, 0.75)
_NARROWEST = 0.05
_CELLS = 4_000_000


class Neighbours(NamedTuple):
    """places: (Q, J) positions among the images searched, −1 where there are fewer. distances: (Q, J), nearest first."""

    places: np.ndarray
    distances: np.ndarray


class Threshold(NamedTuple):
    """Distances up to ``value`` call a pair nearly the same; None with the ``reason`` why that cannot be said.

    null: (n,) distance of each case to the nearest image of another patient, ascending.
    """

    value: float | None
    null: np.ndarray
    reason: str | None = None


def difference_hashes(pixels: torch.Tensor) -> np.ndarray:
    """Hashes (B, 64) uint8 of images (B, C, H, W): 512 bits, whether brightness rises to the right and downwards.

    The difference hash on 17 × 17 means of the grey image. Each image's bits depend on it alone.
    """
    return _hashed(_grey(pixels))


def shifted_hashes(pixels: torch.Tensor) -> np.ndarray:
    """Hashes (B, 5, 64) uint8 of each image as it is and moved by one pixel to each side."""
    grey = _grey(pixels)
    moves = [
        grey,
        torch.cat((grey[..., 1:], grey[..., -1:]), dim=3),
        torch.cat((grey[..., :1], grey[..., :-1]), dim=3),
        torch.cat((grey[..., 1:, :], grey[..., -1:, :]), dim=2),
        torch.cat((grey[..., :1, :], grey[..., :-1, :]), dim=2),
    ]
    return np.stack([_hashed(each) for each in moves], axis=1)


def _grey(pixels: torch.Tensor) -> torch.Tensor:
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise DataError(f"found pixels of shape {tuple(pixels.shape)}: (B, 1 or 3, H, W) is needed")
    return pixels.detach().double().mean(dim=1, keepdim=True)


def _hashed(grey: torch.Tensor) -> np.ndarray:
    means = adaptive_avg_pool2d(grey, SIDE + 1)[:, 0]
    right = means[:, :SIDE, 1:] > means[:, :SIDE, :-1]
    down = means[:, 1:, :SIDE] > means[:, :-1, :SIDE]
    bits = torch.stack((right, down), dim=1).flatten(1).cpu().numpy()
    return np.packbits(bits, axis=1)


def hash_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Bits that differ between hashes (…, 64) and (…, 64), broadcast."""
    changed = np.bitwise_xor(_words(first), _words(second))
    return np.asarray(np.bitwise_count(changed).sum(axis=-1, dtype=np.int64))


def _words(hashes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(hashes).view(np.uint64)


def nearest_hashes(queries: np.ndarray, searched: np.ndarray, own: np.ndarray, *, most: int = 10) -> Neighbours:
    """The nearest images of each query, itself left out.

    queries: (Q, 5, 64) from :func:`shifted_hashes`. searched: (M, 64). own: (Q,) position of each query among the searched,
    −1 where it is not there. The nearest are found by the unmoved hash, then ordered by the least distance over the moves.
    """
    words = _words(searched)

    def distances(rows: slice) -> np.ndarray:
        found = np.zeros((rows.stop - rows.start, len(words)), np.uint16)
        for word, other in zip(_words(queries[rows, 0]).T, words.T, strict=True):
            found += np.bitwise_count(word[:, None] ^ other[None, :])
        return found

    first = _nearest(distances, len(queries), len(words), own, most)
    if not first.places.size:
        return first
    moved = hash_distances(queries[:, None], searched[np.maximum(first.places, 0)][:, :, None]).min(axis=2)
    return _ordered(first.places, np.where(first.places >= 0, moved, np.inf))


def nearest_embeddings(queries: np.ndarray, searched: np.ndarray, own: np.ndarray, *, most: int = 10) -> Neighbours:
    """As :func:`nearest_hashes` by 1 − cosine of embeddings (Q, D) and (M, D), from which the mean of the searched is taken."""
    centre = searched.mean(axis=0, dtype=np.float64)
    one, other = (_directions(each, centre) for each in (queries, searched))

    def distances(rows: slice) -> np.ndarray:
        return np.asarray(np.maximum(1 - one[rows] @ other.T, 0))

    return _nearest(distances, len(one), len(other), own, most)


def _directions(embeddings: np.ndarray, centre: np.ndarray) -> np.ndarray:
    moved = embeddings - centre
    return np.asarray(moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12), np.float32)


def _nearest(
    distances: Callable[[slice], np.ndarray], queries: int, searched: int, own: np.ndarray, most: int
) -> Neighbours:
    """Block by block, so that never more than some million distances are held; ties go to the first searched."""
    kept = min(most, searched)
    places, found = np.full((queries, kept), -1), np.full((queries, kept), np.inf)
    rows = max(1, _CELLS // max(searched, 1))
    for start in range(0, queries if kept else 0, rows):
        part = slice(start, min(start + rows, queries))
        block = distances(part).astype(np.float32)
        inside = np.flatnonzero(own[part] >= 0)
        block[inside, own[part][inside]] = np.inf
        best = (
            np.argpartition(block, kept - 1, axis=1)[:, :kept]
            if kept < searched
            else np.tile(np.arange(searched), (len(block), 1))
        )
        ordered = _ordered(best, np.take_along_axis(block, best, axis=1))
        places[part], found[part] = ordered
    return Neighbours(np.where(np.isfinite(found), places, -1), found)


def _ordered(places: np.ndarray, distances: np.ndarray) -> Neighbours:
    order = np.lexsort((places, distances), axis=1)
    return Neighbours(np.take_along_axis(places, order, axis=1), np.take_along_axis(distances, order, axis=1))


def threshold(neighbours: Neighbours, patients: np.ndarray, searched: np.ndarray, *, finest: float) -> Threshold:
    """The distance that the nearest image of another patient stays above, but for ``ALARMS`` expected cases.

    patients: (Q,) of the queries; searched: (M,) patients of the images searched. finest: the smallest distance told apart
    from 0. The least of many distances has a Weibull law. It is fitted twice: to the third quarter of the nearest distances,
    which copies among less than half of the cases do not touch, and then, without what that calls copies, to the middle half.
    The threshold is read off far in the lower tail: an extrapolation.
    """
    other = (searched[np.maximum(neighbours.places, 0)] != patients[:, None]) & (neighbours.places >= 0)
    null = np.sort(np.where(other, neighbours.distances, np.inf).min(axis=1, initial=np.inf))
    null = null[np.isfinite(null)]
    if len(null) < FEWEST:
        return Threshold(None, null, f"{len(null)} cases have a neighbour of another patient, {FEWEST} are needed")
    first = _lower_tail(null, _UPPER, finest)
    value = _lower_tail(null[null > first], _MIDDLE, finest)
    if value < finest:
        return Threshold(None, null, "different patients look so alike that copies cannot be told from them")
    return Threshold(value, null)


def _lower_tail(null: np.ndarray, shares: tuple[float, float], finest: float) -> float:
    """The distance below which ``ALARMS`` of so many nearest distances are expected, by the Weibull law through two quantiles."""
    low, high = np.log(np.maximum(np.quantile(null, shares), finest))
    standard = [np.log(-np.log1p(-share)) for share in shares]
    width = max(float(high - low) / (standard[1] - standard[0]), _NARROWEST)
    return float(np.exp(low - width * standard[0] + width * np.log(ALARMS / len(null))))
