"""Does a heat map fall where it should? Pure functions on maps and masks.

Every score is per case, (B,), and NaN where it cannot be estimated (an empty mask, a map without positive
attribution); the caller turns NaN into None with the reason. Only positive attribution counts as mass. Nothing here
says that the map is faithful to the model. Shapes: maps (B, H, W), masks (B, H, W) bool.
"""

from __future__ import annotations

import numpy as np

from xvision.errors import ConfigError, DataError


def relevance_mass(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of the positive attribution that lies inside the mask (relevance mass accuracy, Arras et al. 2022).

    A map that knows nothing scores the mask's share of the area, not 0: see ``mass_lift``.
    """
    _require_same_shape(maps, masks)
    positive = _positive(maps)
    total = positive.sum(axis=(1, 2))
    inside = np.where(masks, positive, 0.0).sum(axis=(1, 2))
    return _ratio(inside, total, defined=(total > 0) & _any(masks))


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


def border_mass(maps: np.ndarray, width_fraction: float) -> np.ndarray:
    """Share of the positive attribution in a frame along the image border, where no anatomy of interest lies.

    The frame is ``width_fraction`` of the shorter side wide, rounded, and at least one pixel. Compare it with
    ``border_area``, what a constant map reaches.
    """
    positive = _positive(maps)
    frame = _frame(positive.shape[1], positive.shape[2], width_fraction)
    total = positive.sum(axis=(1, 2))
    return _ratio(positive[:, frame].sum(axis=1), total, defined=total > 0)


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


def _positive(maps: np.ndarray) -> np.ndarray:
    _require_finite(maps)
    return np.maximum(np.asarray(maps, dtype=np.float64), 0.0)


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
