"""What an ultrasound machine writes over a frozen frame: calipers of a measurement, lines of readings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from xvision.methods.corruptions.draws import uniform
from xvision.methods.corruptions.kind import Corruption, side

_DOTS = 9  # of the dotted line between two calipers
_CHARACTERS = 6  # in a line of readings
_DIGITS = (
    "### .#. ### ### #.# ### ### ### ### ###",
    "#.# ##. ..# ..# #.# #.. #.. ..# #.# #.#",
    "#.# .#. ### ### ### ### ### ..# ### ###",
    "#.# .#. #.. ..# ..# ..# #.# ..# #.# ..#",
    "### ### ### ### ..# ### ### ..# ### ###",
)


def _calipers(pixels: torch.Tensor, parameter: tuple[float, float], seeds: Sequence[int]) -> torch.Tensor:
    """White crosses at both ends of a dotted line, around the middle of the image, one or two such pairs.

    Args:
        parameter: number of pairs; length of a cross's arms from end to end, as a share of the side.
    """
    pairs, share = int(parameter[0]), parameter[1]
    shorter = side(pixels)
    thickness = max(1.0, 0.008 * shorter)
    drawn = uniform(seeds, pairs, 4)
    middle = torch.tensor(pixels.shape[2:]) / 2.0 + 0.24 * (drawn[:, :, :2] - 0.5) * shorter
    angle, half = 2.0 * math.pi * drawn[:, :, 2], (0.1 + 0.12 * drawn[:, :, 3]) * shorter
    reach = torch.stack([half * torch.sin(angle), half * torch.cos(angle)], dim=2)
    along = torch.linspace(-1.0, 1.0, _DOTS + 2)
    points = (middle[:, :, None] + along[:, None] * reach[:, :, None]).flatten(1, 2)
    ends = (middle[:, :, None] + along[[0, -1]][:, None] * reach[:, :, None]).flatten(1, 2)
    arm = share * shorter
    places = torch.cat([ends, ends, points], dim=1)
    long, dot = torch.full((ends.shape[1],), arm), torch.full((ends.shape[1] + points.shape[1],), thickness)
    rows = _covered(pixels.shape[2], places[:, :, 0], torch.cat([long, dot]))
    columns = _covered(pixels.shape[3], places[:, :, 1], torch.cat([dot[: len(long)], long, dot[len(long) :]]))
    ink = (rows.transpose(1, 2) @ columns).clamp(max=1.0).unsqueeze(1).to(pixels.device)
    return pixels + ink * (1.0 - pixels)


def _covered(length: int, middle: torch.Tensor, extent: torch.Tensor) -> torch.Tensor:
    """(B, n, length) The share of each pixel in a line within ``extent`` (n,) around ``middle`` (B, n)."""
    pixel = torch.arange(length, dtype=torch.float32)
    first, last = (middle - extent / 2.0).unsqueeze(2), (middle + extent / 2.0).unsqueeze(2)
    return (torch.minimum(pixel + 1.0, last) - torch.maximum(pixel, first)).clamp(min=0.0)


def _readings(pixels: torch.Tensor, parameter: tuple[float, float], seeds: Sequence[int]) -> torch.Tensor:
    """Lines of six drawn digits in white in the upper left corner, as of a frozen frame.

    Args:
        parameter: number of lines; height of a digit, as a share of the side.
    """
    lines, share = int(parameter[0]), parameter[1]
    shorter = side(pixels)
    shapes = torch.tensor([[float(cell == "#") for cell in row.replace(" ", "")] for row in _DIGITS])
    shapes = F.pad(shapes.view(5, 10, 3).transpose(0, 1), (0, 1, 0, 1))
    digits = (10.0 * uniform(seeds, lines, _CHARACTERS)).long()
    cells = shapes[digits].permute(0, 1, 3, 2, 4).reshape(len(seeds), 1, 6 * lines, 4 * _CHARACTERS)
    cell = share * shorter / 5.0
    size = (max(lines, round(6 * lines * cell)), max(_CHARACTERS, round(4 * _CHARACTERS * cell)))
    ink = F.interpolate(cells, size, mode="area").to(pixels.device)
    margin = max(1, round(0.02 * shorter))
    marked = pixels.clone()
    corner = marked[:, :, margin : margin + size[0], margin : margin + size[1]]
    corner += ink[:, :, : corner.shape[2], : corner.shape[3]] * (1.0 - corner)
    return marked


# name, title, parameter, unit, source, severities 1 to 5, function
# fmt: off
KINDS = (
    Corruption("calipers", "Calipers of a measurement", "(pairs, length of a cross)", "(number, of side)", "xvision",
               {"ultrasound": ((1, 0.03), (1, 0.045), (2, 0.05), (2, 0.065), (2, 0.08))}, _calipers),
    Corruption("readings", "Readings on a frozen frame", "(lines, height of a digit)", "(number, of side)", "xvision",
               {"ultrasound": ((1, 0.03), (2, 0.035), (3, 0.04), (4, 0.045), (5, 0.05))}, _readings),
)
# fmt: on
