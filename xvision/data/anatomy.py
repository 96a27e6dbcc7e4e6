"""Soft chest phantoms: body, lungs, heart, vessels, ribs, texture and lesion, drawn for many images at once.

Coordinates run from -1 to 1, x to the right and y downwards in the image, so a phantom looks alike at every size.
Bright is dense. The patient's left side, with the larger part of the heart, lies at the right of the image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

TEXTURE_CELLS = 12
_LETTER = ("11110", "10001", "10001", "11110", "10100", "10010", "10001")
_LUNG_X, _LUNG_Y, _LUNG_WIDTH, _LUNG_HEIGHT = 0.40, -0.06, 0.31, 0.68


class Anatomy(NamedTuple):
    """Shape of each of N chests, (N,) float32 each; 1 is the average, shifts are in coordinates."""

    shift: np.ndarray
    lift: np.ndarray
    width: np.ndarray
    height: np.ndarray
    heart: np.ndarray
    density: np.ndarray
    rib_spacing: np.ndarray
    rib_phase: np.ndarray
    rib_depth: np.ndarray


class Lesions(NamedTuple):
    """One lesion for each of N chests, (N,) float32 each, drawn or not.

    side: lung at the left (-1) or right (+1) of the image. angle, distance: place in the lung, distance as a share of
    the way to its edge. radius: in coordinates. stretch: ratio of the axes. tilt: of the long axis, in radians.
    """

    side: np.ndarray
    angle: np.ndarray
    distance: np.ndarray
    radius: np.ndarray
    stretch: np.ndarray
    tilt: np.ndarray


class Wires(NamedTuple):
    """One device wire for each of N chests, (N,) float32 each. place: x at mid-height. lean: of the line. bow: of its curve.

    phase: of the curve, in radians.
    """

    place: np.ndarray
    lean: np.ndarray
    bow: np.ndarray
    phase: np.ndarray


def chests(anatomy: Anatomy, texture: np.ndarray, size: int) -> np.ndarray:
    """Attenuation (N, size, size) float32 from about 0 (air around) to 0.9 (spine).

    texture: (N, TEXTURE_CELLS, TEXTURE_CELLS) standard normal values, blown up to soft clouds.
    """
    x, y = _grid(anatomy, size)
    lungs = _lung(x, y, -1.0) + _lung(x, y, 1.0)
    image = _tissue(x, y)
    image -= lungs * (0.46 - 0.30 * _heart(anatomy, x, y) - 0.14 * _hila(x, y) - _column(anatomy.density - 1.0))
    image += (0.35 + 0.65 * lungs) * _ribs(anatomy, x, y)
    image += (0.03 + 0.05 * lungs) * _clouds(texture, size)
    image *= _body(x, y)
    return np.asarray(np.maximum(image, 0.0, out=image))


def lesion_profiles(lesions: Lesions, anatomy: Anatomy, size: int) -> np.ndarray:
    """Relative height (N, size, size) float32 of each lesion: a dome of 1 at its centre and exactly 0 from its edge on."""
    x, y = _grid(anatomy, size)
    centre_x, centre_y = _lesion_centre(lesions)
    across, down = x - _column(centre_x), y - _column(centre_y)
    cosine, sine = _column(np.cos(lesions.tilt)), _column(np.sin(lesions.tilt))
    long, short = across * cosine + down * sine, down * cosine - across * sine
    stretch = _column(lesions.stretch)
    square: np.ndarray = (long * long / stretch + short * short * stretch) / _column(lesions.radius) ** 2
    return np.clip(1.0 - square, 0.0, None)


def wire_covers(wires: Wires, anatomy: Anatomy, size: int) -> np.ndarray:
    """Share (N, size, size) float32 of each pixel that a curved wire covers, from above the lungs down to the diaphragm."""
    x, y = _grid(anatomy, size)
    lean, bow, turn = _column(wires.lean), _column(wires.bow), 3.5 * y + _column(wires.phase)
    steepness = lean + 3.5 * bow * np.cos(turn)
    distance = np.abs(x - _column(wires.place) - lean * y - bow * np.sin(turn)) / np.sqrt(1.0 + steepness * steepness)
    return np.asarray(_soft(0.03 - distance, 24.0) * _soft(0.55 - np.abs(y + 0.15), 24.0), dtype=np.float32)


def glyph(scale: int) -> np.ndarray:
    """The letter R as coverage (7 × scale, 5 × scale), 0 or 1."""
    cells = np.array([[int(mark) for mark in line] for line in _LETTER], dtype=np.float32)
    return np.kron(cells, np.ones((scale, scale), dtype=np.float32))


def _lesion_centre(lesions: Lesions) -> tuple[np.ndarray, np.ndarray]:
    """Centre in the chest's own coordinates, so far from the edge of the lung that the lesion does not cross it."""
    edge = lesions.radius * np.sqrt(lesions.stretch)
    x = lesions.side * (_LUNG_X + lesions.distance * (0.28 - edge) * np.cos(lesions.angle))
    y = _LUNG_Y - 0.08 + lesions.distance * (0.52 - edge) * np.sin(lesions.angle)
    return x, y


