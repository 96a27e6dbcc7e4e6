"""What the laboratory and the slide scanner do to a stained section: stain, folds, bubbles, focus and seams."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from xvision.methods.corruptions import drawing
from xvision.methods.corruptions.colour import require_colour
from xvision.methods.corruptions.draws import uniform
from xvision.methods.corruptions.kind import Corruption, scaled, side
from xvision.methods.filters import gaussian_blur

# absorbance of red, green and blue by haematoxylin, eosin and DAB: Ruifrok and Johnston (2001)
_STAINS = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], dtype=torch.float64)
_UNMIXED = torch.linalg.inv(_STAINS)
_LEAST_LIGHT = 1e-6
_DEPOSIT, _DEPOSIT_RADIUS = (0.16, 0.06, 0.24), 14.0
_BUBBLE_RIM, _RIM_OPACITY, _BUBBLE_OPACITY = 2.0, 0.51, 0.39  # MedMNIST-C


def stains_of(pixels: torch.Tensor) -> torch.Tensor:
    """Amounts of haematoxylin, eosin and a residual, (B, 3, H, W), in decades of absorbance; negative where a colour
    cannot be mixed from them."""
    require_colour(pixels, "stain")
    absorbance = -pixels.clamp(min=_LEAST_LIGHT).log10()
    return torch.einsum("bchw,cs->bshw", absorbance, _UNMIXED.to(pixels))


def stained(stains: torch.Tensor) -> torch.Tensor:
    """The inverse of ``stains_of``: pixels (B, 3, H, W), above 1 where less than no stain is left."""
    return torch.pow(10.0, -torch.einsum("bshw,sc->bchw", stains, _STAINS.to(stains)))


def _stain_shift(pixels: torch.Tensor, change: tuple[float, float], seeds: Sequence[int]) -> torch.Tensor:
    """Haematoxylin and eosin each times one plus or minus the first number and then plus or minus the second; per case
    and stain both go up or both go down."""
    share, offset = change
    signs = torch.where(uniform(seeds, 2) < 0.5, -1.0, 1.0)
    both = drawing.per_case(torch.cat((signs, torch.zeros(len(signs), 1)), dim=1), pixels)
    return stained(stains_of(pixels) * (1.0 + share * both) + offset * both)


def _stain_deposit(pixels: torch.Tensor, count: float, seeds: Sequence[int]) -> torch.Tensor:
    """Exactly ``count`` lumps of precipitated stain of about 14 px radius at side 224, round with bulges."""
    shares = uniform(seeds, int(count), 4)
    places = drawing.anywhere(pixels, 0.05 + 0.9 * shares[..., :2])
    rows, columns = drawing.centres(pixels)
    reach = scaled(_DEPOSIT_RADIUS, pixels)
    cover = torch.zeros_like(pixels[:, :1])
    for lump in range(int(count)):
        down = rows - drawing.per_case(places[:, lump, 0], pixels)
        across = columns - drawing.per_case(places[:, lump, 1], pixels)
        angle = torch.atan2(down, across)
        first, second = (drawing.per_case(2.0 * math.pi * shares[:, lump, place], pixels) for place in (2, 3))
        edge = reach * (1.0 + 0.25 * (2.0 * angle + first).cos() + 0.15 * (3.0 * angle + second).cos())
        cover = torch.maximum(cover, (edge - (down.square() + across.square()).sqrt() + 0.5).clamp(0.0, 1.0))
    return drawing.absorbed(pixels, cover, _DEPOSIT)


def _bubbles(pixels: torch.Tensor, bubbles: tuple[float, float], seeds: Sequence[int]) -> torch.Tensor:
    """Exactly so many air bubbles under the cover slip, all of the same radius: (radius, count)."""
    radius, count = bubbles
    places = drawing.anywhere(pixels, uniform(seeds, int(count), 2))
    inward = scaled(radius, pixels) - drawing.nearest_place(pixels, places) + 0.5
    within = inward.clamp(0.0, 1.0)
    beyond = (inward + scaled(_BUBBLE_RIM, pixels)).clamp(0.0, 1.0)
    return pixels + (_RIM_OPACITY * beyond - (_RIM_OPACITY - _BUBBLE_OPACITY) * within) * (1.0 - pixels)


def _fold(pixels: torch.Tensor, width: float, seeds: Sequence[int]) -> torch.Tensor:
    """Tissue lying double in a straight band through the image, so that it absorbs twice."""
    shares = uniform(seeds, 2)
    aside = drawing.per_case(0.5 * side(pixels) * (shares[:, 1] - 0.5), pixels)
    cover = drawing.band(drawing.directed(pixels, shares[:, 0]) - aside, width * side(pixels))
    return pixels.pow(1.0 + cover)


def _focus_tilt(pixels: torch.Tensor, sigma: float, seeds: Sequence[int]) -> torch.Tensor:
    """Sharp at one edge and blurred with ``sigma`` at the opposite one, because the section is not flat."""
    along = drawing.directed(pixels, uniform(seeds))
    reach = along.abs().amax(dim=(1, 2, 3), keepdim=True)
    return pixels + (0.5 + 0.5 * along / reach) * (gaussian_blur(pixels, scaled(sigma, pixels)) - pixels)


def _tile_seam(pixels: torch.Tensor, seam: tuple[float, float], seeds: Sequence[int]) -> torch.Tensor:
    """Two tiles badly stitched: beyond a straight seam the image slips along it and darkens, (px at side 224, gain)."""
    slip, gain = seam
    shares = uniform(seeds, 3)
    upright = drawing.per_case((shares[:, 0] < 0.5).float(), pixels)
    direction = drawing.per_case(torch.where(shares[:, 1] < 0.5, -1.0, 1.0), pixels)
    rows, columns = drawing.centres(pixels)
    height, width = pixels.shape[2:]
    place = drawing.per_case(0.3 + 0.4 * shares[:, 2], pixels)
    beyond = upright * (columns - place * width) + (1.0 - upright) * (rows - place * height)
    moved = direction * scaled(slip, pixels) * (beyond > 0.0)
    image = drawing.sampled_at(pixels, rows + upright * moved, columns + (1.0 - upright) * moved)
    return image * (1.0 - (1.0 - gain) * (beyond + 0.5).clamp(0.0, 1.0))


# fmt: off
KINDS = (
    Corruption("stain_shift", "Other staining", "change of each stain: share, added", "decades of absorbance", "xvision",
               {"histology": ((0.05, 0.01), (0.1, 0.02), (0.2, 0.04), (0.3, 0.06), (0.4, 0.08))}, _stain_shift),
    # MedMNIST-C draws at most so many; here exactly so many, all of one size
    Corruption("stain_deposit", "Stain deposits", "deposits", "count", "MedMNIST-C", {"histology": (1, 2, 3, 4, 5)}, _stain_deposit),
    Corruption("air_bubbles", "Air bubbles", "radius, count", "px at side 224", "MedMNIST-C",
               {"histology": ((7, 15), (10, 15), (12, 15), (15, 20), (17, 25))}, _bubbles),
    Corruption("fold", "Tissue fold", "width of the fold", "of side", "xvision", {"histology": (0.04, 0.07, 0.11, 0.16, 0.24)}, _fold),
    Corruption("focus_tilt", "Out of focus towards one side", "blur at that side", "px at side 224", "xvision",
               {"histology": (1, 2, 3, 5, 8)}, _focus_tilt),
    Corruption("tile_seam", "Seam of two tiles", "slip, gain beyond", "px at side 224, factor", "xvision",
               {"histology": ((1, 0.98), (2, 0.95), (4, 0.92), (6, 0.88), (9, 0.82))}, _tile_seam),
)
# fmt: on
