"""Motion while a magnetic resonance image is taken: lines of k-space from several poses in one image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from xvision.methods.corruptions.draws import uniform
from xvision.methods.corruptions.kind import Corruption, scaled
from xvision.methods.corruptions.mri import along_drawn_axis

_NEAREST, _FARTHEST = 0.02, 0.15
"""How far from the centre of k-space a movement happens, as a share of its lines: farther out it changes little, in the
very centre it turns the whole image."""


def _kspace_motion(pixels: torch.Tensor, parameter: tuple[float, float, float], seeds: Sequence[int]) -> torch.Tensor:
    """Sudden movements between lines: blur, doubled edges and ripples along the phase axis.

    Args:
        parameter: number of movements; the turn in degrees and the shift in pixels (at the reference side) of each.
            When they happen, their sense and their direction are drawn. The pose in which the centre of k-space is
            taken is the image's own, so that it stays in place.
    """
    movements, degrees, shift = parameter
    turn, length = math.radians(degrees), scaled(shift, pixels)
    return along_drawn_axis(pixels, seeds, lambda part, keys: _moved(part, int(movements), turn, length, keys))


def _moved(pixels: torch.Tensor, movements: int, turn: float, shift: float, seeds: Sequence[int]) -> torch.Tensor:
    """Lines along the rows' axis; movements are in order of their distance from the centre and add up on each side."""
    when, where, sense, direction = uniform(seeds, 4, movements).unbind(dim=1)
    distance = (_NEAREST + (_FARTHEST - _NEAREST) * when).sort(dim=1).values
    late, positive = where < 0.5, sense < 0.5
    adds_up = ((late[:, :, None] == late[:, None, :]).float()).tril()
    signs = 2.0 * positive.float() - 1.0
    angle = (adds_up @ (turn * signs).unsqueeze(2)).squeeze(2)
    step = shift * torch.stack([torch.cos(2.0 * math.pi * direction), torch.sin(2.0 * math.pi * direction)], dim=2)
    offset = adds_up @ step
    line = torch.fft.fftfreq(pixels.shape[2])
    beyond = torch.where(late.unsqueeze(2), line, -line) > distance.unsqueeze(2)
    spectrum = torch.fft.fft(pixels, dim=2)
    for number in range(movements):
        other = torch.fft.fft(_posed(pixels, angle[:, number], offset[:, number]), dim=2)
        spectrum = torch.where(beyond[:, number, None, :, None].to(pixels.device), other, spectrum)
    signal: torch.Tensor = torch.fft.ifft(spectrum, dim=2)
    return signal.abs()


def _posed(pixels: torch.Tensor, angle: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """The images turned about their centre by ``angle`` (B,) in radians, then read at ``offset`` (B, 2) pixels (x, y).

    Cubic interpolation; the edge pixels go on beyond the border.
    """
    height, width = pixels.shape[2:]
    cosine, sine = torch.cos(angle), torch.sin(angle)
    across = torch.stack([cosine, -sine * height / width, 2.0 * offset[:, 0] / width], dim=1)
    down = torch.stack([sine * width / height, cosine, 2.0 * offset[:, 1] / height], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid.to(pixels.device), mode="bicubic", padding_mode="border", align_corners=False)


# fmt: off
KINDS = (
    Corruption("kspace_motion", "Patient motion (k-space)", "(movements, turn, shift)", "(number, degrees, px at side 224)", "xvision",
               {"mr": ((1, 1, 1), (1, 2, 2), (2, 4, 4), (2, 6, 6), (3, 8, 8))}, _kspace_motion),
)
# fmt: on
