"""The same pixels in other places: turned, mirrored, enlarged, deformed. Edge pixels are repeated beyond the border."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from xvision.methods.corruptions.draws import normal, uniform
from xvision.methods.corruptions.kind import ANY, REFERENCE_SIDE, Corruption, scaled


def _rotation(pixels: torch.Tensor, degrees: float, seeds: Sequence[int]) -> torch.Tensor:
    """Turned about the centre, clockwise or counterclockwise per case."""
    angles = math.radians(degrees) * (1.0 - 2.0 * (uniform(seeds) < 0.5).float())
    return _moved(pixels, angles.cos(), angles.sin())


def _zoom(pixels: torch.Tensor, factor: float, seeds: Sequence[int]) -> torch.Tensor:
    """Enlarged about the centre; what leaves the frame is lost."""
    shrink = torch.full((len(pixels),), 1.0 / factor)
    return _moved(pixels, shrink, torch.zeros_like(shrink))


def _moved(pixels: torch.Tensor, along: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """Read at centre + (along * x - across * y, across * x + along * y) in pixels, along and across (B,)."""
    height, width = pixels.shape[2:]
    zero = torch.zeros_like(along)
    rows = (
        torch.stack((along, -across * height / width, zero), dim=1),
        torch.stack((across * width / height, along, zero), dim=1),
    )
    grid = F.affine_grid(torch.stack(rows, dim=1).to(pixels.device), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _elastic(pixels: torch.Tensor, deviation: float, seeds: Sequence[int]) -> torch.Tensor:
    """A smooth deformation: shifts of about ``deviation`` pixels, independent from one eighth of the image to the next."""
    height, width = pixels.shape[2:]
    knots = normal(seeds, 2, _KNOTS, _KNOTS).double()
    shifts = scaled(deviation, pixels) * _between_knots(height) @ knots @ _between_knots(width).T
    across = _centres(width) + 2.0 / width * shifts[:, 0]
    down = _centres(height)[:, None] + 2.0 / height * shifts[:, 1]
    grid = torch.stack((across, down), dim=-1).to(pixels.device, torch.float32)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _between_knots(length: int) -> torch.Tensor:
    """(length, knots) float64: weights of bicubic interpolation."""
    knots = torch.eye(_KNOTS, dtype=torch.float64)[None, None]
    return F.interpolate(knots, (length, _KNOTS), mode="bicubic", align_corners=True)[0, 0]


def _centres(length: int) -> torch.Tensor:
    return (2.0 * torch.arange(length, dtype=torch.float64) + 1.0) / length - 1.0


def _laterality_flip(pixels: torch.Tensor, share: float, seeds: Sequence[int]) -> torch.Tensor:
    """Left and right exchanged."""
    return pixels.flip(3)


def _orientation(pixels: torch.Tensor, share: float, seeds: Sequence[int]) -> torch.Tensor:
    """A quarter, half or three-quarter turn, per case; a turned image that is not square is resized to the frame."""
    turns = 1 + (3.0 * uniform(seeds)).long()
    turned = [_quarter_turns(case[None], int(count)) for case, count in zip(pixels, turns, strict=True)]
    return torch.cat(turned)


def _quarter_turns(image: torch.Tensor, count: int) -> torch.Tensor:
    turned = image.rot90(count, (2, 3))
    if turned.shape == image.shape:
        return turned
    return F.interpolate(turned, image.shape[2:], mode="bilinear", antialias=True)


_KNOTS = 9
_ONCE = (1.0, 1.0, 1.0, 1.0, 1.0)
_OWN = "xvision"
_PIXELS = f"px at side {REFERENCE_SIDE}"

# fmt: off
KINDS = (
    Corruption("rotation", "Turned a little", "angle", "degrees", _OWN, {ANY: (2, 4, 7, 11, 16)}, _rotation),
    Corruption("zoom", "Enlarged", "magnification", "times", _OWN, {ANY: (1.05, 1.1, 1.16, 1.23, 1.35)}, _zoom),
    Corruption("elastic", "Deformed", "standard deviation of the shift", _PIXELS, _OWN, {ANY: (0.8, 1.5, 2.3, 3.2, 4.3)},
               _elastic),
    Corruption("laterality_flip", "Left and right exchanged", "mirrored", "all or nothing", _OWN,
               dict.fromkeys(("xray", "ct", "mr", "ultrasound", "fundus"), _ONCE), _laterality_flip, label_changing=True),
    Corruption("orientation", "Wrong orientation", "quarter turns", "all or nothing", _OWN, {ANY: _ONCE}, _orientation,
               label_changing=True),
)
# fmt: on
