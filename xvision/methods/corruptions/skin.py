"""What covers or frames a lesion in dermoscopy: hair, rulers, ink, bubbles in the gel, dark corners."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from xvision.methods.corruptions import drawing
from xvision.methods.corruptions.draws import uniform
from xvision.methods.corruptions.kind import Corruption, scaled, side

_HAIR, _HAIR_WIDTH, _HAIR_OPACITY = (0.13, 0.09, 0.07), 2.0, 0.9
_TICK, _TICK_WIDTH, _TICK_PERIOD = (0.06, 0.06, 0.07), 1.5, 7.0
_GENTIAN = (0.28, 0.14, 0.60)  # the share of light that surgical ink lets through
_INK_ARC, _INK_OPACITY = 1.0 / 3.0, 0.85
_GEL_RADIUS, _GEL_RIM = 6.0, 1.5


def _hair(pixels: torch.Tensor, count: float, seeds: Sequence[int]) -> torch.Tensor:
    """Exactly ``count`` dark bent hairs, longer than half the side, each through a point of the middle."""
    number, shorter = int(count), side(pixels)
    shares = uniform(seeds, number, 5)
    turn, length = shares[..., 0], shorter * (0.6 + 0.6 * shares[..., 1])
    middle = drawing.anywhere(pixels, 0.15 + 0.7 * shares[..., 2:4])
    angle = 2.0 * math.pi * turn
    start = middle - 0.5 * length[..., None] * torch.stack((angle.sin(), angle.cos()), dim=-1)
    bend = 0.4 * (shares[..., 4] - 0.5)
    cover = drawing.strokes(pixels, start, turn, length, bend, scaled(_HAIR_WIDTH, pixels))
    return drawing.painted(pixels, _HAIR_OPACITY * cover, _HAIR)


def _ruler(pixels: torch.Tensor, length: float, seeds: Sequence[int]) -> torch.Tensor:
    """Black ticks, ``length`` sides long, along one of the four edges per case, every 7 px at side 224."""
    shares = uniform(seeds, 2)
    rows, columns = drawing.centres(pixels)
    height, width = pixels.shape[2:]
    reach, period = length * side(pixels), scaled(_TICK_PERIOD, pixels)
    phase = drawing.per_case(shares[:, 1] * period, pixels)
    drawn = [
        _ticks(along - phase, period, scaled(_TICK_WIDTH, pixels)) * (reach - beside + 0.5).clamp(0.0, 1.0)
        for along, beside in ((columns, rows), (columns, height - rows), (rows, columns), (rows, width - columns))
    ]
    edge = drawing.per_case((4.0 * shares[:, 0]).floor(), pixels)
    cover = sum(((edge == number) * ticks for number, ticks in enumerate(drawn)), torch.zeros_like(drawn[0]))
    return drawing.painted(pixels, cover, _TICK)


def _ticks(along: torch.Tensor, period: float, width: float) -> torch.Tensor:
    return drawing.band((along / period - (along / period).round()) * period, width)


def _ink(pixels: torch.Tensor, width: float, seeds: Sequence[int]) -> torch.Tensor:
    """A third of a circle of violet surgical ink round the lesion, ``width`` thick; ink filters what lies under it."""
    shares = uniform(seeds, 2)
    ring = drawing.per_case(side(pixels) * (0.3 + 0.12 * shares[:, 0]), pixels)
    rows, columns = drawing.centres(pixels)
    height, wide = pixels.shape[2:]
    angle = torch.atan2(rows - height / 2.0, columns - wide / 2.0) / (2.0 * math.pi)
    off = (angle - drawing.per_case(shares[:, 1], pixels)).remainder(1.0)
    beyond = (torch.minimum(off, 1.0 - off) - _INK_ARC / 2.0).clamp(min=0.0) * 2.0 * math.pi * ring
    distance = torch.hypot(drawing.radius(pixels) - ring, beyond)
    cover = _INK_OPACITY * drawing.band(distance, scaled(width, pixels))
    return drawing.absorbed(pixels, cover, _GENTIAN)


def _gel_bubbles(pixels: torch.Tensor, count: float, seeds: Sequence[int]) -> torch.Tensor:
    """Exactly ``count`` bubbles of 6 px radius at side 224: a bright rim and a faint glow within."""
    places = drawing.anywhere(pixels, uniform(seeds, int(count), 2))
    distance = drawing.nearest_place(pixels, places)
    size = scaled(_GEL_RADIUS, pixels)
    inside = (size - distance + 0.5).clamp(0.0, 1.0)
    rim = drawing.band(distance - size, max(1.0, scaled(_GEL_RIM, pixels)))
    return pixels + torch.maximum(0.15 * inside, 0.8 * rim) * (1.0 - pixels)


def _vignette(pixels: torch.Tensor, loss: float, seeds: Sequence[int]) -> torch.Tensor:
    """Darker with the square of the distance from the centre, by ``loss`` in the outermost corner."""
    corner = math.hypot(*pixels.shape[2:]) / 2.0
    return pixels * (1.0 - loss * (drawing.radius(pixels) / corner).square())


def _black_corner(pixels: torch.Tensor, share: float, seeds: Sequence[int]) -> torch.Tensor:
    """Black outside a circle round the centre of ``share`` times half the shorter side, as the dermatoscope's tube."""
    return pixels * (share * side(pixels) / 2.0 - drawing.radius(pixels) + 0.5).clamp(0.0, 1.0)


# fmt: off
KINDS = (
    Corruption("hair", "Hair", "hairs", "count", "xvision", {"dermoscopy": (3, 6, 10, 16, 25)}, _hair),
    Corruption("ruler", "Ruler at an edge", "length of the ticks", "of side", "xvision",
               {"dermoscopy": (0.03, 0.05, 0.08, 0.12, 0.17)}, _ruler),
    Corruption("ink", "Surgical ink", "width of the line", "px at side 224", "xvision",
               {"dermoscopy": (3, 6, 10, 15, 22)}, _ink),
    Corruption("gel_bubbles", "Bubbles in the gel", "bubbles", "count", "xvision",
               {"dermoscopy": (6, 12, 24, 40, 70)}, _gel_bubbles),
    Corruption("vignette", "Dark towards the corners", "light lost in the corner", "share", "xvision",
               dict.fromkeys(("dermoscopy", "fundus", "natural"), (0.2, 0.35, 0.5, 0.65, 0.85)), _vignette),
    # MedMNIST-C's fourth and fifth value are swapped
    Corruption("black_corner", "Black corners", "radius of the open circle", "of half the side", "MedMNIST-C",
               {"dermoscopy": (1.10, 1.05, 1.00, 0.95, 0.90)}, _black_corner),
)
# fmt: on
