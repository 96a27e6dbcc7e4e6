"""Arrays to pictures: the one place where colour is decided. No torch, no matplotlib.

Two colour scales, both readable without colour vision: *strength* (transparent to amber) for maps that have no sign, and
*signed* (blue for evidence against, orange for evidence in favour). A scale's top is printed with the picture by its caller.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

Picture = np.ndarray  # uint8 (H, W, 3)

# Okabe & Ito (2008): a palette that stays distinct for colour-blind readers.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A7A7A", "#000000")
INK, MUTED, GRID = "#1B2733", "#5B6B7A", "#DDE3E8"
VERDICT_COLOURS = {
    "pass": "#1A7F4B",
    "warn": "#B26A00",
    "fail": "#B3261E",
    "insufficient evidence": "#4C5F73",
    "not judged": "#6B7280",
}
VERDICT_SYMBOLS = {"pass": "✓", "warn": "!", "fail": "✗", "insufficient evidence": "?", "not judged": "–"}

_STRENGTH = np.array([[0.0, 0.0, 0.0], [0.42, 0.05, 0.30], [0.85, 0.28, 0.12], [1.0, 0.72, 0.10], [1.0, 0.98, 0.75]])
_POSITIVE, _NEGATIVE = np.array([0.90, 0.42, 0.0]), np.array([0.0, 0.45, 0.70])


def photograph(pixels: np.ndarray) -> Picture:
    """Pixels (C, H, W) in [0, 1], one or three channels, as RGB without any stretching."""
    channels = np.broadcast_to(pixels, (3, *pixels.shape[1:])) if pixels.shape[0] == 1 else pixels[:3]
    rounded = np.clip(np.rint(channels * 255.0), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(rounded, 0, -1))


def strength(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as colours (…, 3) in [0, 1]: black through red and amber to near white."""
    position = np.clip(values, 0.0, 1.0) * (len(_STRENGTH) - 1)
    lower = np.minimum(position.astype(int), len(_STRENGTH) - 2)
    share = (position - lower)[..., None]
    mixed: np.ndarray = _STRENGTH[lower] * (1 - share) + _STRENGTH[lower + 1] * share
    return mixed


def scale_of(values: np.ndarray) -> float:
    """The magnitude drawn at full colour: the 99th percentile of |values|, so that one pixel cannot hide the rest."""
    top = float(np.quantile(np.abs(values), 0.99)) if values.size else 0.0
    return top if top > 0 else float(np.abs(values).max(initial=0.0))


def overlay(pixels: np.ndarray, values: np.ndarray, *, signed: bool, opacity: float = 0.75) -> Picture:
    """A map (H, W) over its image (C, H, W): stronger evidence is more opaque, an all-zero map shows the image alone."""
    picture = photograph(pixels) / 255.0
    top = scale_of(values)
    level = np.clip(np.abs(values) / top, 0.0, 1.0) if top > 0 else np.zeros_like(values)
    colour = np.where((values >= 0)[..., None], _POSITIVE, _NEGATIVE) if signed else strength(0.35 + 0.65 * level)
    weight = (opacity * level)[..., None]
    blended = picture * (1 - weight) + colour * weight
    return np.ascontiguousarray(np.clip(np.rint(blended * 255.0), 0, 255).astype(np.uint8))


def difference(changed: np.ndarray, original: np.ndarray) -> Picture:
    """Signed change (C, H, W) magnified so that the largest fills the scale; grey is no change."""
    change = (changed - original).mean(axis=0)
    top = float(np.abs(change).max(initial=0.0))
    level = change / top if top > 0 else change
    colour = np.where((level >= 0)[..., None], _POSITIVE, _NEGATIVE)
    weight = np.abs(level)[..., None]
    return np.ascontiguousarray(np.rint((0.5 * (1 - weight) + colour * weight) * 255.0).astype(np.uint8))


def outline(picture: Picture, mask: np.ndarray) -> Picture:
    """The picture with the inner border of a boolean mask (H, W) drawn in green."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    drawn = picture.copy()
    drawn[mask & ~inside] = (0, 200, 120)
    return drawn


def enlarged(picture: Picture, side: int = 192) -> Picture:
    """Repeated pixels until the shorter side is at least ``side``: small images stay readable and are not smoothed."""
    factor = max(1, -(-side // min(picture.shape[:2])))
    return np.ascontiguousarray(picture.repeat(factor, axis=0).repeat(factor, axis=1))


def png(picture: Picture) -> bytes:
    """PNG bytes without metadata; the same picture gives the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()
