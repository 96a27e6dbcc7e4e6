"""Marks that carry no diagnosis: letters, borders and lines over the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from xvision.methods.corruptions.draws import uniform
from xvision.methods.corruptions.kind import ANY, Corruption, scaled, side

_LETTER_R = (
    "####.",
    "#...#",
    "#...#",
    "####.",
    "#.#..",
    "#..#.",
    "#...#",
)


def _side_marker(pixels: torch.Tensor, height: float, seeds: Sequence[int]) -> torch.Tensor:
    """A white letter R in the upper left corner, where a lead marker names the patient's right side."""
    shorter = side(pixels)
    rows = max(3, round(height * shorter))
    columns = max(2, round(rows * len(_LETTER_R[0]) / len(_LETTER_R)))
    letter = pixels.new_tensor([[float(cell == "#") for cell in line] for line in _LETTER_R])
    ink = F.interpolate(letter[None, None], (rows, columns), mode="area")[0, 0]
    margin = max(1, round(0.04 * shorter))
    marked = pixels.clone()
    corner = marked[:, :, margin : margin + rows, margin : margin + columns]
    corner += ink[: corner.shape[2], : corner.shape[3]] * (1.0 - corner)
    return marked


def _collimation(pixels: torch.Tensor, width: float, seeds: Sequence[int]) -> torch.Tensor:
    """The border blacked out on all four sides, as by the shutters of the X-ray tube; a border ends within a pixel."""
    thickness = width * side(pixels)
    rows, columns = (_open_share(length, thickness) for length in pixels.shape[2:])
    return pixels * torch.outer(rows, columns).to(pixels.device)


def _open_share(length: int, thickness: float) -> torch.Tensor:
    """How much of each of ``length`` pixels in a line the shutters at both ends leave open."""
    pixel = torch.arange(length, dtype=torch.float32)
    return (torch.minimum(pixel + 1.0, length - pixel) - thickness).clamp(0.0, 1.0)


def _grid_lines(pixels: torch.Tensor, depth: float, seeds: Sequence[int]) -> torch.Tensor:
    """The shadow of an anti-scatter grid: lines along the rows or the columns, per case, ``depth`` of the brightness."""
    period = max(3.0, scaled(_GRID_PERIOD, pixels))
    upright, phase = uniform(seeds, 2).to(pixels.device).unbind(dim=1)
    height, width = pixels.shape[2:]
    across, down = (torch.arange(length, device=pixels.device) / period for length in (width, height))
    turns = torch.where((upright < 0.5)[:, None, None], across[None, None, :], down[None, :, None])
    shadow = 0.5 + 0.5 * torch.sin(2.0 * torch.pi * (turns + phase[:, None, None]))
    return pixels * (1.0 - depth * shadow).unsqueeze(1)


_GRID_PERIOD = 8.0

# fmt: off
KINDS = (
    Corruption("burnt_in_text", "Side marker burnt in", "letter height", "of side", "xvision",
               {ANY: (0.12, 0.15, 0.18, 0.22, 0.27)}, _side_marker),
    Corruption("collimation", "Collimator border", "border width", "of side", "xvision",
               {"xray": (0.02, 0.04, 0.06, 0.09, 0.12)}, _collimation),
    Corruption("grid_lines", "Grid lines", "depth", "of brightness", "xvision",
               {"xray": (0.04, 0.08, 0.13, 0.2, 0.3)}, _grid_lines),
)
# fmt: on
