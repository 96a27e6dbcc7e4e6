"""Does a heat map fall where it should? Pure functions on maps and masks.

Every score is per case, (B,), and NaN where it cannot be estimated (an empty mask, a map without positive
attribution); the caller turns NaN into None with the reason. Only positive attribution counts as mass. Nothing here
says that the map is faithful to the model. Shapes: maps (B, H, W), masks (B, H, W) bool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

from xvision.errors import ConfigError, DataError

_BINS = 256


class Localisation(NamedTuple):
    """Scores (B,) from 0 to 1, higher is better; a map that knows nothing reaches the values in brackets.

    NaN for an empty mask in all of them. a: the mask's share of the area.
    pointing_game: (a) as the function of that name. hit_rate: (a, grown by the tolerance) the same, a maximum within
    the tolerance of the mask counting as a hit. relevance_mass: (a) and mass_lift: (1, and not bounded by 1) as the
    functions of those names. relevance_rank_accuracy: (a) share of the k highest pixels that lie in the mask of k
    pixels (Arras et al. 2022). pixel_auroc: (0.5) chance that a pixel of the mask is above one outside, ties counting
    half; NaN for a mask without outside. pixel_auprc: (a) average precision, tied pixels being one threshold (Arun et
    al. 2021). iou_top: (a / (2 - a)) overlap of the k highest pixels with the mask. iou_otsu: overlap with the pixels
    above Otsu's threshold (1979) of the positive attribution, as CheXlocalize draws regions (Saporta et al. 2022); NaN
    where that is constant and no threshold divides it.
    """

    pointing_game: np.ndarray
    hit_rate: np.ndarray
    relevance_mass: np.ndarray
    mass_lift: np.ndarray
    relevance_rank_accuracy: np.ndarray
    pixel_auroc: np.ndarray
    pixel_auprc: np.ndarray
    iou_top: np.ndarray
    iou_otsu: np.ndarray


def ranked_family(maps: np.ndarray, masks: np.ndarray, *, tolerance: float = 0.0) -> Localisation:
    """All scores from one sort per map. Pixels are compared in float32; each image's scores depend on nothing else.

    Pixels that tie at the k-th place share the places that are left, so that no order of reading decides. A mask that
    covers everything is found by any map: all but pixel_auroc are then what a constant map reaches.

    Args:
        tolerance: of hit_rate, in pixels.

    Raises:
        DataError: masks of another shape or type than the maps' (B, H, W) bool, or a map with NaN or infinity.
        ConfigError: a negative tolerance.
    """
    _require_same_shape(maps, masks)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(maps, dtype=np.float32)
    _require_finite(values)
    if not tolerance >= 0.0:
        raise ConfigError(f"found tolerance = {tolerance}: it is a distance in pixels, 0 or more")
    ranked = [
        _of_one(row, mask) if mask.any() else _Ranked(*(np.nan,) * 4) for row, mask in zip(values, masks, strict=True)
    ]
    hits = [_hit(row, mask, tolerance) for row, mask in zip(values, masks, strict=True)]
    accuracy, auroc, auprc, otsu = np.array(ranked, dtype=np.float64).reshape(-1, 4).T
    return Localisation(
        pointing_game(values, masks),
        np.array(hits, dtype=np.float64),
        relevance_mass(values, masks),
        mass_lift(values, masks),
        accuracy,
        auroc,
        auprc,
        accuracy / (2.0 - accuracy),
        otsu,
    )


def relevance_mass(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of the positive attribution that lies inside the mask (relevance mass accuracy, Arras et al. 2022).

    A map that knows nothing scores the mask's share of the area, not 0: see ``mass_lift``.
    """
    _require_same_shape(maps, masks)
    return _share(_positive(maps), masks, defined=_any(masks))


