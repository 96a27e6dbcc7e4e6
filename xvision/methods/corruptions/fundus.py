"""What goes wrong in a photograph through the pupil: light, the eye's own lens, lids and lashes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from xvision.methods.corruptions import drawing
from xvision.methods.corruptions.draws import uniform
from xvision.methods.corruptions.kind import Corruption, scaled, side
from xvision.methods.filters import gaussian_blur

_FLARE = (1.0, 0.93, 0.78)
_LID, _LASH = (0.22, 0.08, 0.06), (0.10, 0.05, 0.04)
_LASH_WIDTH, _LASH_BLUR, _LASH_OPACITY = 4.0, 1.5, 0.85
_DARKEST_TISSUE = 0.1  # of the brightest channel; the surround of the photograph is darker and scatters no light


def _uneven_illumination(pixels: torch.Tensor, loss: float, seeds: Sequence[int]) -> torch.Tensor:
    """Light falling evenly from one side of the image, where all of it is left, to the other, where ``loss`` is gone."""
    along = drawing.directed(pixels, uniform(seeds))
    reach = along.abs().amax(dim=(1, 2, 3), keepdim=True)
    return pixels * (1.0 - loss * (0.5 + 0.5 * along / reach))


def _lens_flare(pixels: torch.Tensor, strength: float, seeds: Sequence[int]) -> torch.Tensor:
    """A bright spot between the centre and the rim, and its faint ring across the centre; light adds up to white."""
    angle = 2.0 * math.pi * uniform(seeds)
    rows, columns = drawing.centres(pixels)
    height, width = pixels.shape[2:]
    reach = side(pixels)
    aside, across = (drawing.per_case(0.28 * reach * turned, pixels) for turned in (angle.sin(), angle.cos()))
    down, right = rows - height / 2.0, columns - width / 2.0
    spot = torch.exp(-((down - aside).square() + (right - across).square()) / (2.0 * (0.15 * reach) ** 2))
    ring = ((down + 0.6 * aside).square() + (right + 0.6 * across).square()).sqrt() - 0.14 * reach
    ghost = 0.35 * torch.exp(-ring.square() / (2.0 * (0.025 * reach) ** 2))
    light = strength * torch.maximum(spot, ghost)
    return pixels + light * drawing.tint(pixels, _FLARE) * (1.0 - pixels)


def _cataract_haze(pixels: torch.Tensor, haze: tuple[float, float], seeds: Sequence[int]) -> torch.Tensor:
    """A clouded lens blurs the image and scatters a share of its light evenly over the lit field: (share, blur)."""
    share, sigma = haze
    field = (pixels.amax(dim=1, keepdim=True) / _DARKEST_TISSUE).clamp(max=1.0)
    veil = (pixels * field).sum(dim=(2, 3), keepdim=True) / field.sum(dim=(2, 3), keepdim=True).clamp(min=1.0)
    whitened = 0.5 * veil + 0.5 * veil.amax(dim=1, keepdim=True)
    return (1.0 - share) * gaussian_blur(pixels, scaled(sigma, pixels)) + share * field * whitened


def _eyelid(pixels: torch.Tensor, depth: float, seeds: Sequence[int]) -> torch.Tensor:
    """The edge of the upper or lower lid, an arc that reaches ``depth`` into the image at its middle."""
    rows, columns = drawing.centres(pixels)
    height, width = pixels.shape[2:]
    upper = drawing.per_case((uniform(seeds) < 0.5).float(), pixels)
    from_edge = upper * rows + (1.0 - upper) * (height - rows)
    arc = depth * side(pixels) * (1.0 - 0.6 * (2.0 * columns / width - 1.0).square())
    soft = 1.0 + 0.02 * side(pixels)
    return drawing.absorbed(pixels, ((arc - from_edge) / soft).clamp(0.0, 1.0), _LID)


def _eyelashes(pixels: torch.Tensor, count: float, seeds: Sequence[int]) -> torch.Tensor:
    """Exactly ``count`` blurred dark lashes that hang in from the upper or the lower edge."""
    number, height, width = int(count), *pixels.shape[2:]
    shares = uniform(seeds, 1 + 4 * number)
    places, lean, length, bend = shares[:, 1:].view(len(seeds), number, 4).unbind(dim=-1)
    upper = shares[:, :1] < 0.5
    start = torch.stack(
        (torch.where(upper, 0.0, float(height)).expand(-1, number), width * (0.1 + 0.8 * places)), dim=-1
    )
    turn = torch.where(upper, 0.25, 0.75) + 0.2 * (lean - 0.5)
    reach = side(pixels) * (0.2 + 0.2 * length)
    cover = drawing.strokes(pixels, start, turn, reach, 0.4 * (bend - 0.5), scaled(_LASH_WIDTH, pixels))
    return drawing.absorbed(pixels, _LASH_OPACITY * gaussian_blur(cover, scaled(_LASH_BLUR, pixels)), _LASH)


# fmt: off
KINDS = (
    Corruption("uneven_illumination", "Uneven illumination", "light lost at one side", "share", "xvision",
               dict.fromkeys(("fundus", "dermoscopy", "natural"), (0.2, 0.35, 0.5, 0.65, 0.8)), _uneven_illumination),
    Corruption("lens_flare", "Lens flare", "brightness of the spot", "of full range", "xvision",
               dict.fromkeys(("fundus", "natural"), (0.15, 0.3, 0.45, 0.6, 0.8)), _lens_flare),
    Corruption("cataract_haze", "Cataract haze", "light scattered, blur", "share, px at side 224", "xvision",
               {"fundus": ((0.15, 0.5), (0.3, 1.0), (0.45, 1.5), (0.6, 2.0), (0.75, 3.0))}, _cataract_haze),
    Corruption("eyelid", "Eyelid in the image", "depth of the lid", "of side", "xvision",
               {"fundus": (0.05, 0.09, 0.14, 0.20, 0.28)}, _eyelid),
    Corruption("eyelashes", "Eyelashes", "lashes", "count", "xvision", {"fundus": (2, 4, 8, 14, 22)}, _eyelashes),
)
# fmt: on
