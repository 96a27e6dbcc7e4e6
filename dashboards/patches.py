"""Where in a map the evidence lies: its strongest connected patches, and the lines around them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from scipy import ndimage

_SMOOTHING = 48  # a patch is sought on the map smoothed over this part of the image's longer side
_LEAST = 1 / 3  # of the strongest smoothed evidence: what belongs to a patch
_TOUCHING = np.ones((3, 3), dtype=int)


class Patch(NamedTuple):
    """Connected pixels (H, W) with strong evidence of one sign.

    rows, columns: first and last. share: of all evidence of that sign in the map.
    """

    pixels: np.ndarray
    rows: tuple[int, int]
    columns: tuple[int, int]
    share: float


def strongest_patches(values: np.ndarray, sign: Literal[1, -1], most: int = 3) -> tuple[Patch, ...]:
    """The patches of a map (H, W) that hold most evidence of one sign, the heaviest first; none where there is none.

    The map is smoothed to find them, so that a map of scattered pixels has patches at all; shares are of the map as it is.
    Where a patch ends is a matter of convention, not of the model.
    """
    evidence = np.maximum(sign * values, 0.0)
    total = float(evidence.sum())
    if total <= 0:
        return ()
    smooth = ndimage.gaussian_filter(evidence, max(values.shape) / _SMOOTHING, mode="nearest")
    labels, count = ndimage.label(smooth >= _LEAST * smooth.max(), structure=_TOUCHING)
    weights = ndimage.sum_labels(evidence, labels, np.arange(1, count + 1))
    boxes = ndimage.find_objects(labels)
    heaviest = np.argsort(-weights, kind="stable")[:most]
    return tuple(_patch(labels == place + 1, boxes[place], float(weights[place]) / total) for place in heaviest)


def _patch(pixels: np.ndarray, box: tuple[slice, slice], share: float) -> Patch:
    rows, columns = box
    return Patch(pixels, (rows.start, rows.stop - 1), (columns.start, columns.stop - 1), share)


def border(pixels: np.ndarray) -> tuple[list[float | None], list[float | None]]:
    """x and y of the lines along pixel edges between a mask (H, W) and what is outside it, None between two lines.

    The pixel in row r and column c reaches from c − 0.5 to c + 0.5 and from r − 0.5 to r + 0.5.
    """
    padded = np.pad(pixels.astype(bool), 1)
    level, start, stop = _runs(padded[1:, 1:-1] != padded[:-1, 1:-1])
    upright, top, bottom = _runs((padded[1:-1, 1:] != padded[1:-1, :-1]).T)
    x = np.stack([np.r_[start, upright], np.r_[stop, upright]])
    y = np.stack([np.r_[level, top], np.r_[level, bottom]])
    return _broken(x - 0.5), _broken(y - 0.5)


def _runs(flags: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Line, first and one past the last place of every unbroken run of true values along the lines (N, M)."""
    change = np.diff(np.pad(flags.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    lines, first = np.nonzero(change == 1)
    return lines, first, np.nonzero(change == -1)[1]


def _broken(ends: np.ndarray) -> list[float | None]:
    """Beginnings and ends (2, N) one after the other, None after each pair."""
    return [value for pair in ends.T.tolist() for value in (*pair, None)]
