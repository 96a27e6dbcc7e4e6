"""How much does a map move when the image hardly does? Figures of one bank of noisy copies and their maps.

The copies are drawn, and explained, once; every figure is then arithmetic. Copies on which the deployed decision
changed are left out: there the map has a reason to change. All figures are per case, (B,), lower is better, and NaN where
no copy is left or the map is zero everywhere. Low is no proof of a good map: one that never changes, whatever the image,
scores 0. Shapes: B images, S copies, C H W image, K classes; maps (B, ...) of pixels or units.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xvision.errors import ConfigError, DataError
from xvision.methods.decision import Decision, decide

FLOOR = 0.01
_SMALLEST = 1e-6
"""Changes of the input or the logits below this count as this (Agarwal et al. 2022)."""


class Changes(NamedTuple):
    """How far the copies are from their image.

    size: (B,) Euclidean norm of the original. absolute: (B, S) norm of the difference. relative: (B, S) norm of the
    difference divided entry by entry by the original.
    """

    size: np.ndarray
    absolute: np.ndarray
    relative: np.ndarray


class Noise(NamedTuple):
    """What the noise did to the input. logits: (B, S) norm of their change. kept: (B, S) copies decided as their image."""

    pixels: Changes
    logits: np.ndarray
    kept: np.ndarray


def noise_of(
    pixels: np.ndarray,
    noisy_pixels: np.ndarray,
    logits: np.ndarray,
    noisy_logits: np.ndarray,
    *,
    decision: Decision | None = None,
    floor: float = FLOOR,
) -> Noise:
    """The noise bank, common to all methods.

    Args:
        pixels: (B, C, H, W); noisy_pixels: (B, S, C, H, W).
        logits: (B, K); noisy_logits: (B, S, K).
        decision: the deployed one; the most probable class if None.
        floor: see ``changes_of``.
    """
    difference = changes_of(logits, noisy_logits, floor=floor).absolute
    kept = unchanged(logits, noisy_logits, decision=decision)
    changes = changes_of(pixels, noisy_pixels, floor=floor)
    if changes.absolute.shape != kept.shape:
        raise DataError(f"found pixels of {changes.absolute.shape} and logits of {kept.shape} images and copies")
    return Noise(changes, difference, kept)


def unchanged(logits: np.ndarray, noisy_logits: np.ndarray, *, decision: Decision | None = None) -> np.ndarray:
    """(B, S) copies with the same decision as their image."""
    made = decision or Decision()
    images, copies, classes = noisy_logits.shape
    noisy = decide(noisy_logits.reshape(-1, classes), made).reshape(images, copies)
    return np.asarray(noisy == decide(logits, made)[:, None])


def changes_of(originals: np.ndarray, copies: np.ndarray, *, floor: float = FLOOR) -> Changes:
    """Norms of the differences between originals (B, ...) and their copies (B, S, ...).

    floor: where an entry is smaller than this share of the largest magnitude of its original, that share divides
    instead. Agarwal et al. (2022) divide by the entry itself and by 1e-6 in place of 0, which lets a black background or
    the faintest part of a map decide the figure alone; with 1e-6 the result is theirs, except for entries that small.
    """
    if not 0.0 < floor <= 1.0:
        raise ConfigError(f"found floor = {floor}: it must be above 0 and at most 1")
    if copies.ndim < 2 or copies.shape[:1] + copies.shape[2:] != originals.shape:
        raise DataError(f"found copies of shape {copies.shape} of {originals.shape}: (B, S, ...) of (B, ...) is due")
    shape = copies.shape[:2]
    rows = [
        _row(one.ravel(), several.reshape(shape[1], one.size), floor)
        for one, several in zip(originals, copies, strict=True)
    ]
    size, absolute, relative = zip(*rows, strict=True) if rows else ((), (), ())
    return Changes(np.array(size, float), np.reshape(absolute, shape), np.reshape(relative, shape))


def _row(original: np.ndarray, copies: np.ndarray, floor: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Of one image (n,) and its copies (S, n): one at a time, so that memory does not grow with the batch."""
    values = original.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = copies - values
    difference[~np.isfinite(difference).all(axis=1)] = np.nan
    absolute = _norms(difference)
    least = floor * np.abs(values).max(initial=0.0)
    if not least > 0:
        return 0.0, absolute, np.full(len(copies), np.nan)
    difference /= np.maximum(np.abs(values), least)
    return float(_norms(values[None])[0]), absolute, _norms(difference)


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(np.einsum("sn,sn->s", rows, rows)))


def average_sensitivity(maps: Changes, noise: Noise) -> np.ndarray:
    """Mean over the copies of |a(x') - a(x)| / |a(x)| (Yeh et al. 2019; Bhatt et al. 2020)."""
    found, kept = _shares(maps.absolute, maps.size), noise.kept
    mean = np.full(len(kept), np.nan)
    np.divide(np.where(kept, found, 0.0).sum(axis=1), kept.sum(axis=1), out=mean, where=kept.any(axis=1))
    return mean


def max_sensitivity(maps: Changes, noise: Noise) -> np.ndarray:
    """Largest |a(x') - a(x)| / |a(x)| over the copies (Yeh et al. 2019); it grows with their number."""
    return _largest(_shares(maps.absolute, maps.size), noise.kept)


def relative_input_stability(maps: Changes, noise: Noise) -> np.ndarray:
    """Largest relative change of the map over the relative change of the pixels (Agarwal et al. 2022)."""
    return _largest(maps.relative / np.maximum(noise.pixels.relative, _SMALLEST), noise.kept)


def relative_output_stability(maps: Changes, noise: Noise) -> np.ndarray:
    """Largest relative change of the map over the change of the logits (Agarwal et al. 2022).

    High where the map moved although the model's answer did not.
    """
    return _largest(maps.relative / np.maximum(noise.logits, _SMALLEST), noise.kept)


def _shares(absolute: np.ndarray, size: np.ndarray) -> np.ndarray:
    found = np.full(absolute.shape, np.nan)
    np.divide(absolute, size[:, None], out=found, where=size[:, None] > 0)
    return found


def _largest(found: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """(B,) over the copies that are kept; NaN without one."""
    largest = np.where(kept, found, -np.inf).max(axis=1, initial=-np.inf)
    return np.where(kept.any(axis=1), largest, np.nan)