def mass_lift(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Relevance mass over the mask's share of the area: 1 is what a constant map reaches, above 1 is better."""
    mass = relevance_mass(maps, masks)
    area: np.ndarray = masks.mean(axis=(1, 2))
    return _ratio(mass, area, defined=_any(masks))


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """1 where the maximum of the map lies inside the mask, else 0 (Zhang et al. 2018), without a tolerance margin.

    Tied maxima count by the share of them inside the mask, which is the chance that one of them, picked blindly, hits;
    a constant map so scores the mask's share of the area.
    """
    _require_same_shape(maps, masks)
    _require_finite(maps)
    peaks = maps == maps.max(axis=(1, 2), keepdims=True)
    hits = (peaks & masks).sum(axis=(1, 2))
    return _ratio(hits, peaks.sum(axis=(1, 2)), defined=_any(masks))


def regions(height: int, width: int, *, corner: float, border: float) -> Mapping[str, np.ndarray]:
    """Where no anatomy should decide but markers and borders are: masks (H, W) of the frame and the four corners.

    corner: share of the height and the width that a corner takes, rounded, at least one pixel. border: as in
    ``border_mass``. The corners lie partly on the frame. Raises ConfigError for shares that are not between 0 and 0.5.
    """
    if not 0.0 < corner < 0.5:
        raise ConfigError(f"found corner = {corner}: a corner must be above 0 and below 0.5 of the side")
    high, wide = max(1, round(corner * height)), max(1, round(corner * width))
    sides = {"upper": slice(0, high), "lower": slice(height - high, height)}
    found = {"border": _frame(height, width, border)}
    for vertical, rows in sides.items():
        for horizontal, columns in (("left", slice(0, wide)), ("right", slice(width - wide, width))):
            mask = np.zeros((height, width), dtype=bool)
            mask[rows, columns] = True
            found[f"{vertical} {horizontal} corner"] = mask
    return found


def region_lift(maps: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Share of the positive attribution in one region (H, W) bool of all images, over the region's share of the area.

    1 is what a constant map reaches. NaN for a map without positive attribution; DataError for an empty region.
    """
    if region.dtype != np.bool_ or maps.shape[1:] != region.shape or not region.any():
        raise DataError(
            f"found a region of shape {region.shape}, type {region.dtype} and {int(np.count_nonzero(region))} pixels for"
            f" maps of shape {maps.shape}: it must be (H, W) bool and not empty"
        )
    lift: np.ndarray = _share(_positive(maps), region[None], defined=np.ones(len(maps), dtype=bool)) / region.mean()
    return lift


def border_mass(maps: np.ndarray, width_fraction: float) -> np.ndarray:
    """Share of the positive attribution in a frame along the image border, where no anatomy of interest lies.

    The frame is ``width_fraction`` of the shorter side wide, rounded, and at least one pixel. Compare it with
    ``border_area``, what a constant map reaches.
    """
    positive = _positive(maps)
    frame = _frame(positive.shape[1], positive.shape[2], width_fraction)
    return _share(positive, frame[None], defined=np.ones(len(maps), dtype=bool))


def border_area(height: int, width: int, width_fraction: float) -> float:
    """The share of the image area that the frame of ``border_mass`` covers."""
    return float(_frame(height, width, width_fraction).mean())


def _frame(height: int, width: int, width_fraction: float) -> np.ndarray:
    if not 0.0 < width_fraction < 0.5:
        raise ConfigError(f"found width_fraction = {width_fraction}: the border must be above 0 and below 0.5 wide")
    thickness = max(1, round(width_fraction * min(height, width)))
    frame = np.ones((height, width), dtype=bool)
    frame[thickness : height - thickness, thickness : width - thickness] = False
    return frame


class _Ranked(NamedTuple):
    """What one sort of one map says."""

    accuracy: float
    auroc: float
    auprc: float
    otsu: float


def _of_one(values: np.ndarray, mask: np.ndarray) -> _Ranked:
    ascending, inside = _sorted_with(values, mask)
    above = np.concatenate(([0], np.flatnonzero(np.diff(ascending)) + 1))  # first place of each run of ties
    covered = np.concatenate(([0], np.cumsum(inside)))
    marked, pixels = int(covered[-1]), len(ascending)
    hits = (marked - covered[above])[::-1].astype(
        np.float64
    )  # within the mask at or above each threshold, from the top
    taken = (pixels - above)[::-1].astype(np.float64)
    gained = np.diff(hits, prepend=0.0)
    missed = pixels - marked - (taken - hits)  # outside the mask and below the threshold
    tied = np.diff(taken - hits, prepend=0.0)
    auroc = float(gained @ (missed + 0.5 * tied)) / (marked * (pixels - marked)) if marked < pixels else np.nan
    return _Ranked(
        float(np.interp(marked, np.concatenate(([0.0], taken)), np.concatenate(([0.0], hits)))) / marked,
        auroc,
        float(gained @ (hits / taken)) / marked,
        _otsu_overlap(ascending, covered),
    )


def _sorted_with(values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pixels of one map in ascending order, and whether each lies in the mask (0 or 1).

    A float32 leaves the last bits of a float64 free: one of them carries the mask through a plain sort, which is
    several times faster than sorting places and fetching both by them.
    """
    packed = values.ravel().astype(np.float64)
    bits = packed.view(np.int64)
    bits |= mask.ravel()
    packed.sort()
    inside = bits & 1
    bits &= ~1
    return packed, inside


def _otsu_overlap(ascending: np.ndarray, covered: np.ndarray) -> float:
    """Intersection over union of the mask with the pixels above Otsu's threshold of the positive part; NaN without any."""
    positive = np.maximum(ascending, 0.0)
    first = int(np.searchsorted(positive, _otsu(positive), side="right"))
    drawn, hits = len(positive) - first, int(covered[-1] - covered[first])
    return hits / (drawn + int(covered[-1]) - hits) if drawn else np.nan


def _otsu(ascending: np.ndarray) -> float:
    """Threshold of one map's sorted values: the centre of the bin whose upper edge makes the variance between largest."""
    low, high = float(ascending[0]), float(ascending[-1])
    if low == high:
        return low
    edges = np.linspace(low, high, _BINS + 1)
    places = np.searchsorted(ascending, edges[1:-1], side="left")
    below = places.astype(np.float64)
    above = len(ascending) - below
    counts = np.diff(places, prepend=0, append=len(ascending))
    centres = 0.5 * (edges[1:] + edges[:-1])
    moment = np.cumsum(counts * centres)
    gap = moment[:-1] / below - (moment[-1] - moment[:-1]) / above
    return float(centres[np.argmax(below * above * gap**2)])


def _hit(values: np.ndarray, mask: np.ndarray, tolerance: float) -> float:
    """Share of the tied maxima of one map within the tolerance of the mask."""
    if not mask.any():
        return float("nan")
    peaks = values == values.max()
    outside = np.argwhere(peaks & ~mask)
    if not tolerance or not len(outside):
        return 1.0 - len(outside) / int(peaks.sum())
    distances, _ = KDTree(np.argwhere(mask)).query(outside)
    return 1.0 - int((distances > tolerance).sum()) / int(peaks.sum())


def _share(positive: np.ndarray, masks: np.ndarray, *, defined: np.ndarray) -> np.ndarray:
    """Share of the mass inside the masks, (B,), where there is any; added up in float64 without a copy in it."""
    total = positive.sum(axis=(1, 2), dtype=np.float64)
    inside = (positive * masks).sum(axis=(1, 2), dtype=np.float64)
    return _ratio(inside, total, defined=(total > 0) & defined)


def _positive(maps: np.ndarray) -> np.ndarray:
    _require_finite(maps)
    positive: np.ndarray = np.maximum(maps, 0)
    return positive


def _any(masks: np.ndarray) -> np.ndarray:
    covered: np.ndarray = np.any(masks, axis=(1, 2))
    return covered


def _ratio(part: np.ndarray, whole: np.ndarray, *, defined: np.ndarray) -> np.ndarray:
    result = np.full(part.shape, np.nan)
    np.divide(part, whole, out=result, where=defined)
    return result


def _require_same_shape(maps: np.ndarray, masks: np.ndarray) -> None:
    if maps.ndim != 3 or maps.shape != masks.shape or masks.dtype != np.bool_:
        raise DataError(
            f"found maps of shape {maps.shape} and masks of shape {masks.shape} and type {masks.dtype}:"
            " both must be (B, H, W) and the masks bool"
        )


def _require_finite(maps: np.ndarray) -> None:
    if maps.ndim != 3:
        raise DataError(f"found maps of shape {maps.shape}: they must be (B, H, W)")
    finite = np.isfinite(maps).all(axis=(1, 2))
    if not finite.all():
        raise DataError(f"the heat map in row {int(np.argmin(finite))} holds NaN or infinity: leave this case out")