def _column(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)[:, None, None]


def _grid(anatomy: Anatomy, size: int) -> tuple[np.ndarray, np.ndarray]:
    """x (N, 1, size) and y (N, size, 1) of the pixel centres in the coordinates of each chest."""
    line = ((np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2.0 / size) - 1).astype(np.float32)
    x = (line[None, None, :] - _column(anatomy.shift)) / _column(anatomy.width)
    y = (line[None, :, None] - _column(anatomy.lift)) / _column(anatomy.height)
    return x, y


def _soft(level: np.ndarray, sharpness: float) -> np.ndarray:
    """A soft step from 0 to 1 where ``level`` passes zero."""
    step = np.clip(level * np.float32(sharpness) + np.float32(0.5), 0.0, 1.0)
    return np.asarray(step * step * (np.float32(3.0) - np.float32(2.0) * step))


def _body(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Neck, shoulders and trunk."""
    half_width = 0.30 + 0.62 * _soft(y + 0.80, 2.2) + 0.03 * y
    return _soft(half_width - np.abs(x), 7.0)


def _lung(x: np.ndarray, y: np.ndarray, side: float) -> np.ndarray:
    """An ellipse narrowing towards the apex, cut by the dome of the diaphragm (higher under the right lung)."""
    across = (side * x - _LUNG_X - 0.05 * y) / _LUNG_WIDTH
    down = (y - _LUNG_Y) / _LUNG_HEIGHT
    inside = _soft(1.0 - across * across - down * down * np.abs(down), 2.2)
    dome = (0.50 if side > 0 else 0.45) + 0.55 * (side * x - 0.34) ** 2
    return np.asarray(inside * _soft(dome - y, 9.0))


def _tissue(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Soft tissue, mediastinum, spine, abdomen, and the dark windpipe."""
    spine = 0.05 * _soft(0.10 - np.abs(x), 12.0) * (1.0 + 0.3 * np.cos(y * 22.0))
    mediastinum = 0.13 * _soft(0.17 - np.abs(x + 0.02), 6.0)
    windpipe = 0.13 * _soft(0.05 - np.abs(x + 0.01), 16.0) * _soft(-0.28 - y, 6.0)
    abdomen = 0.08 * _soft(y - 0.55, 2.5)
    shade = 0.10 * _soft(np.abs(x) - 0.62, 2.0)
    return np.asarray(0.60 + spine + mediastinum - windpipe + abdomen - shade, dtype=np.float32)


def _heart(anatomy: Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    size = _column(anatomy.heart)
    across, down = (x - 0.13) / (0.34 * size), (y - 0.24) / (0.30 * size)
    tilted = across * across + down * down - 0.7 * across * down
    return _soft(1.0 - tilted, 1.6)


def _hila(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Vessels near the roots of the lungs, fading outwards."""
    return np.asarray(1.0 / (1.0 + ((np.abs(x) - 0.19) / 0.14) ** 2 + ((y + 0.05) / 0.22) ** 2))


def _ribs(anatomy: Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Posterior arcs falling outwards, weaker anterior ones rising outwards, and the collar bones."""
    outward = np.abs(x)
    spacing, phase = _column(anatomy.rib_spacing), _column(anatomy.rib_phase)
    turn = np.float32(2.0 * np.pi) / (np.float32(0.235) * spacing)
    back = np.clip(np.cos((y - 0.42 * outward * outward) * turn + phase), 0.0, None) ** 2
    front = np.clip(np.cos((y + 0.55 * outward) * (0.8 * turn) + 2.0 * phase), 0.0, None) ** 2
    collar = _soft(0.035 - np.abs(y + 0.60 + 0.16 * outward), 20.0) * _soft(outward - 0.12, 8.0)
    side = _soft(0.80 - outward, 8.0) * _soft(outward - 0.10, 8.0)
    arcs = 0.10 * back + 0.04 * front * _soft(outward - 0.3, 3.0)
    return np.asarray(_column(anatomy.rib_depth) * side * arcs + 0.10 * collar)


def _clouds(texture: np.ndarray, size: int) -> np.ndarray:
    """Coarse normal noise (N, cells, cells) blown up smoothly to (N, size, size)."""
    spread = _stretch(size, texture.shape[1])
    return np.asarray(spread @ texture @ spread.T, dtype=np.float32)


def _stretch(size: int, cells: int) -> np.ndarray:
    """Weights (size, cells) of smooth interpolation between the centres of cells; rows sum to 1."""
    place = (np.arange(size) + 0.5) * cells / size - 0.5
    distance = np.abs(place[:, None] - np.arange(cells)[None, :])
    hat = np.clip(1.0 - distance, 0.0, None)
    weights = hat * hat * (3.0 - 2.0 * hat)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)
